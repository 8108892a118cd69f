"""The playground in JupyterLab: what is dragged in the browser answers in the browser and in Python, and how it looks.

Pictures are kept where the environment variable ESS_WIDGETS_PICTURES says, else in pytest's temporary directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Figure
from .explorer_page import ExplorerPage, percentile
from .lab import Lab
from .test_layout import TEXTS, faults

CELLS = ["import ess_widgets as ew", "explorer = pg = ew.playground('documents', boundary=24)\npg"]

# The slider in the picture, and the numbers under "Closed form".
HANDLE = "[data-part=toy-handle]"


@pytest.fixture(scope="module")
def page(shared_lab: Lab) -> Iterator[ExplorerPage]:
    """One playground for the tests of this file."""
    notebook = shared_lab.open(CELLS)
    notebook.run_all()
    page = ExplorerPage(shared_lab, notebook)
    page.root.locator(".ess-toy-formula").wait_for()
    yield page
    shared_lab.reset()
    shared_lab.set_size(1280, 900)


def set_python(page: ExplorerPage, code: str) -> None:
    """Change the playground from Python, and wait until the browser shows it; the pointer is out of the way."""
    page.lab.page.mouse.move(2, 2)
    page.notebook.execute(f"{code}\nawait pg.wait()")
    formula = page.read("pg.formula")
    page.root.locator("[data-part=formula]", has_text=formula).wait_for()
    page.lab.settle()


SCENES = {
    "documents": "pg.toy = 'documents'; pg.parameters = {'boundary': 24, 'leak': 0}; pg.selection.position = 20",
    "poles": "pg.poles = [0.9, (0.75, 2), 0.6 + 0.55j, -0.5]; pg.selection.position = 30",
    "softmax": "pg.toy = 'softmax'; pg.parameters = {'temperature': 8.0}",
    "gated": "pg.toy = 'gated'; pg.parameters = {'reset': 40, 'leak': 1e-7}",
    "delay": "pg.toy = 'delay'; pg.parameters = {'k': 12}",
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [700, 900, 1280, 1600])
@pytest.mark.parametrize("scene", SCENES)
def test_nothing_overlaps_is_cut_off_or_pale(
    page: ExplorerPage, scene: str, width: int, theme: str, tmp_path: Path
) -> None:
    page.lab.set_theme(theme)
    page.lab.set_size(width, 1300)
    set_python(page, SCENES[scene])
    target = (
        Path(os.environ.get("ESS_WIDGETS_PICTURES") or tmp_path) / f"playground-{scene}-{theme}-{width}.png"
    )
    page.lab.screenshot(page.root, target)
    assert faults(page.root.evaluate(TEXTS)) == []
    overflow = page.root.evaluate("(root) => root.scrollWidth - root.clientWidth")
    assert overflow <= 1, f"the playground is {overflow} px wider than its place"


def centre(page: ExplorerPage, selector: str) -> tuple[float, float]:
    """Middle of an element on the page."""
    box = page.root.locator(selector).first.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def profile(page: ExplorerPage) -> str:
    """What the picture says of itself, as a screen reader hears it."""
    return str(page.root.locator(".ess-stage [role=img]").get_attribute("aria-label"))


def comparison(page: ExplorerPage) -> list[int]:
    """Closed form, visible and measured at the brushed position, as the browser shows them."""
    numbers = page.root.locator("[data-part=comparison] b").all_inner_texts()
    return [round(float(number)) for number in numbers]


def test_a_boundary_is_dragged_on_the_picture(page: ExplorerPage) -> None:
    page.lab.set_size(1280)
    set_python(
        page, "pg.toy = 'documents'; pg.parameters = {'boundary': 24, 'leak': 0}; pg.selection.position = 40"
    )
    assert comparison(page) == [16, 16, 16]
    line = page.root.locator(HANDLE)
    box = line.bounding_box()
    assert box is not None
    page.lab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.lab.page.mouse.down()
    for step in range(1, 21):
        page.lab.page.mouse.move(box["x"] + box["width"] / 2 + 6 * step, box["y"] + 20)
        page.lab.settle()
    page.lab.page.mouse.up()
    boundary = int(line.get_attribute("aria-valuenow") or 0)
    assert 36 < boundary < 44
    page.expect("pg.parameters['boundary']", boundary)
    page.root.locator("[data-part=formula]", has_text=f"0 at {boundary}").wait_for()
    expected = page.read("pg.ess.tolist()")
    assert expected[boundary] == 0 and expected == page.read("pg.closed_form.tolist()")
    page.notebook.execute(f"pg.selection.position = {boundary}")
    page.root.locator(".ess-toy-lesson .ess-label", has_text=f"At position {boundary}").wait_for()
    assert comparison(page) == [0, 0, 0]


def test_a_leak_shows_in_the_closed_form_before_it_is_measured(page: ExplorerPage) -> None:
    set_python(
        page,
        "pg.toy = 'documents'; pg.parameters = {'boundary': 24, 'leak': 1e-8}; pg.selection.position = 24",
    )
    assert comparison(page) == [24, 24, 0]
    verdict = page.root.locator("[data-part=verdict]").inner_text()
    assert "24 lie below τ" in verdict
    set_python(page, "pg.parameters = {'leak': 0}")
    assert comparison(page) == [0, 0, 0]


def test_a_pole_is_dragged_onto_another(page: ExplorerPage) -> None:
    set_python(page, "pg.poles = [0.9, -0.5, 0.2 + 0.6j]; pg.selection.position = 30")
    assert comparison(page) == [4, 4, 4]
    plane = page.root.locator(".ess-plane").bounding_box()
    assert plane is not None
    unit = plane["width"] / 2 / 1.28

    def at(re: float, im: float) -> tuple[float, float]:
        return plane["x"] + plane["width"] / 2 + re * unit, plane["y"] + plane["height"] / 2 - im * unit

    mouse = page.lab.page.mouse
    mouse.move(*at(-0.5, 0))
    mouse.down()
    for step in range(1, 15):
        mouse.move(*at(-0.5 + 0.1 * step, 0.2 * (step < 14)))
        page.lab.settle()
    mouse.up()
    page.expect("list(map(complex, pg.poles))", [0.9, 0.9, 0.2 + 0.6j])
    page.root.locator("[data-part=formula]", has_text="n = 3 different modes").wait_for()
    assert comparison(page) == [3, 3, 3]
    assert "Equal poles" in page.root.locator("[data-part=warnings]").inner_text()

    # Its conjugate moves with a pole that leaves the real axis; the picture below it does too.
    mouse.move(*at(0.2, -0.6))
    mouse.down()
    mouse.move(*at(0.3, -0.7))
    mouse.up()
    page.expect("complex(pg.poles[2])", 0.3 + 0.7j)


def test_poles_by_keyboard(page: ExplorerPage) -> None:
    set_python(page, "pg.poles = [0.5, 0.8]")
    pole = page.root.locator(".ess-pole[role=slider]").nth(0)
    pole.focus()
    assert pole.get_attribute("aria-label") == "Pole 1 of 2"
    keyboard = page.lab.page.keyboard
    keyboard.press("ArrowRight")
    page.expect("list(map(complex, pg.poles))", [0.51, 0.8])
    keyboard.press("Shift+ArrowUp")
    page.expect("list(map(complex, pg.poles))", [0.51 + 0.1j, 0.8])
    assert pole.get_attribute("aria-valuetext") == "0.51 ± 0.1 i"
    keyboard.press("j")
    page.expect("pg.poles[0].order", 2)
    page.root.locator("[data-part=formula]", has_text="n = 5").wait_for()
    keyboard.press("Delete")
    page.expect("list(map(complex, pg.poles))", [0.8])
    page.part("add-pair").click()
    page.expect("[pole.size for pole in pg.poles]", [1, 2])


def test_the_line_by_keyboard(page: ExplorerPage) -> None:
    set_python(page, "pg.toy = 'delay'; pg.parameters = {'k': 12}")
    line = page.root.locator(HANDLE)
    line.focus()
    assert line.get_attribute("aria-label") == "delay k"
    page.lab.page.keyboard.press("ArrowRight")
    page.expect("pg.parameters['k']", 13)
    page.lab.page.keyboard.press("End")
    page.expect("pg.parameters['k']", 64)
    page.root.locator("[data-part=formula]", has_text="at most 0").wait_for()
    assert page.read("pg.closed_form.tolist() + pg.ess.tolist()") == [0] * 128


def test_menu_and_sliders(page: ExplorerPage) -> None:
    page.part("toy").select_option("delta_rule")
    page.expect("pg.toy", "delta_rule")
    slider = page.root.locator("[data-parameter=beta] input[type=range]")
    slider.focus()
    page.root.locator("[data-part=formula]", has_text="d_k − 1").wait_for()
    page.lab.page.keyboard.press("ArrowLeft")
    page.expect("pg.parameters['beta']", 0.99)
    page.root.locator("[data-part=formula]", has_text="min(d_k, i").wait_for()
    page.part("length").select_option("32")
    page.expect("(pg.length, pg.operator.length, len(pg.ess))", (32, 32, 32))
    page.part("toy").select_option("softmax")
    slider = page.root.locator("[data-parameter=temperature] input[type=range]")
    slider.focus()
    page.lab.page.keyboard.press("End")
    page.expect("pg.ess.tolist() == [0.0] + [1.0] * 31", True)
    assert slider.get_attribute("aria-valuetext") == "uniform"
    page.part("length").select_option("64")
    page.expect("pg.length", 64)


def test_round_trip(page: ExplorerPage, figure: Figure) -> None:
    """From a pointer move on the boundary until all views show the new operator."""
    set_python(page, "pg.toy = 'documents'; pg.parameters = {'boundary': 10, 'leak': 0}")
    page.root.evaluate(
        """(root) => {
          window.answers = [];
          let moved = null;
          window.addEventListener('pointermove', () => { moved ??= performance.now(); }, true);
          new MutationObserver(() => {
            const began = moved;
            moved = null;
            if (began !== null) requestAnimationFrame(() => window.answers.push(performance.now() - began));
          }).observe(root.querySelector('[data-part=formula]'), { subtree: true, characterData: true, childList: true });
        }"""
    )
    box = page.root.locator(HANDLE).bounding_box()
    assert box is not None
    mouse = page.lab.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    mouse.down()
    for step in range(1, 31):
        mouse.move(box["x"] + box["width"] / 2 + 8 * step, box["y"] + 20)
        page.lab.page.wait_for_function("(count) => window.answers.length >= count", arg=step)
    mouse.up()
    times = page.lab.page.evaluate("window.answers")
    median = percentile(times, 0.5)
    figure(
        "playground, pointer move to repainted views, 64 positions", f"{median:.0f} ms median of {len(times)}"
    )
    assert median < 200


def test_a_saved_page_shows_the_last_state(page: ExplorerPage) -> None:
    """Without its kernel the state in the notebook's metadata is drawn all the same."""
    set_python(page, "pg.toy = 'delay'; pg.parameters = {'k': 9}; pg.selection.position = 30")
    page.notebook.save()
    page.notebook._js("lab.panel(path).sessionContext.shutdown()")
    page.lab.settle()
    assert comparison(page) == [9, 9, 9]
    page.root.locator("[data-parameter=k] input[type=range]").focus()
    page.lab.page.keyboard.press("ArrowRight")
    # The wish finds nobody: after a while the slider shows again what is true.
    page.lab.page.wait_for_function(
        "() => document.querySelector('[data-parameter=k] input[type=range]').value === '9'"
    )
    assert comparison(page) == [9, 9, 9]
