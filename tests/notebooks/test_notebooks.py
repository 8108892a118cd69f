"""Every notebook runs from top to bottom in a kernel of its own, and what its text says is true of what it computed."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# The tour has a test in the browser.
LESSONS = sorted(path for path in NOTEBOOKS.glob("*.ipynb") if path.name != "tour.ipynb")
# What a lesson's text says, in terms of the names it leaves in the kernel; its first word, then expressions that must be true.
CLAIMS: dict[str, tuple[str, ...]] = {}


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_lessons_are_here_and_make_claims() -> None:
    assert [path.stem.split("_")[0] for path in LESSONS] == [f"{n:02d}" for n in range(1, 11)]
    assert set(CLAIMS) == {path.stem for path in LESSONS}


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None
        compile(cell.source, path.stem, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_and_what_it_says_is_so(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    claims = CLAIMS[path.stem]
    check = nbformat.v4.new_code_cell("".join(f"print({claim!r}, bool({claim}))\n" for claim in claims))
    notebook.cells.append(check)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"{cell.source}\n{output.text}"
    assert check.outputs[0].text.splitlines() == [f"{claim} True" for claim in claims]
