"""The JupyterLab extension as a user meets it: find models, explore one, restart, reload, hostile names."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import Lab, Notebook
from .memory_panel import THREE, MemoryPanel


@pytest.fixture
def panel(lab: Lab) -> Iterator[MemoryPanel]:
    panel = MemoryPanel(lab)
    yield panel
    panel.close_views()


def opened(lab: Lab, panel: MemoryPanel, *cells: str) -> Notebook:
    """A notebook whose first cell has run; the panel follows it."""
    notebook = lab.open(list(cells))
    notebook.run(0)
    return notebook


def test_models_are_found_scanned_explored_and_read_from_python(
    lab: Lab, panel: MemoryPanel, tmp_path: Path
) -> None:
    notebook = opened(lab, panel, THREE)
    panel.model("model")
    assert panel.names == ["model", "gla", "lstm"]
    assert "819 k parameters · cpu · float32 · eval" in panel.model("model").inner_text()

    panel.press("model", "toggle")
    panel.layers().nth(3).wait_for()
    assert panel.layers().first.locator(".jp-ess-mark").inner_text() == "guessed"
    panel.press("model", "scan")
    panel.model("model").get_by_text("4 of 4 layers confirmed").wait_for()
    assert panel.root.locator(".jp-ess-sound").count() == 4

    panel.press("model", "explore")
    explorer = panel.views.locator(".ess-explorer")
    explorer.locator(".ess-state[data-phase=ready]").wait_for()
    notebook.execute("from ess_widgets import lab as memory; explorer = memory.opened('model')")
    explorer.locator("[data-part=text]").fill("What is past is prologue; what is past is prologue.")
    lab.page.wait_for_function(
        "async (path) => (await lab.execute(path, 'explorer.text')).text.includes('prologue')",
        arg=notebook.path,
    )
    notebook.execute("await explorer.wait()")
    picture = explorer.locator("canvas").first
    box = picture.bounding_box()
    assert box is not None
    before = notebook.execute("explorer.selection.position")
    lab.page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    lab.page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    lab.page.wait_for_function(
        "async ([path, before]) => (await lab.execute(path, 'explorer.selection.position')).text !== before",
        arg=[notebook.path, before],
    )
    for theme in ("light", "dark"):
        lab.set_theme(theme)
        lab.page.locator("#jupyterlab-splash").wait_for(state="detached")
        lab.settle()
        target = Path(os.environ.get("ESS_WIDGETS_PICTURES") or tmp_path) / f"panel-{theme}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        lab.page.screenshot(path=target)
    assert lab.errors == []


def test_a_restart_is_told_and_the_view_opens_again(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, THREE)
    panel.press("model", "explore")
    panel.views.locator(".ess-explorer").wait_for()
    notebook.restart()
    panel.views.get_by_text("The kernel was restarted").wait_for()
    panel.root.get_by_text("torch has not been imported").wait_for()
    assert panel.names == []
    notebook.run(0)
    panel.model("model")
    panel.views.get_by_role("button", name="Try again").click()
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()


def test_a_restart_by_another_page_is_told(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, THREE)
    panel.press("model", "explore")
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    notebook.save()
    kernel = lab.page.evaluate("(path) => lab.kernel(path).id", notebook.path)
    restart = f"{lab.server.url}/api/kernels/{kernel}/restart?token={lab.server.token}"
    assert lab.page.request.post(restart).ok
    panel.views.get_by_text("restarted by another page").wait_for()
    panel.root.get_by_text("Reload this one").wait_for()
    with lab.page.expect_navigation():
        panel.root.get_by_role("button", name="Reload the page").click()
    lab.page.wait_for_function("() => window.jupyterapp && jupyterapp.restored.then(() => true)")
    lab.show(notebook.path)
    MemoryPanel(lab).root.get_by_text("torch has not been imported").wait_for()
    notebook.run(0)
    panel.model("model")


def test_a_notebook_without_a_kernel_is_told(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, THREE)
    panel.press("model", "explore")
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    lab.page.evaluate("(path) => lab.panel(path).sessionContext.shutdown()", notebook.path)
    panel.root.get_by_text(f"{notebook.path} has no kernel").wait_for()
    panel.views.get_by_text("no longer has the kernel").wait_for()
    panel.views.get_by_role("button", name="Try again").click()
    panel.views.get_by_text(f"{notebook.path} has no kernel").wait_for()
    lab.page.evaluate("(path) => lab.panel(path).sessionContext.startKernel()", notebook.path)
    panel.root.get_by_text("torch has not been imported").wait_for()
    notebook.run(0)
    panel.model("model")
    panel.views.get_by_role("button", name="Try again").click()
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()


def saved_layout(lab: Lab) -> None:
    """Wait until the server's copy of the layout knows the view and the panel."""
    lab.page.wait_for_function(
        """async (token) => {
          const answer = await fetch(`/lab/api/workspaces/default?token=${token}`);
          const text = answer.ok ? await answer.text() : '';
          return text.includes('ess-widgets-views:') && text.includes('"current":"ess-widgets-memory"');
        }""",
        arg=lab.server.token,
    )


