"""Recurrences as operators: their matrix, state-size, indexing, and what they refuse."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ess_widgets as ew
from ess_widgets.operators import DenseTransition, Diagonal, DiagonalPlusLowRank, Recurrence
from tests.unit.recurrences import by_definition, entries, recurrences

unhurried = settings(deadline=None)
RANDOM = torch.Generator().manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=RANDOM)


# The matrix


@unhurried
@given(recurrences())
def test_the_matrix_is_what_the_definition_says(op: Recurrence) -> None:
    T = op.matrix()
    assert T.dtype is op.dtype is torch.float64
    assert T.shape == op.shape
    for part, found in zip(entries(op), T.flatten(0, -3) if T.ndim > 2 else [T], strict=True):
        expected = by_definition(part)
        slack = 1e-13 * np.abs(expected).max()
        np.testing.assert_allclose(found.numpy(), expected.astype(float), rtol=1e-12, atol=slack)
        np.testing.assert_allclose(part.matrix().numpy(), found.numpy(), rtol=1e-12, atol=slack)


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("L", [2, 17, 150])
def test_every_digit_of_decays_from_1e_12_to_1_and_exact_zeros(L: int, read: Any) -> None:
    """Entry by entry: with positive inputs nothing cancels, and 1e-200 is as good as 1."""
    a = 10 ** (-12 * torch.rand(L, 4, dtype=torch.float64, generator=RANDOM) ** 2)
    a[torch.rand(L, generator=RANDOM) < 0.05] = 0
    op = Recurrence(a, randn(L, 4).abs(), randn(L, 4).abs(), read=read)
    np.testing.assert_allclose(op.matrix().numpy(), by_definition(op).astype(float), rtol=1e-13, atol=1e-300)


def test_growth_and_decay_side_by_side() -> None:
    a = torch.tensor([1e60, 1e-60], dtype=torch.float64).repeat(40).unsqueeze(-1)
    op = Recurrence(a, randn(80, 3), randn(80, 3))
    np.testing.assert_allclose(op.matrix().numpy(), by_definition(op).astype(float), rtol=1e-10)


def test_the_delta_rule_erases_what_a_key_held() -> None:
    """β = 1: the value written first is gone once the same key writes again."""
    k = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 0]])
    q = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 1]])
    A = DiagonalPlusLowRank(torch.ones(1, 1), -k[..., None], k[..., None])
    T = Recurrence(A, k, q).matrix()
    assert T.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]]


def test_hard_resets_cut_the_matrix_where_the_order_of_reading_says() -> None:
    a = torch.ones(6, 1)
    a[3] = 0
    one = torch.ones(6, 1)
    assert ew.ess(Recurrence(a, one, one), "tolerance").tolist() == [0, 1, 1, 0, 1, 1]
    assert ew.ess(Recurrence(a, one, one, read="before"), "tolerance").tolist() == [0, 1, 1, 1, 1, 1]


def test_half_precision_and_integers_are_cast_up_before_anything_is_multiplied() -> None:
    a, B, C = torch.rand(30, 3).bfloat16(), torch.randn(30, 3).half(), torch.randn(30, 3).bfloat16()
    exact = Recurrence(a.double(), B.double(), C.double())
    assert torch.equal(Recurrence(a, B, C).matrix(), exact.matrix())
    assert Recurrence(torch.ones(3), torch.ones(3, 1).long(), torch.ones(3, 1).bool()).matrix().sum() == 6


def test_autocast_does_not_reach_the_products() -> None:
    op = Recurrence(torch.rand(20, 3, 3), torch.randn(20, 3), torch.randn(20, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = op.matrix()
    assert torch.equal(inside, op.matrix())


@pytest.mark.parametrize("read", ["after", "before"])
def test_gradients(read: Any) -> None:
    def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return randn(*shape, dtype=dtype).requires_grad_()

    def diagonal(a: Any, B: Any, C: Any, D: Any) -> Any:
        return Recurrence(a, B, C, D, read=read).matrix()

    def low_rank(d: Any, U: Any, V: Any, B: Any, C: Any) -> Any:
        return Recurrence(DiagonalPlusLowRank(d, U, V), B, C, read=read, block=2).matrix()

    c = torch.complex128
    assert torch.autograd.gradcheck(
        diagonal, (leaf(5, 2, dtype=c), leaf(5, 2, dtype=c), leaf(5, 2, dtype=c), leaf(5))
    )
    assert torch.autograd.gradcheck(
        low_rank, (leaf(5, 1), leaf(5, 3, 1), leaf(5, 3, 1), leaf(5, 2, 3), leaf(5, 2, 3))
    )


# What A may be


def test_a_tensor_is_understood_by_its_dimensions() -> None:
    B, C = randn(2, 3, 6, 4), randn(2, 3, 6, 4)
    for shape, kind in [
        ((2, 3, 6), "scalar"),
        ((1, 1, 1), "scalar"),
        ((2, 1, 6, 4), "diagonal"),
        ((1, 3, 6, 1), "scalar"),
        ((1, 1, 1, 4), "diagonal"),
        ((2, 3, 6, 4, 4), "dense"),
        ((1, 1, 1, 4, 4), "dense"),
    ]:
        op = Recurrence(randn(*shape), B, C)
        assert op.A.form == kind
        assert op.shape == (2, 3, 6, 6)


def test_leading_dimensions_broadcast_without_copies() -> None:
    B = randn(2, 1, 6, 4)
    op = Recurrence(Diagonal(randn(5, 1, 4)), B, randn(6, 4))
    assert op.shape == (2, 5, 6, 6)
    assert op.B.shape == (2, 5, 6, 4)
    assert op.B.data_ptr() == B.data_ptr()
    assert op.B.stride(1) == 0


@pytest.mark.parametrize(
    ("shape", "others"),
    [((3, 6), (2, 3, 6, 4)), ((2, 3, 6, 5), (2, 3, 6, 4)), ((6, 4), (3, 6, 4)), ((6, 4, 5), (6, 4))],
)
def test_an_ambiguous_tensor_is_refused(shape: Any, others: Any) -> None:
    with pytest.raises(ValueError, match=r"is none of .* say what A is with Diagonal, DenseTransition or"):
        Recurrence(randn(*shape), randn(*others), randn(*others))


# What is refused

ONE = torch.ones(5, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ONE, ONE, ONE), {"read": "later"}, ValueError, "read must be 'after' or 'before'"),
        ((ONE, ONE, [1.0]), {}, TypeError, "C must be a torch tensor or a numpy array, but is a list"),
        ((ONE, ONE[0], ONE), {}, ValueError, r"must be \(..., L, n\), but B has shape \(2,\)"),
        ((ONE, ONE, torch.ones(5, 3)), {}, ValueError, r"states of one size .* B has shape \(5, 2\) and C"),
        ((ONE, ONE[:, :0], ONE[:, :0]), {}, ValueError, "must not be empty"),
        ((ONE, ONE[:4], ONE), {}, ValueError, "same positions, or one for all, but have: A 5, B 4, C 5"),
        (
            (ONE[None], torch.ones(2, 5, 2), torch.ones(3, 5, 2)),
            {},
            ValueError,
            r"must broadcast, but are: A \(1,\), B \(2,\), C \(3,\)",
        ),
        (
            (Diagonal(torch.ones(5, 3)), ONE, ONE),
            {},
            ValueError,
            "a state of size 3, but B and C have one of 2",
        ),
        ((ONE, ONE, ONE), {"block": 2}, ValueError, r"must be \(..., L, 2, n\) as block=2 says"),
        ((ONE, ONE[None], ONE[None]), {"block": 2}, ValueError, r"must be \(..., L, 2, n\) as block=2 says"),
        ((ONE, ONE, ONE), {"block": 0}, ValueError, "block must be a positive integer or None, but is 0"),
        ((ONE, ONE, ONE), {"block": True}, ValueError, "block must be a positive integer"),
        ((ONE, ONE, ONE, torch.ones(5).cfloat()), {}, ValueError, "D must be real"),
        ((ONE, ONE, ONE, torch.tensor(1.0)), {}, ValueError, r"D must be \(..., L\), but is a single number"),
        (
            (ONE[:, None], ONE[:, None], ONE[:, None], torch.ones(5)),
            {"block": 1},
            ValueError,
            r"D must be \(..., L, 1, 1\)",
        ),
        ((ONE, ONE, ONE), {"valid": torch.ones(5)}, TypeError, "valid must be boolean"),
        ((ONE, ONE, ONE), {"valid": torch.ones(4, dtype=torch.bool)}, ValueError, "have: .*valid 4"),
    ],
)
def test_refused_arguments(arguments: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Recurrence(*arguments, **options)


@pytest.mark.parametrize("name", ["A's a", "B", "C", "D"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(name: str, bad: float) -> None:
    parts = {"A's a": ONE.clone(), "B": ONE.clone(), "C": ONE.clone(), "D": torch.ones(5)}
    parts[name][3] = bad
    with pytest.raises(ValueError, match=re.escape(f"{name} is not finite")) as caught:
        Recurrence(*parts.values())
    assert "say so with valid=" in str(caught.value)
    masked = Recurrence(*parts.values(), valid=torch.arange(5) != 3)
    assert bool(torch.isfinite(masked.matrix()).all())


# Padding and state-size


def test_padding_leaves_the_state_as_it_is() -> None:
    valid = torch.tensor([False, True, True, False, False, True, True, False])
    for A in (
        randn(8),
        randn(8, 3),
        DenseTransition(randn(8, 3, 3)),
        DiagonalPlusLowRank(randn(8, 3), randn(8, 3, 1), randn(1, 3, 1)),
    ):
        B, C, D = randn(8, 3), randn(8, 3), randn(8)
        op = Recurrence(A, B, C, D, valid=valid)
        A = A[valid] if isinstance(A, torch.Tensor) else A.at(valid.nonzero().squeeze(-1))
        own = Recurrence(A, B[valid], C[valid], D[valid])
        T = op.matrix()
        torch.testing.assert_close(T[valid][:, valid], own.matrix(), rtol=1e-12, atol=1e-12)
        assert not T[~valid].any()
        assert not T[:, ~valid].any()
        assert op.state_size[valid].tolist() == own.state_size.tolist()


def test_state_size_counts_real_numbers() -> None:
    B = randn(6, 3)
    assert Recurrence(randn(6), B, B).state_size.tolist() == [0, 1, 2, 3, 3, 3]
    assert Recurrence(randn(6), B.cfloat(), B).state_size.tolist() == [0, 1, 2, 3, 4, 5]
    B = randn(6, 2, 3)
    op = Recurrence(randn(6), B, B, block=2)
    assert op.state_size.tolist() == [0, 2, 3, 3, 3, 3]
    assert ew.ceiling(op).tolist() == [0, 2, 3, 3, 3, 2]
    valid = torch.tensor([[True] * 6, [False, True, True, True, False, False]])
    assert Recurrence(randn(6), B, B, block=2, valid=valid).state_size.tolist() == [
        [0, 2, 3, 3, 3, 3],
        [0, 0, 2, 3, 0, 0],
    ]


# Indexing, devices, repr


@unhurried
@given(
    recurrences(),
    st.sampled_from([0, -1, slice(1, None), None, ..., (slice(None), 0), torch.tensor([0, 0])]),
)
def test_indexing_is_that_of_the_matrix(op: Recurrence, index: Any) -> None:
    lead = len(op.shape) - 2
    taken = 2 if isinstance(index, tuple) else 0 if index is None or index is ... else 1
    if taken > lead:
        with pytest.raises(IndexError, match=r"take \.matrix"):
            op[index]
        return
    if isinstance(index, tuple):
        expected = op.matrix()[:, 0]
    else:
        expected = op.matrix() if index is ... else op.matrix()[index]
    part = op[index]
    assert part.shape == expected.shape
    slack = 1e-13 * float(expected.abs().max())
    torch.testing.assert_close(part.matrix(), expected, rtol=1e-12, atol=slack)
    assert part.state_size.shape in ((*expected.shape[:-2], op.length), (op.length,))


def test_on_another_device() -> None:
    op = Recurrence(randn(2, 4), randn(2, 4, 3), randn(2, 4, 3), randn(4), valid=torch.ones(4).bool())
    moved = op.to("meta")
    assert moved.device == moved.B.device == moved.A.device == torch.device("meta")
    assert moved.shape == op.shape
    assert op.device == torch.device("cpu")
    assert torch.equal(op.to("cpu").matrix(), op.matrix())


def test_what_it_says_it_is() -> None:
    B = torch.ones(2, 5, 3)
    assert repr(Recurrence(torch.ones(2, 5), B, B)) == (
        "Recurrence(shape=(2, 5, 5), n=3, A scalar, read after update, dtype=float64, device=cpu)"
    )
    A = DiagonalPlusLowRank(torch.ones(1, 3), torch.ones(5, 3, 2), torch.ones(5, 3, 2))
    op = Recurrence(
        A,
        torch.ones(5, 2, 3),
        torch.ones(5, 2, 3).cfloat(),
        read="before",
        block=2,
        valid=torch.ones(5).bool(),
        name="delta product",
    )
    assert repr(op) == (
        "Recurrence('delta product', shape=(10, 10), block=2, n=3, complex, A diagonal plus rank 2, "
        "read before update, dtype=float64, device=cpu, padded)"
    )
