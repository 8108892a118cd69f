"""Kinds of attention other than a plain softmax: flex attention, differential, sigmoid, linear, in whatever form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention

from ess_widgets import capture
from ess_widgets.capture import CaptureError, NotCausalError
from tests.unit.models import Heads, forbidden

L = 11
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class By(Heads):
    """Attention by a function of queries, keys and values ``(batch, heads, L, dim)``."""

    def __init__(self, attend: Attend, width: int = 16, heads: int = 4) -> None:
        torch.manual_seed(0)
        super().__init__(width, heads)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.attend(*self.split(x)))


def tokens(batch: int = 2, length: int = L) -> Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(5))


def past(n: int = L) -> Tensor:
    return ~forbidden(n)


def dense(q: Tensor, k: Tensor, change: Callable[[Tensor], Tensor], mask: Tensor | None = None) -> Tensor:
    """Weights of softmax attention in float64, slowly."""
    q, k = q.double(), k.double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = change(q @ k.mT / math.sqrt(q.shape[-1]))
    return scores.masked_fill(~(past(q.shape[2]) if mask is None else mask), -math.inf).softmax(-1)


# Flex attention -----------------------------------------------------------------------------------------------


def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i >= j


def window(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i - j < 4


def distance(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score - (h + 1) * 0.2 * (i - j)


def cap(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return 2 * torch.tanh(score / 2)


def causal_score(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(i >= j, score, -math.inf)


def block_mask(mod: Any, length: int = L) -> Any:
    return create_block_mask(mod, None, None, length, length, device="cpu")


STEPS = torch.arange(L)[:, None] - torch.arange(L)
SLOPES = 0.2 * torch.arange(1.0, 5.0).double()[:, None, None]
FLEX: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor], Tensor]] = {
    "causal": ({"block_mask": causal}, lambda s: s, past()),
    "window": ({"block_mask": and_masks(causal, window)}, lambda s: s, past() & (STEPS < 4)),
    "alibi": ({"block_mask": causal, "score_mod": distance}, lambda s: s - SLOPES * STEPS, past()),
    "cap": ({"block_mask": causal, "score_mod": cap}, lambda s: 2 * torch.tanh(s / 2), past()),
    "mask in the score": ({"score_mod": causal_score}, lambda s: s, past()),
    "scale": ({"block_mask": causal, "scale": 1.5}, lambda s: s * 1.5 * 2, past()),
}


def flex(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
    if "block_mask" in kwargs:
        kwargs["block_mask"] = block_mask(kwargs["block_mask"], q.shape[2])
    y: Tensor = flex_attention(q, k, v, **kwargs)
    return y


@pytest.mark.parametrize("kind", FLEX)
def test_flex(kind: str) -> None:
    kwargs, change, mask = FLEX[kind]
    module = By(lambda q, k, v: flex(q, k, v, **kwargs))
    layer = capture(module, tokens())[0]
    q, k, v = module.split(tokens())
    T = layer.operator.matrix()
    torch.testing.assert_close(T.double(), dense(q, k, change, mask), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.inputs, v)
    assert layer.residual.max() < 1e-6
    assert T.dtype is torch.float32 and layer.family == "softmax attention"
    expected = torch.arange(L).clamp(max=3 if kind == "window" else L)
    assert torch.equal(layer.state_size, expected)
    assert torch.equal(layer.operator[1, 2].matrix(), T[1, 2])


def test_flex_with_shared_keys_and_values() -> None:
    module = By(
        lambda q, k, v: flex(q, k[:, ::2], v[:, ::2, :, :3], block_mask=causal, enable_gqa=True).repeat(
            1, 1, 1, 2
        )[..., :4]
    )
    layer = capture(module, tokens())[0]
    q, k, v = module.split(tokens())
    torch.testing.assert_close(
        layer.operator.matrix().double(), dense(q, k[:, ::2], lambda s: s), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(layer.inputs, v[:, ::2, :, :3].repeat_interleave(2, 1))
    assert layer.residual.max() < 1e-6


@pytest.mark.parametrize("compiled", [False, True])
def test_flex_in_half_precision(compiled: bool) -> None:
    function = torch.compile(flex_attention) if compiled else flex_attention
    module = By(lambda q, k, v: function(q, k, v, block_mask=block_mask(causal))).bfloat16()
    layer = capture(module, tokens().bfloat16())[0]
    q, k, _ = module.split(tokens().bfloat16())
    torch.testing.assert_close(
        layer.operator.matrix().double(), dense(q, k, lambda s: s), atol=1e-6, rtol=1e-5
    )
    assert layer.residual.max() < 1e-2 and not layer.rounded


def test_what_a_mod_refers_to_may_change_later() -> None:
    bias = torch.randn(L, L, generator=torch.Generator().manual_seed(2))
    table = nn.Embedding(4, L)

    def biased(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return score + bias[i, j] + table.weight[h, j]

    module = By(lambda q, k, v: flex(q, k, v, score_mod=biased, block_mask=causal))
    layer = capture(module, tokens())[0]
    with torch.no_grad():
        bias.zero_()
        table.weight.zero_()
    assert layer.residual.max() < 1e-6


def test_documents_and_padding_in_flex() -> None:
    documents = torch.tensor([[0] * 5 + [1] * 6, [0] * 8 + [-1] * 3])

    def together(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (documents[b, i] == documents[b, j]) & (documents[b, i] >= 0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = create_block_mask(and_masks(causal, together), 2, None, L, L, device="cpu")
        y: Tensor = flex_attention(q, k, v, block_mask=mask)
        return y

    layer = capture(By(attend), tokens())[0]
    assert layer.residual.max() < 1e-6
    assert layer.valid is not None and layer.valid.sum(-1).tolist() == [11, 8]
    T = layer.operator.matrix()
    assert not T[0, :, 5:, :5].any() and not T[1, :, 8:].any() and not T[1, :, :, 8:].any()
    size = layer.state_size
    assert size.shape == (2, 4, L)
    assert size[0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]


def test_flex_that_reads_the_future_is_refused() -> None:
    with pytest.raises(NotCausalError, match="output 0 reads the later input 1"):
        capture(By(lambda q, k, v: flex(q, k, v)), tokens())


def test_a_sink_applied_after_flex() -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])[:, None, None]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, lse = flex_attention(q, k, v, block_mask=block_mask(causal), return_lse=True)
        lse = lse.unsqueeze(-1)
        both = torch.logsumexp(torch.cat([lse, sinks.expand_as(lse)], -1), -1, keepdim=True)
        return y * torch.exp(lse - both)

    module = By(attend)
    layer = capture(module, tokens())[0]
    q, k, _ = module.split(tokens())
    scores = (q @ k.mT / 2).masked_fill(forbidden(L), -math.inf).double()
    expected = torch.cat([scores, sinks.expand(2, 4, L, 1)], -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(layer.operator.matrix().double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.operator[1, 2].matrix().double(), expected[1, 2], atol=1e-6, rtol=1e-5)
    assert layer.residual.max() < 1e-6


# Weights that are no distribution -----------------------------------------------------------------------------


def feature(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def decay(base: float = 0.8) -> Tensor:
    return torch.where(past(), base ** STEPS.clamp(min=0), 0.0)


def sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / 2 - math.log(L)
    return torch.sigmoid(scores.masked_fill(forbidden(L), -math.inf)) @ v


def relu_squared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (F.relu(q @ k.mT / 2) ** 2 * past() / L) @ v


def difference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(forbidden(L), -math.inf)
    other = (k @ q.mT).masked_fill(forbidden(L), -math.inf)
    return (scores.softmax(-1) - 0.7 * other.softmax(-1)) @ v


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (feature(q) @ feature(k).mT).tril() @ v


def normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (feature(q) @ feature(k).mT).masked_fill(forbidden(L), 0)
    return (weights @ v) / (weights.sum(-1, keepdim=True) + 1e-6)


def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k) * decay().to(q.dtype)
    weights = weights / weights.detach().abs().sum(-1, keepdim=True).clamp(min=1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def exponential(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(forbidden(L), -math.inf)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    y = weights @ v
    y /= weights.sum(-1, keepdim=True)
    return y


def off_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.exp((q @ k.mT).masked_fill(forbidden(L), -math.inf))
    return weights / (1 + weights.sum(-1, keepdim=True)) @ v


def talking(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mix = torch.linspace(-1, 1, 16).view(4, 4).to(q.dtype)
    scores = torch.einsum("bhij,hg->bgij", q @ k.mT, mix).masked_fill(forbidden(L), -math.inf)
    return torch.einsum("bhij,hg->bgij", scores.softmax(-1), mix) @ v


KINDS: dict[Attend, str] = {
    sigmoid: "attention",
    relu_squared: "attention",
    difference: "softmax attention",
    linear: "linear attention",
    normalised: "linear attention",
    retention: "linear attention",
    exponential: "softmax attention",
    off_by_one: "softmax attention",
    talking: "softmax attention",
}


def influence(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``T`` from what each value does to each output."""
    units = torch.eye(L, dtype=torch.float64).expand(*v.shape[:2], L, L)
    return attend(q.double(), k.double(), units)


