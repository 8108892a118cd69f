"""How fast the explorer is, measured in the real browser and printed at the end of the run.

These are figures, not limits: the machines that run this are noisy. What is asserted is that they were measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .conftest import Figure
from .explorer_page import LOAD, MEASURE, ExplorerPage, percentile
from .lab import Lab

CELL = "explorer = ew.explore(model, tokenizer, sized(128), kind='tolerance', tol=1e-2)\nexplorer"

# From the last keystroke to the end of the frame that paints the new text's tokens, operator and curves, all sent
# in one message.
KEYSTROKES = """
() => {
  window.pressed = null;
  window.painted = [];
  document.querySelector('[data-part=text]').addEventListener('input', () => (pressed = performance.now()), true);
  new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => painted.push(performance.now() - pressed))))
    .observe(document.querySelector('[data-part=tokens]'), { childList: true });
}
"""

FORWARD = """
import time, torch
ids, times = torch.tensor([tokenizer(explorer.text)["input_ids"]]), []
with torch.no_grad():
    for _ in range(7):
        began = time.perf_counter(); model(ids); times.append(time.perf_counter() - began)
"""

# The longest time for which the kernel's main thread could not run while the grid was computed beside it.
HOLD = """
import time
explorer.text = sized(256)
longest, last, end = 0, time.perf_counter(), time.perf_counter() + 8
while time.perf_counter() < end:
    time.sleep(0.001)
    now = time.perf_counter()
    longest, last = max(longest, now - last), now
"""


@pytest.fixture(scope="module")
def page(shared_lab: Lab) -> Iterator[ExplorerPage]:
    """One explorer at 128 tokens."""
    notebook = shared_lab.open([LOAD, CELL])
    shared_lab.set_size(1280, 1200)
    notebook.run_all()
    page = ExplorerPage(shared_lab, notebook)
    page.ready()
    yield page
    shared_lab.reset()
    shared_lab.set_size(1280, 900)


def milliseconds(values: list[float]) -> str:
    """Median and 95th percentile."""
    return f"median {percentile(values, 0.5):.1f} ms, 95th percentile {percentile(values, 0.95):.1f} ms"


def test_from_the_last_keystroke_to_the_repainted_head(page: ExplorerPage, figure: Figure) -> None:
    page.notebook.execute(FORWARD)
    forward = 1000 * page.read("sorted(times)[3]")
    page.lab.page.evaluate(KEYSTROKES)
    page.part("text").click()
    page.lab.page.keyboard.press("Control+End")
    took = []
    for _ in range(7):
        page.lab.page.evaluate("() => { painted.length = 0; }")
        page.lab.page.keyboard.type(" more", delay=30)
        page.lab.page.wait_for_function("() => painted.length > 0")
        took.append(page.lab.page.evaluate("() => painted.at(-1)"))
        page.ready()
    figure("128 tokens, forward pass alone", f"median {forward:.0f} ms")
    figure("128 tokens, last keystroke to repainted head", milliseconds(took))
    status = page.read("explorer.status['message']")
    figure("128 tokens, whole grid", status)
    assert len(took) == 7 and min(took) > 0 and "270 heads" in status


def test_the_kernel_is_not_held(page: ExplorerPage, figure: Figure) -> None:
    page.notebook.execute(HOLD)
    longest = page.read("longest")
    figure("256 tokens, longest hold of the kernel's main thread", f"{1000 * longest:.0f} ms")
    page.ready(seconds=300)
    assert 0 < longest < 8


def test_pointing(page: ExplorerPage, figure: Figure) -> None:
    page.notebook.execute("explorer.text = sized(256)")
    page.ready(seconds=300)
    page.lab.page.evaluate(MEASURE)
    counts = []
    blank = page.lab.page.locator("#jp-top-panel")
    targets = {"a blank part of the page": blank}
    targets |= {name: page.root.locator(f".ess-{name}") for name in ("memory", "strip", "values")}
    for name, target in targets.items():
        page.lab.page.evaluate("() => { measured.work.length = measured.whole.length = 0; }")
        page.sweep(target, 150)
        measured = page.lab.page.evaluate("() => measured")
        figure(f"256 tokens, main-thread work of a pointer move on {name}", milliseconds(measured["work"]))
        counts.append(len(measured["work"]))
    assert min(counts) > 100
