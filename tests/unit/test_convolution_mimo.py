"""Convolutions that mix channels, and convolutions with taps of their own at every position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ess_widgets as ew
from ess_widgets.operators import Convolution, Dense, MimoConvolution, VaryingConvolution

L = 9


def blocks(kernel: Tensor, length: int = L) -> Tensor:
    """``T`` entry by entry, ``(K, out, in)`` to ``(d L, d L)``."""
    K, out, into = kernel.shape
    d = max(out, into)
    T = torch.zeros(d * length, d * length, dtype=kernel.dtype)
    for i in range(length):
        for j in range(max(0, i - K + 1), i + 1):
            T[d * i : d * i + out, d * j : d * j + into] = kernel[i - j]
    return T


@pytest.mark.parametrize("shape", [(1, 2, 2), (4, 3, 3), (3, 2, 4), (3, 4, 2), (12, 2, 2)])
def test_mimo_matrix_and_product(shape: tuple[int, int, int]) -> None:
    kernel = torch.randn(2, *shape, dtype=torch.float64)
    op = MimoConvolution(kernel, L)
    T = op.matrix()
    assert op.shape == T.shape
    assert op.length == L
    assert torch.equal(T[1], blocks(kernel[1]))
    u = torch.randn(2, T.shape[-1], 3, dtype=torch.float64)
    torch.testing.assert_close(op.apply(u), T @ u)
    assert torch.equal(op[0].matrix(), T[0])
    dense = Dense(T, block=op.block)
    torch.testing.assert_close(
        ew.ess(op, kind="tolerance", tol=1e-9), ew.ess(dense, kind="tolerance", tol=1e-9)
    )
    assert (ew.ess(op, kind="tolerance", tol=1e-9) <= op.state_size).all()


def test_mimo_of_one_channel_is_a_convolution() -> None:
    kernel = torch.randn(3, 4)
    one, other = MimoConvolution(kernel[..., None, None], L), Convolution(kernel, length=L)
    assert torch.equal(one.matrix(), other.matrix())
    assert torch.equal(one.state_size, other.state_size)


def test_mimo_padding() -> None:
    valid = torch.ones(2, L, dtype=torch.bool)
    valid[1, :3] = False
    kernel = torch.randn(3, 2, 2)
    op = MimoConvolution(kernel, L, valid=valid)
    T = op.matrix()
    assert torch.equal(T[0], blocks(kernel))
    assert not T[1, :6].any() and not T[1, :, :6].any()
    assert torch.equal(T[1, 6:, 6:], blocks(kernel, L - 3))
    u = torch.randn(2, 2 * L, 1)
    torch.testing.assert_close(op.apply(u), T @ u)
    assert op.state_size[1].tolist() == [0, 0, 0, 0, 2, 4, 4, 4, 4]
    assert torch.equal(op[1].matrix(), T[1])


def test_varying_taps() -> None:
    kernel = torch.randn(2, 3, L, 4)
    op = VaryingConvolution(kernel)
    T = op.matrix()
    for i in range(L):
        for j in range(L):
            expected = kernel[..., i, i - j] if 0 <= i - j < 4 else torch.zeros(2, 3)
            assert torch.equal(T[..., i, j], expected)
    assert op.state_size.tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    assert torch.equal(op[1, :2].matrix(), T[1, :2])
    constant = VaryingConvolution(kernel[:, :, :1].expand(-1, -1, L, -1))
    assert torch.equal(constant.matrix(), Convolution(kernel[:, :, 0], length=L).matrix())


def test_varying_taps_and_padding() -> None:
    kernel, valid = torch.randn(2, L, 3), torch.ones(2, L, dtype=torch.bool)
    valid[1, -4:] = False
    kernel[1, -4:] = float("nan")
    op = VaryingConvolution(kernel, valid=valid)
    assert torch.equal(op[1].matrix()[:5, :5], VaryingConvolution(kernel[1, :5]).matrix())
    assert not op[1].matrix()[5:].any()
    assert op.state_size[1].tolist() == [0, 1, 2, 2, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: MimoConvolution(torch.randn(3, 3), L), ValueError, "K, out, in"),
        (lambda: MimoConvolution(torch.randn(2, 3, 3), 0), ValueError, "positive integer"),
        (lambda: MimoConvolution(torch.full((2, 3, 3), torch.nan), L), ValueError, "not finite"),
        (lambda: MimoConvolution(torch.randn(2, 3, 3) * 1j, L), TypeError, "real"),
        (lambda: MimoConvolution([[1.0]], L), TypeError, "tensor"),
        (lambda: MimoConvolution(torch.randn(4, 999, 999), 999).matrix(), ValueError, "999 channels.*GiB"),
        (lambda: VaryingConvolution(torch.randn(3)), ValueError, "L, K"),
        (lambda: VaryingConvolution(torch.full((3, 2), torch.inf)), ValueError, "not finite"),
        (lambda: VaryingConvolution(torch.randn(3, 2) * 1j), TypeError, "real"),
    ],
)
def test_bad_input(build: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build()


def test_half_precision_is_cast_up() -> None:
    assert MimoConvolution(torch.randn(2, 2, 2).bfloat16(), L).matrix().dtype is torch.float32
    assert VaryingConvolution(torch.randn(L, 2).half()).dtype is torch.float32
