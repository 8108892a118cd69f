"""Tolerance-ESS of dense operators: the integers of a decomposition per position, without one per position."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from adversarial import F64, FAMILIES, limits, matrix, sigmas, splits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.metrics import _inertia
from ess_widgets.metrics.tolerance import tolerance

module = sys.modules["ess_widgets.metrics.tolerance"]
unhurried = settings(deadline=None, max_examples=60)
# A wider band is no excuse: beyond this, relative, and rounding of the reference, counts are equal.
TIE = 1e-8


def check(T: Tensor, taus: Tensor, at: list[int] | None = None, tie: float = TIE) -> tuple[Tensor, Tensor]:
    """Counts equal the reference's, the band is no excuse; and where it is zero nothing may be near."""
    at = splits(T.shape[-1]) if at is None else at
    counts, band = tolerance(T, taus, at)
    assert counts.shape == band.shape == (len(T), len(at))
    assert counts.dtype is torch.int64 and band.dtype is F64
    assert bool((band >= 0).all()) and not bool(band.isnan().any())
    for b, tau in enumerate(taus.tolist()):
        for found, width, p in zip(counts[b].tolist(), band[b].tolist(), at, strict=True):
            sigma = sigmas(T[b], p)
            low, high = limits(sigma, tau, min(width, tie))
            assert low <= found <= high, (b, tau, p, found, low, high, width)
    return counts, band


def some_value(T: Tensor, choice: float) -> float:
    """One of the singular values of all positions, and 1 where all are zero."""
    values = torch.cat([sigmas(T, p) for p in splits(len(T))])
    values = values[values > 1e-13 * values.max()] if len(values) else values
    return float(values[int(choice * (len(values) - 1))]) if len(values) else 1.0


