"""The explorer in a real JupyterLab with the real SmolLM2: every view follows, and Python hears of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .explorer_page import LOAD, TEXT, ExplorerPage
from .lab import Lab

CELL = f"explorer = ew.explore(model, tokenizer, {TEXT!r}, kind='tolerance', tol=1e-2)\nexplorer"


@pytest.fixture(scope="module")
def page(shared_lab: Lab) -> Iterator[ExplorerPage]:
    """One explorer for the tests of this file."""
    shared_lab.errors.clear()
    notebook = shared_lab.open([LOAD, CELL])
    shared_lab.set_size(1280, 1200)
    notebook.run_all()
    page = ExplorerPage(shared_lab, notebook)
    page.ready()
    yield page
    shared_lab.reset()


@pytest.fixture(autouse=True)
def no_errors(page: ExplorerPage) -> Iterator[None]:
    """Nothing may be left in the browser's console."""
    page.lab.errors.clear()
    yield
    assert page.lab.errors == []


def test_it_opens_with_everything_there(page: ExplorerPage) -> None:
    assert len(page.tokens()) == page.read("len(explorer.tokens['labels'])") > 60
    assert page.part("text").input_value() == TEXT
    for name in ("grid", "layer", "head", "tol", "readout"):
        assert page.part(name).is_visible()


def test_typing_reruns_the_model_and_everything_follows(page: ExplorerPage) -> None:
    before = page.read("explorer.profile.shape")
    area = page.part("text")
    area.click()
    page.lab.page.keyboard.press("Control+End")
    page.lab.page.keyboard.type(". And more words follow here.", delay=20)
    page.root.locator(".ess-token", has_text="follow").wait_for()
    page.ready()
    assert page.read("explorer.text").endswith("And more words follow here.")
    assert page.read("explorer.profile.shape")[1] > before[1]
    assert len(page.tokens()) == page.read("explorer.profile.shape")[1]
    assert page.read("explorer.operator_data['length']") == len(page.tokens())


def test_an_empty_text_says_so_and_keeps_the_last_result(page: ExplorerPage) -> None:
    shown = page.tokens()
    page.part("text").fill("")
    page.part("error").wait_for()
    assert "empty" in page.part("error").inner_text()
    assert page.tokens() == shown
    page.edit(TEXT)
    page.part("error").wait_for(state="hidden")


def test_pointing_at_a_token_tells_python(page: ExplorerPage) -> None:
    page.root.locator(".ess-token").nth(17).hover()
    page.expect("explorer.selection.position", 17)
    page.root.locator(".ess-token").nth(9).hover()
    page.expect("explorer.selection.position", 9)


def test_python_sets_the_selection(page: ExplorerPage) -> None:
    page.notebook.execute("explorer.selection.update(position=23, layer=4, head=5)")
    page.root.locator(".ess-tokens[data-position='23']").wait_for()
    page.lab.page.wait_for_function(
        "(select) => select.selectedOptions[0].textContent.includes('5')",
        arg=page.part("head").element_handle(),
    )
    page.ready()
    assert page.read("explorer.operator_data['head']") == 5


def test_pinning_dragging_and_keys(page: ExplorerPage) -> None:
    keyboard = page.lab.page.keyboard
    token = page.root.locator(".ess-token")
    token.nth(12).click()
    page.expect("(explorer.selection.position, explorer.selection.pinned)", (12, True))
    token.nth(30).hover()
    page.lab.settle()
    assert page.read("explorer.selection.position") == 12, "pinned: the pointer moves on"
    keyboard.press("Escape")
    page.root.focus()
    keyboard.press("Escape")
    page.expect("explorer.selection.pinned", False)
    token.nth(5).hover()
    page.lab.page.mouse.down()
    token.nth(8).hover()
    token.nth(9).hover()
    page.lab.page.mouse.up()
    page.expect("explorer.selection.span", (5, 10))
    position, head = page.read("(explorer.selection.position, explorer.selection.head)")
    page.root.focus()
    keyboard.press("ArrowRight")
    page.expect("explorer.selection.position", position + 1)
    keyboard.press("ArrowUp")
    keyboard.press("ArrowDown")
    page.expect("explorer.selection.head", head)


def test_a_cell_of_the_grid_selects_the_head(page: ExplorerPage) -> None:
    page.notebook.execute("explorer.selection.update(layer=4, head=5)")
    page.ready()
    cell = page.root.locator(".ess-cell-selected").bounding_box()
    assert cell is not None
    x, y = (cell[side] + cell[size] / 2 for side, size in (("x", "width"), ("y", "height")))
    for row, column in [(20, 8), (0, 0)]:
        page.lab.page.mouse.click(x + (column - 5) * cell["width"], y + (row - 4) * cell["height"])
        page.expect(
            "(explorer.selection.layer, explorer.selection.head)", (f"model.layers.{row}.self_attn", column)
        )
    page.ready()
    assert page.read("explorer.spectrum_data['layer']") == "model.layers.0.self_attn"


def test_the_measure_follows_the_controls_and_python(page: ExplorerPage) -> None:
    page.notebook.execute("explorer.kind = 'entropy'")
    page.ready()
    assert page.read("explorer.profile_data['kind']") == "entropy"
    page.notebook.execute("explorer.kind, explorer.tol = 'tolerance', 1e-3")
    page.ready()
    assert page.read("explorer.grid_data['tol']") == 1e-3


