"""Every route on every operator that it fits: the same numbers, errors that hold, and plain words where it does not fit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from adversarial import EPS, F64, FAMILIES, limits, matrix, sigmas
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ess_widgets as ew
from ess_widgets.metrics import reference, routes
from ess_widgets.metrics.routes import Route, profile
from ess_widgets.operators import (
    Convolution,
    Deferred,
    Dense,
    Operator,
    Recurrence,
    delta_rule,
    linear_attention,
    softmax_attention,
)

ROUTES: tuple[Route, ...] = get_args(Route)
ANY: tuple[Route, ...] = ("auto", "dense", "svd")
QUESTIONS: list[dict[str, Any]] = [
    {"kind": "entropy"},
    {"kind": "tolerance", "tol": 1.1e-2},
    {"kind": "tolerance", "tol": 0.9},
    {"kind": "tolerance", "tol": 1.3e-3, "relative": True},
]
L = 40
I = torch.arange(L)
SHAPE_LIMIT = torch.minimum(I, L - I)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def fits(op: Operator, low_rank: bool = False) -> list[Route]:
    """The routes that an operator can be sent along."""
    special: list[Route] = ["low rank"] if low_rank else []
    if isinstance(op, Recurrence):
        special.append("recurrence")
    if isinstance(op, Convolution):
        special.append("convolution")
    return [*ANY, *special]


@lru_cache(maxsize=2)
def reference_spectrum(op: Operator) -> list[list[Tensor]]:
    """Of each flattened entry and position, from the matrix."""
    T, d = op.matrix().detach().double(), op.block
    return [[sigmas(one, d * i) for i in range(op.length)] for one in T.reshape(-1, *T.shape[-2:])]


def entropy_of(sigma: Tensor) -> float:
    return float(reference.from_spectrum(sigma)) if len(sigma) else 0.0


def assert_right(
    op: Operator, found: routes.Profile, positions: list[int] | None = None, **question: Any
) -> None:
    """Values as the definition has them, up to the error that comes with them."""
    at = list(range(op.length)) if positions is None else positions
    assert found.values.shape == found.error.shape == (*op.shape[:-2], len(at))
    assert found.values.dtype is F64 and found.error.dtype is F64
    assert sum(found.routes.values()) == max(1, op.shape[:-2].numel()) or not found.values.numel()
    values, error = (part.reshape(op.shape[:-2].numel(), len(at)) for part in (found.values, found.error))
    assert bool((error >= 0).all()) and bool(torch.isfinite(values).all())
    for n, spectra in enumerate(reference_spectrum(op)):
        for k, i in enumerate(at):
            value, wrong, sigma = float(values[n, k]), float(error[n, k]), spectra[i]
            top = float(sigma.amax()) if len(sigma) else 0.0
            if question["kind"] == "entropy":
                right = entropy_of(sigma)
                assert abs(value - right) <= (wrong + 1e-12) * right, (n, i, value, right, wrong)
                assert wrong <= question.get("rtol", 1e-4)
            elif top == 0.0:
                assert value == 0.0
            else:
                tau = question["tol"] * (top if question.get("relative") else 1.0)
                low, high = limits(sigma, tau, min(wrong, 1e-11 * max(1.0, top / tau)))
                assert low <= value <= high, (n, i, value, low, high, wrong)


def recurrence(*lead: int, n: int = 3, block: int | None = None, seed: int = 0, **options: Any) -> Recurrence:
    channels = () if block is None else (block,)
    A = torch.sigmoid(random(*lead, L, n, seed=seed) + 2)
    B, C = random(*lead, L, *channels, n, seed=seed + 1), random(*lead, L, *channels, n, seed=seed + 2)
    return Recurrence(A, B, C, block=block, **options)


def deferred(T: Tensor) -> Deferred:
    return Deferred(lambda: T, shape=T.shape, dtype=T.dtype, device="cpu")


OPERATORS: dict[str, Callable[[], Operator]] = {
    "dense": lambda: Dense(random(L, L).tril()),
    "dense, batch": lambda: Dense(random(2, 3, L, L).tril()),
    "dense, single precision": lambda: Dense(random(2, L, L).tril().float()),
    "dense, blocks of two": lambda: Dense(matrix("random", 2 * L, 1)[None], block=2),
    "dense, blocks with entries above the diagonal": lambda: Dense(
        (random(3, L, 3, L, 3) * (I[:, None, None, None] >= I[:, None])).reshape(3, 3 * L, 3 * L), block=3
    ),
    "dense, all kinds": lambda: Dense(torch.stack([matrix(family, L, 7) for family in sorted(FAMILIES)])),
    "dense, padded": lambda: Dense(matrix("random", L, 2) * (I > 6) * (I > 6)[:, None], valid=I > 6),
    "attention": lambda: softmax_attention(random(2, 2, L, 8), random(2, 2, L, 8, seed=1)),
    "attention, padded": lambda: softmax_attention(
        random(2, 2, L, 8), random(2, 2, L, 8, seed=1), valid=torch.stack([I > 4, I >= 0])[:, None]
    ),
    "deferred": lambda: deferred(random(2, L, L).tril()),
    "recurrence": lambda: recurrence(),
    "recurrence, batch": lambda: recurrence(2, 3),
    "recurrence, blocks": lambda: recurrence(2, block=2),
    "recurrence, padded": lambda: recurrence(2, valid=I > 6),
    "recurrence, read before": lambda: recurrence(read="before"),
    "recurrence, a large state": lambda: recurrence(2, n=30),
    "recurrence, single precision": lambda: linear_attention(
        random(2, L, 4).float(), random(2, L, 4, seed=1).float()
    ),
    "delta rule": lambda: delta_rule(
        random(2, L, 4), unit(random(2, L, 4, seed=1)), torch.sigmoid(random(2, L, seed=2))
    ),
    "convolution": lambda: Convolution(random(3, 4), length=L),
    "convolution, one kernel": lambda: Convolution(random(5), length=L),
    "convolution, long": lambda: Convolution(random(2, L)),
    "convolution, longer than few taps": lambda: Convolution(random(2, 36), length=L),
    "convolution, gated": lambda: Convolution(random(2, 5), input_gate=random(2, L), output_gate=random(L)),
    "convolution, padded": lambda: Convolution(random(2, 5), length=L, valid=I > 6),
    "sum": lambda: recurrence(2) + Convolution(random(2, 5), length=L),
    "product": lambda: recurrence(2) @ Convolution(random(2, 5), length=L),
    "scaled": lambda: -1e-3 * recurrence(2),
}


@pytest.mark.parametrize("name", sorted(OPERATORS))
@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_every_route_on_every_operator(name: str, question: dict[str, Any]) -> None:
    op = OPERATORS[name]()
    for route in fits(op):
        found = profile(op, **question, route=route)
        assert_right(op, found, **question)
        if route in ("svd", "dense", "convolution"):
            assert set(found.routes) == {route}


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_spectra_by_every_route(name: str) -> None:
    op = OPERATORS[name]()
    right = reference.spectrum(op.matrix() if op.block == 1 else op)
    top = right.amax(dim=-1, keepdim=True)
    for route in fits(op):
        sigma = ew.spectrum(op, route=route)
        assert sigma.shape == right.shape and sigma.dtype is F64
        assert bool(((sigma - right).abs() <= 1e-8 * top).all()), route
        at = [L - 1, 3, 0, 3, 20]
        few = ew.spectrum(op, at, route=route)
        d = op.block
        assert few.shape == (*op.shape[:-2], 5, 20 * d)
        assert bool(((few - right[..., at, : 20 * d]).abs() <= 1e-8 * top[..., at, :]).all())


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"dense, all kinds"}))
def test_positions_in_any_order_repeated_or_none(name: str) -> None:
    op = OPERATORS[name]()
    for positions in ([L - 1, 3, 0, 3, 20], [7], []):
        for route in fits(op):
            for question in QUESTIONS:
                found = profile(op, **question, positions=positions, route=route)
                assert_right(op, found, positions, **question)
    values = ew.ess(op, "tolerance", 0.05)
    for asked in (torch.tensor([5, 2]), np.array([5, 2]), (5, 2), range(5, 1, -3)):
        assert torch.equal(ew.ess(op, "tolerance", 0.05, positions=asked), values[..., [5, 2]])


def test_empty_batches() -> None:
    for op in (recurrence(2)[:0], recurrence(2, 3)[:, :0], Convolution(random(3, 4), length=L)[:0]):
        for route in fits(op):
            for question in QUESTIONS:
                found = profile(op, **question, route=route)
                assert found.values.shape == found.error.shape == (*op.shape[:-2], L)
                assert not sum(found.routes.values())
            assert ew.spectrum(op, route=route).shape == (*op.shape[:-2], L, L // 2)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_operators(length: int) -> None:
    ones = torch.ones(length, length).tril()
    short = torch.ones(length, 1)
    for op in (Dense(ones), Convolution(torch.ones(length)), Recurrence(short, short, short)):
        for route in fits(op, low_rank=True):
            expected = torch.tensor([0.0, 1.0, 1.0], dtype=F64)[:length]
            for question in (
                {"kind": "entropy"},
                {"kind": "tolerance", "tol": 0.5},
                {"kind": "tolerance", "relative": True},
            ):
                torch.testing.assert_close(ew.ess(op, **question, route=route), expected)


def delay(k: int) -> Tensor:
    return torch.ones(L - k, dtype=F64).diag(-k)


def capped(n: int) -> Tensor:
    return SHAPE_LIMIT.clamp(max=n).to(F64)


def poles(*values: float) -> Recurrence:
    one = torch.ones(L, len(values), dtype=F64)
    return Recurrence(torch.tensor(values, dtype=F64).expand(L, -1), one, one)


def repeated(a: float) -> Recurrence:
    """A Jordan pair: ``T_ij = (i - j) a^(i - j - 1)``."""
    A = torch.tensor([[a, 1.0], [0.0, a]], dtype=F64).expand(L, 2, 2)
    B, C = torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    return Recurrence(A, B.expand(L, 2), C.expand(L, 2))


def documents(split: int) -> Operator:
    part = (split <= I).long()
    mask = (part[:, None] == part[None, :]) & (I[:, None] >= I)
    return softmax_attention(random(L, 48, seed=5), random(L, 48, seed=6), mask=mask)


def inside(split: int) -> Tensor:
    start, end = torch.where(split <= I, split, 0), torch.where(split <= I, L, split)
    return torch.minimum(I - start, end - I).to(F64)


def taps(count: int) -> Tensor:
    kernel = torch.zeros(count, dtype=F64)
    kernel[:] = 1.0 + random(count).abs()
    return kernel


# Operators whose effective state-size is known, the tolerance it is taken at, whether the rank is low.
KNOWN: dict[str, tuple[Callable[[], Any], float, Tensor, bool]] = {
    "diagonal": (lambda: random(L).diag(), 1e-12, capped(0), True),
    "all ones": (lambda: torch.ones(L, L).tril(), 1e-9, capped(1), True),
    "causal mean": (lambda: torch.ones(L, L).tril() / (1 + I)[:, None], 1e-5, capped(1), True),
    "every row reads token 0": (
        lambda: torch.nn.functional.pad(random(L, 1), (0, L - 1)),
        1e-12,
        capped(1),
        True,
    ),
    "softmax of zero scores": (
        lambda: softmax_attention(torch.zeros(L, 4, dtype=F64), random(L, 4)),
        1e-9,
        capped(1),
        True,
    ),
    "delay of 1": (lambda: Convolution(torch.tensor([0.0, 1.0]), length=L), 0.5, capped(1), True),
    "delay of 7": (lambda: Dense(delay(7)), 1 - 1e-9, capped(7), False),
    "delay of L - 3": (lambda: Dense(delay(L - 3)), 1 - 1e-5, capped(3), True),
    "sum of all inputs": (lambda: poles(1.0), 1e-9, capped(1), True),
    "six taps": (lambda: Convolution(taps(6), length=L), 1e-6, capped(5), True),
    "half the length in taps": (lambda: Convolution(taps(L // 2 + 1), length=L), 1e-9, capped(L // 2), False),
    "three poles": (lambda: poles(0.9, -0.7, 0.3), 1e-9, capped(3), True),
    "a pole twice": (lambda: poles(0.8, 0.8), 1e-9, capped(1), True),
    "a Jordan pair": (lambda: repeated(0.8), 1e-9, capped(2), True),
    "a zero pole": (lambda: poles(0.8, 0.0), 1e-9, capped(1), True),
    "random": (lambda: random(L, L).tril(), 1e-6, capped(L), False),
    "linear attention": (lambda: linear_attention(random(L, 6), random(L, 6, seed=1)), 1e-9, capped(6), True),
    "two documents": (lambda: documents(13), 1e-9, inside(13), False),
    "delta rule, whole steps": (
        lambda: delta_rule(random(L, 5), unit(random(L, 5, seed=1)), torch.ones(L, dtype=F64)),
        1e-7,
        capped(4),
        True,
    ),
    "delta rule": (
        lambda: delta_rule(random(L, 5), unit(random(L, 5, seed=1)), torch.sigmoid(random(L, seed=2))),
        1e-7,
        capped(5),
        True,
    ),
}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_state_sizes_by_every_route(name: str) -> None:
    make, tol, expected, low = KNOWN[name]
    op = make()
    op = op if isinstance(op, Operator) else Dense(op)
    for route in fits(op, low_rank=low):
        assert torch.equal(ew.ess(op, "tolerance", tol, route=route), expected), route
        if name.startswith("delay") or (expected <= 1).all():
            torch.testing.assert_close(ew.ess(op, route=route), expected, rtol=1e-4, atol=0)


def test_low_rank_route_fits_low_rank_alone() -> None:
    low = Dense(torch.stack([matrix(family, 64, 0) for family in ("low rank", "all ones", "exponentials")]))
    for question in QUESTIONS:
        found = profile(low, **question, route="low rank")
        assert found.routes == {"low rank": 3}
        assert_right(low, found, **question)
    high = Dense(matrix("random", 64, 0))
    with pytest.raises(ValueError, match="route='low rank' does not fit: blocks of the operator have a high"):
        ew.ess(high, route="low rank")
    with pytest.raises(ValueError, match="route='low rank' does not fit"):
        ew.spectrum(high, route="low rank")


def nearly_cancelling() -> tuple[Tensor, Tensor]:
    """What two states hold 1e12 times as strongly as anything else, their difference being read, cancels."""
    much, some, read = (random(L, seed=seed) for seed in (1, 2, 3))
    B = torch.stack([(1e12 * much).round() + some, (1e12 * much).round()], dim=-1)
    return B, torch.stack([read, -read], dim=-1)


def test_a_recurrence_whose_factors_are_too_rough_goes_by_its_matrix() -> None:
    """One of a batch; the others keep their own way."""
    B, C = nearly_cancelling()
    op = Recurrence(
        torch.ones(2, L, 1), torch.stack([random(L, 2), B]), torch.stack([random(L, 2, seed=4), C])
    )
    for question in QUESTIONS:
        assert_right(op, profile(op, **question, route="recurrence"), **question)
    found = profile(op, "entropy", route="recurrence")
    assert found.routes == {"recurrence": 1, "dense": 1}
    sigma = ew.spectrum(op, route="recurrence")
    right = reference.spectrum(op)
    assert bool(((sigma - right).abs() <= 1e-8 * right.amax(dim=-1, keepdim=True)).all())


def test_routes_count_heads() -> None:
    assert profile(recurrence(2, 3), "tolerance", route="recurrence").routes == {"recurrence": 6}
    assert profile(Convolution(random(3, 4), length=L), "tolerance").routes == {"convolution": 3}
    assert profile(torch.eye(4), "tolerance", route="dense").routes == {"dense": 1}
    assert profile(random(2, 3, L, L).tril(), "tolerance", route="svd").routes == {"svd": 6}


def test_large_batches_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        name: OPERATORS[name]() for name in sorted(OPERATORS) if "kinds" not in name and "blocks" not in name
    }
    whole = {
        (name, route): [profile(op, **question, route=route) for question in QUESTIONS]
        for name, op in made.items()
        for route in fits(op)
    }
    monkeypatch.setattr(routes, "_ENTRIES", L * L)
    for (name, route), before in whole.items():
        for question, one in zip(QUESTIONS, before, strict=True):
            again = profile(made[name], **question, route=route)
            torch.testing.assert_close(again.values, one.values, rtol=2e-4, atol=0)
            assert sum(again.routes.values()) == sum(one.routes.values())


def test_the_cheap_way_is_found() -> None:
    """By itself, where the sizes tell."""
    q, k = random(512, 4), random(512, 4, seed=1)
    assert profile(linear_attention(q, k), "entropy").routes == {"recurrence": 1}
    assert profile(Dense((q @ k.T).tril()), "entropy").routes == {"low rank": 1}
    wide = Recurrence(torch.ones(64, 1), random(64, 200), random(64, 200, seed=1))
    assert "recurrence" not in profile(wide, "tolerance").routes
    assert profile(random(256, 256).tril(), "tolerance").routes == {"dense": 1}
    assert profile(Convolution(random(8), length=4096), "tolerance").routes == {"convolution": 1}


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        ({"route": "fast"}, ValueError, "route must be one of 'auto', 'recurrence', .* but is 'fast'"),
        (
            {"route": "recurrence"},
            ValueError,
            "route='recurrence' needs a Recurrence, but the operator is a Dense",
        ),
        ({"route": "convolution"}, ValueError, "route='convolution' needs a Convolution"),
        ({"kind": "rank"}, ValueError, "kind must be 'entropy' or 'tolerance', but is 'rank'"),
        ({"rtol": 0.0}, ValueError, "rtol must be between 0 and 1, but is 0.0"),
        ({"rtol": 1.0}, ValueError, "rtol must be between 0 and 1"),
        ({"rtol": float("nan")}, ValueError, "rtol must be between 0 and 1, but is nan"),
        ({"rtol": "small"}, TypeError, "rtol must be a number, but is of type str"),
        ({"rtol": True}, TypeError, "rtol must be a number, but is of type bool"),
        ({"tol": -1.0}, ValueError, "tol must be positive and finite, but is -1.0"),
        ({"tol": None}, TypeError, "tol must be a number, but is of type NoneType"),
        ({"positions": [4]}, ValueError, "position 4 is out of range: positions run from 0 to 3"),
        ({"positions": [-1]}, ValueError, "position -1 is out of range"),
        ({"positions": [1.5]}, TypeError, "positions must be integers, but hold 1.5"),
        ({"positions": torch.tensor([True, False, True, False])}, TypeError, "of a boolean mask"),
    ],
    ids=str,
)
def test_wrong_questions(question: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        profile(torch.eye(4), **question)
    with pytest.raises(error, match=message):
        ew.ess(torch.eye(4), **question)
    if set(question) <= {"route", "positions"}:
        with pytest.raises(error, match=message):
            ew.spectrum(torch.eye(4), **question)


@pytest.mark.parametrize("route", ANY)
def test_wrong_operators(route: Route) -> None:
    for T, message in (
        (torch.ones(3, 3), "causal"),
        (torch.ones(3, 4), "square"),
        (torch.full((3, 3), torch.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            ew.ess(T, route=route)
    late = deferred(torch.ones(3, 3))
    with pytest.raises(ValueError, match="causal"):
        ew.ess(late, route=route)


def test_a_tighter_error_is_kept_to() -> None:
    op = Dense(
        torch.stack([matrix(family, 64, 1) for family in ("random", "softmax, flat", "Hilbert", "documents")])
    )
    for rtol in (1e-2, 1e-4, 1e-7):
        found = profile(op, "entropy", rtol=rtol, route="dense")
        assert_right(op, found, kind="entropy", rtol=rtol)


@pytest.mark.parametrize("name", ["dense", "attention", "recurrence", "convolution", "delta rule", "sum"])
def test_no_graph_is_built(name: str) -> None:
    made: dict[str, Callable[[Tensor], Operator]] = {
        "dense": lambda x: Dense((x @ x.mT).tril()),
        "attention": lambda x: softmax_attention(x, x),
        "recurrence": lambda x: Recurrence(torch.sigmoid(x), x, x),
        "convolution": lambda x: Convolution(x[:, 0], length=L),
        "delta rule": lambda x: delta_rule(x, unit(x), torch.sigmoid(x[:, 0])),
        "sum": lambda x: Recurrence(torch.sigmoid(x), x, x) + Convolution(x[:, 0], length=L),
    }
    op = made[name](random(L, 3).requires_grad_())
    for route in fits(op):
        for question in QUESTIONS:
            found = profile(op, **question, route=route)
            assert not found.values.requires_grad and not found.error.requires_grad
        assert not ew.spectrum(op, route=route).requires_grad


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_their_number_are_left_as_they_are(threads: int) -> None:
    before = torch.get_num_threads()
    op = Dense(torch.stack([matrix(family, 64, 1) for family in ("random", "permutation", "softmax, sharp")]))
    expected = [[profile(op, **q, route=route).values for q in QUESTIONS] for route in ANY]
    seen: list[int] = []
    try:
        torch.set_num_threads(threads)
        for route, values in zip(ANY, expected, strict=True):
            for question, one in zip(QUESTIONS, values, strict=True):
                torch.testing.assert_close(
                    profile(op, **question, route=route).values, one, rtol=1e-7, atol=0
                )
                assert torch.get_num_threads() == threads
                worker = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
                worker.start()
                worker.join()
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {threads}


@settings(deadline=None, max_examples=40)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    N=st.integers(1, 70),
    seed=st.integers(0, 10**6),
    exponent=st.sampled_from([0, -400, 400]),
    question=st.sampled_from(QUESTIONS),
    route=st.sampled_from(["dense", "svd", "auto"]),
)
def test_adversarial_matrices(
    family: str, N: int, seed: int, exponent: int, question: dict[str, Any], route: Route
) -> None:
    op = Dense(torch.ldexp(matrix(family, N, seed), torch.tensor([exponent])))
    if question["kind"] == "tolerance" and not question.get("relative"):
        question = {**question, "tol": question["tol"] * 2.0**exponent}
    assert_right(op, profile(op, **question, route=route), **question)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(2, 3),
    length=st.integers(1, 20),
    question=st.sampled_from(QUESTIONS),
)
def test_blocks_are_split_between_positions(seed: int, d: int, length: int, question: dict[str, Any]) -> None:
    at = torch.arange(length)
    T = random(length, d, length, d, seed=seed) * (at[:, None, None, None] >= at[:, None])
    op = Dense(T.reshape(length * d, length * d), block=d)
    for route in ANY:
        assert_right(op, profile(op, **question, route=route), **question)


def test_padding_leaves_the_own_tokens_alone() -> None:
    T = matrix("random", 30, 0)
    own = torch.ones(40, dtype=torch.bool)
    own[[0, 1, 2, 9, 17, 18, 30, 31, 38, 39]] = False
    padded = torch.zeros(40, 40, dtype=F64)
    padded[own.nonzero(), own.nonzero()[:, 0]] = T
    op = Dense(padded, valid=own)
    for question in QUESTIONS:
        alone = ew.ess(T, **question, route="svd")
        for route in ANY:
            torch.testing.assert_close(ew.ess(op, **question, route=route)[own], alone, rtol=1e-4, atol=0)


def test_error_of_counts_says_where_ties_are() -> None:
    op = Dense(torch.stack([matrix("permutation", 60, 0), matrix("random", 60, 0)]))
    for route in ("dense", "svd"):
        found = profile(op, "tolerance", 1.0, route=route, certify=True)
        tied = torch.tensor([bool((sigmas(op.matrix()[0], i) > 0.5).any()) for i in range(60)])
        assert torch.equal(found.error[0] > 0, tied)
        assert found.error.max() < 60 * 60 * EPS * 100
        assert not profile(op, "tolerance", 0.999, route=route, certify=True).error[0].any()


def test_without_a_certificate_counts_are_the_same_and_say_how_near_a_value_may_be() -> None:
    op = Dense(torch.stack([matrix("random", 200, 0), matrix("softmax with a sink", 200, 1)]))
    for tol in (1e-1, 1e-3):
        certified = profile(op, "tolerance", tol, certify=True)
        quick = profile(op, "tolerance", tol)
        assert certified.routes == quick.routes == {"dense": 2}
        assert not certified.error.any()
        assert torch.equal(quick.values, certified.values)
        assert quick.error.max() <= 1e-6
        # Where rounding is expected to be larger, both edges are counted unasked.
        assert quick.error[:, 1:].gt(0).all() or tol < 1e-2
