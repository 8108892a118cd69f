"""Every notebook runs from top to bottom in a kernel of its own, and what its text says is true of what it computed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# The tour has a test in the browser.
LESSONS = sorted(path for path in NOTEBOOKS.glob("*.ipynb") if path.name != "tour.ipynb")
# What a lesson's text says, in terms of the names it leaves in the kernel; its first word, then expressions that must be true.
CLAIMS: dict[str, tuple[str, ...]] = {
    "01_what_memory_is": (
        "delay.ess.max() == 12 and (delay.ess == delay.closed_form).all()",
        "poles.ess.max() == 3 and (poles.operator.matrix()[32:, :32] != 0).all()",
        "all(r == 32 for r in rank)",
        "middle(kind='tolerance', tol=1e-1)[-1] == 1 and middle(kind='entropy')[-1] < 1.5",
        "middle(kind='tolerance', tol=1e-3)[5] > 2 * middle(1 / 100, kind='tolerance', tol=1e-3)[5]",
        "abs(middle(kind='entropy')[5] - middle(1 / 100, kind='entropy')[5]) < 0.01",
    ),
    "10_your_own_layer": (
        "captured.residual.max() < 1e-6 and wrong.residual.max() > 0.1",
        "torch.equal(*(ew.ess(c.operator, kind='tolerance', tol=1e-6) for c in (captured, wrong)))",
        "torch.equal(captured.operator.matrix() != 0, wrong.operator.matrix() != 0)",
        "different == ew.ess(captured.operator[0, 0], kind='tolerance', tol=1e-6).tolist()",
        "max(different) == 8 and max(different[-24:]) < 5",
        "derivative.residual.max() < 1e-6 and (both >= total).all() and (both > total).any()",
        "not ew.diagnose(layer, x).findings",
        "{f.sign for f in diagnosis.findings} == {'collapse'}",
    ),
}


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


@pytest.mark.parametrize("path", [*LESSONS, NOTEBOOKS / "tour.ipynb"], ids=lambda path: path.stem)
def test_links_lead_to_notebooks_that_are_there(path: Path) -> None:
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    links = re.findall(r"\]\(([^)#]+\.ipynb)", text)
    assert links
    assert [link for link in links if not (NOTEBOOKS / link).is_file()] == []


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
    printed = "".join(output.text for output in check.outputs)
    assert printed.splitlines() == [f"{claim} True" for claim in claims]
