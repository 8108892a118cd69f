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
    "02_four_architectures": (
        "table['held-out loss'].is_monotonic_increasing and (table['held-out loss']['GLA'] - table['held-out loss']['SA']) < 0.05",
        "all(layer.residual.max() < 1e-5 for c in captures.values() for layer in c.values())",
        "all(table.loc[['GLA', 'WLA', 'LA'], n].is_monotonic_increasing for n in table.columns[[2, 5, 6]])",
        "table['… of ceiling']['LA'] > 0.99 and (counted['LA'] / ew.ceiling(captures['LA']['layers.0.mixer'].operator)).nanmean() > 0.99",
        "table['… of TSS']['GLA'] < 0.3",
        "(largest := [torch.cat([ew.spectrum(layer.operator, positions=[128])[..., 0].flatten() for layer in captures[f].values()]).mean() for f in ('LA', 'WLA', 'GLA')]) == sorted(largest, reverse=True)",
        "all(change['SA'][k] > change['GLA'][k] > change['WLA'][k] > change['LA'][k] for k in (0, 1))",
        "change['LA'][1] < 0.05",
        "all((2 * c[..., ends] / (c[..., ends - 5] + c[..., ends + 5])).nanmean() > 0.93 for c in counted.values())",
    ),
    "03_recall": (
        "account(model, task)['accuracy'] > 0.9",
        "history[history.layer == 'layers.1.mixer'][['ess', 'accuracy']].corr(method='spearman').ess.accuracy > 0.8",
        "history.provided.nunique() == 1",
        "history[history.step == 100].accuracy.max() < 0.35",
        "found['GLA, success']['accuracy'] > 0.95 > 0.35 > found['GLA, collapse']['accuracy']",
        "found['GLA, collapse']['provided: TSS / pairs'] > found['GLA, success']['provided: TSS / pairs']",
        "found['GLA, success']['used: ESS / pairs'] > 1.5 * found['GLA, collapse']['used: ESS / pairs']",
        "found['GLA, saturation']['used: ESS / pairs'] < found['GLA, success']['used: ESS / pairs'] / 2",
        "history[(history.step == 100) & (history.layer == 'layers.1.mixer')].ess.item() > 8 * found['GLA, success']['used: ESS / pairs']",
    ),
    "04_saturation_and_collapse": (
        "account.accuracy['success'] > 0.95 and account.accuracy.drop('success').max() < 0.35",
        "account.TSS['collapse'] == account.TSS['success'] > 5 * account.TSS['saturation']",
        "account['of TSS ']['saturation'] > 0.95 and account['of TSS']['saturation'] < 0.75",
        "account['tolerance-ESS (10⁻²)']['collapse'] < 0.6 * account['tolerance-ESS (10⁻²)']['success']",
        "account['best head']['collapse'] < 1.75 and account['best head']['success'] > 3",
        "not found['success'].findings",
        "{f.sign for f in found['saturation'].findings} == {'saturation'}",
        "{f.sign for f in found['collapse'].findings} == {'collapse'}",
        "not ew.diagnose(models['saturation'], probes['saturation'], failing=False).findings",
        "explorers['collapse'].selection is explorers['success'].selection",
        "ew.ess(layers['collapse'].operator)[:, selection.head, 16].max() < 1.5",
    ),
    "05_initialisation": (
        "profiles[1].slope < 0.15 > abs(profiles[16].slope) and profiles[16384].slope > 0.75",
        "ew.learn.init_profile('S6', states, length=256).ess.max() < 2",
        "0 < ew.learn.init_profile('LA', states, length=256).ess[-1] - profiles[16384].ess[-1] < 10",
        "all(a.slope < b.slope for a, b in zip(list(profiles.values())[1:], list(profiles.values())[2:]))",
        "abs(counted[1].slope) < 0.15 and counted[256].slope > profiles[256].slope + 0.2",
        "ew.learn.find_scale(layer, 32, length=256, width=64).value > by_name.value",
        "ew.learn.find_scale(layer, 32, length=256, width=64).attainable[1] < by_name.attainable[1]",
        "by_name.attainable[1] < 60",
    ),
    "06_regularise": (
        "demo.evaluate(collapsed, task) < 0.35 and demo.evaluate(model, task) > 0.85",
        "max(monitor.history.metrics['term'][100:]) < 0.1 * monitor.history.metrics['term'][0]",
        "monitor.steps > 400 and monitor.metrics().query('step == 300').accuracy.item() < 0.35",
        "monitor.frame().query('layer == \"layers.1.mixer\" and step <= 100').ess.max() > 1.9",
        "monitor.frame().query('layer == \"layers.1.mixer\" and step == 300').ess.item() < 1.5",
        "monitor.frame().query('layer == \"layers.1.mixer\"').ess.iloc[-1] > 1.7",
        "ew.ess(ew.capture(collapsed, probe)['layers.1.mixer'].operator).mean() < 1.4",
        "ew.capture(model, probe)['layers.0.mixer'].operator.A.parts[0].mean() < 0.6",
        "demo.evaluate(other, task) > 0.85 and second.steps < monitor.steps",
        "second.frame().query('layer == \"layers.1.mixer\"').ess.iloc[-1] > 2.5",
    ),
    "07_compress": (
        "all(ew.ess(layer.operator, kind='entropy').mean() < 5 for layer in captured.values())",
        "(reduction.error.spectral <= reduction.bound).all() and (reduction.error.spectral < 1.5 * reduction.lower).all()",
        "abs(losses[4] - loss()) < 0.01 and naive[16] > loss() + 0.03",
        "rho > 0.6",
        "max(result.output_error for result in results) < 0.2 and max(losses_with) - loss_of(model) < 0.08",
        "min(results, key=lambda r: r.teacher_ess.mean()) is results[0]",
        "max(results, key=lambda r: r.operator_error_between) is results[0] and max(losses_with) == losses_with[0]",
    ),
    "08_delimiters": (
        "stop.depth > stop.replaced > comma.replaced > stop.placebo",
        "max(stop.paired_p, comma.paired_p, stop.excess_p) < 0.05",
        "deeper.all() and (found['full stop'].layers.paired > 0).all()",
        "dip.ess < dip.replaced_ess and past[0] + past[-1] > 0.9 * past.sum()",
        "all(table.loc[kind].depth.is_monotonic_decreasing for kind in kinds)",
        "table.loc['entropy'].loss.is_monotonic_increasing",
        "all(table.excess_p[kind, 'SA'] < 0.05 < table.excess_p[kind].drop('SA').min() for kind in kinds)",
        "all(table.paired_p[kind, family] < 0.05 for kind in kinds for family in ('SA', 'GLA'))",
        "table.paired['entropy', 'GLA'] > table.paired['entropy', 'SA']",
        "table.paired_p['entropy', 'LA'] == table.paired_p.min() and table.paired['entropy', 'LA'] < 0.02",
    ),
    "09_debug": (
        "not healthy.findings and all(loss(broken(gla, fault)) > loss(gla) + 0.01 for fault in (root, columns, runaway))",
        "{(f.sign, f.layer, f.head) for f in diagnoses['root'].findings} == {('collapse', 'layers.2.mixer', n) for n in range(4)}",
        "[(f.sign, f.layer, f.head) for f in diagnoses['columns'].findings] == [('dead', 'layers.3.mixer', 1)]",
        "[(f.sign, f.layer, f.head) for f in diagnoses['open'].findings] == [('undecayed', 'layers.1.mixer', 2)]",
        "all(not diagnosis.findings and loss(patients[name]) < loss(gla) + 0.01 for name, diagnosis in again.items())",
        "loss(patients['columns']) < loss(gla)",
        "[len(found) for found in new.values()] == [4, 0, 0] and list(faults)[3] not in new",
        "{(f.sign, f.severity, f.layer) for f in new[list(faults)[0]]} == {('local', 'info', 'layers.0.mixer')}",
        "[(ratio != 1).values.argmax() for ratio in changed.values()] == [0, 2, 1]",
        "[abs(ratio - 1).values.argmax() for ratio in changed.values()] == [0, 2, 1]",
        "not tables[list(faults)[1]].query('layer == \"layers.2.mixer\"')['diagonal'].any()",
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
def test_a_lesson_runs_and_what_it_says_is_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what is trained live depends on the number of threads
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