def test_panel_and_view_come_back_with_the_page(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, THREE)
    panel.press("model", "explore")
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    notebook.save()
    saved_layout(lab)
    lab.page.goto(f"{lab.server.url}/lab?token={lab.server.token}")
    lab.page.wait_for_function("() => window.jupyterapp && jupyterapp.restored.then(() => true)")
    panel.root.wait_for()
    panel.model("model")
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    assert (
        notebook.execute("from ess_widgets import lab as m; print(m.opened('model').text[:8])").strip()
        == "The past"
    )


SLOW = """
import time
ticks = []
class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model
    def forward(self, ids):
        logits = self.inner(ids)
        for _ in range(3000):
            time.sleep(0.01)
            ticks.append(time.time())
            logits = torch.relu(logits)
        return logits
slow = Slow()
"""


@pytest.mark.parametrize("what", ["scan", "diagnose"])
def test_what_is_slow_is_cancelled_and_keeps_nobody_waiting(lab: Lab, panel: MemoryPanel, what: str) -> None:
    notebook = opened(lab, panel, THREE + SLOW, "late, _ = demo.load('bytes-LA')")
    panel.press("slow", what)
    told = panel.model("slow") if what == "scan" else panel.views
    told.locator("progress").wait_for()
    notebook.run(1)
    panel.model("late")
    assert told.locator("progress").is_visible()
    told.get_by_role("button", name="Stop").click()
    told.locator("progress").wait_for(state="detached")
    if what == "scan":
        assert panel.model("slow").locator("[data-action=scan]").inner_text() == "Scan"
        assert panel.root.locator("[role=alert]").count() == 0
    else:
        panel.views.get_by_role("button", name="Try again").wait_for()
    lab.page.wait_for_timeout(300)
    assert ast.literal_eval(notebook.execute("time.time() - ticks[-1]")) > 0.2


def test_an_explorer_follows_weights_and_is_told_of_another_object(lab: Lab, panel: MemoryPanel) -> None:
    write = "with torch.no_grad():\n    for p in model.parameters(): p.mul_(0.5)"
    again = "model = ew.demo.load('bytes-GLA')[0]"
    notebook = opened(lab, panel, THREE, write, again, "del model")
    panel.press("model", "explore")
    explorer = panel.views.locator(".ess-explorer")
    explorer.locator(".ess-state[data-phase=ready]").wait_for()
    explorer.locator("[data-part=text]").fill("All the past is here, and all the past is gone.")
    notebook.execute("from ess_widgets import lab as memory; old = memory.opened('model')")
    lab.page.wait_for_function(
        "async (path) => (await lab.execute(path, 'old.text')).text.includes('All the past')",
        arg=notebook.path,
    )
    notebook.execute("await old.wait(); before = old.captured")
    notebook.run(1)
    lab.page.wait_for_function(
        "async (path) => (await lab.execute(path, 'old.captured is before')).text === 'False'",
        arg=notebook.path,
    )
    bar = panel.views.locator(".jp-ess-bar")
    assert bar.is_hidden()

    notebook.run(2)
    bar.get_by_text("model is another object now").wait_for()
    bar.get_by_role("button", name="Show the new one").click()
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    bar.wait_for(state="hidden")
    notebook.execute("new = memory.opened('model')")
    assert (
        notebook.execute("new is old, old.comm is None, new.text == old.text").strip()
        == "(False, True, True)"
    )
    notebook.run(3)
    bar.get_by_text("model is no longer in the namespace").wait_for()


def test_a_view_goes_with_its_notebook_to_another_name(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, THREE)
    panel.press("model", "explore")
    explorer = panel.views.locator(".ess-explorer .ess-state[data-phase=ready]")
    explorer.wait_for()
    notebook.rename("renamed.ipynb")
    panel.root.locator(".jp-ess-place", has_text="renamed.ipynb").wait_for()
    notebook.execute("from ess_widgets import lab as memory; old = memory.opened('model')")
    lab.page.get_by_role("button", name="Reopen").click()
    lab.page.wait_for_function(
        "async (path) => (await lab.execute(path, 'old.comm is None')).text === 'True'", arg=notebook.path
    )
    explorer.wait_for()
    panel.close_views()
    lab.page.wait_for_function(
        "async (path) => (await lab.execute(path, 'len(memory.shown._shown)')).text === '0'",
        arg=notebook.path,
    )


