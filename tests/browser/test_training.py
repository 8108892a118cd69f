"""The training view in a real JupyterLab: it follows a running cell, shows the operators of a step, and survives without a kernel."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator

from .lab import Lab, Notebook
from .test_layout import TEXTS, faults

MODEL = """
import torch, ess_widgets as ew
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

class Block(nn.Module):
    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads, self.qkv, self.mlp = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, l, d = x.shape
        q, k, v = self.qkv(x).view(b, l, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, l, d)
        return x + torch.tanh(self.mlp(x + y))

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Embedding(16, 32), Block(), Block(), nn.Linear(32, 16))
optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
monitor = ew.learn.Monitor(model, torch.randint(16, (2, 24)), every=5)
view = monitor.view()
view
"""
TRAIN = """
import time
def train(steps, pause=0.0):
    for _ in range(steps):
        half = torch.randint(16, (8, 12))
        ids = torch.cat([half, half], 1)
        logits = model(ids[:, :-1])
        loss = cross_entropy(logits.mT, ids[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        monitor.step(loss=loss, accuracy=(logits.argmax(-1) == ids[:, 1:])[:, 12:].float().mean())
        time.sleep(pause)
train(40)
"""


class TrainingPage:
    """The view that the first cell shows."""

    def __init__(self, lab: Lab, notebook: Notebook) -> None:
        self.lab, self.notebook = lab, notebook
        self.root: Locator = notebook.cell(0).locator(".ess-training")
        self.chart: Locator = self.root.locator("[data-part=training]")

    def read(self, expression: str) -> Any:
        return ast.literal_eval(self.notebook.execute(f"print(repr({expression}))"))

    def expect(self, expression: str, value: Any) -> None:
        give_up = time.monotonic() + 30
        while (found := self.read(expression)) != value:
            assert time.monotonic() < give_up, f"{expression} is {found!r}, not {value!r}"

    def shows(self, text: str) -> None:
        self.root.locator("[data-part=status]", has_text=text).wait_for(timeout=30_000)

    def at(self, step: float, last: float) -> tuple[float, float]:
        """Where a step is on the page; the plot lies between 54 px from the left and 14 px from the right."""
        box = self.chart.bounding_box()
        assert box is not None
        return box["x"] + 54 + (box["width"] - 68) * step / last, box["y"] + 90

    def legend(self) -> list[str]:
        return self.root.locator(".ess-legend-entry").all_inner_texts()


@pytest.fixture(scope="module")
def page(shared_lab: Lab) -> Iterator[TrainingPage]:
    notebook = shared_lab.open([MODEL, TRAIN])
    notebook.run_all()
    notebook.execute("await view.wait()")
    yield TrainingPage(shared_lab, notebook)
    shared_lab.reset()
    shared_lab.set_size(1280, 900)


def test_lines_and_operators_are_there(page: TrainingPage) -> None:
    page.shows("operators of step 40")
    assert page.chart.get_attribute("aria-valuenow") == "40"
    assert "step 40, the newest: 1 " in (page.chart.get_attribute("aria-valuetext") or "")
    texts = page.legend()
    assert len(texts) == 2 and texts[0].startswith("layer 1") and texts[1].startswith("layer 2")
    values = page.read("monitor.frame().query('step == 40').ess.round(2).tolist()")
    for text, value in zip(texts, values, strict=True):
        assert float(text.split()[-1]) == pytest.approx(value, abs=0.011)


def test_clicking_chooses_a_step(page: TrainingPage) -> None:
    page.chart.scroll_into_view_if_needed()
    x, y = page.at(11, 40)
    page.lab.page.mouse.click(x, y)
    page.expect("view.step", 10)
    page.shows("operators of step 10")
    page.notebook.execute("await view.wait()")
    wanted = page.read("monitor.snapshots.at(10)['1'].matrix[0].flatten()[:30].tolist()")
    found = page.read(
        "torch.frombuffer(bytearray(view.operator_data['matrix']), dtype=torch.float32)[:30].tolist()"
    )
    assert found == wanted
    # Dragging goes on choosing; another double click follows the newest again.
    page.lab.page.mouse.move(*page.at(11, 40))
    page.lab.page.mouse.down()
    page.lab.page.mouse.move(*page.at(30, 40), steps=4)
    page.lab.page.mouse.up()
    page.expect("view.step", 30)
    page.lab.page.mouse.dblclick(*page.at(30, 40))
    page.expect("view.step", None)
    page.shows("operators of step 40")


def test_hovering_reads_in_all_panels(page: TrainingPage) -> None:
    page.chart.scroll_into_view_if_needed()
    page.lab.page.mouse.move(*page.at(20, 40))
    page.lab.settle()
    values = page.read("monitor.frame().query('step == 20').ess.tolist()")
    for text, value in zip(page.legend(), values, strict=True):
        assert float(text.split()[-1]) == pytest.approx(value, abs=0.011)
    assert page.read("view.step") is None
    page.lab.page.mouse.move(0, 0)


def test_python_chooses_and_keys_walk(page: TrainingPage) -> None:
    page.notebook.execute("view.step = 23")
    page.shows("operators of step 25")
    assert page.chart.get_attribute("aria-valuenow") == "25"
    page.chart.focus()
    page.lab.page.keyboard.press("ArrowLeft")
    page.expect("view.step", 20)
    page.lab.page.keyboard.press("Home")
    page.shows("operators of step 0")
    page.lab.page.keyboard.press("Escape")
    page.expect("view.step", None)
    page.shows("operators of step 40")
    page.root.locator("input[value=ceiling]").first.check(force=True)
    page.expect("view.shown", "ceiling")
    page.notebook.execute("view.shown = 'ess'")


def test_it_follows_a_running_cell(page: TrainingPage) -> None:
    """While the cell runs, the page shows later and later steps, and a step that is chosen meanwhile."""
    page.lab.page.evaluate(
        """(path) => {
          const begun = (window.begun = { over: false });
          lab.kernel(path).requestExecute({ code: 'train(60, 0.1)', store_history: false }).done.then(() => (begun.over = true));
        }""",
        page.notebook.path,
    )
    for step in (45, 60):
        page.lab.page.wait_for_function(
            "([element, step]) => Number(element.getAttribute('aria-valuemax')) >= step",
            arg=[page.chart.element_handle(), step],
            timeout=60_000,
        )
        assert not page.lab.page.evaluate("() => begun.over")
    page.chart.scroll_into_view_if_needed()
    page.chart.focus()
    page.lab.page.keyboard.press("Home")
    page.shows("operators of step 0")
    assert not page.lab.page.evaluate("() => begun.over")
    page.lab.page.keyboard.press("Escape")
    page.lab.page.wait_for_function("() => begun.over", timeout=120_000)
    page.shows("operators of step 100")
    page.expect("monitor.steps", 100)
    page.root.locator("[data-part=training][aria-valuemax='100']").wait_for(timeout=30_000)
    assert page.read("monitor.failures") == {}
    assert page.lab.errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [700, 1280, 1700])
def test_nothing_overlaps_is_cut_off_or_pale(
    page: TrainingPage, theme: str, width: int, tmp_path: Path
) -> None:
    page.lab.set_theme(theme)
    page.lab.set_size(width, 1300)
    page.lab.settle()
    target = Path(os.environ.get("ESS_WIDGETS_PICTURES") or tmp_path) / f"training-{theme}-{width}.png"
    with Image.open(page.lab.screenshot(page.root, target)) as image:
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50, "the picture is almost empty"
    assert faults(page.root.evaluate(TEXTS)) == []
    overflow = page.root.evaluate("(root) => root.scrollWidth - root.clientWidth")
    assert overflow <= 1, f"the view is {overflow} px wider than its place"


def test_hidden_lines(page: TrainingPage) -> None:
    entry = page.root.locator(".ess-legend-entry").first
    entry.click()
    assert entry.get_attribute("aria-pressed") == "false"
    assert "layer 1" in entry.inner_text() or entry.inner_text().startswith("layer")
    assert not (page.chart.get_attribute("aria-valuetext") or "").startswith("step 100, the newest: 1 ")
    entry.click()
    assert entry.get_attribute("aria-pressed") == "true"


def test_the_curves_answer_without_a_kernel(page: TrainingPage) -> None:
    """What is shown lives in the page: with the kernel gone, hovering still reads it and clicking still chooses."""
    page.lab.set_theme("light")
    page.notebook.execute("view.step = None; await view.wait()")
    last = int(page.chart.get_attribute("aria-valuemax") or 0)
    page.lab.page.evaluate("(path) => lab.kernel(path).shutdown()", page.notebook.path)
    page.chart.scroll_into_view_if_needed()
    page.lab.page.mouse.move(*page.at(last / 2, last))
    page.lab.settle()
    before = page.legend()
    page.lab.page.mouse.move(*page.at(0, last))
    page.lab.settle()
    assert len(before) == 2 and page.legend() != before
    page.lab.page.mouse.click(*page.at(last / 2, last))
    page.lab.settle()
    assert int(page.chart.get_attribute("aria-valuenow") or 0) == pytest.approx(last / 2, abs=2.5)
