"""Short convolutions along the sequence, in models of users' own and of transformers'."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import CaptureError
from ess_widgets.capture.residual import residual
from ess_widgets.operators import Convolution, MimoConvolution, VaryingConvolution

B, C, L = 3, 8, 20


def signal(channels: int = C, length: int = L, batch: int = B) -> Tensor:
    return torch.randn(batch, channels, length)


def slow(x: Tensor, weight: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
    """The causal convolution of ``(batch, channels, L)``, sum by sum, in float64."""
    out, into, K = weight.shape
    weight = weight.detach()
    y = torch.zeros(x.shape[0], out, x.shape[-1], dtype=torch.float64)
    for o in range(out):
        for c in range(into):
            source = x[:, o // (out // groups) * into + c].double()
            for k in range(K):
                back = (K - 1 - k) * dilation
                y[:, o, back:] += float(weight[o, c, k]) * source[:, : x.shape[-1] - back]
    return y


class Conv(nn.Module):
    """A convolution with zeros in front, and what is cut off behind, given by a function."""

    def __init__(self, forward: Any, **options: Any) -> None:
        super().__init__()
        options = {"in_channels": C, "out_channels": C, "kernel_size": 4, "groups": C, **options}
        self.conv = nn.Conv1d(**options)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.conv, x)


def cat_zeros(conv: nn.Conv1d, x: Tensor) -> Tensor:
    return conv(torch.cat([x.new_zeros(*x.shape[:-1], 3), x], -1))


class Inside(nn.Conv1d):
    """The usual subclass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


CAUSAL = {
    "pad": lambda conv, x: conv(F.pad(x, (3, 0))),
    "zeros in front": cat_zeros,
    "module": lambda conv, x: conv(nn.ZeroPad1d((3, 0))(x)),
    "channels last": lambda conv, x: conv(F.pad(x.mT, (0, 0, 3, 0)).mT),
}
CHOMPED = {
    "slice": lambda conv, x: conv(x)[..., :L],
    "negative": lambda conv, x: conv(x)[:, :, :-3],
    "activation first": lambda conv, x: F.silu(conv(x))[..., :L],
    "narrow": lambda conv, x: conv(x).narrow(-1, 0, L).contiguous(),
    "transposed": lambda conv, x: conv(x).transpose(1, 2)[:, :L],
    "pad": lambda conv, x: F.pad(conv(x), (0, -3)),
    "never": lambda conv, x: conv(x),
    "channels split": lambda conv, x: torch.cat([p[..., :L] for p in conv(x).split(3, dim=1)], 1),
}


@pytest.mark.parametrize("how", [*CAUSAL, *(f"chomp: {name}" for name in CHOMPED)])
def test_every_way_to_be_causal(how: str) -> None:
    name = how.removeprefix("chomp: ")
    chomped = how != name
    model = Conv(CHOMPED[name] if chomped else CAUSAL[name], padding=3 if chomped else 0)
    x = signal()
    cap = ew.capture(model, x)
    assert list(cap) == ["conv"]
    layer = cap["conv"]
    assert layer.family == "convolution"
    assert layer.group == "channel"
    assert isinstance(layer.operator, Convolution)
    assert layer.operator.shape == (B, C, L, L)
    assert layer.residual.shape == (B, C)
    assert layer.residual.max() <= 1e-6
    assert torch.equal(layer.inputs, x.unsqueeze(-1))
    expected = slow(x, model.conv.weight, groups=C)
    torch.testing.assert_close(layer.outputs.squeeze(-1).double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.state_size, torch.arange(L).clamp(max=3))


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_dilation(dilation: int, bias: bool) -> None:
    model = Inside(C, C, 3, groups=C, dilation=dilation, bias=bias)
    x = signal()
    layer = ew.capture(model, x)[0]
    assert layer.residual.max() <= 1e-6
    T = layer.operator.matrix()
    weight = model.weight[:, 0].detach()
    for tap in range(3):
        torch.testing.assert_close(T[0].diagonal(-tap * dilation, dim1=-2, dim2=-1)[:, 0], weight[:, 2 - tap])
    assert layer.state_size.max() == 2 * dilation
    assert layer.name == "Inside"