def thresholds(T: Tensor, choice: float, off: float) -> Tensor:
    return torch.tensor([some_value(one, choice) * (1 + off) for one in T], dtype=F64)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Decompositions, and eliminations with delayed pivots."""
    done: Counter[str] = Counter()
    real = {name: getattr(module, name) for name in ("singular_values", "count_delayed")}

    def spy(name: str) -> Any:
        def call(*args: Any) -> Any:
            done[name] += 1
            return real[name](*args)

        return call

    for name in real:
        monkeypatch.setattr(module, name, spy(name))
    return done


@unhurried
@given(
    families=st.lists(st.sampled_from(sorted(FAMILIES)), min_size=1, max_size=4),
    N=st.integers(1, 90),
    seed=st.integers(0, 10**6),
    choice=st.floats(0, 1),
    off=st.sampled_from([0.0, 1e-13, -1e-12, 1e-10, -1e-8, 3e-7, -1e-5, 1e-3]),
    way=st.sampled_from(["factorisations", "factorisations", "eigenvalues"]),
)
def test_batches_of_mixed_kinds_near_their_values(
    families: list[str], N: int, seed: int, choice: float, off: float, way: str
) -> None:
    T = torch.stack([matrix(family, N, seed) for family in families])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_inertia, "_has_ldl", lambda device: way == "factorisations")
        check(T, thresholds(T, choice, off))


@unhurried
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    N=st.integers(2, 90),
    seed=st.integers(0, 10**6),
    exponent=st.floats(-11, 0.5),
)
def test_thresholds_far_below_the_largest(family: str, N: int, seed: int, exponent: float) -> None:
    T = matrix(family, N, seed)
    top = max(float(sigmas(T, p).amax()) for p in range(1, N)) or 1.0
    _, band = check(T[None], torch.tensor([top * 10.0**exponent], dtype=F64))
    assert band.max() < 1e-7 + 1e-12 * 10.0**-exponent


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tau", [1.0, 1 + 1e-15, 1 - 1e-9, 0.999, 1e-3])
def test_every_family_at_a_tie_and_beside(family: str, tau: float) -> None:
    T = torch.stack([matrix(family, 47, seed) for seed in (1, 2)])
    check(T, torch.tensor([tau, tau], dtype=F64))


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e-30, 1e30, 1e150, 1e300])
@pytest.mark.parametrize("family", ["random", "permutation", "entry of 1e7", "softmax, flat", "documents"])
def test_scale_of_operator_and_threshold_together(family: str, scale: float, work: Counter[str]) -> None:
    exponent = int(torch.frexp(torch.tensor(scale, dtype=F64)).exponent)
    T = torch.stack([matrix(family, 70, seed) for seed in (1, 2)])
    for tau in (1.0, 0.3, 1e-3):
        taus = torch.full((2,), tau, dtype=F64)
        work.clear()
        counts, band = check(T, taus)
        effort = dict(work)
        work.clear()
        # A power of two, so that nothing is rounded.
        times = torch.tensor([exponent])
        again, other = tolerance(torch.ldexp(T, times), torch.ldexp(taus, times), splits(70))
        assert torch.equal(counts, again)
        torch.testing.assert_close(band, other, rtol=1e-3, atol=1e-15)
        assert dict(work) == effort


@pytest.mark.parametrize("tau", [1e-320, 1e-300, 1e300])
def test_thresholds_at_the_ends_of_the_range(tau: float) -> None:
    T = torch.stack([matrix("softmax, sharp", 30, 0), matrix("documents", 30, 0), matrix("zero", 30, 0)])
    T[0] *= 1e-305
    counts, _ = tolerance(T, torch.full((3,), tau, dtype=F64), splits(30))
    assert not counts[2].any()
    if tau == 1e300:
        assert not counts.any()
    else:
        # Documents: nothing crosses their borders, however small the threshold.
        assert counts[1, [0, 10, 15, 16, 30]].tolist() == [0] * 5
        assert counts[1, 5] == 5


@pytest.mark.parametrize("huge", [1e6, 1e12, 1e200])
@pytest.mark.parametrize("family", ["random", "permutation", "softmax, flat"])
def test_what_is_on_and_above_the_diagonal_does_not_enter(
    family: str, huge: float, work: Counter[str]
) -> None:
    T = matrix(family, 64, 3)[None]
    tau = torch.ones(1, dtype=F64)
    counts, band = tolerance(T, tau, splits(64))
    before = dict(work)
    work.clear()
    again, other = tolerance(T + torch.full_like(T, huge).triu(), tau, splits(64))
    assert torch.equal(counts, again) and torch.equal(band, other)
    assert dict(work) == before


def hadamard(N: int) -> Tensor:
    H = torch.ones(1, 1, dtype=F64)
    while len(H) < N:
        H = torch.kron(H, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64))
    return H[:N, :N].tril() / 8


N = 200
FULL_OF_TIES = {
    "permutation": matrix("permutation", N, 0),
    "identity, delayed": torch.eye(N, dtype=F64).roll(N // 3, 0).tril(),
    "orthogonal": matrix("orthogonal", N, 0),
    "equal in the middle": matrix("equal in the middle", N, 0),
    "clustered at 1": matrix("clustered at 1", N, 0),
    "parts with the value 1": matrix("parts with the value 1", N, 0),
    "softmax, sharp": matrix("softmax, sharp", N, 0),
    "Hadamard": hadamard(N),
}


@pytest.mark.parametrize("case", sorted(FULL_OF_TIES))
def test_ties_do_not_cost_a_decomposition_each(case: str, work: Counter[str]) -> None:
    T = FULL_OF_TIES[case]
    for off in (0.0, 1e-14, -1e-10, 1e-7):
        work.clear()
        check(T[None], torch.tensor([1.0 + off], dtype=F64), list(range(0, N + 1, 3)))
        everywhere = Counter(work)
        assert everywhere["singular_values"] <= N // 32 + 4
        work.clear()
        tolerance(T[None], torch.tensor([1.0 + off], dtype=F64), splits(N))
        assert work["singular_values"] <= N // 32 + 4
        assert work["count_delayed"] <= 1


@pytest.mark.parametrize("exponent", [2, 4, 6, 8, 10, 12])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_range_does_not_cost_a_decomposition_each(family: str, exponent: int, work: Counter[str]) -> None:
    T = matrix(family, 100, 1)
    top = max(float(sigmas(T, p).amax()) for p in range(10, 91, 10)) or 1.0
    tolerance(T[None], torch.tensor([top * 10.0**-exponent], dtype=F64), splits(100))
    assert work["singular_values"] <= 100 // 32 + 4
    assert work["count_delayed"] <= 1


@pytest.mark.parametrize(
    "family", ["random", "softmax, flat", "softmax with a sink", "all ones", "low rank and noise"]
)
def test_common_operators_are_certain_at_once(family: str, work: Counter[str]) -> None:
    """A band that always held everything would be of no use."""
    T = torch.stack([matrix(family, 90, seed) for seed in range(3)])
    for tau in (1e-1, 1.3e-2, 1.1e-3):
        _, band = check(T, torch.full((3,), tau, dtype=F64))
        assert float((band > 0).double().mean()) <= 0.02
    assert work["count_delayed"] == 0


def test_a_band_is_stated_where_a_value_ties() -> None:
    """Certainty is claimed nowhere that a singular value cannot be told from the threshold."""
    T = matrix("permutation", 60, 0)[None]
    counts, band = tolerance(T, torch.ones(1, dtype=F64), splits(60))
    tied = torch.tensor([bool((sigmas(T[0], p) > 0.5).any()) for p in splits(60)])
    assert torch.equal(band[0] > 0, tied)
    assert band.max() < 1e-10
    assert bool((counts[0] <= torch.tensor([int((sigmas(T[0], p) > 0.5).sum()) for p in splits(60)])).all())


def test_some_splits_repeated_and_in_any_order() -> None:
    T = torch.stack([matrix(family, 66, 2) for family in ("random", "clustered at 1", "entry of 1e7")])
    taus = torch.tensor([0.7, 1.0, 1e-2], dtype=F64)
    counts, _ = check(T, taus)
    at = [33, 1, 65, 33, 0, 66, 12, 12]
    some, _ = check(T, taus, at)
    assert torch.equal(some, counts[:, at])
    none, band = tolerance(T, taus, [])
    assert none.shape == band.shape == (3, 0)
    empty, band = tolerance(T[:0], taus[:0], at)
    assert empty.shape == band.shape == (0, 8)


def test_batches_are_cut_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    T = torch.stack([matrix("random", 40, seed) for seed in range(7)])
    taus = torch.logspace(-3, 1, 7, dtype=F64)
    whole = tolerance(T, taus, splits(40))
    monkeypatch.setattr(module, "_ENTRIES", 2 * 40**2)
    cut = tolerance(T, taus, splits(40))
    assert torch.equal(whole[0], cut[0]) and torch.equal(whole[1], cut[1])


def test_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    T = torch.stack(
        [matrix(family, 90, 3) for family in ("random", "permutation", "softmax, sharp", "Hilbert")]
    )
    taus = torch.tensor([0.1, 1.0, 1e-4, 1e-3], dtype=F64)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(tolerance(T, taus, splits(90)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for counts, band in results[1:]:
        assert torch.equal(counts, results[0][0])
        torch.testing.assert_close(band, results[0][1], rtol=0.1, atol=1e-13)


@unhurried
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    N=st.integers(2, 80),
    seed=st.integers(0, 10**6),
    tau=st.sampled_from([0.9, 0.11, 1.3e-3]),
)
def test_facts_of_every_profile(family: str, N: int, seed: int, tau: float) -> None:
    """It changes by at most one per position, and reversing time mirrors it."""
    T = matrix(family, N, seed)
    mirrored = T.mT.flip(0, 1)
    counts, band = tolerance(torch.stack([T, mirrored]), torch.full((2,), tau, dtype=F64), splits(N))
    sure = band == 0
    steps = counts.diff(dim=1).abs()
    assert bool((steps[sure[:, 1:] & sure[:, :-1]] <= 1).all())
    both = sure[0] & sure[1].flip(0)
    assert torch.equal(counts[0, both], counts[1].flip(0)[both])


@pytest.mark.parametrize("family", FAMILIES)
def test_one_count_is_right_but_for_what_its_band_holds(family: str) -> None:
    for N, seed in ((40, 1), (97, 2)):
        T = matrix(family, N, seed)
        found = [sigmas(T, p) for p in splits(N)]
        values = torch.cat(found)
        values = values[values > 0]
        for tau in values[:: max(1, len(values) // 4)].tolist():
            for off in (1e-9, 1e-5, 0.3):
                threshold = tau * (1.0 + off)
                counts, band = tolerance(
                    T[None], torch.tensor([threshold], dtype=F64), splits(N), certify=False
                )
                for k, sigma in enumerate(found):
                    low, high = limits(sigma, threshold, float(band[0, k]))
                    assert low <= counts[0, k] <= high
