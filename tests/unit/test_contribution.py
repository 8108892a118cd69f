"""Contribution weights against a loop over heads, outputs and tokens."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.operators import Dense, contribution_weights, softmax_attention


def plain(T: Tensor, v: Tensor, W: Tensor, o: Tensor, share: bool) -> Tensor:
    """One sample: ``(H, L, L)``, ``(H, L, d_v)``, ``(H, d, d_v)``, ``(L, d)``."""
    c = torch.zeros_like(T)
    for h, i, j in np.ndindex(*T.shape):
        size = o[i].norm()
        if size > 0:
            carried = W[h] @ (T[h, i, j] * v[h, j])
            c[h, i, j] = carried @ o[i] / size / (size if share else 1.0)
    return c


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    given_outputs=st.booleans(),
    projection=st.sampled_from(["none", "linear", "heads"]),
    share=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
)
def test_against_a_plain_loop(
    seed: int, given_outputs: bool, projection: str, share: bool, groups: int
) -> None:
    torch.manual_seed(seed)
    B, H, L, d_v = 2, 4, 5, 3
    T, v = randn(B, H, L, L).softmax(-1).tril(), randn(B, groups, L, d_v)
    W = {"none": None, "linear": randn(7, H * d_v), "heads": randn(H, 7, d_v)}[projection]
    if projection == "none":
        per_head = torch.eye(H * d_v, dtype=torch.float64).view(-1, H, d_v).transpose(0, 1)
    else:
        assert W is not None
        per_head = torch.stack(W.split(d_v, dim=1)) if projection == "linear" else W
    all_v = v.repeat_interleave(H // groups, 1)
    made = torch.einsum("hdv,bhiv->bid", per_head, T @ all_v)
    outputs = randn(*made.shape) if given_outputs else None
    c = contribution_weights(T, v, outputs, projection=W, share=share)
    o = made if outputs is None else outputs
    expected = torch.stack([plain(T[b], all_v[b], per_head, o[b], share) for b in range(B)])
    torch.testing.assert_close(c, expected, rtol=1e-10, atol=1e-12)
    if outputs is None:
        total = c.sum(dim=(1, 3))
        torch.testing.assert_close(total, torch.ones_like(total) if share else o.norm(dim=-1))


def test_the_bias_of_a_layer_takes_its_own_share() -> None:
    """nn.MultiheadAttention as a whole: what the bias contributes is what the tokens leave."""
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(layer.out_proj.bias)
    x, mask = randn(3, 6, 8), torch.ones(6, 6, dtype=torch.bool).triu(1)
    with torch.no_grad():
        y, attention = layer(x, x, x, attn_mask=mask, average_attn_weights=False)
        value = torch.nn.functional.linear(x, layer.in_proj_weight[16:], layer.in_proj_bias[16:])
    v = value.view(3, 6, 2, 4).transpose(1, 2)
    c = contribution_weights(attention, v, y, projection=layer.out_proj.weight.detach())
    bias = (y @ layer.out_proj.bias.detach()) / y.square().sum(-1)
    torch.testing.assert_close(c.sum(dim=(1, 3)) + bias, torch.ones(3, 6, dtype=torch.float64))


def test_a_sink_carries_attention_and_contributes_nothing() -> None:
    """The first token takes half of all attention, but its value is zero."""
    T = torch.full((6, 6), 0.0)
    T[:, 0] = 0.5
    T += 0.5 * torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    v = torch.randn(6, 4).abs()
    v[0] = 0
    c = contribution_weights(T, v)
    assert c[:, 0].tolist() == [0.0] * 6
    torch.testing.assert_close(c[1:].sum(-1), torch.ones(5))


def test_precision_and_half_precision_values() -> None:
    op = softmax_attention(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4))
    v = torch.randn(1, 2, 5, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        c = contribution_weights(op, v)
    assert c.dtype is torch.float32
    expected = contribution_weights(op.matrix().double(), v.double())
    torch.testing.assert_close(c.double(), expected, rtol=1e-6, atol=1e-7)


def test_padding_contributes_nothing_whatever_it_holds() -> None:
    T, v = torch.ones(2, 4, 4).tril(), torch.ones(2, 4, 3)
    v[:, 3] = torch.nan
    op = Dense(T, valid=torch.tensor([True, True, True, False]))
    outputs = torch.ones(4, 6)
    outputs[3] = torch.nan
    for c in (contribution_weights(op, v), contribution_weights(op, v, outputs)):
        assert bool(torch.isfinite(c).all())
        assert not bool(c[:, 3].any() | c[:, :, 3].any())
    # Each of 2 heads and i + 1 tokens takes the same part in output i.
    shares = contribution_weights(op, v)[0, :3, :3]
    torch.testing.assert_close(shares, torch.ones(3, 3).tril() / (2 * torch.arange(1, 4)[:, None]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda T, v: contribution_weights(T, v[:, :3]),
            ValueError,
            "values must be (..., Hkv, L, d_v) with L = 4",
        ),
        (lambda T, v: contribution_weights(T, v[[0, 0, 0]]), ValueError, "2 heads a multiple of Hkv"),
        (
            lambda T, v: contribution_weights(T, v.to(torch.complex64)),
            TypeError,
            "values must hold real numbers",
        ),
        (lambda T, v: contribution_weights(T, [1.0]), TypeError, "values must be a torch tensor"),
        (
            lambda T, v: contribution_weights(T, v, torch.ones(4, 5)),
            ValueError,
            "(..., 4, 6), as the projection",
        ),
        (
            lambda T, v: contribution_weights(T, v, projection=torch.ones(5, 7)),
            ValueError,
            "projection must be (d, H * d_v) = (d, 6) or (H, d, d_v) = (2, d, 3), but its shape is (5, 7)",
        ),
        (lambda T, v: contribution_weights(Dense(T, block=2), v), ValueError, "mixes 2 rows per position"),
    ],
)
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(torch.ones(2, 4, 4).tril(), torch.ones(2, 4, 3))
