"""A diagnosis in a notebook: the table, and the explorer that follows the row chosen in the widget."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import Lab, Notebook
from .test_layout import TEXTS, faults

SETUP = """
import torch, ess_widgets as ew
model, tokenizer = ew.demo.load("small")
with torch.no_grad():
    model.layers[1].attention.out.weight[:, 32:64] = 0
    model.layers[2].attention.qkv.weight[192:224] = 0
found = ew.diagnose(model, "To be, or not to be, that is the question: whether it is nobler in the mind.", tokenizer)
found
"""


@pytest.fixture(scope="module")
def notebook(shared_lab: Lab) -> Iterator[Notebook]:
    notebook = shared_lab.open([SETUP, "view = found.view()\nview"])
    notebook.run_all()
    yield notebook
    shared_lab.reset()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_table_is_readable(notebook: Notebook, theme: str, tmp_path: Path) -> None:
    lab = notebook.lab
    lab.set_theme(theme)
    lab.settle()
    root = notebook.cell(0).locator(".ess-diagnosis")
    assert root.locator("table").first.locator("tbody tr").count() == 2
    root.evaluate("(root) => root.querySelectorAll('details').forEach((part) => { part.open = true; })")
    lab.settle()
    target = Path(os.environ.get("ESS_WIDGETS_PICTURES") or tmp_path) / f"diagnosis-{theme}.png"
    lab.screenshot(root, target)
    assert faults(root.evaluate(TEXTS)) == []


def test_choosing_a_row_moves_the_explorer(notebook: Notebook) -> None:
    lab = notebook.lab
    lab.set_theme("light")
    cell = notebook.cell(1)
    rows = cell.locator(".ess-diagnosis tr[data-row]")
    rows.first.wait_for()
    assert rows.count() == 16
    assert rows.first.get_attribute("aria-selected") == "true"
    assert notebook.execute("print(view.explorer.selection.layer, view.explorer.selection.head)").strip() == (
        "layers.1.attention 1"
    )
    rows.nth(1).click()
    lab.page.wait_for_function("(row) => row.ariaSelected === 'true'", arg=rows.nth(1).element_handle())
    where = "print(view.explorer.selection.layer, view.explorer.selection.head)"
    assert notebook.execute(where).strip() == "layers.2.attention 2"
    rows.nth(1).press("ArrowDown")
    lab.page.keyboard.press("Enter")
    lab.page.wait_for_function("(row) => row.ariaSelected === 'true'", arg=rows.nth(2).element_handle())
    assert notebook.execute(where).strip().startswith("layers.0.attention")
    assert lab.errors == []
