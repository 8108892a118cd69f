"""Counts by nested elimination: each is the count at some threshold within the error that comes with it."""

from __future__ import annotations

import pytest
import torch
from adversarial import EPS, F64, FAMILIES, limits, matrix, sigmas, splits
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.metrics import _inertia, elimination
from ess_widgets.metrics._inertia import eliminate, negatives
from ess_widgets.metrics.elimination import count

unhurried = settings(deadline=None, max_examples=60)
# Errors from here on promise nothing.
USELESS = 0.1
WAYS = ["factorisations", "eigenvalues"]


def choose(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(_inertia, "_has_ldl", lambda device: way == "factorisations")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the CPU does, and what GPUs do."""
    choose(monkeypatch, request.param)
    return str(request.param)


def check(T: Tensor, taus: list[float], at: list[int]) -> float:
    """Every count is right within its error; the share of errors that promise something."""
    counts, errors = count(T[None], torch.tensor(taus, dtype=F64)[:, None], at)
    assert counts.shape == errors.shape == (len(taus), 1, len(at))
    assert counts.dtype is torch.int64 and errors.dtype is F64
    assert bool((errors >= 0).all())
    spectra = {p: sigmas(T, p) for p in at}
    for e, tau in enumerate(taus):
        for found, error, p in zip(counts[e, 0].tolist(), errors[e, 0].tolist(), at, strict=True):
            if error < USELESS:
                low, high = limits(spectra[p], tau, error)
                assert low <= found <= high, (tau, p, found, low, high, error)
    return float((errors < USELESS).double().mean())


def near(T: Tensor, choice: float) -> float:
    """One of the singular values of all positions, 1 where all are zero."""
    values = torch.cat([sigmas(T, p) for p in splits(len(T))])
    values = values[values > 1e-12 * values.max()] if len(values) else values
    return float(values[int(choice * (len(values) - 1))]) if len(values) else 1.0


@unhurried
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    N=st.integers(1, 90),
    seed=st.integers(0, 10**6),
    choice=st.floats(0, 1),
    off=st.sampled_from([0.0, 1e-12, -1e-9, 1e-6, -1e-3]),
    exponent=st.integers(-9, 1),
)
def test_thresholds_at_ties_and_anywhere(
    family: str, N: int, seed: int, choice: float, off: float, exponent: int
) -> None:
    T = matrix(family, N, seed)
    check(T, [near(T, choice) * (1 + off), 1.0, 10.0**exponent], splits(N))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_both_ways(way: str, family: str) -> None:
    for N, seed in ((7, 0), (33, 1), (66, 2)):
        T = matrix(family, N, seed)
        check(T, [1.0, 1.0 - 1e-6, 0.11, 1e-3, near(T, 0.5) * (1 + 1e-4)], splits(N))


@pytest.mark.parametrize("tau", [2.0, 0.5, 0.05])
def test_well_conditioned_counts_come_with_small_errors(way: str, tau: float) -> None:
    """An error that is always infinite would pass every other test."""
    for family in ("random", "softmax, flat", "softmax with a sink", "low rank and noise", "all ones"):
        T = matrix(family, 80, 3)
        counts, errors = count(T[None], torch.tensor([[tau]], dtype=F64), splits(80))
        assert errors.max() < 1e-7, family
        assert counts[0, 0].tolist() == [int((sigmas(T, p) > tau).sum()) for p in splits(80)]


def test_both_ways_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    T = torch.stack([matrix("random", 150, n) for n in range(4)])
    taus = torch.tensor([[0.1, 1.0, 3.0, 9.0], [0.5, 0.01, 5.0, 20.0]], dtype=F64)
    results = []
    for way in WAYS:
        choose(monkeypatch, way)
        results.append(count(T, taus, splits(150))[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("N", [1, 2, 3, 8, 9, 15, 16, 17, 31, 64, 65, 127, 129, 255, 257])
def test_every_size(N: int) -> None:
    """Around powers of two, where the tree gains a level."""
    T = matrix("random", N, N)
    tau = 0.3 * N**0.5
    at = splits(N) if N < 70 else [*range(0, N, 13), N - 1, N]
    assert check(T, [tau], at) == 1.0


def test_thresholds_and_matrices_keep_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches are worked on in parts, in whatever way they are cut."""
    T = torch.stack([matrix(family, 40, 1) for family in sorted(FAMILIES)])
    taus = torch.logspace(-2, 1, 3, dtype=F64)[:, None] * torch.linspace(0.5, 2.0, len(T), dtype=F64)
    at = [5, 39, 0, 20, 20, 40, 1]
    alone = [
        [count(T[b : b + 1], taus[e : e + 1, b : b + 1], at) for b in range(len(T))] for e in range(len(taus))
    ]
    for entries in (1, 5000, 2**19):
        monkeypatch.setattr(elimination, "_ENTRIES", entries)
        counts, errors = count(T, taus, at)
        for e, row in enumerate(alone):
            for b, (_, error) in enumerate(row):
                if error.max() < USELESS and errors[e, b].max() < USELESS:
                    for n, p in zip(counts[e, b].tolist(), at, strict=True):
                        low, high = limits(sigmas(T[b], p), float(taus[e, b]), float(errors[e, b].max()))
                        assert low <= n <= high
        sure = torch.tensor([[float(error.max()) < 1e-9 for _, error in row] for row in alone])
        assert sure.float().mean() > 0.6
        same = torch.stack([torch.stack([one[0, 0] for one, _ in row]) for row in alone])
        ties = torch.tensor([family in ("delay", "permutation", "orthogonal") for family in sorted(FAMILIES)])
        assert torch.equal(counts[sure & ~ties], same[sure & ~ties])


@pytest.mark.parametrize("entries", [2**12, 2**19])
def test_only_the_splits_asked_for_are_visited(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setattr(elimination, "_ENTRIES", entries)
    T = matrix("random", 300, 4)
    tau = torch.tensor([[4.0]], dtype=F64)
    all_counts, _ = count(T[None], tau, splits(300))
    windows = []
    real = elimination.negatives

    def spy(matrices: Tensor) -> tuple[Tensor, Tensor]:
        windows.append(len(matrices))
        return real(matrices)

    monkeypatch.setattr(elimination, "negatives", spy)
    for at in ([150], [299, 0, 3], [10, 11, 12], [300], []):
        windows.clear()
        counts, _ = count(T[None], tau, at)
        assert torch.equal(counts, all_counts[:, :, at])
        assert sum(windows) <= 10 * len({p for p in at if 0 < p < 300})


def test_nothing_is_counted_at_either_end() -> None:
    """Whatever the threshold makes of the numbers."""
    T = matrix("all ones", 59, 0)
    for tau in (1e-300, 1e-255, 1e-20, 1.0, 1e300):
        counts, errors = count(T[None], torch.tensor([[tau]], dtype=F64), [0, 59])
        assert not counts.any() and not errors.any()


def test_what_is_on_and_above_the_diagonal_does_not_enter(way: str) -> None:
    T = matrix("random", 50, 0)
    counts, _ = count(T[None], torch.tensor([[1.0]], dtype=F64), splits(50))
    above = torch.full_like(T, 1e9).triu()
    again, others = count((T + above)[None], torch.tensor([[1.0]], dtype=F64), splits(50))
    assert torch.equal(counts, again)
    assert others.max() < 1e-6


def symmetric(n: int, seed: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=F64))[0]
    values = torch.randn(n, generator=generator, dtype=F64)
    if kind == "graded":
        values = values.sign() * torch.logspace(-9, 3, n, dtype=F64)
    elif kind == "definite":
        values = values.abs() + 0.1
    elif kind == "paired":
        # Zeros on the diagonal: pivots of two rows and columns throughout.
        half = torch.randn(n // 2, n - n // 2, generator=generator, dtype=F64)
        S = torch.zeros(n, n, dtype=F64)
        S[: n // 2, n // 2 :] = half
        return S + S.mT
    S = Q * values @ Q.mT
    return (S + S.mT) / 2


@unhurried
@given(
    n=st.integers(1, 24),
    k=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["indefinite", "graded", "definite", "paired"]),
    way=st.sampled_from(WAYS),
)
def test_elimination_of_one_block(n: int, k: int, seed: int, kind: str, way: str) -> None:
    S = symmetric(n, seed, kind)
    values = torch.linalg.eigvalsh(S)
    assume(float(values.abs().min()) > 1e3 * EPS * float(values.abs().max()))
    coupling = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=F64)
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, way)
        solved, negative, magnitude = eliminate(S[None], coupling[None])
        counted, size = negatives(S[None])
    expected = torch.linalg.solve(S, coupling)
    assert int(negative) == int(counted) == int((values < 0).sum())
    added, exact = coupling.mT @ solved[0], coupling.mT @ expected
    # An error in the factors is one in the pivot, which the solution shows twice.
    shared = float(torch.linalg.matrix_norm(S, 2) * torch.linalg.vector_norm(expected) ** 2)
    assert float(torch.linalg.matrix_norm(added - exact, 2)) <= 4 * n * EPS * (float(magnitude) + shared)
    assert float(magnitude) >= float(torch.linalg.matrix_norm(exact, 2)) * (1 - 1e-6)
    assert 0 < float(size) < torch.inf


def test_singular_and_boundless_blocks_are_told(way: str) -> None:
    blocks = torch.zeros(5, 3, 3, dtype=F64)
    blocks[0] = torch.eye(3)
    blocks[1] = torch.diag(torch.tensor([1.0, 0.0, -1.0]))
    blocks[2, 0, 0] = torch.inf
    blocks[3, 1, 1] = torch.nan
    coupling = torch.ones(5, 3, 2, dtype=F64)
    solved, negative, magnitude = eliminate(blocks, coupling)
    assert torch.isfinite(magnitude).tolist() == [True, False, False, False, False]
    assert int(negative[0]) == 0 and bool(torch.isfinite(solved).all())
    assert torch.equal(solved[0], coupling[0]) and not solved[1:].any()
    _, size = negatives(blocks)
    assert torch.isfinite(size).tolist() == [True, False, False, False, False]