@pytest.mark.parametrize("attend", KINDS, ids=lambda attend: attend.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_kinds_of_weights(attend: Attend, dtype: torch.dtype) -> None:
    module = By(attend).to(dtype)
    layer = capture(module, tokens().to(dtype))[0]
    assert layer.family == KINDS[attend]
    if dtype is torch.float32 or attend not in (linear, normalised, retention, talking):
        # (What these are made from, other than queries and keys, is rounded in bfloat16.)
        T = influence(attend, *module.split(tokens().to(dtype)))
        torch.testing.assert_close(layer.operator.matrix().double(), T, atol=2e-6, rtol=2e-5)
    assert layer.residual.max() < (1e-6 if dtype is torch.float32 else 1e-2)
    assert not layer.rounded


@pytest.mark.parametrize(
    ("attend", "size"), [(linear, 4), (normalised, 4), (retention, 4), (sigmoid, L), (difference, L)]
)
def test_state_size_of_linear_attention_is_that_of_its_keys(attend: Attend, size: int) -> None:
    layer = capture(By(attend), tokens())[0]
    expected = torch.arange(L).clamp(max=size)
    assert torch.equal(layer.state_size, expected)
    for i in range(1, L):
        assert (
            int(torch.linalg.matrix_rank(layer.operator.matrix()[0, 0, i:, :i].double(), rtol=1e-5))
            <= expected[i]
        )


def test_a_window_of_linear_attention_needs_the_window() -> None:
    layer = capture(By(lambda q, k, v: (q @ k.mT * (past() & (STEPS < 6))) @ v), tokens())[0]
    assert layer.family == "linear attention"
    assert torch.equal(layer.state_size, torch.arange(L).clamp(max=5))


def test_a_planted_fault_shows_in_the_residual() -> None:
    """A normaliser that the model applies by other means than the captured weights."""
    layer = capture(By(normalised), tokens())[0]
    T = layer.operator.matrix()
    assert layer.residual.max() < 1e-6
    wrong = T * (1 + 0.01 * torch.arange(L))[:, None] @ layer.inputs - layer.outputs
    assert wrong.norm() / layer.outputs.norm() > 1e-3


# What is no attention ------------------------------------------------------------------------------------------


def similarity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.normalize(q @ k.mT, dim=-1) @ v


def experts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT @ torch.ones(L, 3)).softmax(-1) @ torch.randn(3, v.shape[-1])


