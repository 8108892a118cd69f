"""Convolutions: against torch's own, against plain loops, and their state-size against the rule."""

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
from ess_widgets.operators import Convolution, gated_convolution, long_convolution, short_convolution


def plain(kernel: Tensor, L: int, g: Tensor, b: Tensor, D: Tensor, valid: Tensor) -> Tensor:
    """One matrix, entry by entry."""
    T = torch.zeros(L, L, dtype=torch.float64)
    for i in range(L):
        for j in range(i + 1):
            if valid[i] and valid[j]:
                tap = float(kernel[i - j]) if i - j < len(kernel) else 0.0
                T[i, j] = float(g[i]) * tap * float(b[j]) + (float(D[i]) if i == j else 0.0)
    return T


def plain_state_size(taps: int, valid: Tensor) -> list[int]:
    """Inputs before ``i`` that some output from ``i`` on can read."""
    own = [i for i, flag in enumerate(valid.tolist()) if flag]
    return [sum(any(i <= o < j + taps for o in own) for j in own if j < i) for i in range(len(valid))]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    L=st.integers(1, 9),
    taps=st.integers(1, 12),
    gates=st.sampled_from(["", "g", "b", "gb"]),
    skip=st.booleans(),
    padded=st.booleans(),
)
def test_matrix_and_state_size_against_plain_loops(
    seed: int, L: int, taps: int, gates: str, skip: bool, padded: bool
) -> None:
    torch.manual_seed(seed)
    ones = torch.ones(3, 2, L, dtype=torch.float64)
    kernel = randn(2, taps)
    g = randn(3, 1, L) if "g" in gates else None
    b = randn(3, 2, L) if "b" in gates else None
    D = randn(2, L) if skip else None
    valid = torch.rand(3, 1, L) < 0.7 if padded else None
    op = Convolution(kernel, input_gate=b, output_gate=g, length=L, D=D, valid=valid)
    lead = (3, 2) if g is not None or b is not None or padded else (2,)
    T = op.matrix()
    assert T.shape == op.shape == (*lead, L, L)
    assert T.dtype is op.dtype is torch.float64
    T, sizes = T.expand(3, 2, L, L), op.state_size.expand(3, 2, L)
    own = torch.ones(3, 2, L, dtype=torch.bool) if valid is None else valid.expand(3, 2, L)
    gates_of = [ones if x is None else x.expand_as(ones) for x in (g, b)]
    for at in np.ndindex(3, 2):
        skips = torch.zeros(L) if D is None else D[at[1]]
        expected = plain(kernel[at[1]], L, gates_of[0][at], gates_of[1][at], skips, own[at])
        torch.testing.assert_close(T[at], expected, rtol=1e-14, atol=1e-14)
        assert sizes[at].tolist() == plain_state_size(taps, own[at])


# Against torch


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_a_depthwise_conv1d(dilation: int, flat: bool) -> None:
    L, channels, K = 20, 5, 4
    conv = torch.nn.Conv1d(
        channels, channels, K, groups=channels, padding=(K - 1) * dilation, dilation=dilation
    )
    u = torch.randn(2, channels, L)
    with torch.no_grad():
        y = conv(u)[..., :L] - conv.bias[:, None]
    weight = conv.weight[:, 0] if flat else conv.weight
    op = short_convolution(weight, L, dilation=dilation)
    assert op.taps == (K - 1) * dilation + 1
    torch.testing.assert_close((op.matrix() @ u.unsqueeze(-1)).squeeze(-1), y)


@pytest.mark.parametrize("K", [5, 16, 40])
def test_an_fft_convolution(K: int) -> None:
    L = 16
    h, u, D = randn(3, K), randn(2, 3, L), randn(3)
    n = L + K
    y = torch.fft.irfft(torch.fft.rfft(h, n) * torch.fft.rfft(u, n), n)[..., :L] + D[:, None] * u
    T = long_convolution(h, L, D=D).matrix()
    torch.testing.assert_close((T @ u.unsqueeze(-1)).squeeze(-1), y)


def test_a_gated_convolution() -> None:
    L = 16
    h, b, g, u = randn(3, L), randn(2, 3, L), randn(2, 3, L), randn(2, 3, L)
    y = g * torch.fft.irfft(torch.fft.rfft(h, 2 * L) * torch.fft.rfft(b * u, 2 * L), 2 * L)[..., :L]
    op = gated_convolution(h, b, g)
    torch.testing.assert_close((op.matrix() @ u.unsqueeze(-1)).squeeze(-1), y)


# What ESS.md's closed forms say


@pytest.mark.parametrize("taps", [1, 2, 4, 7])
def test_the_ess_of_taps_is_known(taps: int) -> None:
    torch.manual_seed(0)
    L = 16
    op = Convolution(1 + torch.rand(taps), length=L)
    i = torch.arange(L)
    expected = torch.minimum(i, L - i).clamp(max=taps - 1)
    assert torch.equal(ew.ess(op, "tolerance", 1e-6).long(), expected)
    assert torch.equal(ew.ceiling(op), expected)


# Precision


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_up_before_it_is_multiplied(half: torch.dtype) -> None:
    kernel, gate = torch.randn(4).to(half), torch.randn(9).to(half)
    op = gated_convolution(kernel, gate, gate)
    assert op.dtype is torch.float32
    expected = gated_convolution(kernel.double(), gate.double(), gate.double()).matrix()
    torch.testing.assert_close(op.matrix().double(), expected, rtol=1e-6, atol=1e-12)


