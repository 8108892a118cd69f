"""An explorer in a notebook in JupyterLab, and how its parts are found and measured there."""

from __future__ import annotations

import ast
import time
from typing import Any

from playwright.sync_api import Locator

from .lab import Lab, Notebook

TEXT = (
    "<|endoftext|>Mangoes are rich in vitamin C and can be blended into a refreshing smoothie<|endoftext|>"
    "Giraffes are the tallest mammals on Earth due to their long necks and legs<|endoftext|>"
    "She collects vintage typewriters from the 1940s<|endoftext|>"
    "Jupiter’s Great Red Spot is a giant storm that has been raging for hundreds of years"
)

LOAD = """
from ess_widgets import demo
import ess_widgets as ew
model, tokenizer = demo.load("SmolLM2-135M-Instruct", fallback=False)

def sized(tokens, sentence="The past is kept where the future needs it. "):
    text = sentence * (tokens // 4)
    ids = tokenizer(text)["input_ids"][:tokens]
    return tokenizer.decode(ids)
"""

# Main-thread work of one pointer move: its dispatch, and the frame that paints it. The first listener asks for that
# frame before the views do, so its callback runs first; a message posted there arrives after the painting.
MEASURE = """
window.measured = { work: [], whole: [] };
(() => {
  let entry = null;
  window.addEventListener('pointermove', () => {
    if (entry) return;
    const mine = entry = { began: performance.now(), dispatched: null };
    requestAnimationFrame(() => {
      const frame = performance.now();
      const painted = new MessageChannel();
      painted.port1.onmessage = () => {
        const end = performance.now();
        window.measured.work.push(mine.dispatched - mine.began + end - frame);
        window.measured.whole.push(end - mine.began);
        entry = null;
      };
      painted.port2.postMessage(null);
    });
  }, true);
  window.addEventListener('pointermove', () => { if (entry) entry.dispatched ??= performance.now(); });
})();
"""


class ExplorerPage:
    """The explorer that cell ``index`` of a notebook shows."""

    def __init__(self, lab: Lab, notebook: Notebook, index: int = 1) -> None:
        self.lab, self.notebook = lab, notebook
        self.root: Locator = notebook.cell(index).locator(".ess-explorer")

    def part(self, name: str) -> Locator:
        """An element by its role in the explorer: text, tokens, status, error, grid, layer, head, tol, pin, help."""
        return self.root.locator(f"[data-part={name}]")

    def ready(self, *, seconds: float = 120) -> None:
        """Wait until the kernel's results are all there and shown."""
        self.notebook.execute("await explorer.wait()", seconds=seconds)
        self.status("ready")

    def status(self, phase: str, *, seconds: float = 60) -> None:
        """Wait for a phase of the status line."""
        self.root.locator(f".ess-state[data-phase={phase}]").wait_for(timeout=seconds * 1000)

    def tokens(self) -> list[str]:
        """Labels as they are shown."""
        return self.part("tokens").locator(".ess-token").all_inner_texts()

    def read(self, expression: str) -> Any:
        """A value from the kernel: None, a number, a string, a list or a tuple."""
        return ast.literal_eval(self.notebook.execute(f"print(repr({expression}))"))

    def expect(self, expression: str, value: Any, *, seconds: float = 20) -> None:
        """Wait until an expression has a value in the kernel: the browser tells it a little later."""
        give_up = time.monotonic() + seconds
        while (found := self.read(expression)) != value:
            if time.monotonic() > give_up:
                raise AssertionError(f"{expression} is {found!r}, not {value!r}")

    def begin(self, code: str) -> None:
        """Start code in the kernel and do not wait for it."""
        script = """({path, code}) => {
          const begun = window.begun = { over: false };
          lab.kernel(path).requestExecute({ code, store_history: false }).done.then(() => (begun.over = true));
        }"""
        self.lab.page.evaluate(script, {"path": self.notebook.path, "code": code})

    def busy(self) -> bool:
        """Whether what was begun last is still running."""
        return not self.lab.page.evaluate("() => begun.over")

    def edit(self, text: str) -> None:
        """Replace the text in the editor and wait until everything shows it."""
        self.part("text").fill(text)
        self.expect("explorer.text", text)
        self.ready()

    def sweep(self, target: Locator, count: int) -> None:
        """Move the pointer over an element in ``count`` steps, a frame each."""
        box = target.bounding_box()
        assert box is not None
        y = box["y"] + box["height"] * 0.6
        for step in range(count):
            x = box["x"] + box["width"] * (0.2 + 0.6 * (step % 60) / 60)
            self.lab.page.mouse.move(x, y + step % 3)
            self.lab.settle()


def percentile(values: list[float], q: float) -> float:
    """The ``q``-quantile of a list."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
