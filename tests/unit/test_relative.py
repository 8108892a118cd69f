"""Tolerance-ESS in units of each position's largest singular value, against a decomposition per position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adversarial import F64, FAMILIES, limits, matrix, sigmas, splits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.metrics import relative
from ess_widgets.metrics.relative import relative_tolerance

unhurried = settings(deadline=None, max_examples=80)


def check(T: Tensor, tol: float, at: list[int] | None = None) -> tuple[Tensor, Tensor]:
    at = splits(T.shape[-1]) if at is None else at
    counts, band = relative_tolerance(T, tol, at)
    assert counts.shape == band.shape == (len(T), len(at))
    assert counts.dtype is torch.int64 and band.dtype is F64
    for b in range(len(T)):
        for found, width, p in zip(counts[b].tolist(), band[b].tolist(), at, strict=True):
            sigma = sigmas(T[b], p)
            top = float(sigma.amax()) if len(sigma) else 0.0
            low, high = limits(sigma, tol * top, min(width, 1e-12)) if top else (0, 0)
            assert low <= found <= high, (b, p, found, low, high, width)
            assert width < 1e-13 * max(8, len(T[b])) / tol + 1e-300
    return counts, band


@unhurried
@given(
    families=st.lists(st.sampled_from(sorted(FAMILIES)), min_size=1, max_size=3),
    N=st.integers(1, 90),
    seed=st.integers(0, 10**6),
    tol=st.sampled_from([1e-1, 1e-2, 1e-3, 1e-5, 2e-6, 1e-6, 1e-8, 1e-12, 0.999999, 1.0, 2.0]),
    scale=st.sampled_from([1.0, 1.0, 1e-300, 1e-150, 1e150, 1e290]),
)
def test_equal_to_a_decomposition_per_position(
    families: list[str], N: int, seed: int, tol: float, scale: float
) -> None:
    check(torch.stack([matrix(family, N, seed) for family in families]) * scale, tol)


@unhurried
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    N=st.integers(3, 80),
    seed=st.integers(0, 10**6),
    where=st.floats(0, 1),
    which=st.floats(0, 1),
    off=st.sampled_from([0.0, 1e-14, -1e-12, 1e-9, -1e-6, 1e-3]),
)
def test_thresholds_at_ties(family: str, N: int, seed: int, where: float, which: float, off: float) -> None:
    T = matrix(family, N, seed)
    sigma = sigmas(T, 1 + int(where * (N - 2)))
    tol = float(sigma[int(which * (len(sigma) - 1))] / sigma[0]) if sigma[0] > 0 else 1e-3
    check(T[None], max(tol, 1e-13) * (1 + off))


@pytest.mark.parametrize(
    "family", ["Hilbert", "exponentials", "softmax with a sink", "graded rows", "rows fall"]
)
def test_squares_are_not_trusted_beyond_their_digits(family: str) -> None:
    """Thresholds so near to small singular values that only the values themselves tell."""
    T = matrix(family, 60, 1)
    for p in (15, 30, 45):
        sigma = sigmas(T, p)
        ratios = [float(r) for r in sigma / sigma[0] if 1.1e-6 < r < 1e-2]
        assert ratios
        for ratio in ratios:
            for off in (-1e-5, -1e-7, -1e-9, 1e-9, 1e-7, 1e-5):
                check(T[None], ratio * (1 + off), [p])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family(family: str) -> None:
    T = torch.stack([matrix(family, 53, seed) for seed in (1, 2)])
    for tol in (0.5, 1e-2, 1e-4, 1e-9):
        check(T, tol)


def test_squares_settle_nearly_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = []
    real = relative.singular_values

    def spy(H: Tensor) -> Any:
        decomposed.append(len(H))
        return real(H)

    monkeypatch.setattr(relative, "singular_values", spy)
    for family in (
        "random",
        "softmax, flat",
        "softmax with a sink",
        "documents that leak",
        "rows fall",
        "delay",
    ):
        check(matrix(family, 90, 1)[None], 1.1e-3)
    assert sum(decomposed) <= 6


def test_rows_and_columns_of_very_different_size() -> None:
    """Where T's largest entry says nothing about a position, down to squares that vanish."""
    T = torch.stack([matrix("random", 60, seed) for seed in (1, 2, 3, 4)])
    T[0] *= torch.logspace(0, -290, 60, dtype=F64)[:, None]
    T[1] *= torch.logspace(-290, 0, 60, dtype=F64)
    T[2, 30:, :30] *= 1e-200
    T[3, 30:, :30] *= 1e-160
    check(T, 1e-3)


def test_scale_does_not_enter() -> None:
    T = torch.stack([matrix(family, 60, 0) for family in ("random", "permutation", "Hilbert", "graded rows")])
    counts, _ = relative_tolerance(T, 1e-3, splits(60))
    for exponent in (-900, -500, 300, 900):
        again, _ = relative_tolerance(torch.ldexp(T, torch.tensor([exponent])), 1e-3, splits(60))
        assert torch.equal(counts, again)


def test_some_splits_repeated_in_any_order_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    T = torch.stack([matrix(family, 66, 2) for family in ("random", "documents", "entry of 1e7")])
    counts, _ = check(T, 1e-3)
    at = [33, 1, 65, 33, 0, 66, 34, 12, 12]
    monkeypatch.setattr(relative, "_ENTRIES", 66**2)
    monkeypatch.setattr(relative, "_SPLITS", 5)
    some, _ = check(T, 1e-3, at)
    assert torch.equal(some, counts[:, at])
    assert torch.equal(check(T, 1e-3)[0], counts)
    for empty in (relative_tolerance(T, 1e-3, []), relative_tolerance(T[:0], 1e-3, at)):
        assert empty[0].numel() == empty[1].numel() == 0


def test_reversing_time_mirrors_the_profile() -> None:
    for family in ("random", "softmax, sharp", "documents", "exponentials"):
        T = matrix(family, 60, 4)
        pair = torch.stack([T, T.mT.flip(0, 1)])
        counts, band = relative_tolerance(pair, 1.7e-3, splits(60))
        assert torch.equal(counts[0], counts[1].flip(0)) or band.any()