def test_text_is_never_markup(page: ExplorerPage) -> None:
    hostile = "<img src=x onerror=window.hacked=1><b>bold</b> \u202eright to left\x07 &amp; ${1}"
    page.edit(hostile)
    assert "img" in " ".join(page.tokens())
    assert page.root.locator("img, .ess-tokens b, .ess-error *").count() == 0
    assert page.lab.page.evaluate("window.hacked === undefined")
    page.edit(TEXT)


def at(page: ExplorerPage, selector: str, x: float, y: float) -> tuple[float, float]:
    """A point in an element, by fractions of its size."""
    box = page.root.locator(selector).bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def test_brushing_the_picture_moves_the_position(page: ExplorerPage) -> None:
    mouse = page.lab.page.mouse
    seen = []
    for share in (0.5, 0.7, 0.9):
        mouse.move(*at(page, ".ess-memory", share, 0.6))
        page.lab.settle()
        seen.append(int(page.part("tokens").get_attribute("data-position") or -1))
    assert seen == sorted(set(seen)), "further right is later"
    page.expect("explorer.selection.position", seen[-1])


def test_a_singular_value_shows_what_it_carries(page: ExplorerPage) -> None:
    page.notebook.execute("explorer.selection.update(layer=15, head=1, position=40)")
    page.ready()
    page.lab.page.mouse.move(*at(page, ".ess-values canvas >> nth=-1", 0.22, 0.85))
    page.root.locator(".ess-weights li:not([hidden])").first.wait_for()
    assert "carries" in page.part("remembered").inner_text()
    page.expect("explorer.selection.mode is not None", True)
    weights = page.root.locator(".ess-weight").all_inner_texts()
    strongest = page.read(
        "float(abs(ew.metrics.vectors(explorer.captured[explorer.selection.layer].operator[0, 1], 40)"
        "[2][explorer.selection.mode]).max())"
    )
    assert any(text.endswith(f"{strongest:.2f}") for text in weights)
    page.lab.page.mouse.move(*at(page, ".ess-header", 0.5, 0.5))
    page.expect("explorer.selection.mode", None)


def test_dragging_tau_changes_what_is_counted(page: ExplorerPage) -> None:
    page.notebook.execute("explorer.kind, explorer.tol = 'tolerance', 1e-2")
    page.ready()
    before = page.read("float(explorer.profile.sum())")
    handle = page.root.locator(".ess-values [role=slider]")
    box = handle.bounding_box()
    assert box is not None
    mouse = page.lab.page.mouse
    x, y = box["x"] + box["width"] - 12, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x, y - 10)
    mouse.move(x, y - 40)
    mouse.up()
    page.expect("explorer.tol > 1e-2", True)
    page.ready()
    assert page.read("float(explorer.profile.sum())") < before, "a larger τ keeps less"
    page.notebook.execute("explorer.tol = 1e-2")
    page.ready()


def test_the_wheel_scrolls_the_page_and_zooms_only_with_control(page: ExplorerPage) -> None:
    mouse, keyboard = page.lab.page.mouse, page.lab.page.keyboard
    reset = page.root.locator(".ess-memory button[title^='Show everything']")
    mouse.move(*at(page, ".ess-memory", 0.6, 0.6))
    mouse.wheel(0, 120)
    page.lab.settle()
    assert not reset.is_visible(), "a plain wheel zoomed"
    keyboard.down("Control")
    mouse.wheel(0, -240)
    keyboard.up("Control")
    reset.wait_for()
    reset.click()
    reset.wait_for(state="hidden")


def test_two_explorers_and_an_interrupted_kernel(page: ExplorerPage) -> None:
    page.notebook.execute("other = ew.explore(model, tokenizer, 'Two at once.'); explorer.text = sized(40)")
    page.notebook.interrupt()
    page.notebook.execute("await other.wait(); await explorer.wait(); other.close()")
    assert page.read("explorer.profile.shape[1]") == 40
    page.notebook.execute(f"explorer.text = {TEXT!r}")
    page.ready()


def test_editing_works_while_a_cell_runs(page: ExplorerPage) -> None:
    """The kernel is busy for some seconds; the views answer all the same."""
    code = "import time\nend = time.time() + 25\nwhile time.time() < end: time.sleep(0.01)\nfinished = time.time()"
    page.begin(code)
    page.part("text").fill("Typed while a cell is running.")
    page.root.locator(".ess-token", has_text="running").wait_for(timeout=24000)
    assert page.busy(), "the cell had ended: this showed nothing"
    page.ready()
    page.edit(TEXT)


def test_a_saved_notebook_shows_it_again(page: ExplorerPage) -> None:
    shown = page.tokens()
    page.notebook.save()
    page.notebook.close()
    page.notebook.reopen()
    page.root = page.notebook.cell(1).locator(".ess-explorer")
    page.root.locator(".ess-token").first.wait_for()
    assert page.tokens() == shown
    page.part("text").fill("Still alive after reopening.")
    page.root.locator(".ess-token", has_text="alive").wait_for()
