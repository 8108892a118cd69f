"""Softmax attention against ``F.scaled_dot_product_attention``, its TSS against the rule, its refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

import ess_widgets as ew
from ess_widgets.operators import softmax_attention

B, HQ, HKV, L, D = 2, 6, 3, 11, 4
CAUSAL = torch.ones(L, L, dtype=torch.bool).tril()
WINDOW = CAUSAL & ~CAUSAL.tril(-3)


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(B, heads, L, D, dtype=torch.float64) for heads in (HQ, HKV, HKV))  # type: ignore[return-value]


def additive(allowed: Tensor, blocked: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, blocked)


def apply(T: Tensor, v: Tensor) -> Tensor:
    return T @ v.repeat_interleave(T.shape[-3] // v.shape[-3], dim=-3)


PER_SAMPLE = torch.stack([CAUSAL, WINDOW])[:, None]
PER_HEAD = torch.stack([CAUSAL, WINDOW] * (HQ // 2))
ALIBI = -torch.arange(1, HQ + 1)[:, None, None] * (torch.arange(L)[:, None] - torch.arange(L)).abs() / 7
MASKS = {
    "boolean": CAUSAL,
    "window": WINDOW,
    "per sample": PER_SAMPLE,
    "per head": PER_HEAD,
    "both": PER_SAMPLE & PER_HEAD,
    "-inf": additive(CAUSAL, -math.inf),
    "finfo.min": additive(WINDOW, torch.finfo(torch.float64).min),
    "float32 finfo.min": additive(PER_SAMPLE, torch.finfo(torch.float32).min),
    "-1e4": additive(CAUSAL, -1e4),
    "distances": ALIBI + additive(CAUSAL, -math.inf),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("scale", [None, 0.7])
def test_masks_mean_what_they_mean_in_torch(
    qkv: tuple[Tensor, ...], mask: Tensor, scale: float | None
) -> None:
    q, k, v = qkv
    op = softmax_attention(q, k, mask=mask, scale=scale)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    torch.testing.assert_close(apply(op.matrix(), v), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_grouped_queries(heads: int) -> None:
    q, k, v = (torch.randn(B, n, L, D, dtype=torch.float64) for n in (6, heads, heads))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(apply(softmax_attention(q, k).matrix(), v), expected, rtol=1e-12, atol=1e-12)


def test_one_head_without_leading_dimensions(qkv: tuple[Tensor, ...]) -> None:
    q, k, v = (x[0, 0] for x in qkv)
    expected = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    torch.testing.assert_close(softmax_attention(q, k).matrix() @ v, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(softmax_attention(q.numpy(), k.numpy()).matrix(), softmax_attention(q, k).matrix())


def test_a_mask_and_is_causal_both_apply(qkv: tuple[Tensor, ...]) -> None:
    q, k, _ = qkv
    band = ~CAUSAL.tril(-3)
    assert torch.equal(
        softmax_attention(q, k, mask=band, is_causal=True).matrix(),
        softmax_attention(q, k, mask=WINDOW).matrix(),
    )


@pytest.mark.parametrize("blocked", [-math.inf, torch.finfo(torch.float64).min, -1e4, None])
def test_a_row_that_may_read_nothing_is_zero(qkv: tuple[Tensor, ...], blocked: float | None) -> None:
    q, k, _ = qkv
    allowed = CAUSAL.clone()
    allowed[4] = False
    op = softmax_attention(q, k, mask=allowed if blocked is None else additive(allowed, blocked))
    T = op.matrix()
    assert T[..., 4, :].count_nonzero() == 0
    others = torch.arange(L) != 4
    torch.testing.assert_close(T.sum(-1)[..., others], torch.ones(B, HQ, L - 1, dtype=T.dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_up_before_the_product(qkv: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    q, k, _ = (x.to(dtype) for x in qkv)
    mask = additive(CAUSAL, torch.finfo(dtype).min, dtype)
    op = softmax_attention(q, k, mask=mask)
    assert op.dtype is torch.float32
    expected = softmax_attention(q.double(), k.double()).matrix()
    torch.testing.assert_close(op.matrix().double(), expected, rtol=1e-5, atol=1e-6)
    assert softmax_attention(q, k.double()).dtype is torch.float64


def test_autocast_does_not_reach_the_scores(qkv: tuple[Tensor, ...]) -> None:
    q, k, _ = (x.float() for x in qkv)
    plain = softmax_attention(q, k).matrix()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(softmax_attention(q, k).matrix(), plain)


@pytest.mark.parametrize(("precision", "dtype"), [("highest", torch.float32), ("medium", torch.float64)])
def test_scores_avoid_reduced_products(qkv: tuple[Tensor, ...], precision: str, dtype: torch.dtype) -> None:
    """Where float32 products may be TF32 or bf16 inside, they are taken in float64."""

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (Tensor.__matmul__, torch.matmul, Tensor.matmul):
                products.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    products: list[torch.dtype] = []
    q, k, _ = (x.float() for x in qkv)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with Watch():
            T = softmax_attention(q, k).matrix()
    finally:
        torch.set_float32_matmul_precision(before)
    assert products == [dtype]
    assert T.dtype is torch.float32
    torch.testing.assert_close(
        T.double(), softmax_attention(*(x.double() for x in (q, k))).matrix(), rtol=1e-5, atol=1e-6
    )


def test_soft_capping(qkv: tuple[Tensor, ...]) -> None:
    q, k, _ = qkv
    k = k.repeat_interleave(HQ // HKV, dim=1)
    scores = 2 * torch.tanh(q @ k.mT / math.sqrt(D) / 2)
    expected = torch.softmax(scores.masked_fill(~CAUSAL, -math.inf), dim=-1)
    torch.testing.assert_close(
        softmax_attention(q, k, softcap=2.0).matrix(), expected, rtol=1e-13, atol=1e-15
    )


@pytest.mark.parametrize("level", [-40.0, 0.0, 40.0])
def test_sinks_take_their_share(qkv: tuple[Tensor, ...], level: float) -> None:
    q, k, _ = qkv
    sinks = level + torch.linspace(-1, 1, HQ, dtype=torch.float64)
    scores = (q @ k.repeat_interleave(HQ // HKV, dim=1).mT / math.sqrt(D)).masked_fill(~CAUSAL, -math.inf)
    column = sinks[:, None, None].expand(B, HQ, L, 1)
    expected = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    op = softmax_attention(q, k, sinks=sinks)
    torch.testing.assert_close(op.matrix(), expected, rtol=1e-12, atol=1e-30)
    torch.testing.assert_close(op[1, 4].matrix(), expected[1, 4], rtol=1e-12, atol=1e-30)


# Padding


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_sample_is_the_sample_alone(qkv: tuple[Tensor, ...], side: str) -> None:
    q, k, _ = qkv
    own = slice(3, None) if side == "left" else slice(0, L - 3)
    valid = torch.zeros(L, dtype=torch.bool)
    valid[own] = True
    q, k = (x.masked_fill(~valid[:, None], math.nan) for x in (q, k))
    op = softmax_attention(q, k, valid=torch.stack([torch.ones(L, dtype=torch.bool), valid])[1:, None])
    alone = softmax_attention(q[..., own, :], k[..., own, :])
    torch.testing.assert_close(op.matrix()[..., own, own], alone.matrix(), rtol=1e-13, atol=0)
    assert op.matrix()[..., ~valid, :].count_nonzero() == op.matrix()[..., :, ~valid].count_nonzero() == 0
    for metric in (ew.ess, ew.ceiling):
        torch.testing.assert_close(metric(op)[..., own], metric(alone))
        assert metric(op)[..., ~valid].count_nonzero() == 0


# Laziness


def test_references_are_kept_and_nothing_larger(qkv: tuple[Tensor, ...]) -> None:
    q, k, _ = qkv
    mask = CAUSAL.expand(B, 1, L, L)
    op = softmax_attention(q, k, mask=mask)[:, [0, 3]][0, 1]
    assert op.shape == (L, L)
    assert op._parts.q.numel() == L * D
    assert op._parts.k.items is k
    assert op._parts.mask is not None
    assert op._parts.mask.items.data_ptr() == CAUSAL.data_ptr()


INDICES: list[Any] = [
    0,
    (1, 4),
    (slice(None), 3),
    (..., [5, 0]),
    (torch.tensor([1, 0]), torch.tensor([5, 2])),
    (None, 1, slice(1, 5, 2)),
    torch.arange(12).view(2, 6) % 5 == 0,
]


def take(whole: Tensor, index: Any) -> Tensor:
    """Index the first two dimensions of ``(B, HQ, ...)`` by way of numbering them."""
    return whole.flatten(0, 1)[torch.arange(B * HQ).view(B, HQ)[index]]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("mask", [None, CAUSAL, PER_SAMPLE, PER_HEAD, PER_SAMPLE & PER_HEAD])
@pytest.mark.parametrize("padded", [False, True])
def test_indexing_means_the_same_for_everything(
    qkv: tuple[Tensor, ...], index: Any, mask: Tensor | None, padded: bool
) -> None:
    q, k, _ = qkv
    valid = torch.arange(L)[None, None] >= torch.tensor([0, 3])[:, None, None] if padded else None
    whole = softmax_attention(q, k, mask=mask, valid=valid, sinks=torch.arange(6.0))
    part = whole[index]
    assert part.shape == part.matrix().shape
    torch.testing.assert_close(part.matrix(), take(whole.matrix(), index), rtol=1e-14, atol=1e-16)
    sizes = take(whole.state_size.expand(B, HQ, L), index)
    assert torch.equal(part.state_size.expand(sizes.shape), sizes)
    assert torch.equal(ew.ceiling(part), take(ew.ceiling(whole), index))
    moved = part.to("cpu")
    assert torch.equal(moved.matrix(), part.matrix())
    assert torch.equal(moved.state_size, part.state_size)


# TSS by the one rule


def brute_state_size(allowed: Tensor, valid: Tensor) -> list[int]:
    """The number of inputs ``j < i`` that some output ``>= i`` can read, counted one by one."""
    length = allowed.shape[-1]
    readable = allowed & valid[:, None] & valid[None, :]
    return [sum(bool(readable[i:, j].any()) for j in range(i)) for i in range(length)]


def test_windows_chunks_sinks_and_documents() -> None:
    i = torch.arange(L)
    x = torch.randn(L, D)
    w = 4
    assert softmax_attention(x, x).state_size.tolist() == list(range(L))
    assert (
        softmax_attention(x, x, mask=CAUSAL & ~CAUSAL.tril(-w)).state_size.tolist()
        == i.clamp(max=w - 1).tolist()
    )
    chunks = CAUSAL & (i[:, None] // w == i // w)
    assert softmax_attention(x, x, mask=chunks).state_size.tolist() == (i % w).tolist()
    sink = CAUSAL & (~CAUSAL.tril(-w) | (i == 0))
    assert softmax_attention(x, x, mask=sink).state_size.tolist() == i.clamp(max=w).tolist()


@settings(deadline=None)
@given(st.data())
def test_state_size_of_any_mask(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 7))
    batch, heads = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 4]))
    shape = (data.draw(st.sampled_from([1, batch])), data.draw(st.sampled_from([1, heads])), length, length)
    seed = data.draw(st.integers(0, 10**6))
    random = np.random.default_rng(seed)
    allowed = torch.from_numpy(random.random(shape) < data.draw(st.sampled_from([0.1, 0.5, 0.9])))
    valid = torch.from_numpy(random.random((batch, 1, length)) < data.draw(st.sampled_from([0.5, 1.0])))
    given_valid = None if bool(valid.all()) and data.draw(st.booleans()) else valid
    blocked = data.draw(st.sampled_from([None, -math.inf, torch.finfo(torch.float32).min]))
    mask = allowed if blocked is None else additive(allowed, blocked, torch.float32)
    q, k = torch.zeros(batch, heads, length, 2), torch.zeros(batch, 1, length, 2)
    op = softmax_attention(q, k, mask=mask, is_causal=True, valid=given_valid)
    sizes = op.state_size.expand(batch, heads, length)
    full = allowed.expand(batch, heads, length, length).tril()
    for b in range(batch):
        for h in range(heads):
            assert sizes[b, h].tolist() == brute_state_size(full[b, h], valid[b, 0])
    # What may not be read is zero in the operator, and what may be read is not.
    own = valid.unsqueeze(-1) & valid.unsqueeze(-2)
    assert torch.equal(op.matrix() != 0, full & own)


def test_masks_that_agree_give_one_state_size(qkv: tuple[Tensor, ...]) -> None:
    q, k, _ = qkv
    for mask in (None, CAUSAL, CAUSAL[None, None], CAUSAL.expand(B, HQ, L, L)):
        assert softmax_attention(q, k, mask=mask).state_size.shape == (L,)
    assert softmax_attention(q, k, mask=PER_SAMPLE).state_size.shape == (B, HQ, L)


# What it refuses

X = torch.zeros(2, 4, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, "q must be a torch tensor"),
        ({"q": X.long()}, TypeError, "q must hold real floating-point numbers"),
        ({"k": X.cfloat()}, TypeError, "k must hold real floating-point numbers"),
        ({"q": X[0, 0]}, ValueError, "must both be"),
        ({"q": X[0, 0, 0], "k": X[0, 0, 0]}, ValueError, "must both be"),
        ({"q": X[:, :, :0], "k": X[:, :, :0]}, ValueError, "must not be empty"),
        ({"k": X[..., :2]}, ValueError, "same number of features"),
        ({"q": X[:, :, -1:]}, ValueError, "without a key-value cache"),
        ({"k": X[:, :3]}, ValueError, "multiple of the number of key heads"),
        ({"k": X[:1]}, ValueError, "leading dimensions of q and k must agree"),
        (
            {"q": X.clone().index_fill_(2, torch.tensor(1), math.nan)},
            ValueError,
            r"q is not finite.*first at \(0, 0, 1\)",
        ),
        ({"k": X.clone().index_fill_(2, torch.tensor(4), math.inf)}, ValueError, "k is not finite.*valid="),
        ({"scale": math.nan}, ValueError, "scale must be finite"),
        ({"scale": torch.ones(4)}, TypeError, "scale must be one number"),
        ({"scale": "big"}, TypeError, "scale must be one number"),
        ({"softcap": 0.0}, ValueError, "softcap must be positive and finite"),
        ({"sinks": torch.zeros(3)}, ValueError, r"one logit per head, \(2, 4\)"),
        ({"sinks": torch.tensor(math.inf)}, ValueError, "sinks must be finite"),
        ({"is_causal": False}, ValueError, "is_causal=False without a mask"),
        ({"mask": torch.ones(5, 5).long()}, TypeError, r"use mask.bool\(\)"),
        ({"mask": torch.ones(4, 4).bool()}, ValueError, "does not broadcast"),
        ({"mask": torch.zeros(5, 5).fill_diagonal_(math.inf)}, ValueError, r"NaN or \+inf"),
        ({"mask": torch.full((5, 5), math.nan)}, ValueError, r"NaN or \+inf"),
        (
            {"mask": torch.zeros(5, 5)},
            ValueError,
            r"\[..., 0, 1\] is 0.0, which lets output 0 read the later input 1",
        ),
        (
            {"mask": torch.ones(5, 5).tril(2).triu(2).bool()},
            ValueError,
            r"\[..., 0, 2\] is True.*is_causal=True",
        ),
        ({"valid": torch.ones(5)}, TypeError, "valid must be boolean"),
        ({"valid": torch.ones(3, 5).bool()}, ValueError, "does not broadcast"),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        softmax_attention(**({"q": X, "k": X} | arguments))


def test_scores_that_overflow_are_reported() -> None:
    q = torch.full((3, 2), 1e30)
    with pytest.raises(ValueError, match="not finite"):
        ew.ess(softmax_attention(q, q))
