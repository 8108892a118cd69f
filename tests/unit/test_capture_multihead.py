"""nn.MultiheadAttention and the encoder and decoder layers around it, their fused paths included."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets import capture
from ess_widgets.capture import Capture

L = 9
CAUSAL = nn.Transformer.generate_square_subsequent_mask(L)
FORBIDDEN = CAUSAL.isinf()


class SelfAttention(nn.Module):
    """An nn.MultiheadAttention that reads itself."""

    def __init__(self, call: dict[str, Any], **kwargs: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(16, 4, **kwargs)
        nn.init.normal_(self.attn.in_proj_bias)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, **self.call)[0]


def check(cap: Capture, name: str, batch: int = 2, heads: int = 4, limit: float = 1e-6) -> None:
    layer = cap[name]
    T = layer.operator.matrix()
    assert T.shape == (batch, heads, L, L)
    assert torch.equal(T, T.tril())
    assert layer.residual.max() < limit


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        {"attn_mask": CAUSAL},
        {"attn_mask": FORBIDDEN},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
        {"attn_mask": FORBIDDEN, "need_weights": False},
        {"attn_mask": CAUSAL.expand(8, L, L), "average_attn_weights": False},
        {"attn_mask": FORBIDDEN.expand(8, L, L), "need_weights": False},
    ],
    ids=["float", "bool", "hint", "bool fused", "float 3-D", "bool 3-D fused"],
)
def test_calls(call: dict[str, Any], batch_first: bool) -> None:
    model = SelfAttention(call, batch_first=batch_first).eval()
    cap = capture(model, torch.randn(2, L, 16) if batch_first else torch.randn(L, 2, 16))
    assert list(cap) == ["attn"]
    check(cap, "attn")


def test_heads_are_torchs_own_before_the_output_projection() -> None:
    model = SelfAttention({"attn_mask": CAUSAL}, batch_first=True).eval()
    x = torch.randn(2, L, 16)
    layer = capture(model, x)["attn"]
    heads = layer.outputs.transpose(1, 2).flatten(2)
    with torch.no_grad():
        torch.testing.assert_close(
            F.linear(heads, model.attn.out_proj.weight, model.attn.out_proj.bias), model(x)
        )
        torch.testing.assert_close(model.attn(x, x, x, attn_mask=CAUSAL, average_attn_weights=False)[1],
                                   layer.operator.matrix())  # fmt: skip


def test_masks_may_differ_between_heads() -> None:
    masks = torch.stack(
        [CAUSAL.clone().masked_fill(torch.ones(L, L).tril(-w).bool(), -math.inf) for w in range(2, 10)]
    )
    layer = capture(SelfAttention({"attn_mask": masks}, batch_first=True), torch.randn(2, L, 16))["attn"]
    assert layer.residual.max() < 1e-6
    size = layer.state_size
    assert size.shape == (2, 4, L)
    assert size[0, 0, -1] == 1 and size[1, 3, -1] == 8


def test_unbatched() -> None:
    check(capture(SelfAttention({"attn_mask": CAUSAL}), torch.randn(L, 16)), "attn", batch=1)


def test_the_module_itself_is_named_by_its_class() -> None:
    x = torch.randn(L, 2, 16)
    cap = capture(nn.MultiheadAttention(16, 4), x, x, x, attn_mask=CAUSAL)
    assert list(cap) == ["MultiheadAttention"]


def test_own_widths_of_keys_and_values() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 4, kdim=6, vdim=5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, x[..., :6], x[..., :5], attn_mask=CAUSAL)[0]

    check(capture(Model(), torch.randn(2, L, 16)), "attn")


def test_add_zero_attn_is_a_sink() -> None:
    model = SelfAttention({"attn_mask": CAUSAL}, batch_first=True, add_zero_attn=True)
    cap = capture(model, torch.randn(2, L, 16))
    check(cap, "attn")
    assert (cap["attn"].operator.matrix().sum(-1) < 1).all()


def test_add_bias_kv_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="add_bias_kv=True"):
        capture(
            SelfAttention({"attn_mask": CAUSAL}, batch_first=True, add_bias_kv=True), torch.randn(2, L, 16)
        )


def encoder(layers: int = 2, **kwargs: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **kwargs)
    return nn.TransformerEncoder(layer, layers)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("hint", [None, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_encoder_with_a_causal_mask(training: bool, hint: bool | None, norm_first: bool) -> None:
    model = encoder(norm_first=norm_first).train(training)
    x = torch.randn(2, L, 16)
    cap = capture(model, x, mask=CAUSAL, is_causal=hint)
    assert list(cap) == ["layers.0.self_attn", "layers.1.self_attn"]
    for name in cap:
        check(cap, name)
    with torch.no_grad():
        torch.testing.assert_close(
            cap.output, model.eval()(x, mask=CAUSAL, is_causal=hint), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_encoder_with_padding(nested: bool) -> None:
    model = encoder().eval()
    model.enable_nested_tensor = nested
    x = torch.randn(2, L, 16)
    padded = torch.zeros(2, L, dtype=torch.bool)
    padded[1, 6:] = True
    cap = capture(model, x, mask=FORBIDDEN, src_key_padding_mask=padded)
    alone = capture(model, x[1:, :6], mask=FORBIDDEN[:6, :6])
    for name in cap:
        T = cap[name].operator.matrix()
        assert cap[name].residual.max() < 1e-6
        assert not T[1, :, 6:].any() and not T[1, :, :, 6:].any()
        torch.testing.assert_close(T[1:, :, :6, :6], alone[name].operator.matrix(), atol=1e-5, rtol=1e-5)


def test_encoder_without_a_mask_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'layers\.0\.self_attn' is not causal.*output 0 reads the later input 1"
    ):
        capture(encoder(), torch.randn(2, L, 16))


@pytest.mark.parametrize("memory", [L, 5])
def test_decoder_keeps_self_attention_and_reports_cross_attention(memory: int) -> None:
    layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).eval()
    cap = capture(model, torch.randn(2, L, 16), torch.randn(2, memory, 16), tgt_mask=CAUSAL)
    assert list(cap) == ["layers.0.self_attn", "layers.1.self_attn"]
    for name in cap:
        check(cap, name)
    assert set(cap.skipped) == {"layers.0.multihead_attn", "layers.1.multihead_attn"}
    assert "multihead_attn" in repr(cap)


def test_half_precision_weights() -> None:
    model = encoder().to(torch.bfloat16)
    cap = capture(model, torch.randn(2, L, 16).bfloat16(), mask=CAUSAL.bfloat16())
    for name in cap:
        check(cap, name, limit=1e-2)
        assert cap[name].operator.dtype is torch.float32