def gram(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (v @ (k.mT @ q).softmax(-1)).cumsum(2)


def chunks(q: Tensor, k: Tensor, v: Tensor, size: int = 4) -> Tensor:
    """Products within chunks of a recurrence, causal in each chunk."""
    q, k, v = (F.pad(t, (0, 0, 0, -L % size)).unflatten(2, (-1, size)) for t in (q, k, v))
    return ((q @ k.mT).tril() @ v).flatten(2, 3)[:, :, :L]


def erased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The algebra of a delta rule, a single chunk: neither its triangular matrix nor its inverse mixes values."""
    lower = (k @ k.mT).tril(-1)
    inverse = torch.linalg.inv(torch.eye(L) + lower)
    return lower @ v + inverse @ v


@pytest.mark.parametrize(
    "attend", [similarity, experts, gram, chunks, erased], ids=lambda attend: attend.__name__
)
def test_what_is_no_attention_is_left_alone(attend: Attend) -> None:
    with pytest.raises(CaptureError, match=r"Looked for|nowhere as a square operator"):
        capture(By(attend), tokens())


# Results that are joined afterwards ----------------------------------------------------------------------------


def scores_of(q: Tensor, k: Tensor, first: int = 0) -> Tensor:
    """Causal scores of queries that begin at ``first``."""
    n, m = q.shape[-2], k.shape[-2]
    allowed = torch.ones(n, m, dtype=torch.bool).tril(first)
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~allowed, -math.inf)


def maps_subtracted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Differential attention as its authors' fused version writes it: halves of the heads, then a difference."""
    v = v[:, :2].repeat(1, 2, 1, 1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous()
    one, other = y.chunk(2, dim=2)
    return (one - torch.tensor(0.3) * other).transpose(1, 2)


def maps_subtracted_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    v = v[:, :2]
    one = scores_of(q[:, :2], k[:, :2]).softmax(-1) @ v
    other = scores_of(q[:, 2:], k[:, 2:]).softmax(-1) @ v
    return one - 0.3 * other


class Half(By):
    """Without the output projection, which expects four heads."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*self.split(x))


@pytest.mark.parametrize(
    "attend", [maps_subtracted, maps_subtracted_by_hand], ids=lambda attend: attend.__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_differential_attention_is_one_operator(attend: Attend, dtype: torch.dtype) -> None:
    module = Half(attend).to(dtype)
    cap = capture(module, tokens().to(dtype))
    assert list(cap) == ["Half"] and not cap.skipped
    layer = cap[0]
    q, k, v = (t.double() for t in module.split(tokens().to(dtype)))
    one, other = scores_of(q, k).softmax(-1).chunk(2, 1)
    factor = float(torch.tensor(0.3)) if attend is maps_subtracted else 0.3
    torch.testing.assert_close(layer.operator.matrix().double(), one - factor * other, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.inputs.double(), v[:, :2])
    assert layer.residual.max() < (1e-6 if dtype is torch.float32 else 1e-2)
    assert torch.equal(layer.state_size, torch.arange(L))


def chunked_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries in chunks against all keys."""
    rows = [scores_of(q[:, :, s : s + 4], k, s).softmax(-1) @ v for s in range(0, L, 4)]
    return torch.cat(rows, 2)


def chunked_past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries in chunks against the past, into memory made before."""
    y = torch.zeros_like(v)
    for s in range(0, L, 3):
        e = min(s + 3, L)
        y[:, :, s:e] = scores_of(q[:, :, s:e], k[:, :, :e], s).softmax(-1) @ v[:, :, :e]
    return y


def chunked_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries in chunks against their own chunk and the one before, by torch's fused function."""
    rows = []
    for s in range(0, L, 4):
        e, before = min(s + 4, L), max(0, s - 4)
        mask = torch.ones(e - s, e - before, dtype=torch.bool).tril(s - before)
        keys, values = k[:, :, before:e], v[:, :, before:e]
        rows.append(F.scaled_dot_product_attention(q[:, :, s:e], keys, values, attn_mask=mask))
    return torch.cat(rows, 2)


def chunked_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Chunks that read themselves alone."""
    parts = zip(*(t.split(4, 2) for t in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part, is_causal=True) for part in parts], 2)


BLOCK = torch.arange(L) // 4
CHUNKED: dict[Attend, Tensor] = {
    chunked_by_hand: past(),
    chunked_past: past(),
    chunked_window: past() & (BLOCK[:, None] - BLOCK <= 1),
    chunked_blocks: past() & (BLOCK[:, None] == BLOCK),
}


@pytest.mark.parametrize("attend", CHUNKED, ids=lambda attend: attend.__name__)
def test_chunks_of_queries_are_one_operator(attend: Attend) -> None:
    module = By(attend)
    cap = capture(module, tokens())
    assert list(cap) == ["By"] and not cap.skipped
    layer, (q, k, v) = cap[0], module.split(tokens())
    expected = dense(q, k, lambda s: s, CHUNKED[attend])
    torch.testing.assert_close(layer.operator.matrix().double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.inputs, v)
    assert layer.residual.max() < 1e-6
    allowed = CHUNKED[attend]
    assert layer.state_size.tolist() == [int(allowed[i:, :i].any(0).sum()) for i in range(L)]


def test_steps_of_a_generation_are_reported_in_one_line() -> None:
    def generates(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        F.scaled_dot_product_attention(q[:, :, :5], k[:, :, :5], v[:, :, :5], is_causal=True)
        for i in range(5, L):
            F.scaled_dot_product_attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1])
        return v

    cap = capture(By(generates), tokens())
    assert list(cap) == ["By"] and cap[0].operator.shape[-1] == 5
    assert cap.skipped == {"By": "6 times, 1 queries read 6 to 11 keys"}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_a_layer_that_ignores_the_stated_padding_has_none(fused: bool, left: bool) -> None:
    """The model is told of padding, but this layer does not care: what its tokens read there is part of it."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if fused:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return scores_of(q, k).softmax(-1) @ v

    class Careless(By):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    mask = torch.ones(2, L, dtype=torch.long)
    mask[1, : 3 if left else 0] = 0
    mask[1, L if left else 8 :] = 0
    layer = capture(Careless(attend), tokens(), attention_mask=mask)[0]
    # Padding on the right is read by nobody but itself.
    assert (layer.valid is None) == left
    assert layer.residual.max() < 1e-6
