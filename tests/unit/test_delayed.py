"""Elimination with delayed pivots: where singular values tie with the threshold, or exceed it by far."""

from __future__ import annotations

import pytest
import torch
from adversarial import EPS, F64, FAMILIES, Draw, limits, matrix, sigmas, splits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.metrics import _inertia, delayed
from ess_widgets.metrics.delayed import count_delayed

unhurried = settings(deadline=None, max_examples=60)
USELESS = 0.1


@pytest.fixture(params=["factorisations", "eigenvalues"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the CPU does, and what GPUs do."""
    monkeypatch.setattr(_inertia, "_has_ldl", lambda device: request.param == "factorisations")
    return str(request.param)


def check(T: Tensor, tau: float, at: list[int] | None = None) -> float:
    """Every count is right within its error; the largest error."""
    at = splits(len(T)) if at is None else at
    counts, errors = count_delayed(T, tau, at)
    assert counts.shape == errors.shape == (len(at),)
    assert counts.dtype is torch.int64 and errors.dtype is F64
    for found, error, p in zip(counts.tolist(), errors.tolist(), at, strict=True):
        if error < USELESS:
            low, high = limits(sigmas(T, p), tau, error)
            assert low <= found <= high, (tau, p, found, low, high, error)
    return float(errors.max()) if at else 0.0


def largest(T: Tensor) -> float:
    return max((float(sigmas(T, p).amax()) for p in range(1, len(T))), default=0.0) or 1.0


@unhurried
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    N=st.integers(1, 90),
    seed=st.integers(0, 10**6),
    choice=st.floats(0, 1),
    off=st.sampled_from([0.0, 1e-12, -1e-9, 1e-6, -1e-3]),
)
def test_thresholds_at_ties(family: str, N: int, seed: int, choice: float, off: float) -> None:
    T = matrix(family, N, seed)
    values = torch.cat([sigmas(T, p) for p in splits(N)])
    values = values[values > 1e-12 * values.max()] if len(values) else values
    tau = float(values[int(choice * (len(values) - 1))]) if len(values) else 1.0
    check(T, tau * (1 + off))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_thresholds_far_below_the_largest(way: str, family: str) -> None:
    """Up to a factor of 1e12, errors stay useful."""
    T = matrix(family, 61, 5)
    top = largest(T)
    for exponent in range(0, 13, 2):
        error = check(T, top * 10.0**-exponent)
        assert error < 1e-8 + 2e-13 * 10.0**exponent, exponent


@pytest.mark.parametrize(
    "family",
    ["delay", "permutation", "orthogonal", "equal in the middle", "sparse", "parts with the value 1"],
)
@pytest.mark.parametrize("off", [0.0, 1e-15, -1e-13, 1e-9, -1e-6])
def test_ties_cost_few_digits(way: str, family: str, off: float) -> None:
    T = matrix(family, 90, 2)
    assert check(T, 1.0 + off) < 1e-7


@pytest.mark.parametrize("N", [1, 2, 15, 16, 17, 33, 64, 65, 130])
def test_every_size(N: int) -> None:
    T = matrix("permutation", N, N)
    assert check(T, 0.999, splits(N) if N < 70 else list(range(0, N + 1, 9))) < 1e-9


def test_splits_may_repeat_come_in_any_order_and_be_few() -> None:
    T = matrix("clustered at 1", 70, 1)
    counts, errors = count_delayed(T, 1.0, splits(70))
    at = [35, 3, 70, 35, 0, 69, 12]
    some, their_errors = count_delayed(T, 1.0, at)
    assert torch.equal(some, counts[at]) and torch.equal(their_errors, errors[at])
    assert count_delayed(T, 1.0, [])[0].shape == (0,)
    ends, error = count_delayed(T, 1e-300, [0, 70])
    assert not ends.any() and not error.any()


def test_what_is_on_and_above_the_diagonal_does_not_enter() -> None:
    T = matrix("permutation", 50, 0)
    counts, _ = count_delayed(T, 0.999, splits(50))
    again, errors = count_delayed(T + torch.full_like(T, 1e3).triu(), 0.999, splits(50))
    assert torch.equal(counts, again) and errors.max() < 1e-9


def hard(N: int) -> dict[str, tuple[Tensor, float]]:
    entry = matrix("entry of 1e12", N, 0)
    return {
        "ties": (matrix("permutation", N, 0), 1.0),
        "ties in the middle": (matrix("equal in the middle", N, 0), 1.0),
        "far above": (matrix("random", N, 0), 1e-11 * N**0.5),
        "one far above": (entry, 1.0),
        "graded": (matrix("graded rows and columns", N, 0), 1e-12),
    }


@pytest.mark.parametrize("case", sorted(hard(2)))
def test_few_directions_are_handed_down(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the work would grow faster than N³."""
    T, tau = hard(192)[case]
    nodes = []
    real = delayed._half

    def spy(*args: object) -> delayed._Node:
        node = real(*args)  # type: ignore[arg-type]
        nodes.append(node)
        return node

    monkeypatch.setattr(delayed, "_half", spy)
    count_delayed(T, tau, splits(192))
    assert all(node.delayed <= 2 * node.m for node in nodes)


def test_a_reduction_leaves_what_was_there() -> None:
    """Inertia is additive: what was counted and what is left make up the whole."""
    for seed in range(20):
        d = Draw(20, seed)
        S = d.square()
        S = S + S.mT
        n = d.integer(1, 12)
        # Some pivots tiny beside their coupling.
        S[:n, :n] *= 10.0 ** -d.integer(0, 14)
        rows = d.integer(0, min(n, 20 - n))
        S[:rows, :n] = S[:n, :rows] = 0.0
        P, W, rest, negative, magnitude = delayed._reduce(S[:n, :n], S[:n, n:], S[n:, n:], 1e6)
        assert magnitude < 1e8
        left = torch.cat([torch.cat([P, W], dim=-1), torch.cat([W.mT, rest], dim=-1)])
        values = torch.linalg.eigvalsh(S)
        assert float(values.abs().min()) > 1e4 * EPS * magnitude
        assert negative + int((torch.linalg.eigvalsh(left) < 0).sum()) == int((values < 0).sum())
