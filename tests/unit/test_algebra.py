"""Sums, products, multiples and gates of operators: the matrix is that of the matrices, whatever is kept of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ess_widgets as ew
from ess_widgets.operators import (
    Convolution,
    Deferred,
    Dense,
    DenseTransition,
    Diagonal,
    DiagonalPlusLowRank,
    Gated,
    Operator,
    Product,
    Recurrence,
    Sum,
    gate,
    softmax_attention,
)

L = 7


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def recurrence(
    kind: str, lead: tuple[int, ...] = (2, 3), d: int | None = None, n: int = 2, **options: Any
) -> Recurrence:
    channels = () if d is None else (d,)
    B, C = randn(*lead, L, *channels, n), randn(1, L, *channels, n) if lead else randn(L, *channels, n)
    D = randn(L) if d is None else randn(L, d, d)
    if kind == "complex":
        A = Diagonal(torch.polar(torch.rand(L, n), torch.randn(L, n)))
    else:
        A = {
            "scalar": lambda: Diagonal(randn(L, 1)),
            "diagonal": lambda: Diagonal(randn(*lead, L, n)),
            "constant": lambda: Diagonal(randn(1, n)),
            "low rank": lambda: DiagonalPlusLowRank(randn(L, 1), randn(*lead, L, n, 1), randn(1, n, 1)),
            "dense": lambda: DenseTransition(randn(L, n, n)),
        }[kind]()
    return Recurrence(A, B, C, D, block=d, **options)


def make(kind: str) -> Operator:
    """One of each kind, some with leading dimensions of their own, to be broadcast."""
    if kind.startswith("recurrence"):
        return recurrence(kind.split(" ", 1)[1])
    return {
        "dense": lambda: Dense(randn(2, 3, L, L).tril()),
        "one matrix": lambda: Dense(randn(L, L).tril()),
        "float32": lambda: Dense((torch.randn(3, L, 2) @ torch.randn(3, 2, L)).tril(), state_size=2),
        "deferred": lambda: Deferred(
            lambda: torch.ones(L, L).tril(), shape=(L, L), dtype=torch.float32, device="cpu"
        ),
        "attention": lambda: softmax_attention(torch.randn(2, 3, L, 4), torch.randn(2, 3, L, 4)),
        "convolution": lambda: Convolution(randn(3, 4), length=L),
        "long": lambda: Convolution(torch.randn(2, 1, 12), length=L, D=torch.randn(3, 1)),
        "skip": lambda: Convolution(randn(3), length=L, D=randn(L)),
        "gated": lambda: Convolution(torch.randn(3), output_gate=torch.randn(2, 3, L)),
        "padded": lambda: Dense(randn(L, L).tril(), valid=torch.arange(L) < 5),
        "padded convolution": lambda: Convolution(randn(3), valid=torch.rand(2, 1, L) < 0.7),
        "padded recurrence": lambda: recurrence("diagonal", valid=torch.arange(L) > 1),
        "sum": lambda: Dense(randn(L, L).tril()) + Convolution(randn(3, 4), length=L),
        "before": lambda: recurrence("diagonal", read="before"),
    }[kind]()


KINDS = [
    *("recurrence " + kind for kind in ("scalar", "diagonal", "constant", "low rank", "dense", "complex")),
    *("dense", "one matrix", "float32", "deferred", "attention", "convolution", "long", "skip", "gated"),
    *("padded", "padded convolution", "padded recurrence", "sum", "before"),
]


def matrix(op: Operator) -> Tensor:
    return op.matrix().double()


def check(op: Operator, expected: Tensor, sizes: Tensor, *parts: Operator) -> None:
    """Shape, dtype, values, TSS at most ``sizes``, and that indexing means the same as on the matrix.

    Matrices of ``parts`` in single precision are rounded where a structured sum or product is not.
    """
    T = op.matrix()
    assert T.shape == op.shape == expected.shape
    assert T.dtype is op.dtype
    tolerance = 1e-5 if torch.float32 in (T.dtype, *(part.dtype for part in parts)) else 1e-12
    close = {"rtol": tolerance, "atol": tolerance * float(expected.abs().max())}
    torch.testing.assert_close(T.double(), expected, **close)
    assert not bool(T.triu(1).any()) if op.block == 1 else True
    size = op.state_size
    assert size.shape in ((op.length,), (*op.shape[:-2], op.length))
    assert bool((size <= sizes).all())
    if op.valid is not None:
        rows = op.valid.unsqueeze(-1).expand(T.shape)
        assert not bool(T[~rows].any() | T[~rows.mT].any())
    d = op.block
    ranks = [
        torch.linalg.matrix_rank(T.double()[..., d * i :, : d * i], rtol=1e-5) for i in range(1, op.length)
    ]
    assert bool((torch.stack(ranks, dim=-1) <= ew.ceiling(op)[..., 1:]).all())
    if op.shape[:-2] == (2, 3):
        for index in (1, (0, 2), (slice(None), [2, 0]), (..., slice(1, None)), (None, 0)):
            part, number = op[index], torch.arange(6).view(2, 3)[index]
            assert part.shape == (*number.shape, *op.shape[-2:])
            torch.testing.assert_close(part.matrix(), T.flatten(0, 1)[number], **close)
            assert torch.equal(
                part.state_size.expand(*number.shape, -1), size.expand(2, 3, -1).flatten(0, 1)[number]
            )
    assert torch.equal(op.to("cpu").matrix(), T)


@settings(deadline=None, max_examples=120)
@given(seed=st.integers(0, 2**31), first=st.sampled_from(KINDS), second=st.sampled_from(KINDS))
def test_sums_differences_and_products(seed: int, first: str, second: str) -> None:
    torch.manual_seed(seed)
    a, b = make(first), make(second)
    sizes = a.state_size + b.state_size
    check(a + b, matrix(a) + matrix(b), sizes, a, b)
    check(a - b, matrix(a) - matrix(b), sizes, a, b)
    check(a @ b, matrix(a) @ matrix(b), sizes, a, b)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(KINDS), wide=st.booleans())
def test_multiples_and_gates(seed: int, kind: str, wide: bool) -> None:
    torch.manual_seed(seed)
    op = make(kind)
    check(-2.5 * op, -2.5 * matrix(op), op.state_size)
    g, b = randn(3, L), randn(2, 1, L)
    if not wide:
        g, b = g.float(), b.float()
    check(gate(op, output_gate=g), g.double()[..., None] * matrix(op), op.state_size, op)
    both = g.double()[..., None] * matrix(op) * b.double()[..., None, :]
    check(gate(op, output_gate=g, input_gate=b), both, op.state_size, op)


# What stays structured


@pytest.mark.parametrize(
    ("first", "second", "form"),
    [
        ("scalar", "diagonal", "diagonal"),
        ("constant", "constant", "diagonal"),
        ("complex", "complex", "diagonal"),
        ("diagonal", "low rank", "diagonal plus rank 1"),
        ("low rank", "low rank", "diagonal plus rank 2"),
        ("dense", "dense", "dense"),
    ],
)
@pytest.mark.parametrize("d", [None, 2])
def test_recurrences_side_by_side(first: str, second: str, form: str, d: int | None) -> None:
    a, b = recurrence(first, d=d), recurrence(second, d=d, n=3)
    op = a + b
    assert isinstance(op, Recurrence)
    assert (op.order, op.A.form) == (5, form)
    check(op, matrix(a) + matrix(b), a.state_size + b.state_size)


@pytest.mark.parametrize("first", ["scalar", "diagonal", "constant"])
@pytest.mark.parametrize("second", ["diagonal", "constant"])
@pytest.mark.parametrize("d", [None, 2])
@pytest.mark.parametrize("skips", ["", "a", "b", "ab"])
def test_a_cascade_of_recurrences(first: str, second: str, d: int | None, skips: str) -> None:
    a, b = recurrence(first, d=d), recurrence(second, d=d, n=3)
    a, b = (
        op if letter in skips else Recurrence(op.A, op.B, op.C, block=d)
        for op, letter in ((a, "a"), (b, "b"))
    )
    op = a @ b
    assert isinstance(op, Recurrence)
    assert (op.order, op.A.form) == (5, f"diagonal plus rank {d or 1}")
    check(op, matrix(a) @ matrix(b), a.state_size + b.state_size)


def test_recurrences_that_do_not_fit_are_kept_apart() -> None:
    a = recurrence("diagonal")
    for other in (recurrence("diagonal", read="before"), recurrence("complex"), recurrence("dense")):
        assert type(a + other) is Sum
        assert type(a @ other) is Product
    padded = recurrence("diagonal", valid=torch.arange(L) < 3)
    assert type(a + padded) is Sum
    same = recurrence("diagonal", valid=torch.arange(L) < 3)
    for op, expected in (
        (padded + same, matrix(padded) + matrix(same)),
        (padded @ same, matrix(padded) @ matrix(same)),
    ):
        assert isinstance(op, Recurrence)
        check(op, expected, padded.state_size + same.state_size)


def test_kernels_add_and_convolve() -> None:
    a = Convolution(randn(3, 4), length=L, D=randn(3, 1))
    b = Convolution(randn(2, 1, 3), length=L)
    assert isinstance(a + b, Convolution)
    product = a @ b
    assert isinstance(product, Convolution)
    assert product.taps == 6
    check(product, matrix(a) @ matrix(b), a.state_size + b.state_size)
    expected = torch.minimum(torch.arange(L), torch.tensor(5))
    assert torch.equal(product.state_size, expected)


def test_a_product_of_long_kernels_keeps_small_entries() -> None:
    """No FFT: what is small stays small to the last digit, and zeros stay zero."""
    kernel = torch.logspace(0, -300, 64, dtype=torch.float64)
    op = Convolution(kernel) @ Convolution(torch.tensor([0.0, 1.0], dtype=torch.float64), length=64)
    torch.testing.assert_close(
        op.matrix()[:, 0], torch.nn.functional.pad(kernel, (1, 0))[:64], rtol=1e-14, atol=0
    )


def test_gates_stay_with_convolutions_and_recurrences() -> None:
    g = randn(L)
    for kind in ("convolution", "long", "skip", "gated", "padded convolution"):
        assert isinstance(gate(make(kind), output_gate=g, input_gate=g), Convolution)
        assert isinstance(3 * make(kind), Convolution)
    assert not (3 * make("convolution")).gated  # type: ignore[attr-defined]
    for kind in ("recurrence diagonal", "recurrence complex", "padded recurrence", "before"):
        assert isinstance(gate(make(kind), output_gate=g, input_gate=g), Recurrence)
    op = recurrence("diagonal", d=2)
    g, b = randn(2, 3, 2 * L), randn(2 * L)
    gated = gate(op, output_gate=g, input_gate=b)
    assert isinstance(gated, Recurrence)
    check(gated, g[..., None] * matrix(op) * b, op.state_size)
    assert type(gate(Dense(randn(L, L).tril()), output_gate=randn(L))) is Gated
    assert gate(op) is op


def test_several_rows_per_position() -> None:
    a, b = Dense(randn(2 * L, 2 * L).tril(), block=2), recurrence("dense", d=2)
    check(a @ b, matrix(a) @ matrix(b), a.state_size + b.state_size)
    assert (a + b).block == 2
    assert torch.equal((a + a).state_size, 2 * torch.arange(L))


def test_chains_are_flat_and_say_what_they_are() -> None:
    a, b = make("one matrix"), make("attention")
    op = a + b + a + (b + a)
    assert isinstance(op, Sum)
    assert [type(part).__name__ for part in op.parts] == ["Dense", "SoftmaxAttention"] * 2 + ["Dense"]
    check(op, 3 * matrix(a) + 2 * matrix(b), 3 * a.state_size + 2 * b.state_size, a, b)
    assert (
        repr(a @ b) == f"Product(Dense @ SoftmaxAttention, shape=(2, 3, {L}, {L}), dtype=float64, device=cpu)"
    )
    assert repr(2 * a) == f"Gated(Dense, shape=({L}, {L}), dtype=float64, device=cpu)"


def test_padding_of_both_is_padding_of_the_sum() -> None:
    T = torch.ones(4, 4).tril()
    a = Dense(T, valid=torch.tensor([True, True, True, False]))
    b = Dense(T, valid=torch.tensor([False, True, True, False]))
    for op in (a + b, a @ b):
        assert op.valid is not None
        assert op.valid.tolist() == [True, True, True, False]
        assert op.state_size.tolist() == [0, 1, 2, 0]
    assert (a + Dense(T)).valid is None


def test_numbers_on_either_side() -> None:
    op = make("dense")
    for factor in (2, 2.0, torch.tensor(2.0), torch.tensor(2), np.float64(2), np.int32(2)):
        for product in (factor * op, op * factor):
            assert isinstance(product, Operator)
            assert torch.equal(product.matrix(), 2 * op.matrix())
    assert torch.equal((-op).matrix(), -op.matrix())
    assert (0.1 * make("float32")).dtype is torch.float32


def test_ess_of_sums_and_products_is_at_most_the_sum() -> None:
    a, b = recurrence("diagonal", lead=()), recurrence("low rank", lead=())
    limit = ew.ess(a, "tolerance", 1e-9) + ew.ess(b, "tolerance", 1e-9)
    for op in (a + b, a @ b):
        assert bool((ew.ess(op, "tolerance", 1e-9) <= limit).all())


@pytest.mark.parametrize("other", [None, "x", torch.ones(L, L), True, 2j, torch.ones(2)], ids=str)
def test_what_is_no_operator_or_number(other: Any) -> None:
    op = make("one matrix")
    with pytest.raises(TypeError):
        op * other
    for combine in (lambda: op + other, lambda: op @ other, lambda: op - other):
        with pytest.raises(TypeError):
            combine()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda op: op + Dense(torch.eye(3)), ValueError, "7 positions of 1 rows and 3 positions of 1 rows"),
        (
            lambda op: op @ Dense(torch.eye(14), block=2),
            ValueError,
            "7 positions of 1 rows and 7 positions of 2",
        ),
        (
            lambda op: op + Dense(torch.eye(7).expand(4, 1, 7, 7)),
            ValueError,
            "do not broadcast against each other",
        ),
        (lambda op: op * float("nan"), ValueError, "must be finite, but is nan"),
        (lambda op: gate(op, output_gate=torch.ones(3)), ValueError, "one number per row of T, (..., 7)"),
        (
            lambda op: gate(op, input_gate=torch.ones(5, 3, 7)),
            ValueError,
            "do not broadcast against each other",
        ),
        (
            lambda op: gate(op, input_gate=torch.full((7,), torch.inf)),
            ValueError,
            "input_gate is not finite: 7",
        ),
        (lambda op: gate(op, input_gate=1.0), TypeError, "input_gate must be a torch tensor"),
        (lambda op: gate(op, input_gate=torch.ones(7) * 1j), TypeError, "input_gate must hold real numbers"),
        (lambda op: (op + make("float32"))[5], IndexError, "out of"),
    ],
)
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(make("dense"))
