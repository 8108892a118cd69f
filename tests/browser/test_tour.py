"""`ess-widgets demo`'s notebook, run from top to bottom on the real SmolLM2 in a real JupyterLab."""

from __future__ import annotations

import ast
import re

from ess_widgets.cli import working_copy

from .lab import Lab


def test_the_tour_runs_and_shows_what_it_says(lab: Lab) -> None:
    working_copy(lab.server.notebooks)
    notebook = lab.show("tour.ipynb")
    notebook.run_all(seconds=300)
    views = [
        index
        for index in range(notebook.cell_count())
        for output in notebook.outputs(index)
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    assert len(views) == 3
    for index in views:
        notebook.cell(index).locator(".ess-memory canvas").first.wait_for()
    notebook.execute("done = explorer.wait(60)")

    printed = "\n".join(
        "".join(output["text"])
        for index in range(notebook.cell_count())
        for output in notebook.outputs(index)
        if output["output_type"] == "stream"
    )
    residual = re.search(r"30 layers, softmax attention, worst residual (\S+)", printed)
    assert residual is not None, printed
    assert float(residual.group(1)) < 1e-5
    # "The convolution remembers its three earlier taps and no more, the recurrence no more than the 16 values ..."
    notebook.execute("await three.wait(60)")
    highest = ast.literal_eval(
        notebook.execute(
            "print({n: float(ew.ess(l.operator, kind='tolerance', tol=1e-2).max()) for n, l in three.captured.items()})"
        )
    )
    assert highest["convolution"] == 3
    assert 12 < highest["recurrence"] <= 16
    assert 6 < highest["attention"] < 24
    # "An end-of-text token interrupts memory, most of all in the middle and late layers; a period hardly does."
    [end_of_text, space] = re.findall(r"^'.*'((?: +\d\.\d\d){3})$", printed, flags=re.MULTILINE)
    early, middle, late = map(float, end_of_text.split())
    assert max(middle, late) < 0.85 < early
    assert min(map(float, space.split())) > 0.88
    assert lab.errors == []
