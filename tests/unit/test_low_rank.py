"""Spectra by compression of low-rank blocks, against one decomposition per position."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.metrics.low_rank import rank_estimate, spectra

unhurried = settings(deadline=None, max_examples=60)
N = 150
INDEX = torch.arange(N, dtype=torch.float64)
LAG = (INDEX[:, None] - INDEX).clamp(min=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_attention(r: int, n: int = N, batch: int = 2, seed: int = 0) -> Tensor:
    q, k = torch.randn(2, batch, n, r, generator=generator(seed), dtype=torch.float64)
    return (q @ k.mT).tril()


def documents(within: Tensor, *starts: int, leak: float = 0.0) -> Tensor:
    T = within.clone()
    for start in starts:
        T[:, start:, :start] *= leak
    return T


def decaying(seed: int = 0) -> Tensor:
    """Rank 16, singular values from 1 to 1e-13."""
    q, k = torch.randn(2, 1, N, 16, generator=generator(seed), dtype=torch.float64)
    sigma = torch.logspace(0, -13, 16, dtype=torch.float64)
    return torch.linalg.qr(q)[0] * sigma @ torch.linalg.qr(k)[0].mT


def with_entry(T: Tensor, row: int, column: int, value: float) -> Tensor:
    T = T.clone()
    T[:, row, column] = value
    return T


def singular_values(T: Tensor, p: int) -> Tensor:
    H = T.double()[:, p:, :p]
    return torch.linalg.svdvals(H) if H.numel() else T.new_zeros(T.shape[0], 0, dtype=torch.float64)


def check(T: Tensor, at: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Every singular value is within its position's bound, and the bound is that of the position's own size."""
    at = list(range(T.shape[-1] + 1)) if at is None else at
    found = spectra(T, at, **options)
    assert found is not None
    sigma, bound = found
    assert sigma.dtype == bound.dtype == torch.float64
    assert sigma.shape[:2] == bound.shape == (T.shape[0], len(at))
    assert bool((sigma[..., 1:] <= sigma[..., :-1]).all())
    for n, p in enumerate(at):
        expected = singular_values(T, p)
        K = max(sigma.shape[-1], expected.shape[-1])
        a, b = (torch.nn.functional.pad(v, (0, K - v.shape[-1])) for v in (sigma[:, n], expected))
        # The reference rounds as well.
        own = 1e-15 * b.amax(dim=-1) if K else 0.0
        error = (a - b).abs().amax(dim=-1) if K else torch.zeros(1)
        assert bool((error <= bound[:, n] + own).all()), (p, error, bound[:, n])
        assert not sigma[:, n, min(p, T.shape[-1] - p) :].any()
    return sigma, bound


LOW = {
    "rank 1": linear_attention(1),
    "rank 8": linear_attention(8),
    "zeros": torch.zeros(2, N, N, dtype=torch.float64),
    "all ones": torch.ones(1, N, N),
    "Hilbert-like": (1 / (LAG + 1))[None],
    "exponentials": sum(a**LAG for a in (0.1, 0.5, 0.9, 0.99, 0.999))[None],
    "decays from 1e-12 to 1": sum(a**LAG for a in (1e-12, 1e-6, 1e-3, 0.9, 1.0))[None],
    "singular values to 1e-13": decaying(),
    "delay": torch.diag_embed(torch.ones(1, N - 3, dtype=torch.float64), -3),
    "one huge entry": with_entry(linear_attention(8), 110, 30, 1e12),
    "huge entry above the diagonal": with_entry(linear_attention(8), 30, 110, 1e12),
    "documents": documents(linear_attention(8), 40, 75, 101),
    "documents that leak": documents(linear_attention(8), 40, 75, leak=1e-9),
    "columns fall": linear_attention(8) * torch.logspace(0, -12, N, dtype=torch.float64),
    "columns rise": linear_attention(8) * torch.logspace(-12, 0, N, dtype=torch.float64),
    "rows fall": linear_attention(8) * torch.logspace(0, -12, N, dtype=torch.float64)[:, None],
    "rows rise": linear_attention(8) * torch.logspace(-12, 0, N, dtype=torch.float64)[:, None],
    "rank varies": torch.cat([linear_attention(12)[..., :60], linear_attention(2, seed=1)[..., 60:]], dim=-1),
    "ranks of a batch differ": torch.cat([linear_attention(1, batch=1), linear_attention(20, batch=1)]),
    "a dead stretch": linear_attention(5) * ((INDEX < 40) | (INDEX > 90)),
    "nearly the largest numbers": linear_attention(6) * 1e290,
    "nearly the smallest numbers": linear_attention(6) * 1e-290,
}


@pytest.mark.parametrize("name", LOW)
def test_spectra_are_within_a_bound_of_each_positions_own_size(name: str) -> None:
    T = LOW[name]
    _, bound = check(T)
    size = torch.stack([T.double()[:, p:, :p].abs().sum(dim=(-2, -1)) for p in range(N + 1)], dim=-1)
    assert bool((bound <= 1e-13 * size + 1e-140 * T.abs().max()).all())


@pytest.mark.parametrize("n", [*range(1, 20), 31, 32, 33, 64, 65])
def test_every_small_size(n: int) -> None:
    check(linear_attention(2, n=n))


def test_chosen_positions_in_any_order() -> None:
    T = linear_attention(3)
    at = [150, 7, 7, 0, 149, 64]
    sigma, bound = check(T, at)
    assert torch.equal(sigma[:, 1], sigma[:, 2]) and torch.equal(bound[:, 1], bound[:, 2])
    sigma, bound = check(T, [])
    assert sigma.shape[1] == bound.shape[1] == 0