def test_one_part_in_double_precision_makes_the_matrix_double() -> None:
    assert Convolution(torch.ones(3), length=4).matrix().dtype is torch.float32
    assert Convolution(torch.ones(3), input_gate=randn(4)).matrix().dtype is torch.float64
    assert Convolution(torch.ones(3), D=randn(3)).matrix().dtype is torch.float64
    assert Convolution(np.ones(3)).dtype is torch.float64
    assert Convolution(torch.tensor([0, 0, 1]), length=4).matrix().tolist()[2] == [1, 0, 0, 0]


def test_gradients_reach_every_part() -> None:
    parts = [randn(2, 3).requires_grad_(), randn(2, 5).requires_grad_(), randn(5).requires_grad_()]

    def matrix(kernel: Tensor, gate: Tensor, D: Tensor) -> Tensor:
        return Convolution(kernel, input_gate=gate, D=D).matrix()

    assert torch.autograd.gradcheck(matrix, parts)


# Memory and indexing


def test_what_all_samples_share_is_not_copied() -> None:
    kernel = torch.randn(1, 6, 4)
    valid = torch.ones(1000, 1, 64, dtype=torch.bool)
    op = Convolution(kernel, length=64, valid=valid)
    assert op.shape == (1000, 6, 64, 64)
    assert op.kernel.data_ptr() == kernel.data_ptr()
    shared = Convolution(kernel.expand(1000, 6, 4), length=64).matrix()
    assert shared.shape == op.shape
    assert shared.stride(0) == 0


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        slice(1, None),
        (0, 2),
        (..., 1),
        [1, 0],
        (slice(None), [2, 0]),
        (None, 0),
        torch.tensor([False, True]),
    ],
    ids=str,
)
def test_indexing(index: Any) -> None:
    valid = torch.rand(2, 1, 8) < 0.7
    op = Convolution(
        randn(3, 4), input_gate=randn(2, 1, 8), output_gate=randn(3, 8), D=randn(2, 3, 8), valid=valid
    )
    part, number = op[index], torch.arange(6).view(2, 3)[index]
    assert torch.equal(part.matrix(), op.matrix().flatten(0, 1)[number])
    assert torch.equal(part.state_size, op.state_size.flatten(0, 1)[number])
    assert part.valid is not None and op.valid is not None
    assert torch.equal(part.valid, op.valid.flatten(0, 1)[number])
    assert part.shape == (*number.shape, 8, 8)
    assert torch.equal(part.to("cpu").matrix(), part.matrix())


def test_whatever_padding_holds_is_dropped() -> None:
    gate = torch.tensor([1.0, 2.0, torch.nan])
    op = Convolution(torch.ones(2), input_gate=gate, D=gate, valid=torch.tensor([True, True, False]))
    assert op.matrix().tolist() == [[2, 0, 0], [1, 4, 0], [0, 0, 0]]


def test_repr_says_what_it_is() -> None:
    op = Convolution(torch.ones(2, 3), input_gate=torch.ones(2, 5), valid=torch.ones(5, dtype=torch.bool))
    assert repr(op) == "Convolution(taps=3, gated=input, shape=(2, 5, 5), dtype=float32, device=cpu, padded)"


# What is refused


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Convolution([1.0]), TypeError, "kernel must be a torch tensor or a numpy array"),
        (lambda: Convolution(torch.ones(2, dtype=torch.complex64)), TypeError, "take its real part"),
        (
            lambda: Convolution(torch.ones(2, 0)),
            ValueError,
            "at least one tap, (..., K), but its shape is (2, 0)",
        ),
        (lambda: Convolution(torch.tensor(1.0)), ValueError, "at least one tap"),
        (
            lambda: Convolution(torch.tensor([1.0, torch.inf])),
            ValueError,
            "kernel is not finite: NaN or infinity in 1",
        ),
        (
            lambda: Convolution(torch.ones(2), length=0),
            ValueError,
            "length must be a positive integer, but is 0",
        ),
        (lambda: Convolution(torch.ones(2), length=2.0), ValueError, "length must be a positive integer"),
        (
            lambda: Convolution(torch.ones(2), length=5, input_gate=torch.ones(4)),
            ValueError,
            "input_gate must have one number per position, (..., L) = (..., 5), but its shape is (4,)",
        ),
        (
            lambda: Convolution(torch.ones(2), input_gate=torch.ones(4), output_gate=torch.ones(5)),
            ValueError,
            "input_gate must have one number per position",
        ),
        (
            lambda: Convolution(torch.ones(3, 2), output_gate=torch.ones(4, 8)),
            ValueError,
            "do not broadcast against each other: kernel (3, 2), output_gate (4, 8)",
        ),
        (
            lambda: Convolution(torch.ones(2), output_gate=torch.tensor([1.0, torch.nan])),
            ValueError,
            "output_gate is not finite: NaN or infinity in 1 of 2 entries, the first at (1,)",
        ),
        (
            lambda: Convolution(torch.ones(2), length=3, valid=torch.ones(3)),
            TypeError,
            "valid must be boolean",
        ),
        (lambda: short_convolution(torch.ones(3, 1, 4)), ValueError, "length is needed"),
        (lambda: short_convolution(torch.ones(3, 2, 4), 8), ValueError, "the layer mixes channels"),
        (lambda: short_convolution(torch.ones(4), 8), ValueError, "(channels, 1, K) or (channels, K)"),
        (
            lambda: short_convolution(torch.ones(3, 4), 8, dilation=0),
            ValueError,
            "dilation must be a positive",
        ),
        (lambda: Convolution(torch.ones(2), length=3)[0], IndexError, "uses 1 dimensions"),
    ],
)
def test_refusals(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()
