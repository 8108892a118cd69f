"""Toy operators: their closed forms against rank counts of the reference, for every parameter that is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ess_widgets import ceiling
from ess_widgets.metrics import reference
from ess_widgets.operators import Operator
from ess_widgets.widgets.playground.poles import Pole, minimal_order
from ess_widgets.widgets.playground.toys import TOYS, find

LENGTHS = st.integers(2, 20)
SEEDS = st.integers(0, 1000)


def rank(operator: Operator, tol: float = 1e-12) -> list[int]:
    """Singular values above ``tol · σ₁``, by the reference."""
    return [int(n) for n in reference.ess(operator.matrix(), "tolerance", tol=tol, relative=True)]


def agree(toy: str, length: int, tol: float = 1e-12, **values: Any) -> None:
    """Closed form and rank count are the same at every position, and no higher than the ceiling."""
    chosen = find(toy)
    checked = chosen.check(values, length)
    operator = chosen.operator(length, checked)
    closed = chosen.closed_form(length, checked)
    assert closed.shape == (length,) and closed.dtype == np.int64
    assert closed.tolist() == rank(operator, tol)
    assert (closed <= ceiling(operator).numpy()).all()
    assert chosen.formula(length, checked) and chosen.caption(checked)


@pytest.mark.parametrize("length", [2, 3, 16, 33])
@pytest.mark.parametrize("toy", TOYS)
def test_defaults(toy: str, length: int) -> None:
    agree(toy, length)


@given(LENGTHS, SEEDS)
@settings(max_examples=15, deadline=None)
def test_without_parameters(length: int, seed: int) -> None:
    agree("diagonal", length, seed=seed)
    agree("dense", length, seed=seed)
    for rows in ("sum", "mean", "first"):
        agree("sums", length, rows=rows)


@given(LENGTHS, st.data())
@settings(max_examples=30, deadline=None)
def test_delay(length: int, data: st.DataObject) -> None:
    agree("delay", length, k=data.draw(st.sampled_from([0, 1, length // 2, length - 1, length])))
    agree("delay", length, k=data.draw(st.integers(0, length)))


def test_every_singular_value_of_a_delay_is_one() -> None:
    toy = find("delay")
    sigma = reference.spectrum(toy.operator(20, {"k": 7}).matrix())
    assert sorted(set(sigma.unique().tolist())) == pytest.approx([0, 1])


@given(LENGTHS, SEEDS, st.sampled_from(["random", "equal"]), st.data())
@settings(max_examples=60, deadline=None)
def test_filter(length: int, seed: int, taps: str, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, length))
    agree("fir", length, k=k, taps=taps, seed=seed)
    agree("fir", length, k=length, taps=taps, seed=seed)


@given(LENGTHS, SEEDS, st.data())
@settings(max_examples=30, deadline=None)
def test_linear_attention(length: int, seed: int, data: st.DataObject) -> None:
    for d_k in (data.draw(st.integers(1, 2 * length)), length, 2 * length):
        agree("linear_attention", length, d_k=d_k, seed=seed)


@given(LENGTHS, SEEDS, st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.0, 1.4, 2.0]), st.data())
@settings(max_examples=60, deadline=None)
def test_delta_rule(length: int, seed: int, beta: float, data: st.DataObject) -> None:
    agree("delta_rule", length, beta=beta, d_k=data.draw(st.integers(1, length)), seed=seed)


@given(LENGTHS, SEEDS, st.sampled_from([0.0, 1e-3, 1.0]), st.sampled_from([0.0, 0.8, 1.0]), st.data())
@settings(max_examples=60, deadline=None)
def test_gated_recurrence(length: int, seed: int, leak: float, gate: float, data: st.DataObject) -> None:
    reset = data.draw(st.sampled_from([0, 1, length - 1, length]) | st.integers(0, length))
    state = data.draw(st.integers(1, length))
    agree("gated", length, reset=reset, leak=leak, gate=gate, state=state, seed=seed)


@given(LENGTHS, SEEDS, st.sampled_from([0.0, 1e-4, 1.0]), st.data())
@settings(max_examples=60, deadline=None)
def test_documents(length: int, seed: int, leak: float, data: st.DataObject) -> None:
    boundary = data.draw(st.sampled_from([0, 1, length - 1, length]) | st.integers(0, length))
    agree("documents", length, boundary=boundary, leak=leak, seed=seed)


@given(LENGTHS, SEEDS, st.sampled_from(["sum", "product"]), st.data())
@settings(max_examples=40, deadline=None)
def test_combined(length: int, seed: int, operation: str, data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(1, length)) for _ in range(2))
    agree("combined", length, operation=operation, first=first, second=second, seed=seed)


@given(LENGTHS, SEEDS, st.sampled_from([0.0, math.inf, 0.7, 1.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_softmax(length: int, seed: int, temperature: float) -> None:
    agree("softmax", length, tol=1e-14, temperature=temperature, seed=seed)


def test_softmax_between_hard_and_uniform() -> None:
    """Rows are weights; the ends are their limits."""
    toy = find("softmax")

    def matrix(temperature: float) -> torch.Tensor:
        return toy.operator(12, {"temperature": temperature, "seed": 3}).matrix()

    for temperature in (0.0, 1e-2, 1e-300, 1.0, 100.0, 1e300, math.inf):
        assert torch.allclose(matrix(temperature).sum(-1), torch.ones(12, dtype=torch.float64))
    assert torch.allclose(matrix(1e-300), matrix(0.0))
    assert torch.allclose(matrix(1e300), matrix(math.inf))


def exact_rank(rows: list[list[Fraction]]) -> int:
    """By elimination in exact arithmetic."""
    rows = [row[:] for row in rows]
    found = 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((k for k in range(found, len(rows)) if rows[k][column] != 0), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        for row in rows[found + 1 :]:
            if row[column] != 0:
                factor = row[column] / rows[found][column]
                row[column:] = [
                    a - factor * b for a, b in zip(row[column:], rows[found][column:], strict=True)
                ]
        found += 1
    return found


def response(poles: list[tuple[Fraction, Fraction, int]], length: int) -> list[Fraction]:
    """Re Σ C(n, m − 1) pⁿ⁻ᵐ⁺¹ at lags n, from complex arithmetic on fractions."""
    values = [Fraction(0)] * length
    for re, im, order in poles:
        power = (Fraction(1), Fraction(0))
        for n in range(order - 1, length):
            values[n] += math.comb(n, order - 1) * power[0]
            power = (power[0] * re - power[1] * im, power[0] * im + power[1] * re)
    return values


eighths = st.integers(-8, 8).map(lambda n: Fraction(n, 8))
upper = st.integers(0, 6).map(lambda n: Fraction(n, 8))
exact_poles = st.lists(st.tuples(eighths, upper, st.integers(1, 3)), max_size=3)


@given(exact_poles, st.integers(0, 6))
@example([(Fraction(0), Fraction(0), 1)], 0)
@example([(Fraction(0), Fraction(0), 3), (Fraction(0), Fraction(0), 2)], 0)
@example([(Fraction(1, 2), Fraction(0), 1)] * 2, 0)
@example([(Fraction(1, 2), Fraction(0), 2), (Fraction(1, 2), Fraction(0), 1)], 0)
@example([(Fraction(0), Fraction(1, 2), 1)], 0)
@example([(Fraction(1), Fraction(0), 1), (Fraction(7, 8), Fraction(0), 1)], 1)
@settings(max_examples=60, deadline=None)
def test_poles_in_exact_arithmetic(poles: list[tuple[Fraction, Fraction, int]], more: int) -> None:
    """Equal, zero and nearly equal poles, Jordan blocks: no rounding, so every one of them must be right."""
    toy = find("poles")
    given_poles = [Pole(complex(re, im), order) for re, im, order in poles]
    length = max(2, 2 * sum(pole.size for pole in given_poles)) + more
    values = toy.check({"poles": given_poles}, length)
    lags = response(poles, length)
    matrix = toy.operator(length, values).matrix().numpy()
    assert np.allclose(matrix[:, 0], [float(value) for value in lags], rtol=1e-10, atol=1e-12)
    middle = length // 2
    closed = toy.closed_form(length, values)
    for i in {0, 1, middle // 2, middle - 1, middle, middle + 1, length - 1} & set(range(length)):
        assert closed[i] == exact_rank([[lags[r - c] for c in range(i)] for r in range(i, length)])


separate = st.lists(
    st.sampled_from([0.95, 0.5, -0.4, -0.9, 0.0, 0.3 + 0.8j, -0.5 + 0.6j, 0.1j + 0.7]),
    max_size=4,
    unique=True,
)


@given(separate, st.booleans(), SEEDS)
@settings(max_examples=30, deadline=None)
def test_separate_poles_are_all_measured(poles: list[complex], repeat: bool, seed: int) -> None:
    agree("poles", 24, tol=1e-12, poles=poles + poles[:1] if repeat and len(poles) < 4 else poles)


def test_a_jordan_pair_is_measured_as_two_and_nearly_equal_poles_are_not() -> None:
    agree("poles", 24, poles=[(0.8, 2)])
    agree("poles", 24, poles=[(0.5 + 0.5j, 2)])
    toy = find("poles")
    values = toy.check({"poles": [0.8, 0.8 + 1e-15]}, 24)
    assert toy.closed_form(24, values)[12] == 2
    assert rank(toy.operator(24, values))[12] == 1
    assert any("apart" in text for text in toy.warnings(24, values))


def test_poles_outside_the_unit_circle_are_drawn_with_a_warning() -> None:
    toy = find("poles")
    values = toy.check({"poles": [1.2]}, 32)
    assert any("outside the unit circle" in text for text in toy.warnings(32, values))
    agree("poles", 32, poles=[1.2, 0.9])
    matrix = toy.operator(256, toy.fit({"poles": [Pole(1.9, 2)]}, 256)).matrix()
    assert torch.isfinite(matrix.float()).all() and matrix.max() > 1e20


def test_conjugates_are_written_once() -> None:
    toy = find("poles")
    both = toy.check({"poles": [0.3 + 0.4j, 0.3 - 0.4j, -0.5 - 0.1j]}, 32)["poles"]
    assert both == [0.3 + 0.4j, -0.5 + 0.1j]
    assert minimal_order(both) == 4
    assert toy.check({"poles": 0.5}, 32)["poles"] == [0.5]


@pytest.mark.parametrize(
    ("toy", "values", "error", "said"),
    [
        ("delay", {"k": 17}, ValueError, "k must be a whole number from 0 to 16"),
        ("delay", {"k": -1}, ValueError, "from 0 to 16"),
        ("delay", {"k": 2.5}, TypeError, "whole number"),
        ("delay", {"k": True}, TypeError, "whole number"),
        ("delay", {"taps": 3}, TypeError, "no parameter 'taps'; it has k"),
        ("fir", {"k": 0}, ValueError, "from 1 to 16"),
        ("fir", {"taps": "some"}, ValueError, "'random' or 'equal'"),
        ("fir", {"taps": ["random"]}, ValueError, "'random' or 'equal'"),
        ("diagonal", {"seed": -3}, ValueError, "seed"),
        ("diagonal", {"seed": 1.5}, TypeError, "seed"),
        ("softmax", {"temperature": math.nan}, ValueError, "temperature must be a number from 0 to infinity"),
        ("softmax", {"temperature": -1.0}, ValueError, "temperature"),
        ("softmax", {"temperature": "hot"}, TypeError, "temperature"),
        ("delta_rule", {"beta": 2.5}, ValueError, "beta must be a number from 0 to 2"),
        ("delta_rule", {"beta": math.inf}, ValueError, "beta"),
        ("gated", {"leak": 2.0}, ValueError, "leak"),
        ("documents", {"boundary": 99}, ValueError, "boundary"),
        ("poles", {"poles": [math.nan]}, ValueError, "finite"),
        ("poles", {"poles": ["0.5"]}, TypeError, "complex numbers"),
        ("poles", {"poles": [(0.5, 0)]}, ValueError, "order"),
        ("poles", {"poles": 3 * [0.1j + 0.2, 0.4, 0.5]}, ValueError, "state of 12"),
        ("poles", {"poles": [100.0]}, ValueError, "keep |pole| at most"),
        ("poles", {"poles": None}, TypeError, "list of complex numbers"),
    ],
)
def test_bad_parameters(toy: str, values: Mapping[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as raised:
        find(toy).check(values, 16)
    assert said in str(raised.value)


def test_an_unknown_toy_lists_those_known() -> None:
    with pytest.raises(ValueError, match="no toy 'delya'; those known are diagonal, sums, delay"):
        find("delya")


@pytest.mark.parametrize("toy", TOYS)
def test_parameters_survive_the_wire_and_other_lengths(toy: str) -> None:
    chosen = find(toy)
    values = chosen.check({}, 64)
    wire = {p.name: p.from_wire(p.to_wire(values[p.name])) for p in chosen.parameters}
    assert chosen.check(wire, 64) == values
    for length in (2, 5, 256):
        fitted = chosen.fit(values, length)
        assert chosen.check(fitted, length) == fitted
    assert chosen.see and chosen.differs


def test_random_numbers_leave_the_global_streams_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for toy in TOYS.values():
        toy.operator(16, toy.check({}, 16)).matrix()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