def test_channel_multiplier() -> None:
    model = Conv(CAUSAL["pad"], out_channels=3 * C)
    x = signal()
    layer = ew.capture(model, x)["conv"]
    assert layer.operator.shape == (B, 3 * C, L, L)
    assert torch.equal(layer.inputs[..., 0], x.repeat_interleave(3, 1))
    assert layer.residual.max() <= 1e-6


@pytest.mark.parametrize(("into", "out", "groups"), [(8, 8, 1), (8, 8, 2), (8, 4, 1), (4, 12, 2)])
def test_mixed_channels(into: int, out: int, groups: int) -> None:
    model = Conv(CHOMPED["slice"], in_channels=into, out_channels=out, groups=groups, dilation=2, padding=6)
    x = signal(into)
    layer = ew.capture(model, x)["conv"]
    block = max(into, out) // groups
    assert isinstance(layer.operator, MimoConvolution)
    assert layer.operator.block == block
    assert layer.operator.shape == (B, groups, block * L, block * L)
    assert layer.group == ("layer" if groups == 1 else "group")
    assert layer.residual.max() <= 1e-6
    T = layer.operator.matrix()
    by_hand = (T @ layer.inputs).reshape(B, groups, L, block)[..., : out // groups]
    expected = slow(x, model.conv.weight, 2, groups).reshape(B, groups, out // groups, L).mT
    torch.testing.assert_close(by_hand.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(layer.operator[0, 0].matrix(), T[0, 0])
    assert layer.state_size[-1] == into // groups * 6
    rank = torch.linalg.matrix_rank(T[0, 0, block * 10 :, : block * 10].double())
    assert int(rank) == min(into, out) // groups * 6
    ess = ew.ess(layer.operator, kind="tolerance", tol=1e-6)
    assert ess[0, 0, 10] == rank


def test_two_thousand_channels_take_no_memory_and_large_blocks_no_matrix() -> None:
    layer = ew.capture(
        Conv(CAUSAL["pad"], in_channels=2000, out_channels=2000, groups=2000), signal(2000, 64)
    )[0]
    assert layer.operator.kernel.untyped_storage().nbytes() <= 2000 * 4 * 4
    model = Conv(CAUSAL["pad"], in_channels=512, out_channels=512, groups=1)
    layer = ew.capture(model, signal(512, 600, 1))[0]
    assert layer.residual.max() <= 1e-5
    with pytest.raises(ValueError, match=r"512 channels at 600 positions.*352 GiB"):
        layer.operator.matrix()
    wrong = MimoConvolution(layer.operator.kernel.flip(-3), 600)
    assert residual(wrong, layer.inputs, layer.outputs).min() > 0.5


def test_late_convolutions_read_the_past_alone() -> None:
    """As the first layer of WaveNet: the present is not read."""
    model = Conv(lambda conv, x: conv(F.pad(x, (4, 0)))[..., :-1])
    x = signal()
    layer = ew.capture(model, x)["conv"]
    T = layer.operator.matrix()
    assert not T.diagonal(dim1=-2, dim2=-1).any()
    assert layer.residual.max() <= 1e-6
    with torch.no_grad():
        bias = model.conv.bias.view(-1, 1, 1)
        torch.testing.assert_close(T @ x.unsqueeze(-1) + bias, model(x).unsqueeze(-1), atol=1e-5, rtol=1e-5)
    assert layer.state_size.max() == 4


LEFT_OUT = {
    "centred": (lambda conv, x: conv(x), {"kernel_size": 5, "padding": 2}, "2 steps of the future"),
    "same": (lambda conv, x: conv(x), {"kernel_size": 3, "padding": "same"}, "1 step of the future"),
    "last ones": (lambda conv, x: conv(x)[..., -L:], {"padding": 3}, "3 steps of the future"),
    "middle": (lambda conv, x: conv(x)[..., 1 : L + 1], {"padding": 3}, "1 step of the future"),
    "stride": (lambda conv, x: conv(x), {"padding": 3, "stride": 2}, "stride 2"),
    "valid": (lambda conv, x: conv(x), {}, "shortens the sequence from 20 to 17"),
    "circular": (
        lambda conv, x: conv(F.pad(x, (3, 0), mode="circular")),
        {},
        "3 positions before the sequence",
    ),
    "both sides": (lambda conv, x: conv(F.pad(x, (2, 2))), {"kernel_size": 5}, "before the sequence|future"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_has_a_reason(name: str) -> None:
    forward, options, reason = LEFT_OUT[name]
    causal = Inside(C, C, 2)
    model = nn.Sequential(causal, Conv(forward, **options))
    cap = ew.capture(model, signal())
    assert list(cap) == ["0"]
    assert list(cap.skipped) == ["1.conv"]
    assert re.search(reason, cap.skipped["1.conv"])
    with pytest.raises(CaptureError, match=r"convolution|positions"):
        ew.capture(model[1], signal())


class Tokens(nn.Module):
    """Token ids say what the length is."""

    def __init__(self, forward: Any, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, C)
        self.first = Inside(C, C, 2, groups=C)
        self.inner = Conv(forward, **options)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).mT
        return self.inner(self.first(x))


@pytest.mark.parametrize(
    ("forward", "options"),
    [
        (lambda conv, x: conv(x), {"kernel_size": 1}),
        (lambda conv, x: conv(F.pad(x.mT, (3, 0))), {"in_channels": L, "out_channels": L, "groups": L}),
        (lambda conv, x: conv(x[..., :9]), {"padding": 3}),
        (lambda conv, x: conv(x.mT), {"in_channels": L, "out_channels": 5, "groups": 1, "kernel_size": 3}),
    ],
    ids=["one tap", "along features", "another length", "features, not causal"],
)
def test_what_is_no_convolution_of_the_sequence_is_ignored(forward: Any, options: Any) -> None:
    cap = ew.capture(Tokens(forward, **options), torch.randint(0, 11, (B, L)))
    assert list(cap) == ["first"]
    assert cap.skipped == {}


class TokenSamples(nn.Module):
    """Every sample has a kernel of its own; samples stand side by side as groups."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(C, C * 3)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.make(x[..., 0]).view(-1, 1, 3)
        return F.conv1d(x.reshape(1, -1, L), kernel, padding=2, groups=B * C)[..., :L].view_as(x)


class Heads(nn.Module):
    """Heads stand in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C // 2, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x.reshape(B * 2, C // 2, L), (2, 0))
        return F.conv1d(x, self.weight, groups=C // 2).view(B, C, L)


@pytest.mark.parametrize("kind", [TokenSamples, Heads])
def test_samples_and_heads_in_one_dimension(kind: type[nn.Module]) -> None:
    model, x = kind(), signal()
    layer = ew.capture(model, x)[0]
    assert layer.operator.shape == (B, C, L, L)
    assert layer.residual.max() <= 1e-6
    assert torch.equal(layer.inputs[..., 0], x)
    with torch.no_grad():
        torch.testing.assert_close(layer.outputs[..., 0], model(x))


def test_time_first_and_signals_without_channels() -> None:
    class TimeFirst(Conv):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(1, 2, 0)).permute(2, 0, 1)

    x = torch.randn(L, B, C)
    layer = ew.capture(TimeFirst(CAUSAL["pad"]), x)["conv"]
    assert torch.equal(layer.inputs[..., 0], x.permute(1, 2, 0))
    assert layer.residual.max() <= 1e-6

    class Signal(Conv):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.unsqueeze(1)).squeeze(1)

    model = Signal(CAUSAL["pad"], in_channels=1, out_channels=1, groups=1)
    layer = ew.capture(model, torch.randn(B, L))["conv"]
    assert layer.operator.shape == (B, 1, L, L)
    assert layer.residual.max() <= 1e-6


def test_inside_vmap_nothing_is_seen_and_nothing_fails() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(C, C, 4, groups=C), Inside(C, C, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.vmap(lambda one: self.a(F.pad(one, (3, 0))))(x))

    model, x = Mapped(), signal()
    cap = ew.capture(model, x)
    assert list(cap) == ["b"]
    with torch.no_grad():
        torch.testing.assert_close(cap.output, model(x))


def test_without_a_batch() -> None:
    layer = ew.capture(Inside(C, C, 3, groups=C), signal(batch=1)[0])[0]
    assert layer.operator.shape == (1, C, L, L)
    assert layer.residual.max() <= 1e-6


def test_wavenet_and_tcn_stacks_in_order() -> None:
    class Block(nn.Module):
        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.conv = nn.Conv1d(C, 2 * C, 2, dilation=dilation, padding=dilation)
            self.out = nn.Conv1d(C, C, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.conv(x)[..., : x.shape[-1]].chunk(2, dim=1)
            return x + self.out(torch.tanh(a) * torch.sigmoid(b))

    stack = nn.Sequential(Inside(1, C, 2), *(Block(2**i) for i in range(4)))
    cap = ew.capture(stack, torch.randn(2, 1, 32))
    assert list(cap) == ["0", "1.conv", "2.conv", "3.conv", "4.conv"]
    assert max(layer.residual.max() for layer in cap.values()) <= 1e-6
    assert [int(layer.state_size.max()) for layer in cap.values()] == [1, C, 2 * C, 4 * C, 8 * C]


def test_names_and_calls_of_shared_and_reparametrised_modules() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = Inside(C, C, 3, groups=C)
            self.b = self.a
            self.normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(C, C, 3, groups=C, padding=2))
            self.mixer = nn.ModuleDict({"short": nn.Conv1d(C, C, 4, groups=C)})

        def forward(self, x: Tensor) -> Tensor:
            x = self.normed(self.b(self.a(x)))[..., :L]
            short = self.mixer["short"]
            x = F.conv1d(F.pad(x, (3, 0)), short.weight.squeeze(1).unsqueeze(1), short.bias, groups=C)
            return self.a(x)

    cap = ew.capture(Model(), signal())
    assert list(cap) == ["a", "b", "normed", "mixer.short", "a#1"]
    assert max(layer.residual.max() for layer in cap.values()) <= 1e-6
    assert list(ew.capture(Model(), signal(), layers=["mixer.*", 2])) == ["normed", "mixer.short"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("groups", [1, C])
def test_other_precisions_and_a_bias_that_covers_the_rest(dtype: torch.dtype, groups: int) -> None:
    model = Conv(CHOMPED["slice"], padding=3, groups=groups)
    with torch.no_grad():
        model.conv.bias.mul_(50)
    layer = ew.capture(model.to(dtype), signal().to(dtype))["conv"]
    assert layer.operator.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert layer.dtype is dtype
    assert layer.residual.max() <= (1e-14 if dtype is torch.float64 else 1e-2)


def test_autocast_and_a_bias_in_float32() -> None:
    model = Conv(CHOMPED["slice"], padding=3)
    with torch.no_grad():
        model.conv.bias.mul_(3000)
    assert ew.capture(model, signal())["conv"].residual.max() <= 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        cap = ew.capture(model, signal())
    assert cap["conv"].dtype is torch.bfloat16
    assert cap["conv"].residual.max() <= 1e-2


def test_one_convolution_after_another_on_one_padding() -> None:
    """What the first makes of the zeros, its bias, is what the second reads before the first token."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(C, C, 2, groups=C), nn.Conv1d(C, C, 2, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(F.pad(x, (2, 0))))

    cap = ew.capture(Two(), signal())
    assert [tuple(layer.operator.shape) for layer in cap.values()] == [(B, C, L, L), (B, 2, 4 * L, 4 * L)]
    assert max(layer.residual.max() for layer in cap.values()) <= 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("masked", [True, False])
def test_padding(side: str, masked: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(11, C), Inside(C, C, 3, groups=C)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = self.embed(input_ids)
            return self.conv((x * attention_mask[..., None] if masked else x).mT)

    mask = torch.ones(2, L, dtype=torch.long)
    own = slice(6, None) if side == "left" else slice(None, -6)
    mask[1, slice(None, 6) if side == "left" else slice(-6, None)] = 0
    ids, model = torch.randint(0, 11, (2, L)), Model()
    layer = ew.capture(model, ids, attention_mask=mask)["conv"]
    assert layer.residual.max() <= 1e-6
    if side == "left" and not masked:
        assert layer.valid is None  # the model reads it
        return
    assert torch.equal(layer.valid, mask.bool())
    alone = ew.capture(model, ids[1:, own], attention_mask=mask[1:, own])["conv"]
    T = layer.operator.matrix()[1]
    assert torch.equal(T[:, own, own], alone.operator.matrix()[0])
    assert int(T.count_nonzero()) == int(alone.operator.matrix().count_nonzero())
    torch.testing.assert_close(layer.state_size[1][:, own], alone.state_size.expand(C, -1))


def test_later_training_changes_nothing_that_was_captured() -> None:
    model = Conv(CHOMPED["slice"], padding=3)
    layer = ew.capture(model, signal())["conv"]
    before = layer.operator.matrix().clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(layer.operator.matrix(), before)
    assert layer.residual.max() <= 1e-6


class Gated(nn.Module):
    """LFM2's arrangement by default; the outer gate may stand elsewhere, or be another function."""

    def __init__(self, gate: int = 1, squash: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.gate, self.squash = gate, squash
        self.in_proj, self.out_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.conv = nn.Conv1d(C, C, 3, groups=C, padding=2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.in_proj(x).mT.chunk(3, dim=1))
        outer = parts.pop(self.gate)
        y = self.conv(parts[0] * parts[1])[..., : x.shape[1]]
        return self.out_proj(((outer.sigmoid() if self.squash else outer) * y).mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gate", [0, 1, 2])
def test_gated_convolution(gate: int, bias: bool, dtype: torch.dtype) -> None:
    model = nn.Sequential(Gated(gate, bias=bias)).to(dtype)
    cap = ew.capture(model, torch.randn(B, L, C, dtype=dtype))
    assert list(cap) == ["0"]
    layer = cap["0"]
    assert layer.operator.gated
    assert layer.residual.max() <= (1e-5 if dtype is torch.float32 else 1e-2)
    assert layer.state_size.max() == 2


def test_a_gate_that_is_another_function_leaves_the_convolution() -> None:
    cap = ew.capture(nn.Sequential(Gated(squash=True)), torch.randn(B, L, C))
    assert list(cap) == ["0.conv"]
    assert not cap["0.conv"].operator.gated
    assert cap["0.conv"].residual.max() <= 1e-6


@pytest.mark.parametrize("fault", ["flipped", "late", "no gates", "another channel", "no erased tap"])
def test_planted_faults_show(fault: str) -> None:
    gated = fault == "no gates"
    model = nn.Sequential(Gated()) if gated else Conv(CAUSAL["pad"], bias=True)
    layer = ew.capture(model, torch.randn(B, L, C) if gated else signal())[0]
    kernel = layer.operator.kernel
    wrong = {
        "flipped": lambda: kernel.flip(-1),
        "late": lambda: F.pad(kernel, (1, 0)),
        "no gates": lambda: kernel,
        "another channel": lambda: kernel.roll(1, 1),
        "no erased tap": lambda: kernel * torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }[fault]()
    assert residual(layer.operator, layer.inputs, layer.outputs).max() <= 1e-5
    assert residual(Convolution(wrong, length=L), layer.inputs, layer.outputs).max() > 0.1


# Fused kernels: what is inside cannot be seen ---------------------------------------------------------------------


class Opaque(torch.autograd.Function):
    """Computes in numpy, so that no call of torch tells."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, flipped: bool
    ) -> Tensor:
        import numpy as np

        taps = weight.float().numpy()[:, :: -1 if flipped else 1]
        source, K = x.float().numpy(), taps.shape[-1]
        padded = np.pad(source, ((0, 0), (0, 0), (K - 1, 0)))
        y = sum(taps[:, k, None] * padded[..., k : k + source.shape[-1]] for k in range(K))
        y = y if bias is None else y + bias.float().numpy()[:, None]
        y = y / (1 + np.exp(-y)) if silu else y
        return torch.tensor(y.astype(np.float32)).to(x.dtype)


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Any = None, activation: str | None = None
) -> Tensor:
    return Opaque.apply(x, weight, bias, activation in ("silu", "swish"), False)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, None]:
    y = Opaque.apply(x.mT, weight, bias, activation in ("silu", "swish"), False).mT
    return (y if residual is None else y + residual), None


class Fused(nn.Module):
    def __init__(self, run: Any) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(C, C, 4, groups=C)
        self.run = run

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.run(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_fused_kernels(activation: str | None, dtype: torch.dtype) -> None:
    limit = 1e-5 if dtype is torch.float32 else 1e-2
    x = signal().mul(3).to(dtype)
    with torch.no_grad():
        cap = ew.capture(Fused(causal_conv1d_fn).to(dtype), x, activation=activation)
        last = ew.capture(Fused(causal_conv1d).to(dtype), x.mT, residual=x.mT.clone(), activation=activation)
    for layers in (cap, last):
        assert list(layers) == ["conv1d"]
        assert layers["conv1d"].family == "convolution"
        assert layers["conv1d"].operator.shape == (B, C, L, L)
        assert layers["conv1d"].residual.max() <= limit


def test_a_fused_kernel_with_a_fault_shows() -> None:
    def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Tensor, activation: str | None = None) -> Tensor:
        return Opaque.apply(x, weight, bias, activation == "silu", True)

    for activation in (None, "silu"):
        cap = ew.capture(Fused(causal_conv1d_fn), signal(), activation=activation)
        assert cap["conv1d"].residual.min() > 0.1
    cap = ew.capture(nn.Sequential(Inside(C, C, 2), Fused(causal_conv1d_fn_with_state)), signal())
    assert list(cap) == ["0"]
    assert "seq_idx" in cap.skipped["1.conv1d"]


def causal_conv1d_fn_with_state(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return causal_conv1d_fn(x, weight, bias, seq_idx=torch.zeros(B, L))


def test_a_function_that_calls_torch_is_read_at_torchs_call() -> None:
    def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        y = F.conv1d(x, weight.unsqueeze(1), bias, padding=3, groups=C)[..., : x.shape[-1]]
        return F.silu(y)

    cap = ew.capture(Fused(causal_conv1d_fn), signal(), activation="silu")
    assert list(cap) == ["conv1d"]
    with torch.no_grad():
        assert cap["conv1d"].outputs.min() < -0.3  # before the activation
    assert cap["conv1d"].residual.max() <= 1e-6


# transformers ---------------------------------------------------------------------------------------------------

# One process for all, in which packages that would take over with kernels for GPUs are hidden.
SCRIPT = """
import json, sys
sys.modules.update(dict.fromkeys(("fla", "causal_conv1d", "mamba_ssm")))
import torch, transformers as tf
import ess_widgets as ew

def sizes(**more):
    return dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2) | more

mixed = dict(layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=2,
             linear_key_head_dim=8, linear_value_head_dim=8, head_dim=8, num_experts=2, num_experts_per_tok=1,
             moe_intermediate_size=8, shared_expert_intermediate_size=8)
CONFIGS = {
    "mamba": tf.MambaConfig(**sizes()),
    "mamba2": tf.Mamba2Config(**sizes(num_heads=4, head_dim=8, n_groups=1)),
    "recurrent_gemma": tf.RecurrentGemmaConfig(**sizes(lru_width=16, block_types=["recurrent", "attention"])),
    "qwen3_next": tf.Qwen3NextConfig(**sizes(**mixed)),
    "lfm2": tf.Lfm2Config(**sizes(layer_types=["conv", "full_attention"], conv_bias=True)),
}
rows = []
for name, config in CONFIGS.items():
    for dtype, length in ((torch.float32, 14), (torch.bfloat16, 14), (torch.float32, 2)):
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config).to(dtype)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "conv" in key and "proj" not in key:
                    parameter.normal_()
        ids = torch.randint(3, 64, (2, length))
        for side in ("none", "left", "right") if length > 2 else ("none",):
            mask = torch.ones_like(ids)
            if side != "none":
                mask[1, slice(None, 4) if side == "left" else slice(-4, None)] = 0
            for cache in (True, False):
                cap = ew.capture(model, ids, attention_mask=mask, use_cache=cache)
                found = {n: layer for n, layer in cap.items() if layer.family == "convolution"}
                rows.append({
                    "model": name, "dtype": str(dtype), "side": side, "length": length, "names": list(found),
                    "worst": max(float(layer.residual.max()) for layer in found.values()),
                    "causal": all(torch.equal(T := layer.operator.matrix(), T.tril()) for layer in found.values()),
                    "state": [int(layer.state_size.max()) for layer in found.values()],
                    "valid": [layer.valid is not None for layer in found.values()],
                    "skipped": [n for n in cap.skipped if "conv" in n],
                })
print(json.dumps(rows))
"""
EXPECTED = {
    "mamba": (["backbone.layers.0.mixer.conv1d", "backbone.layers.1.mixer.conv1d"], 3),
    "mamba2": (["backbone.layers.0.mixer.conv1d", "backbone.layers.1.mixer.conv1d"], 3),
    "recurrent_gemma": (["model.layers.0.temporal_block.conv_1d"], 3),
    "qwen3_next": (["model.layers.0.linear_attn.conv1d"], 3),
    "lfm2": (["model.layers.0.conv"], 2),
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", EXPECTED)
def test_models_of_transformers(rows: list[dict[str, Any]], name: str) -> None:
    """Names, residuals and state-sizes: both precisions, padding on both sides, with a cache, short sequences."""
    names, state = EXPECTED[name]
    own = [row for row in rows if row["model"] == name]
    assert len(own) == 14
    for row in own:
        assert row["names"] == names
        assert row["worst"] <= (1e-5 if row["dtype"] == "torch.float32" else 1e-2)
        assert row["causal"]
        assert row["state"] == [min(state, row["length"] - 1)] * len(names)
        assert row["skipped"] == []
        if name != "recurrent_gemma":  # which does not hide what padding holds
            assert row["valid"] == [row["side"] != "none"] * len(names)


def test_dynamic_convolution_of_inkling() -> None:
    inkling = pytest.importorskip("transformers.models.inkling2.modeling_inkling2")
    module = inkling.Inkling2DynamicShortConvolution(C, 6, 2, 4, 0, 0)
    nn.init.normal_(module.static_weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = module

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.conv(x, z)

    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        model = Model().to(dtype)
        layer = ew.capture(model, torch.randn(2, L, C, dtype=dtype), torch.randn(2, L, 6, dtype=dtype))[
            "conv"
        ]
        assert isinstance(layer.operator, VaryingConvolution)
        assert layer.operator.shape == (2, C, L, L)
        assert layer.residual.max() <= limit
        assert layer.state_size.max() == 3
        static = VaryingConvolution(layer.operator.kernel.mean(2, keepdim=True).expand(-1, -1, L, -1))
        assert residual(static, layer.inputs, layer.outputs).max() > 0.1


@pytest.mark.parametrize("groups", [1, C])
def test_nan_is_reported_at_its_token(groups: int) -> None:
    x = signal()
    x[1, 2, 7] = torch.nan
    with pytest.raises(CaptureError, match=r"NaN or infinity in layer 'conv': sample 1, position 7"):
        ew.capture(Conv(CAUSAL["pad"], groups=groups), x)
