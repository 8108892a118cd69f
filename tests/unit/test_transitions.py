"""Transitions in every form against the matrices they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.operators import DenseTransition, Diagonal, DiagonalPlusLowRank, Transition

unhurried = settings(deadline=None)


def dense(A: Transition, L: int, n: int) -> Tensor:
    """Every ``A_t`` written out, ``(..., L, n, n)``."""
    if isinstance(A, Diagonal):
        (a,) = A.parts
        full = torch.diag_embed(a.expand(*a.shape[:-1], n))
    elif isinstance(A, DenseTransition):
        (full,) = A.parts
    else:
        d, U, V = A.parts
        full = torch.diag_embed(d.expand(*d.shape[:-1], n)) + torch.einsum("...ir,...jr->...ij", U, V)
    return full.expand(*full.shape[:-3], L, n, n)


@st.composite
def transitions(draw: st.DrawFn) -> tuple[Transition, int, int]:
    """With leading dimensions ``(2,)``; also L and n."""
    L, n, r = draw(st.integers(2, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    dtype = draw(st.sampled_from([torch.float64, torch.complex128]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=random)

    time = st.sampled_from([1, L])
    kind = draw(st.sampled_from(["diagonal", "dense", "low rank"]))
    if kind == "diagonal":
        return Diagonal(tensor(2, draw(time), draw(st.sampled_from([1, n])))), L, n
    if kind == "dense":
        return DenseTransition(tensor(2, draw(time), n, n)), L, n
    d = tensor(2, draw(time), draw(st.sampled_from([1, n])))
    return DiagonalPlusLowRank(d, tensor(2, draw(time), n, r), tensor(2, draw(time), n, r)), L, n


@unhurried
@given(transitions())
def test_products_are_those_of_the_matrices(case: tuple[Transition, int, int]) -> None:
    A, L, n = case
    full = dense(A, L, n)
    X = torch.randn(2, L, n, 3, dtype=full.dtype, generator=torch.Generator().manual_seed(0))
    close = torch.testing.assert_close
    close(A.apply(X), full @ X)
    close(A.transposed().apply(X), full.mT @ X)
    close(A.adjoint().apply(X), full.mH @ X)
    close(A.after(None, n).apply(X), full @ X)
    close(A.after(A.after(None, n), n).apply(X), full @ full @ X)
    close(A.join(A).apply(torch.cat([X, 2 * X])), torch.cat([full @ X, 2 * full @ X]))
    assert (A.lead, A.is_complex) == ((2,), full.is_complex())
    assert A.order in (1, n)
    assert A.length in (1, L)


@unhurried
@given(transitions())
def test_positions_are_picked_held_and_added(case: tuple[Transition, int, int]) -> None:
    A, L, n = case
    full, close = dense(A, L, n), torch.testing.assert_close
    last_first = torch.arange(L - 1, -1, -1)
    close(dense(A.at(last_first), L, n), full.flip(1))
    close(dense(A.at(slice(1, None)), L - 1, n), full[:, 1:])
    held = torch.arange(L) % 2 == 0
    eye = torch.eye(n, dtype=full.dtype)
    expected = torch.where(held.view(L, 1, 1), eye, full)
    close(dense(A.identity_where(held), L, n), expected)
    broken = A.expand(torch.Size([2]))._each(lambda part, _: part * torch.nan)
    everywhere = torch.ones(L, dtype=torch.bool)
    close(dense(broken.identity_where(everywhere), L, n), eye.expand(2, L, n, n).contiguous())
    longer = A.padded(2)
    close(dense(longer, L + 2, n)[:, :L], full)
    if A.length > 1 and all(part.shape[1] > 1 for part in A.parts):
        assert not dense(longer, L + 2, n)[:, L:].any()


@unhurried
@given(transitions())
def test_magnitudes_bound_what_rounding_can_do(case: tuple[Transition, int, int]) -> None:
    A, L, n = case
    X = torch.randn(2, L, n, 1, dtype=A.parts[0].dtype, generator=torch.Generator().manual_seed(0))
    spread = A.apply_magnitude(X.abs().squeeze(-1))
    assert bool((A.apply(X).abs().squeeze(-1) <= spread * (1 + 1e-12)).all())
    single = A.to(dtype=torch.complex64 if A.is_complex else torch.float32)
    X = X.to(single.parts[0].dtype)
    exact = single.to(dtype=A.parts[0].dtype).apply(X.to(A.parts[0].dtype))
    difference = (single.apply(X) - exact).abs().squeeze(-1)
    allowed = 2**-24 * single.apply_rounding(X.abs().squeeze(-1)).double()
    assert bool((difference <= allowed * (1 + 1e-5)).all())


@pytest.mark.parametrize("n", [16, 64, 128])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
def test_rounding_grows_no_faster_than_said(n: int, positive: bool, is_complex: bool) -> None:
    """Row by row, as the bounds on spectra count on it; the root of n is what is seen, not what can be proven."""
    random = torch.Generator().manual_seed(n)

    def tensor(*shape: int) -> Tensor:
        parts = [torch.rand(*shape, generator=random) - (0 if positive else 0.5) for _ in range(2)]
        return torch.complex(*parts) if is_complex else parts[0]

    X = tensor(20, n, n + 1)
    for A in (
        Diagonal(tensor(20, n)),
        DenseTransition(tensor(20, n, n)),
        DiagonalPlusLowRank(tensor(20, n), tensor(20, n, 2), tensor(20, n, 2)),
    ):
        exact = A.to(dtype=torch.complex128 if is_complex else torch.float64)
        difference = torch.linalg.vector_norm(A.apply(X) - exact.apply(X.to(exact.parts[0].dtype)), dim=-1)
        allowed = 2**-24 * exact.apply_rounding(torch.linalg.vector_norm(X.abs().double(), dim=-1))
        assert bool((difference <= allowed).all())


def test_leading_dimensions_are_expanded_and_indexed_without_copies() -> None:
    d, U = torch.ones(1, 1), torch.randn(3, 1, 4, 2, 1)
    A = DiagonalPlusLowRank(d, U, U).expand(torch.Size([3, 5]))
    assert A.lead == (3, 5)
    assert A.parts[1].data_ptr() == U.data_ptr()
    part = A[(slice(None), 2)]
    assert part.lead == (3,)
    assert [tuple(p.shape) for p in part.parts] == [(3, 1, 1), (3, 4, 2, 1), (3, 4, 2, 1)]


def test_half_precision_is_cast_up() -> None:
    for value in (torch.ones(4, 2).half(), torch.ones(4, 2).bfloat16()):
        assert Diagonal(value).parts[0].dtype is torch.float32
    assert Diagonal(torch.ones(4, 2).long()).parts[0].dtype is torch.float64
    assert Diagonal(np.ones((4, 2))).parts[0].dtype is torch.float64
    mixed = DiagonalPlusLowRank(torch.ones(4, 2).half(), torch.ones(4, 2, 1).cdouble(), torch.ones(4, 2, 1))
    assert {part.dtype for part in mixed.parts} == {torch.complex128}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Diagonal(torch.ones(3)), ValueError, r"a must be \(..., L, n\) or \(..., L, 1\)"),
        (lambda: Diagonal(torch.ones(3, 0)), ValueError, r"its shape is \(3, 0\)"),
        (lambda: Diagonal([1.0]), TypeError, "a must be a torch tensor or a numpy array"),
        (lambda: DenseTransition(torch.ones(3, 3)), ValueError, r"A must be \(..., L, n, n\)"),
        (lambda: DenseTransition(torch.ones(3, 3, 2)), ValueError, r"its shape is \(3, 3, 2\)"),
        (
            lambda: DiagonalPlusLowRank(torch.ones(3), torch.ones(3, 2, 1), torch.ones(3, 2, 1)),
            ValueError,
            r"d must be \(..., L, n\) or \(..., L, 1\), U and V \(..., L, n, r\), but d has shape \(3,\)",
        ),
        (
            lambda: DiagonalPlusLowRank(torch.ones(3, 2), torch.ones(3, 2, 1), torch.ones(3, 2, 2)),
            ValueError,
            "U and V in r",
        ),
        (
            lambda: DiagonalPlusLowRank(torch.ones(3, 4), torch.ones(3, 2, 1), torch.ones(3, 2, 1)),
            ValueError,
            "must agree in n",
        ),
        (
            lambda: DiagonalPlusLowRank(torch.ones(4, 2), torch.ones(3, 2, 1), torch.ones(3, 2, 1)),
            ValueError,
            "must cover the same positions",
        ),
    ],
)
def test_refused_arguments(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_what_they_say_they_are() -> None:
    low = DiagonalPlusLowRank(torch.ones(1, 3), torch.ones(5, 3, 2), torch.ones(5, 3, 2))
    assert repr(low) == "DiagonalPlusLowRank(d=(1, 3), U=(5, 3, 2), V=(5, 3, 2))"
    forms = [
        Diagonal(torch.ones(5, 1)),
        Diagonal(torch.ones(5, 3)),
        DenseTransition(torch.ones(5, 3, 3)),
        low,
    ]
    assert [A.form for A in forms] == ["scalar", "diagonal", "dense", "diagonal plus rank 2"]
