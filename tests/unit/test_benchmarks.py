"""The benchmarks run on tiny sizes, and notice wrong answers. No time is looked at."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ess_widgets as ew
from tests.benchmarks import baseline, capture, checks, explorer, growth, inputs, large, metrics
from tests.benchmarks.cases import DEMANDED, FURTHER, Case

CPU = torch.device("cpu")
LENGTH, HEADS = 24, 5


@pytest.fixture(scope="module")
def T() -> Tensor:
    return inputs.softmax(LENGTH, HEADS)


@pytest.fixture(scope="module")
def loop(T: Tensor) -> baseline.Loop:
    return baseline.run(lambda heads: T[heads], LENGTH, HEADS)


@pytest.fixture(scope="module")
def loops() -> Iterator[dict[object, baseline.Loop]]:
    yield {}


@pytest.mark.parametrize("case", [*DEMANDED, *FURTHER], ids=lambda case: case.name)
def test_each_case_runs_and_is_right(case: Case, loops: dict[object, baseline.Loop]) -> None:
    small = case.quick()
    (row,) = metrics.measure([small], CPU, 1, loops)
    assert row.verdict.right, row
    assert row.verdict.compared == small.heads * (small.length - 1)
    assert row.verdict.ties <= row.verdict.compared // 2
    assert row.loop.whole and row.ratio > 0 and len(row.times) == 1
    assert case.title in str(row)


def test_names_are_unique() -> None:
    names = [case.name for case in [*DEMANDED, *FURTHER]]
    assert len({*names, metrics.LARGE}) == len(names) + 1


# The loop of decompositions


@given(first=st.integers(0, 5), size=st.integers(1, 300), count=st.integers(1, 300))
def test_a_sample_is_spread_evenly(first: int, size: int, count: int) -> None:
    found = baseline.spread(first, first + size, count)
    assert len(found) == len(set(found)) == min(count, size)
    assert first <= min(found) and max(found) < first + size
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_loop_finds_what_it_should(T: Tensor, loop: baseline.Loop) -> None:
    assert loop.whole and loop.positions == list(range(1, LENGTH)) and loop.deviation is not None
    sigma = ew.spectrum(T, route="svd")
    for position, found in zip(loop.positions, loop.sigma, strict=True):
        torch.testing.assert_close(found, sigma[:, position, : found.shape[-1]], rtol=0, atol=1e-12)


def test_a_sample_stands_for_the_loop(T: Tensor) -> None:
    part = baseline.run(lambda heads: T[heads], LENGTH, HEADS, whole=0.0, sample=0.0)
    assert not part.whole and part.deviation is None
    assert len(part.heads) == 1 and len(part.positions) == 8
    assert part.describe(LENGTH, HEADS) == "8 of 23 positions, 1 of 5 heads"
    sigma = torch.linalg.svdvals(T[part.heads, part.positions[2] :, : part.positions[2]].double())
    assert torch.equal(part.sigma[2], sigma)


def test_threads_are_left_as_they_were(T: Tensor) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = baseline.run(lambda heads: T[heads], LENGTH, HEADS)
        assert torch.get_num_threads() == 2 and found.threads in (1, 2)
        assert ("one thread" in found.describe(LENGTH, HEADS)) == (found.threads == 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [3, 24, 999])
def test_times_are_scaled_by_their_share(count: int) -> None:
    times = {p: 1e-9 * baseline.cost(1000, p) for p in baseline.spread(1, 1000, count)}
    whole = sum(1e-9 * baseline.cost(1000, p) for p in range(1, 1000))
    assert baseline._scaled(times, 1000) == pytest.approx(whole)


# The checks


def test_wrong_counts_are_noticed(T: Tensor, loop: baseline.Loop) -> None:
    values, sure = ew.ess(T, kind="tolerance", tol=0.1), torch.zeros(HEADS, LENGTH)
    assert checks.counts(values, sure, loop, 0.1, False) == checks.Verdict(HEADS * (LENGTH - 1))
    values[2, 12] += 1
    values[3, 7] -= 0.5
    values[0, 3] = torch.nan
    verdict = checks.counts(values, sure, loop, 0.1, False)
    assert verdict.mismatches == 3 and not verdict.right
    assert not checks.counts(ew.ess(T, kind="tolerance", tol=0.05), sure, loop, 0.1, False).right


def test_counts_may_differ_within_the_band_only(T: Tensor, loop: baseline.Loop) -> None:
    sigma = loop.sigma[11][2]  # at position 12
    tol = float(sigma[4]) * (1 + 1e-9)
    values, band = ew.ess(T, kind="tolerance", tol=tol, route="svd"), torch.zeros(HEADS, LENGTH)
    assert values[2, 12] == 4
    band[2, 12] = 1e-8
    values[2, 12] = 5
    verdict = checks.counts(values, band, loop, tol, False)
    assert (verdict.mismatches, verdict.ties, verdict.right) == (0, 1, True)
    values[2, 12] = 6
    assert checks.counts(values, band, loop, tol, False).mismatches == 1


def test_relative_tolerance_is_in_units_of_the_largest(T: Tensor, loop: baseline.Loop) -> None:
    values, sure = ew.ess(T, kind="tolerance", tol=0.1, relative=True), torch.zeros(HEADS, LENGTH)
    assert checks.counts(values, sure, loop, 0.1, True).right
    assert not checks.counts(values, sure, loop, 0.1, False).right


@pytest.mark.parametrize(
    "factor, bound, right", [(1 + 9e-5, 1e-4, True), (1 + 2e-4, 1e-3, False), (1.001, 1.0, False)]
)
def test_wrong_entropies_are_noticed(
    T: Tensor, loop: baseline.Loop, factor: float, bound: float, right: bool
) -> None:
    values = ew.ess(T)
    values[1, 5] *= factor
    verdict = checks.entropies(values, torch.full_like(values, bound), loop)
    assert verdict.right == right and verdict.error == pytest.approx(factor - 1, rel=1e-6)
    assert checks.entropies(values, None, loop).right == right


def test_an_error_above_its_own_bound_is_noticed(T: Tensor, loop: baseline.Loop) -> None:
    values = ew.ess(T)
    values[1, 5] *= 1 + 5e-6
    assert checks.entropies(values, torch.full_like(values, 1e-5), loop).right
    assert not checks.entropies(values, torch.full_like(values, 1e-6), loop).right
    values[1, 5] = torch.nan
    assert not checks.entropies(values, None, loop).right


def test_wrong_spectra_are_noticed(T: Tensor, loop: baseline.Loop) -> None:
    sigma = ew.spectrum(T)
    assert checks.spectra(sigma, loop).right
    for at in ((4, 3, 1), (4, 3, 9)):  # a value, and one beyond the rank that the shape allows
        wrong = sigma.clone()
        wrong[at] += 1e-9
        assert not checks.spectra(wrong, loop).right


# The scripts


def test_the_large_case_in_its_own_process() -> None:
    found = large.measure(CPU, 96)
    assert found.verdict.right and found.verdict.compared == 95
    assert found.within and found.gpu is None
    assert 0.02 < found.before <= found.peak < large.GIB
    assert "GiB at its peak" in metrics.largest(found)
    assert not replace(found, peak=2.0).within and not replace(found, seconds=11.0).within


def test_the_page(tmp_path: Path) -> None:
    page = tmp_path / "results" / "page.md"
    assert metrics.main(["--quick", "--cases", "*-1024", "--repeat", "1", "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    wanted = [case.title for case in [*DEMANDED, *FURTHER] if case.name.endswith("-1024")]
    assert len(wanted) == 7 and all(title in text for title in wanted)
    assert "torch" in text and "load average" in text and "| 180× |" in text


def test_slow_rows_are_marked(loops: dict[object, baseline.Loop]) -> None:
    (row,) = metrics.measure([DEMANDED[0].quick()], CPU, 1, loops)
    case = row.case
    assert "**below**" in str(replace(row, case=replace(case, minimum=1e9)))
    assert "**below**" not in str(replace(row, case=replace(case, minimum=1e-9)))
    assert "**below**" in str(replace(row, case=replace(case, minimum=None, limit=1e-9)))


def test_a_wrong_answer_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics.main(["--quick", "--cases", "rank-spectra"]) == 0
    monkeypatch.setattr(checks, "SPECTRUM", -1.0)  # nothing is as exact as this
    assert metrics.main(["--quick", "--cases", "rank-spectra"]) == 1


def test_unknown_cases_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        metrics.main(["--cases", "nothing"])
    assert "tolerance-4096" in capsys.readouterr().err


def test_growth(tmp_path: Path) -> None:
    picture, numbers = tmp_path / "growth.png", tmp_path / "growth.json"
    growth.main(["--quick", "--repeat", "1", "--picture", str(picture), "--output", str(numbers)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert [len(series["seconds"]) for series in found["series"]] == [3] * 5
    with pytest.raises(SystemExit):
        growth.main(["--quick"])


def test_exponents_are_those_of_the_large_lengths() -> None:
    series = growth.Series("a cubic with a constant")
    for length in (128, 256, 512, 1024, 2048):
        series.add(length, 1e-9 * length**3 if length >= growth.FIT_FROM else 0.3)
    assert series.exponent == pytest.approx(3.0)


def test_the_explorer(small_model: tuple[nn.Module, Any]) -> None:
    grids = explorer.measure(*small_model, tokens=30, repeat=1)
    assert [grid.kind for grid in grids] == ["tolerance", "entropy"]
    for grid in grids:
        assert grid.verdict.right and grid.verdict.compared == grid.heads * 29, grid
        assert 0 < grid.painted[0] <= grid.times[0]
    assert "entropy, 16 heads of 30 tokens" in explorer.page(
        "# Heading", explorer.name(small_model[0]), grids
    )


@pytest.mark.parametrize("implementation", capture.IMPLEMENTATIONS)
def test_what_a_capture_costs(small_model: tuple[nn.Module, Any], implementation: str) -> None:
    model, tokenizer = small_model
    threads = torch.get_num_threads()
    found = capture.cost(model, capture.tokens(tokenizer, 64), implementation, threads=1, repeat=3)
    assert torch.get_num_threads() == threads
    assert found.length == 64 and found.layers > 1 and found.residual <= capture.RESIDUAL
    assert len(found.plain) == len(found.captured_cpu) == 3
    assert "**above**" in str(replace(found, captured=[2 * s for s in found.plain]))
    assert "**above**" not in str(replace(found, captured=[1.2 * s for s in found.plain]))
    assert not capture.right([replace(found, residual=1e-4)], [])


def test_what_a_capture_keeps(small_model: tuple[nn.Module, Any]) -> None:
    model, tokenizer = small_model
    sizes = [capture.memory("eager", 32, "small")]
    found = capture.measured(model, capture.tokens(tokenizer, 32), "eager")
    assert (found["own"], found["kept"]) == (sizes[0].own, sizes[0].kept)
    found = capture.measured(model, capture.tokens(tokenizer, 128), "eager")
    sizes.append(capture.Memory("eager", 128, **found))
    assert capture.right([], sizes) and capture.growth(sizes) == pytest.approx(1, abs=0.1)
    text = capture.page("# Heading", capture.name(model), [], sizes)
    assert "eager, 128 tokens" in text and "power of the length: eager: 1.0" in text
    assert not capture.right([], [sizes[0], replace(sizes[1], kept=16 * sizes[0].kept)])


def test_the_page_of_captures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    options = ["--tokens=48", "--threads=1", "--repeat=1", "--lengths", f"--output={page}"]
    assert capture.main(["--model=small", *options]) == 0
    assert "eager, 4 layers, 48 tokens | 1 |" in page.read_text(encoding="utf-8")
