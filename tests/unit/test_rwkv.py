"""RWKV-4, -5 and -6: read before update, with a bonus on the diagonal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from ess_widgets.operators import rwkv4, rwkv5, rwkv6
from tests.unit.recurrent import (
    F64,
    assert_outputs,
    assert_padding_is_absent,
    assert_same,
    capped,
    decays,
    rand,
    randn,
    randomise,
    rank,
    sizes,
    watch,
)

L, N, HEADS = 24, 5, 3


def read_before(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """``y_t = r_tᵀ (S + Diag(u) k_t v_tᵀ)``, then ``S = Diag(w_t) S + k_t v_tᵀ``, for one head."""
    S = torch.zeros(k.shape[-1], v.shape[-1], dtype=F64)
    outputs = []
    for t in range(len(r)):
        written = torch.outer(k[t], v[t])
        outputs.append(r[t] @ (S + u[:, None] * written))
        S = w[t, :, None] * S + written
    return torch.stack(outputs)


def softmax_like(k: Tensor, v: Tensor, log_decay: float, bonus: float) -> Tensor:
    """RWKV-4's sums, written out for every output, for one channel."""
    outputs = []
    for t in range(len(k)):
        exponents = torch.tensor(
            [(t - 1 - j) * log_decay + float(k[j]) if j < t - 1 else float(k[j]) for j in range(t)]
            + [bonus + float(k[t])],
            dtype=F64,
        )
        outputs.append(torch.softmax(exponents, dim=0) @ v[: t + 1])
    return torch.stack(outputs)


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_rwkv4_is_the_published_sum(size: tuple[int, int, int]) -> None:
    length, channels, seed = size
    k = 20 * randn(2, channels, length, seed=seed)
    v = randn(2, channels, length, 2, seed=seed + 1)
    log_decay, bonus = -torch.exp(3 * randn(channels, seed=seed + 2)), 5 * randn(channels, seed=seed + 3)
    op = rwkv4(k, log_decay, bonus)
    for c in range(channels):
        expected = softmax_like(k[1, c], v[1, c], float(log_decay[c]), float(bonus[c]))
        # Exponents of some hundreds hold 14 digits.
        assert_outputs(op[1, c], v[1, c], expected, rtol=1e-11)


@pytest.mark.parametrize(("scale", "shift"), [(1e3, 0.0), (1.0, 1e4), (1.0, -1e4), (1e5, 0.0)])
def test_rwkv4_rows_sum_to_one_whatever_the_keys(scale: float, shift: float) -> None:
    T = rwkv4(scale * randn(4, L) + shift, -rand(4), randn(4, seed=1)).matrix()
    assert bool((T >= 0).all())
    torch.testing.assert_close(T.sum(-1), torch.ones(4, L, dtype=F64), rtol=1e-12, atol=0)