def test_a_diagnosis_is_told_that_weights_have_changed(lab: Lab, panel: MemoryPanel) -> None:
    write = "with torch.no_grad():\n    for p in model.parameters(): p.mul_(0.5)"
    notebook = opened(lab, panel, THREE, write)
    panel.press("model", "diagnose")
    panel.views.locator(".ess-diagnosis table").wait_for()
    notebook.run(1)
    bar = panel.views.locator(".jp-ess-bar")
    bar.get_by_text("The weights of model have changed since.").wait_for()
    bar.get_by_role("button", name="Run again").click()
    bar.wait_for(state="hidden")
    panel.views.locator(".ess-diagnosis table").wait_for()
    assert bar.is_hidden()


HOSTILE = """
import torch, time
log = []
class Trap(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    @property
    def device(self): log.append("device"); time.sleep(3600)
    @property
    def config(self): log.append("config"); raise RuntimeError("no")
    def __repr__(self): log.append("repr"); raise RuntimeError("no")
    def __len__(self): log.append("len"); raise RuntimeError("no")
class Liar:
    @property
    def __class__(self): log.append("class"); time.sleep(3600)
    def __getattr__(self, name): log.append(name); raise RuntimeError(name)
Trap.__name__ = "<b onclick=alert(1)>Trap</b>"
liar = Liar()
globals()["<img src=x onerror=window.hacked=1>"] = Trap()
globals()["'); import os #"] = Trap()
for n in range(1000):
    globals()[f"variable_{n}"] = object()
del n
"""


def test_hostile_names_and_classes_are_only_text(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, HOSTILE)
    panel.model("<img src=x onerror=window.hacked=1>")
    panel.model("'); import os #")
    assert ast.literal_eval(notebook.execute("log")) == []
    assert panel.root.locator("img, b").count() == 0
    assert lab.page.evaluate("() => window.hacked") is None
    assert "<b onclick" in panel.model("'); import os #").inner_text()
    names = notebook.execute("print(len([k for k in globals() if k.startswith('ess')]))")
    assert names.strip() == "0"


def test_while_a_cell_runs_nothing_is_asked_and_a_model_can_be_explored(lab: Lab, panel: MemoryPanel) -> None:
    training = (
        "import time\nend = time.time() + 20\nwhile time.time() < end and not globals().get('enough'):\n"
    )
    training += "    time.sleep(0.01)\nlate, _ = demo.load('bytes-LA')"
    notebook = opened(lab, panel, THREE, training)
    panel.model("model")
    notebook.start(1)
    panel.root.get_by_text("busy", exact=True).wait_for()
    assert panel.root.locator(".jp-ess-icon-button").is_disabled()
    panel.press("model", "explore")
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    assert panel.root.get_by_text("busy", exact=True).is_visible()
    assert "late" not in panel.names
    panel.model("late")


def test_the_context_menu_knows_the_name_under_the_pointer(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, THREE, "print(gla, x)")
    panel.model("gla")
    line = notebook.cell(1).locator(".cm-line").first
    line.get_by_text("gla").first.wait_for()
    at = lab.page.evaluate(
        """(node) => { const range = document.createRange(); const walk = document.createTreeWalker(node, 4);
          for (let text = walk.nextNode(); text; text = walk.nextNode()) {
            const k = text.data.indexOf('gla'); if (k < 0) continue;
            range.setStart(text, k + 1); range.setEnd(text, k + 2);
            const { x, y, width, height } = range.getBoundingClientRect();
            return [x + width / 2, y + height / 2];
          } }""",
        line.element_handle(),
    )
    lab.page.mouse.click(*at, button="right")
    lab.page.get_by_text("Explore memory of `gla`").click()
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    title = lab.page.locator(".lm-TabBar-tabLabel", has_text="gla")
    assert title.count() == 1


def test_code_is_inserted_and_runs(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, THREE)
    panel.press("gla", "code")
    lab.page.wait_for_function("(path) => lab.panel(path).content.widgets.length === 2", arg=notebook.path)
    notebook.run(1)
    notebook.cell(1).locator(".ess-explorer").wait_for()
    assert notebook.execute("explorer.kind") == "'entropy'"


def test_a_model_without_text_asks_what_to_read(lab: Lab, panel: MemoryPanel) -> None:
    opened(lab, panel, THREE)
    panel.press("lstm", "scan")
    dialog = lab.page.locator(".jp-Dialog")
    dialog.get_by_text("What shall lstm read?").wait_for()
    dialog.get_by_role("button", name="Go on").click()
    panel.model("lstm").get_by_text("1 of 1 layers confirmed").wait_for()


