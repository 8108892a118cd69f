"""The helper itself, with a real anywidget and a real ipywidget."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from .lab import Lab

COUNTER = '''
import anywidget, ipywidgets, traitlets

class Counter(anywidget.AnyWidget):
    _esm = """
    export default { render({ model, el }) {
        const button = document.createElement("button");
        button.className = "counter";
        button.style.height = "1200px";
        const draw = () => { button.textContent = "count " + model.get("value"); };
        button.onclick = () => { model.set("value", model.get("value") + 1); model.save_changes(); };
        model.on("change:value", draw);
        draw();
        el.append(button);
    } };
    """
    value = traitlets.Int(0).tag(sync=True)

counter = Counter()
counter
'''


def test_a_widget_talks_to_the_kernel_both_ways(lab: Lab) -> None:
    notebook = lab.open([COUNTER, "slider = ipywidgets.IntSlider(3)\nslider"])
    notebook.run_all()
    button = notebook.panel.locator("button.counter")
    button.click()
    button.get_by_text("count 1").wait_for()
    assert notebook.execute("counter.value") == "1"
    notebook.execute("counter.value = 41")
    button.get_by_text("count 41").wait_for()
    assert notebook.panel.locator(".widget-readout").inner_text() == "3"
    assert lab.errors == []


def test_no_question_about_news_covers_the_notebook(lab: Lab) -> None:
    fetch_news = lab.page.evaluate(
        """async () => {
          const url = '/lab/api/settings/@jupyterlab/apputils-extension:notification?token=' + TOKEN;
          return (await (await fetch(url)).json()).schema.properties.fetchNews.default;
        }""".replace("TOKEN", f"'{lab.server.token}'")
    )
    assert fetch_news == "false"
    assert lab.page.locator(".Toastify__toast").count() == 0


def test_a_screenshot_shows_all_of_a_tall_element_in_both_themes(lab: Lab, tmp_path: Path) -> None:
    notebook = lab.open([COUNTER])
    notebook.run_all()
    button = notebook.panel.locator("button.counter")
    button.wait_for()
    cell = notebook.cell(0)
    backgrounds = set()
    for theme in ("light", "dark"):
        lab.set_theme(theme)
        for width in (700, 1600):
            lab.set_size(width)
            with Image.open(lab.screenshot(button, tmp_path / f"{theme}-{width}.png")) as image:
                assert image.height >= 1200
        with Image.open(lab.screenshot(cell, tmp_path / "cell.png")) as image:
            backgrounds.add(image.convert("RGB").getpixel((2, image.height // 2)))
    assert len(backgrounds) == 2
    assert lab.page.viewport_size == {"width": 1600, "height": 900}


def test_kernel_errors_interrupts_and_restarts(lab: Lab) -> None:
    notebook = lab.open(["x = 1", "while True:\n    x += 1", "1 / 0"])
    assert notebook.run(0) == []
    notebook.start(1)
    lab.page.wait_for_function("(path) => lab.kernel(path).status === 'busy'", arg=notebook.path)
    notebook.interrupt()
    notebook.wait_idle()
    assert notebook.outputs(1)[0]["ename"] == "KeyboardInterrupt"
    assert int(notebook.execute("x")) > 1
    assert notebook.run(2)[0]["ename"] == "ZeroDivisionError"
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        notebook.execute("1 / 0")
    notebook.restart()
    with pytest.raises(AssertionError, match="NameError"):
        notebook.execute("x")


def test_a_failing_cell_fails_the_run(lab: Lab) -> None:
    notebook = lab.open(["raise ValueError('planted')"])
    with pytest.raises(AssertionError, match="planted"):
        notebook.run_all()


def test_closing_and_reopening_keeps_the_kernel(lab: Lab) -> None:
    notebook = lab.open(["y = 7\nprint(y)"])
    notebook.run_all()
    saved = notebook.save()
    assert saved["cells"][0]["outputs"][0]["text"] == ["7\n"]
    notebook.close()
    notebook.reopen()
    assert notebook.execute("y") == "7"
    assert notebook.outputs(0)[0]["output_type"] == "stream"