def test_blocks_of_several_rows_per_position() -> None:
    """The splits of a block operator; what its blocks hold above the diagonal is not read."""
    T = linear_attention(4, n=144)
    T += torch.block_diag(*torch.randn(48, 3, 3, generator=generator(), dtype=torch.float64))
    check(T, range(0, 144, 3))


def test_an_empty_batch() -> None:
    found = spectra(torch.zeros(0, 40, 40), range(40))
    assert found is not None
    assert found[0].shape[:2] == found[1].shape == (0, 40)


@pytest.mark.parametrize(
    "T",
    [
        torch.randn(2, N, N, generator=generator()).tril(),
        torch.randn(1, N, N, generator=generator(), dtype=torch.float64).softmax(-1).tril(),
        linear_attention(60),
        torch.cat([linear_attention(2, batch=1), torch.randn(1, N, N, generator=generator()).double()]),
        documents(torch.randn(1, N, N, generator=generator()), 75),
        linear_attention(8).float(),
    ],
    ids=["random", "softmax", "rank 60", "one of two", "random documents", "rounded to float32"],
)
def test_none_where_the_rank_is_not_low(T: Tensor) -> None:
    assert spectra(T, range(N), rank_limit=N // 5) is None


def test_what_may_be_discarded_is_and_the_bound_says_so() -> None:
    T = linear_attention(8).float()
    assert spectra(T, range(N)) is None
    sigma, bound = check(T, discard=1e-3)
    assert 1e-8 < bound[:, 1:-1].max() <= 1e-3
    assert sigma.shape[-1] < 30
    fewer, bound = check(LOW["Hilbert-like"], discard=1e-6)
    assert bound.max() <= 1e-6
    assert fewer.shape[-1] < check(LOW["Hilbert-like"])[0].shape[-1]


def test_everything_may_be_discarded() -> None:
    T = linear_attention(8)
    _, bound = check(T, discard=1e9)
    assert bound.max() <= 1e9


def test_the_rank_is_estimated_per_matrix() -> None:
    T = torch.cat([linear_attention(r, batch=1) for r in (1, 5, 30)])
    T = torch.cat([T, torch.zeros_like(T[:1]), torch.randn(1, N, N, generator=generator()), T[1:2] * 1e-200])

    def check_estimate(estimate: Tensor, expected: list[int]) -> None:
        # Rounding, mixed at random, may show as one direction or two.
        excess = estimate - torch.tensor(expected)
        assert bool(((excess >= 0) & (excess <= 2)).all()), estimate

    check_estimate(rank_estimate(T), [1, 5, 30, 0, N // 4 + 1, 5])
    check_estimate(rank_estimate(T, limit=10), [1, 5, 11, 0, 11, 5])
    assert rank_estimate(T, limit=10).max() == 11
    noisy = T[:2] + 1e-9 * torch.randn(2, N, N, generator=generator())
    check_estimate(rank_estimate(noisy), [38, 38])
    check_estimate(rank_estimate(noisy, discard=1e-6), [1, 5])
    check_estimate(rank_estimate(documents(linear_attention(7), 75), limit=12), [7, 7])
    check_estimate(rank_estimate(documents(torch.randn(1, N, N, generator=generator()), 75), limit=12), [13])
    assert rank_estimate(torch.ones(2, 1, 1)).tolist() == [0, 0]


def test_results_repeat_and_draw_no_global_random_numbers() -> None:
    T = linear_attention(8)
    state = torch.get_rng_state()
    first, second = spectra(T, range(N)), spectra(T, range(N))
    assert first is not None and second is not None
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), state)


@st.composite
def structured(draw: st.DrawFn) -> Tensor:
    """Sums of graded low-rank parts on stretches of inputs and outputs, with a few large entries."""
    n = draw(st.integers(1, 70))
    random = generator(draw(st.integers(0, 10**6)))
    T = torch.zeros(1, n, n, dtype=torch.float64)
    for _ in range(draw(st.integers(0, 4))):
        rows, columns = (sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for _ in range(2))
        r = draw(st.integers(1, 3))
        scale = 10.0 ** draw(st.integers(-12, 12))
        q = torch.randn(rows[1] - rows[0], r, generator=random, dtype=torch.float64)
        k = torch.randn(columns[1] - columns[0], r, generator=random, dtype=torch.float64)
        T[0, rows[0] : rows[1], columns[0] : columns[1]] += scale * q @ k.mT
    for _ in range(draw(st.integers(0, 3))):
        T[0, draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))] = 10.0 ** draw(st.integers(-12, 12))
    return T.tril()


@unhurried
@given(structured())
def test_structured_operators(T: Tensor) -> None:
    check(T, rank_limit=T.shape[-1])


@unhurried
@given(structured(), st.floats(1e-12, 1e6))
def test_structured_operators_with_something_discarded(T: Tensor, discard: float) -> None:
    _, bound = check(T, rank_limit=T.shape[-1], discard=discard)
    size = torch.stack([T[:, p:, :p].abs().sum(dim=(-2, -1)) for p in range(T.shape[-1] + 1)], dim=-1)
    assert bool((bound <= discard * (1 + 1e-9) + 1e-13 * size + 1e-130).all())


def test_much_faster_than_one_decomposition_per_position() -> None:
    T = linear_attention(8, n=384, batch=1)

    def seconds(run: Any) -> float:
        began = time.thread_time()
        run()
        return time.thread_time() - began

    sample = range(12, 384, 24)
    slow = seconds(lambda: [singular_values(T, p) for p in sample]) * 24
    fast = min(seconds(lambda: check_none(spectra(T, range(384)))) for _ in range(2))
    refused = min(seconds(lambda: spectra(torch.randn(1, 384, 384), range(384))) for _ in range(2))
    assert fast < slow / 10
    assert refused < slow / 50


def check_none(found: Any) -> None:
    assert found is not None