def test_the_panel_follows_the_notebook_or_console_in_front(lab: Lab, panel: MemoryPanel) -> None:
    first = opened(lab, panel, "x = 1")
    panel.root.get_by_text("torch has not been imported").wait_for()
    second = opened(lab, panel, THREE)
    panel.model("gla")
    front = "(path) => jupyterapp.shell.activateById(lab.panel(path).id)"
    lab.page.evaluate(front, first.path)
    panel.root.get_by_text("torch has not been imported").wait_for()
    assert panel.names == []
    # A console that shares the notebook's kernel may not talk to widgets itself.
    console = """async (path) => {
      const options = { kernelPreference: { id: lab.kernel(path).id } };
      window.shared = (await jupyterapp.commands.execute('console:create', options)).id;
    }"""
    lab.page.evaluate(console, second.path)
    panel.root.locator(".jp-ess-place", has_text="Console").wait_for()
    panel.press("gla", "explore")
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    # Back to what is the last of its kind already.
    lab.page.evaluate(front, second.path)
    panel.root.locator(".jp-ess-place", has_text=second.path).wait_for()
    lab.page.evaluate("() => jupyterapp.shell.activateById(shared)")
    panel.root.locator(".jp-ess-place", has_text="Console").wait_for()
    lab.page.evaluate(
        "() => [...jupyterapp.shell.widgets('main')].find((one) => one.id === shared).dispose()"
    )


@pytest.mark.parametrize(
    ("hidden", "line"), [("ess_widgets", "%pip install ess-widgets"), ("torch", "%pip install torch")]
)
def test_what_the_kernel_lacks_is_said_with_the_line_that_installs_it(
    lab: Lab, panel: MemoryPanel, hidden: str, line: str
) -> None:
    hide = f"""
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {hidden!r} else find(name, *rest)
"""
    notebook = opened(lab, panel, hide)
    panel.root.locator("code", has_text=line).wait_for()
    panel.root.get_by_role("button", name="Insert in a cell").click()
    lab.page.wait_for_function("(path) => lab.panel(path).content.widgets.length === 2", arg=notebook.path)
    assert line in notebook.cell(1).inner_text()


def test_settings_hold_at_once_and_after_a_reload(lab: Lab, panel: MemoryPanel) -> None:
    notebook = opened(lab, panel, THREE)
    panel.press("model", "explore")
    panel.views.locator(".ess-explorer .ess-state[data-phase=ready]").wait_for()
    pictures = "[...document.querySelectorAll('.jp-ess-view canvas')].map((one) => one.toDataURL()).join()"
    before = lab.page.evaluate(pictures)
    try:
        lab.page.evaluate("() => jupyterapp.commands.execute('settingeditor:open', {query: 'Memory'})")
        form = lab.page.locator(".jp-SettingsForm")
        form.locator("[id$=_colours]").select_option(label="magma")
        form.locator("[id$=_kind]").select_option(label="tolerance")
        form.locator("[id$=_tol]").fill("0.25")
        colours = "() => document.body.style.getPropertyValue('--ess-colours') === 'magma'"
        lab.page.wait_for_function(colours)
        lab.page.locator(".lm-TabBar-tab", has_text="Settings").locator(".lm-TabBar-tabCloseIcon").click()
        lab.page.wait_for_function(f"(before) => {pictures} !== before", arg=before)
        lab.page.wait_for_function(
            """async (token) => (await (await fetch(`/lab/api/settings/ess-widgets:plugin?token=${token}`)).json())
              .settings.tol === 0.25""",
            arg=lab.server.token,
        )
        panel.press("gla", "explore")
        panel.views.locator(".ess-explorer").nth(1).wait_for()
        notebook.execute("from ess_widgets import lab as memory; new = memory.opened('gla')")
        assert notebook.execute("new.kind, new.tol").strip() == "('tolerance', 0.25)"
        lab.load()
        lab.page.wait_for_function(colours)
    finally:
        write = """async (token) => (await fetch(`/lab/api/settings/ess-widgets:plugin?token=${token}`,
          { method: 'PUT', body: JSON.stringify({ raw: '{}' }) })).status"""
        lab.page.evaluate(write, lab.server.token)
        lab.load()


def test_the_tour_opens_from_the_launcher(lab: Lab) -> None:
    lab.page.evaluate("async () => { await jupyterapp.commands.execute('launcher:create'); }")
    lab.page.locator(".jp-LauncherCard", has_text="Memory Tour").last.click()
    lab.page.locator(".lm-TabBar-tabLabel", has_text="ess-widgets-tour.ipynb").wait_for()
    assert (lab.server.notebooks / "ess-widgets-tour.ipynb").is_file()
    lab.show("ess-widgets-tour.ipynb")  # it is open already; the fixture closes it with its kernel
