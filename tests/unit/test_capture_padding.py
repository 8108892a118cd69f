"""A padded batch gives, at a sample's own tokens, what the sample gives alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture.interception import padding
from tests.unit.models import Heads, forbidden
from tests.unit.test_capture_families import build, ids

LENGTH, OWN = 14, 9
CASES = [("GPT2", "eager"), ("GPT2", "sdpa"), ("Llama", "eager"), ("Llama", "sdpa"), ("Bloom", "eager"),
         ("Mistral", "sdpa"), ("Mpt", "eager"), ("GptOss", "eager")]  # fmt: skip


def batch(side: str) -> tuple[Tensor, Tensor, slice]:
    """Two samples, the second one padded; where its own tokens are."""
    tokens = ids(2, LENGTH)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    own = slice(0, OWN) if side == "right" else slice(LENGTH - OWN, LENGTH)
    keep = torch.zeros(LENGTH, dtype=torch.bool)
    keep[own] = True
    tokens[1, ~keep] = 0
    mask[1, ~keep] = 0
    return tokens, mask, own


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_padded_batch_equals_sample_alone(name: str, attention: str, side: str) -> None:
    model = build(name, attention)
    tokens, mask, own = batch(side)
    # GPT-2 counts positions from the first column unless it is told.
    extra = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if name == "GPT2" else {}
    padded = ew.capture(model, tokens, attention_mask=mask, **extra)
    alone = ew.capture(model, tokens[1:, own])
    first = ew.capture(model, tokens[:1])
    for layer in padded:
        L, T = padded[layer], padded[layer].operator.matrix()
        assert L.residual.max() <= 1e-5
        assert L.valid is not None and torch.equal(L.valid, mask.bool())
        outside = T[1].clone()
        outside[:, own, own] = 0
        assert not outside.any()
        torch.testing.assert_close(T[1][:, own, own], alone[layer].operator.matrix()[0], atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(T[0], first[layer].operator.matrix()[0], atol=2e-6, rtol=1e-4)
        for kind, tol in (("tolerance", 1e-2), ("entropy", 1e-3)):
            ess = ew.ess(L.operator, kind=kind, tol=tol)[1][:, own]
            expected = ew.ess(alone[layer].operator, kind=kind, tol=tol)[0]
            torch.testing.assert_close(ess.double(), expected.double(), atol=2e-3, rtol=1e-3)
        size = L.state_size.expand(2, 4, LENGTH)[1][:, own]
        torch.testing.assert_close(size, alone[layer].state_size.expand(4, OWN), check_dtype=False)


class Unnamed(Heads):
    """Keys are masked by an argument whose name says nothing."""

    def __init__(self, additive: float | None) -> None:
        super().__init__()
        self.additive = additive

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        q, k, v = self.split(x)
        allowed = ~forbidden(x.shape[1]) & there[:, None, None]
        if self.additive is None:
            return self.merge(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed))
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, self.additive)
        return self.merge((q @ k.mT + bias).softmax(-1) @ v)


@pytest.mark.parametrize("additive", [None, -1e9, torch.finfo(torch.float32).min, -math.inf])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_inferred_from_the_mask_itself(side: str, additive: float | None) -> None:
    torch.manual_seed(0)
    model = Unnamed(additive)
    _, mask, own = batch(side)
    x = torch.randn(2, LENGTH, 16)
    padded = ew.capture(model, x, mask.bool())[0]
    assert padded.valid is not None and torch.equal(padded.valid, mask.bool())
    assert padded.residual.max() < 1e-6
    alone = ew.capture(model, x[1:, own], torch.ones(1, OWN, dtype=torch.bool))[0]
    torch.testing.assert_close(padded.operator.matrix()[1][:, own, own], alone.operator.matrix()[0])
    torch.testing.assert_close(padded.state_size[1][:, own], alone.state_size.expand(4, OWN))


@pytest.mark.parametrize("value", [True, 1, 1.0])
def test_a_mask_that_marks_everything_is_no_padding(value: float) -> None:
    cap = ew.capture(build("Llama", "sdpa"), ids(), attention_mask=torch.full((2, 20), value))
    assert cap[0].valid is None


def test_a_sample_of_nothing_but_padding() -> None:
    tokens, mask, _ = batch("right")
    mask[1] = 0
    layer = ew.capture(build("Llama", "eager"), tokens, attention_mask=mask)[0]
    assert not layer.operator.matrix()[1].any()
    assert layer.residual[0].max() < 1e-5
    assert not layer.residual[1].any()


def test_inference_from_masks_alone() -> None:
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    assert padding.infer(causal[None]) is None
    assert padding.infer(torch.ones(1, 6, 6, dtype=torch.bool)) is None  # an encoder is not padding
    window = causal & ~causal.tril(-3)
    assert padding.infer(window[None]) is None
    keep = torch.tensor([False, False, True, True, True, True])
    assert torch.equal(padding.infer((causal & keep)[None]), keep[None])
    opened = (causal & keep) | ~keep[:, None]  # transformers opens rows that would be empty
    assert torch.equal(padding.infer(opened[None]), keep[None])
    assert torch.equal(padding.infer((causal & keep.flip(0))[None]), keep.flip(0)[None])
    strict = causal.tril(-1)
    assert padding.infer(strict[None]) is None  # a token that never reads itself is not padding
