"""The lemma's bound: sequences that it finds are checked against its conditions, and its price against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.learn.reduction.bounds import (
    frobenius_bound,
    lower_bound,
    one_removal,
    spectral_bound,
    textbook,
)

unhurried = settings(deadline=None, max_examples=80)


def single(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1)


def least_b_0(values: list[float]) -> float:
    """The least ``b_0`` for one removal of two or three positions, by brute force over ``a`` and ``b``."""
    grid = torch.logspace(-3, 0, 60, dtype=torch.float64)
    squares = [value**2 for value in values]
    if len(values) == 1:
        return squares[0] / 4
    # Backwards, a = 1 at the end: b between the last two positions, as a function of a there.
    a = torch.cat([1 / grid, torch.tensor([1.0], dtype=torch.float64)]).unique()
    last = squares[-1]
    b = torch.where(4 * a > 1, last / (4 - 1 / a), torch.inf)
    for x in reversed(squares[1:-1]):
        # 1/b >= ... solved for b, with a' <= a and b' <= b.
        follows = (a * x + b)[None, :]
        room = 4 * x / follows - 1 / a[:, None]
        needed = torch.where(room > 0, x / room, torch.inf)
        candidate = torch.maximum(needed, b[None, :]).masked_fill(a[None, :] > a[:, None], torch.inf)
        b = candidate.amin(-1)
    first = squares[0]
    return float(torch.maximum(b, (a * first + b) / 4).amin())


@unhurried
@given(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=3))
def test_short_sequences_against_brute_force(values: list[float]) -> None:
    row = torch.tensor([values], dtype=torch.float64)
    found, best = float(one_removal(row, row)), 2 * math.sqrt(least_b_0(values))
    # Two searches over two grids: neither is far from the optimum.
    assert found == pytest.approx(best, rel=0.12)


@unhurried
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12), st.floats(1e-100, 1e100))
def test_scales_with_what_is_discarded_and_lies_between_largest_and_sum(
    values: list[float], scale: float
) -> None:
    bound = float(spectral_bound(single(values)))
    assert max(values) <= bound <= sum(values) * (1 + 1e-8)
    assert float(spectral_bound(scale * single(values))) == pytest.approx(scale * bound, rel=1e-6)


@unhurried
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40), st.integers(0, 40))
def test_twice_the_largest_where_it_rises_and_falls(values: list[float], peak: int) -> None:
    hump = sorted(values[:peak]) + sorted(values[peak:], reverse=True)
    tail = single(hump)
    assert float(spectral_bound(tail)) <= float(textbook(tail)) * (1 + 1e-8)


def test_constant_ones() -> None:
    assert float(spectral_bound(single([1.0]))) == pytest.approx(1.0)
    # Two positions: b_0 = 1/3, by hand.
    assert 2 / math.sqrt(3) <= float(spectral_bound(single([1.0, 1.0]))) < 2 / math.sqrt(3) + 0.01
    assert float(spectral_bound(single([1.0] * 300))) == pytest.approx(2.0)


def test_ties_are_removed_together_and_the_others_one_by_one() -> None:
    ones = torch.ones(1, 100, 5, dtype=torch.float64)
    assert float(spectral_bound(ones)) == pytest.approx(2.0)
    steps = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64).expand(1, 100, 3)
    assert float(spectral_bound(steps)) == pytest.approx(2 * (1 + 1e-2 + 1e-4), rel=1e-6)


def test_positions_where_nothing_is_discarded_cost_nothing() -> None:
    one = torch.zeros(1, 50, 2, dtype=torch.float64)
    one[0, 20, 0], one[0, 20, 1] = 3.0, 2.0
    assert float(spectral_bound(one)) == pytest.approx(3.0)
    assert not spectral_bound(torch.zeros(2, 9, 3)).any()
    assert spectral_bound(torch.zeros(2, 9, 0)).shape == (2,)


def test_frobenius_and_lower() -> None:
    tail = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    assert float(frobenius_bound(tail)) == pytest.approx(6.0)
    assert [float(value) for value in lower_bound(tail)] == pytest.approx([4.0, 5.0])