def test_rwkv4_forgets_at_once_where_the_decay_is_zero() -> None:
    k = randn(1, L)
    T = rwkv4(k, torch.tensor([-math.inf], dtype=F64), torch.zeros(1)).matrix()[0]
    pair = torch.softmax(torch.stack([k[0, 3], k[0, 4]]), 0)
    assert_same(T[4], torch.nn.functional.pad(pair, (3, L - 5)), 1e-15)


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_rwkv5_and_6_are_the_plain_recurrences(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    r, k, v = randn(HEADS, length, n, seed=seed), randn(HEADS, length, n, seed=seed + 1), randn(length, 2)
    u, w = randn(HEADS, n, seed=seed + 2), decays(HEADS, length, n, seed=seed + 3)
    fixed, selective = rwkv5(r, k, w[:, 0].log(), u, scale=0.5), rwkv6(r, k, w.log(), u)
    for h in range(HEADS):
        expected = read_before(r[h] / 2, k[h], v, w[h, :1].expand(length, n), u[h])
        assert_outputs(fixed[h], v, expected)
        assert_outputs(selective[h], v, read_before(r[h], k[h], v, w[h], u[h]))


def test_the_bonus_is_exact_beside_vanishing_decays() -> None:
    # T_ii would come out as 0 or NaN if the order were turned round by dividing by decays.
    ones = torch.ones(4, 1, dtype=F64)
    for log_decay in (-1e4, -math.inf, -1e-300):
        T = rwkv6(ones, ones, torch.full((4, 1), log_decay, dtype=F64), torch.tensor([7.0])).matrix()
        assert T.diag().tolist() == [7.0] * 4
        assert T.diag(-1).tolist() == [1.0] * 3
        assert T[3, 0] == (1.0 if log_decay > -1 else 0.0)


def test_flash_linear_attention_reference() -> None:
    naive = pytest.importorskip("fla.ops.rwkv6.recurrent_naive", exc_type=ImportError)
    r, k, v = (randn(2, HEADS, L, N, seed=seed) for seed in range(3))
    w, u = -torch.exp(randn(2, HEADS, L, N, seed=3)), randn(HEADS, N, seed=4)
    y, _ = naive.naive_recurrent_rwkv6(r, k, v, w, u, scale=1.0)
    assert_same(rwkv6(r, k, w, u).matrix() @ v, y, 1e-6)
    y, _ = naive.naive_recurrent_rwkv6(r, k, v, w[:, :, :1].expand_as(w), u)
    for sample in range(2):
        op = rwkv5(r[sample], k[sample], w[sample, :, 0], u, scale=N**-0.5)
        assert_same(op.matrix() @ v[sample], y[sample], 1e-6)


def test_transformers_rwkv() -> None:
    from transformers import RwkvConfig, RwkvModel

    config = RwkvConfig(
        vocab_size=32, context_length=L, hidden_size=8, num_hidden_layers=2, intermediate_size=8
    )
    model = randomise(RwkvModel(config), scale=0.5)
    attention = model.blocks[1].attention
    with torch.no_grad(), watch(attention, "key", "value", "receptance", "output") as seen:
        model(torch.arange(2 * L).view(2, L) * 5 % 32, use_cache=False)
    op = rwkv4(seen.out["key"].mT, -attention.time_decay.exp(), attention.time_first)
    y = (op.matrix() @ seen.out["value"].mT[..., None].double())[..., 0].mT
    assert_same(seen.out["receptance"].sigmoid() * y, seen.args["output"][0], 1e-6)


# Effective state-size, layout, precision, padding, errors


def test_ess() -> None:
    r, k = randn(20, N), randn(20, N, seed=1)
    for op in rwkv5(r, k, -rand(N), r[0]), rwkv6(r, k, -rand(20, N), r[0]):
        assert torch.equal(rank(op), capped(N, 20))
        assert op.state_size.tolist() == [min(N, i) for i in range(20)]
    op = rwkv4(k.mT, -rand(N), r[0])
    assert torch.equal(rank(op), capped(1, 20).expand(N, 20))
    assert op.state_size.tolist() == [0] + [1] * 19


def test_a_reset_keeps_what_was_just_written() -> None:
    # Read before update: the output at a decay of 0 still reads the past, later ones the input written there.
    r, k = randn(20, N), randn(20, N, seed=1)
    log_decay = torch.zeros(20, N)
    log_decay[11] = -math.inf
    ess = rank(rwkv6(r, k, log_decay, r[0]))
    assert ess[10:14].tolist() == [2, 1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_cast_up_first(dtype: torch.dtype) -> None:
    r, k, w, u = (x.to(dtype) for x in (randn(L, N), randn(L, N, seed=1), -rand(L, N), randn(N)))
    for make, args in ((rwkv4, (k.mT, w[0], u)), (rwkv5, (r, k, w[0], u)), (rwkv6, (r, k, w, u))):
        T = make(*args).matrix()
        assert T.dtype is F64
        assert torch.equal(T, make(*(x.double() for x in args)).matrix())
        assert torch.equal(T, make(*(x.float().numpy() for x in args)).matrix())


def test_padding_is_absent() -> None:
    r, k, w, u = randn(HEADS, L, N), randn(HEADS, L, N, seed=1), -rand(HEADS, L, N), randn(HEADS, N)
    matrix = {"r": (r, -2), "k": (k, -2)}
    assert_padding_is_absent(rwkv4, {"k": (k[0].mT, -1)}, log_decay=w[0, 0], bonus=u[0])
    assert_padding_is_absent(rwkv5, matrix, log_decay=w[:, 0], bonus=u)
    assert_padding_is_absent(rwkv6, matrix | {"log_decay": (w, -2)}, bonus=u)


def test_gradients() -> None:
    r, k, u = randn(4, 2).requires_grad_(), randn(4, 2, seed=1).requires_grad_(), randn(2).requires_grad_()
    w = (-rand(4, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: rwkv6(*x).matrix(), (r, k, w, u))
    assert torch.autograd.gradcheck(lambda k, w, u: rwkv4(k.mT, w[0], u).matrix(), (k, w, u))
    own = torch.tensor([False, True, False, True])
    assert torch.autograd.gradcheck(lambda k, w, u: rwkv4(k.mT, w[0], u, valid=own).matrix(), (k, w, u))
    ties = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    smooth = (-rand(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda k, w: rwkv4(k, w, torch.zeros(2)).matrix(), (ties, smooth))


K, U = randn(L, N), randn(N)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rwkv4(K.mT, U.abs(), U), ValueError, "log_decay.* pass -exp\\(time_decay\\)"),
        (
            lambda: rwkv4(K.mT, -U.abs()[:2], U),
            ValueError,
            r"log_decay of shape \(2,\) .* one number per channel",
        ),
        (lambda: rwkv4(K.mT, -U.abs(), U / 0), ValueError, "bonus is not finite"),
        (lambda: rwkv4(K.mT / 0, -U.abs(), U), ValueError, "k is not finite"),
        (lambda: rwkv4(torch.tensor(1.0), -U.abs(), U), ValueError, r"k must be \(..., channels, L\)"),
        (lambda: rwkv4(K.mT.long(), -U.abs(), U), TypeError, "k must hold real floating-point"),
        (lambda: rwkv5(K, K, U.abs(), U), ValueError, "log_decay.* outside"),
        (lambda: rwkv5(K, K, -K.abs(), U), ValueError, r"log_decay of shape .* \(..., heads, d_k\)"),
        (lambda: rwkv6(K, K, -U.abs(), U), ValueError, r"log_decay must be \(..., heads, L, d_k\)"),
        (
            lambda: rwkv6(K, K[:, :2], -K.abs(), U),
            ValueError,
            "r and k must have the same number of features",
        ),
        (lambda: rwkv6(K / 0, K, -K.abs(), U), ValueError, "r is not finite"),
        (lambda: rwkv6(K, K, -K.abs(), U[:2]), ValueError, r"bonus of shape \(2,\)"),
        (lambda: rwkv6(K, K, -K.abs(), U / 0), ValueError, "bonus is not finite"),
        (lambda: rwkv6(K, K, -K.abs(), U, scale=math.inf), ValueError, "scale must be finite"),
    ],
)
def test_errors_say_what_to_do(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        call()
