"""Short convolutions along the sequence: ``conv1d`` calls, fused kernels, gated and dynamic convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.capture.attention.layout import Layout
from ess_widgets.capture.families._activations import before
from ess_widgets.capture.families._expected import takes
from ess_widgets.capture.reading import Call, ModuleCall, ModuleRecogniser, Reading, first_tensor, without
from ess_widgets.operators import (
    Convolution,
    MimoConvolution,
    Operator,
    VaryingConvolution,
    short_convolution,
)

__all__ = ["FUNCTIONS", "MODULES", "OPEN", "Conv1d", "Window", "future_steps", "read_conv1d"]

# Beyond this ratio of what a bias adds to what is left, subtracting it loses digits that matter in float32.
_CANCELLATION = 8.0
# How far a result may be from a formula that is tried on it, in half precision too.
_SAME = 0.05


@dataclass
class Window:
    """Which results of a convolution belong to the sequence, and how many steps late they come."""

    start: int
    delay: int = 0


@dataclass(frozen=True)
class Form:
    """What a convolution of stride 1 is called with, beside tensors."""

    padding: int
    dilation: int
    groups: int


@dataclass(frozen=True)
class Conv1d:
    """A call of ``conv1d``, its arguments in the form that torch documents."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int
    dilation: int
    groups: int

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> Conv1d | None:
        """The call, or None for a padding by name that stands for different numbers on both sides."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        weight, dilation = given["weight"], _one(given.get("dilation", 1))
        padding = given.get("padding", 0)
        if padding == "same":
            twice = (weight.shape[-1] - 1) * dilation
            if twice % 2:
                return None
            padding = twice // 2
        padding = 0 if padding == "valid" else _one(padding)
        stride, groups = _one(given.get("stride", 1)), int(given.get("groups", 1))
        return cls(given["input"], weight, given.get("bias"), stride, padding, dilation, groups)

    @property
    def reach(self) -> int:
        """How many steps back the first weight reads."""
        return (self.weight.shape[-1] - 1) * self.dilation

    def why_not(self, result: Tensor, front: int, length: int) -> str | None:
        """Why a convolution along the sequence cannot be captured."""
        if self.stride != 1:
            return (
                f"a convolution of stride {self.stride}: its outputs are at other positions than its inputs"
            )
        if result.shape[-1] < length:
            return f"a convolution that shortens the sequence from {length} to {result.shape[-1]} positions"
        late = self.padding + front - self.reach
        if late < 0 and self.padding < result.shape[-1] - length:
            late = 0  # it may be cut so that the past alone is read
        return future_steps(-late) if late < 0 else None

    def start(self, front: int) -> int:
        """The result that reads the first position, and nothing after it."""
        return self.padding + front - self.reach


def read_conv1d(
    call: Conv1d, result: Tensor, front: int, length: int, batch: int | None, window: Window
) -> Reading:
    """Read a convolution along the sequence.

    Parameters
    ----------
    call : Conv1d
        Of stride 1.
    result : Tensor, ``(N, out, at least L)``
        What the model computed; ``window`` says from where on.
    front : int
        Positions of the input before the sequence: zeros, or what does not depend on it.
    length, batch : int
        ``L``, and the model's batch size where it is known.
    window : Window
        May change until the model has run.
    """
    n, parts = (call.x.shape[0] if call.x.ndim == 3 else 1), call.groups
    out, into = call.weight.shape[0] // parts, call.weight.shape[1]
    batch = batch if call.x.ndim == 3 else 1
    depthwise, in_batch = into == 1, n == 1 and batch is not None and batch > 1 and parts % batch == 0
    layout = Layout.of((n,), batch if batch is not None and n % batch == 0 else n)
    samples, more = layout.shape
    if in_batch and batch is not None:  # samples side by side, as groups
        samples, more, parts = batch, 1, parts // batch
    groups = more * parts * (out if depthwise else 1)
    form, reach = Form(call.padding, call.dilation, call.groups), call.reach
    tensors = {"y": result, "x": call.x, "weight": call.weight, "bias": call.bias, "window": window}

    def arrange(t: Tensor, channels: int, block: int) -> Tensor:
        """``(N, channels, L)`` to ``(batch, groups, block * L, 1)``; channels that are missing are zero."""
        t = _float(t if t.ndim == 3 else t.unsqueeze(0))
        t = t.reshape(1, samples, -1, length) if in_batch else layout.apply(t, 2)
        if depthwise:
            return t.reshape(samples, groups, length, 1)
        t = t.reshape(samples, groups, channels, length).mT
        return F.pad(t, (0, block - channels)).reshape(samples, groups, block * length, 1)

    def inputs(t: Mapping[str, Any]) -> Tensor:
        x = t["x"][..., front : front + length]
        if depthwise and out > 1:
            x = x.repeat_interleave(out, -2)
        return arrange(x, into, max(out, into))

    def outputs(t: Mapping[str, Any]) -> Tensor:
        at: Window = t["window"]
        y = _float(t["y"][..., at.start : at.start + length])
        skip = _outside(form, t, front, at, length)
        return arrange(y if skip is None else _bare(form, t, y, skip, front, at, length), out, max(out, into))

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        weight, late = t["weight"], t["window"].delay
        weight = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
        if depthwise:
            kernel = short_convolution(weight, length, dilation=form.dilation).kernel
            kernel = F.pad(kernel, (late, 0)).reshape(samples if in_batch else 1, -1, kernel.shape[-1] + late)
            kernel = kernel.repeat(1, more, 1) if more > 1 else kernel
            return Convolution(kernel.expand(samples, -1, -1), length=length, valid=valid)
        # (groups, K, out, in), the last weight first.
        taps = (
            weight.reshape(*((samples,) if in_batch else ()), parts, out, into, -1).flip(-1).movedim(-1, -3)
        )
        kernel = taps.new_zeros(*taps.shape[:-3], late + reach + 1, out, into)
        kernel[..., late :: form.dilation, :, :] = taps
        kernel = kernel.repeat(more, 1, 1, 1) if more > 1 else kernel
        return MimoConvolution(kernel.expand(samples, *kernel.shape[-4:]), length, valid=valid)

    def computed(t: Mapping[str, Any]) -> Tensor:
        at: Window = t["window"]
        y: Tensor = t["y"][..., at.start : at.start + length]
        return (
            y.mT.reshape(samples, -1, length, y.shape[-2])
            if not in_batch
            else arrange(y, out, max(out, into))
        )

    group = "channel" if depthwise else "layer" if parts == 1 else "group"
    return Reading(
        "convolution",
        (samples, groups, length),
        tensors,
        operator,
        inputs,
        outputs,
        group=group,
        computed=computed,
    )


def _outside(form: Form, t: Mapping[str, Any], front: int, at: Window, length: int) -> Tensor | None:
    """What a bias, and what stands before the sequence, add to the outputs."""
    bias = None if t["bias"] is None else _float(t["bias"]).unsqueeze(-1)
    before = _float(t["x"][..., :front])
    if not front or not bool(before.any()):
        return bias
    alone = F.pad(before, (0, t["x"].shape[-1] - front))
    return _again(form, alone, t["weight"], t["bias"])[..., at.start : at.start + length]


def _bare(
    form: Form, t: Mapping[str, Any], y: Tensor, skip: Tensor, front: int, at: Window, length: int
) -> Tensor:
    """The outputs without what is outside of ``T``; subtracted where that keeps the digits."""
    wide = torch.promote_types(y.dtype, torch.float32)
    rest = y.to(wide) - skip.to(wide)
    if y.dtype is wide:
        norm = torch.linalg.vector_norm
        if bool((norm(y, dim=-1) <= _CANCELLATION * norm(rest, dim=-1)).all()):
            return rest
    x = _float(t["x"]).to(y.dtype)
    x = torch.cat([torch.zeros_like(x[..., :front]), x[..., front:]], -1) if front else x
    bare = _again(form, x, t["weight"].to(y.dtype), None)[..., at.start : at.start + length]
    return without(y, bare, skip, None)


def _again(form: Form, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv1d(x, weight, bias, 1, form.padding, form.dilation, form.groups)


# Fused kernels ------------------------------------------------------------------------------------------------


@takes("x hidden_states: 3", "weight: 2 3")
def _causal_conv1d(call: Call) -> Reading | str:
    """``causal_conv1d_fn(x, weight, bias, …, activation)``: ``x`` ``(batch, channels, L)``, ``weight`` ``(channels, K)``."""
    x, weight = call.first("x", "hidden_states"), call.first("weight")
    if x is None or weight is None or call.output is None or x.ndim != 3:
        return "arguments x (batch, channels, L) and weight (channels, K) were expected"
    return _fused(call, x.mT if call.name == "causal_conv1d" else x, weight.reshape(weight.shape[0], -1))


def _fused(call: Call, x: Tensor, weight: Tensor) -> Reading | str:
    for name in ("initial_states", "initial_state", "cache", "seq_idx", "cu_seqlens"):
        if call.first(name) is not None:
            return f"{name} is given: an earlier state, or documents side by side"
    activation = call.first("activation")
    if activation not in (None, "silu", "swish"):
        return f"its activation {activation!r} is not known"
    batch, channels, L = x.shape
    repeat, last = call.again, call.name == "causal_conv1d"  # channels are last
    tensors = {"y": call.output, "x": x, "weight": weight, "bias": call.first("bias")}
    tensors |= {"residual": call.first("residual"), "arguments": dict(call.arguments)}

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        kernel = short_convolution(t["weight"], L).kernel.expand(batch, channels, -1)
        return Convolution(kernel, length=L, valid=valid)

    def outputs(t: Mapping[str, Any]) -> Tensor:
        plain = {name: None for name in ("bias", "activation", "residual") if name in t["arguments"]}
        again = first_tensor(repeat(**{**t["arguments"], **plain}))
        assert again is not None
        y, bare, extra = (
            item.mT if last and item is not None else item for item in (t["y"], again, t["residual"])
        )
        skip = None if t["bias"] is None else t["bias"].unsqueeze(-1)
        if activation is not None:
            y = before("silu", y, bare if skip is None else bare + skip, extra)
        elif extra is not None:
            skip = extra if skip is None else extra + skip
        return without(y, bare, skip, None).unsqueeze(-1)

    return Reading(
        "convolution",
        (batch, channels, L),
        tensors,
        operator,
        lambda t: t["x"].unsqueeze(-1),
        outputs,
        group="channel",
        computed=lambda t: (t["y"] if last else t["y"].mT).unsqueeze(1),
    )


# Modules ------------------------------------------------------------------------------------------------------


def _is_gated_convolution(module: nn.Module) -> bool:
    """LFM2's: ``in_proj`` makes two gates and what they gate, ``conv`` is depthwise, ``out_proj`` follows."""
    conv, into, out = (getattr(module, name, None) for name in ("conv", "in_proj", "out_proj"))
    if not isinstance(conv, nn.Conv1d) or into is None or out is None or conv.stride != (1,):
        return False
    width, sizes = (
        conv.in_channels,
        [getattr(m, name, None) for m, name in ((into, "out_features"), (out, "in_features"))],
    )
    depthwise = conv.groups == width == conv.out_channels
    return (
        depthwise and sizes == [3 * width, width] and set(module._modules) == {"conv", "in_proj", "out_proj"}
    )


def _gated_convolution(call: ModuleCall) -> Reading | str:
    """``C ⊙ conv(B ⊙ x)``, with ``B``, ``C`` and ``x`` side by side in what ``in_proj`` returned."""
    made, taken = call.children.get("in_proj"), call.children.get("out_proj")
    if made is None or taken is None or made.output is None or taken.input is None:
        return ""
    conv: Any = call.module.conv
    width = conv.in_channels
    if made.output.ndim != 3 or taken.input.shape != (*made.output.shape[:-1], width):
        return ""
    batch, L, _ = made.output.shape
    dilation = conv.dilation[0]
    reach = (conv.kernel_size[0] - 1) * dilation
    tensors = {"y": taken.input, "BCx": made.output, "weight": conv.weight, "bias": conv.bias}

    def mixed(BCx: Tensor, at: int, weight: Tensor, bias: Tensor | None) -> Tensor:
        B, C, x = _three(BCx, at)
        return C * F.conv1d(B * x, weight, bias, 1, reach, dilation, width)[..., :L]

    # Which of the three is the outer gate differs; whatever else a module does with them is not read here.
    first, target = made.output[:1], taken.input[:1].mT.float()
    errors = [
        torch.linalg.vector_norm(mixed(first, at, conv.weight, conv.bias).float() - target) for at in range(3)
    ]
    gate = min(range(3), key=errors.__getitem__)
    if errors[gate] > _SAME * torch.linalg.vector_norm(target):
        return ""

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        B, C, _ = _three(t["BCx"], gate)
        return short_convolution(t["weight"], L, dilation=dilation, input_gate=B, output_gate=C, valid=valid)

    def outputs(t: Mapping[str, Any]) -> Tensor:
        y: Tensor = t["y"].mT
        if t["bias"] is None:
            return y.unsqueeze(-1)
        _, C, _ = _three(t["BCx"], gate)
        bare = mixed(t["BCx"], gate, t["weight"], None)
        return without(y, bare, C * t["bias"].unsqueeze(-1), None).unsqueeze(-1)

    def inputs(t: Mapping[str, Any]) -> Tensor:
        return _three(t["BCx"], gate)[2].unsqueeze(-1)

    return Reading(
        "convolution",
        (batch, width, L),
        tensors,
        operator,
        inputs,
        outputs,
        group="channel",
        computed=lambda t: t["y"].unsqueeze(1),
    )


def _three(BCx: Tensor, gate: int) -> tuple[Tensor, Tensor, Tensor]:
    """``B``, ``C`` and ``x``, ``(batch, channels, L)``, where ``C`` stands at ``gate``."""
    parts = list(BCx.mT.chunk(3, dim=-2))
    outer = parts.pop(gate)
    return parts[0], outer, parts[1]


def _is_dynamic_convolution(module: nn.Module) -> bool:
    """Inkling's: static taps per channel plus taps per head that ``weight_proj`` makes for each position."""
    static, made = getattr(module, "static_weight", None), getattr(module, "weight_proj", None)
    heads, taps = getattr(module, "num_heads", None), getattr(module, "conv_kernel_size", None)
    if not isinstance(static, Tensor) or not isinstance(made, nn.Linear) or not isinstance(heads, int):
        return False
    return static.ndim == 2 and static.shape[0] == taps and made.out_features == heads * static.shape[0]


def _dynamic_convolution(call: ModuleCall) -> Reading | str:
    """``(conv(u) + u) / sqrt(2K + 1)`` for ``u`` ``(batch, L, channels)``; ``static_weight[0]`` reads the present."""
    made = call.children.get("weight_proj")
    u = call.args[0] if call.args else call.kwargs.get("hidden_states")
    if made is None or made.output is None or call.output is None or not isinstance(u, Tensor) or u.ndim != 3:
        return "weight_proj was not called with (batch, L, channels)"
    batch, L, channels = u.shape
    module: Any = call.module
    taps, heads = int(module.conv_kernel_size), int(module.num_heads)
    mask = next(
        (m for m in (*call.args[1:], *call.kwargs.values()) if isinstance(m, Tensor) and m.ndim == 2), None
    )
    tensors = {
        "y": call.output,
        "u": u,
        "made": made.output,
        "weight": module.static_weight,
        "mask": mask,
    }

    def kernel(t: Mapping[str, Any]) -> Tensor:
        static: Tensor = t["weight"].float().T.reshape(heads, channels // heads, 1, taps)
        moving: Tensor = t["made"].float().reshape(batch, L, heads, taps).movedim(1, 2).unsqueeze(2)
        return (static + moving).reshape(batch, channels, L, taps)

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        return VaryingConvolution(kernel(t), valid=valid)

    def inputs(t: Mapping[str, Any]) -> Tensor:
        u: Tensor = t["u"] if t["mask"] is None else t["u"] * t["mask"].unsqueeze(-1).to(t["u"].dtype)
        return u.mT.unsqueeze(-1)

    def outputs(t: Mapping[str, Any]) -> Tensor:
        scale, u = (2 * taps + 1) ** -0.5, t["u"].float()
        windows: Tensor = F.pad(inputs(t).squeeze(-1).float(), (taps - 1, 0)).unfold(-1, taps, 1).flip(-1)
        mixed = (windows * kernel(t)).sum(-1)
        return without(t["y"].mT, mixed * scale, u.mT * scale, None).div(scale).unsqueeze(-1)

    return Reading(
        "convolution",
        (batch, channels, L),
        tensors,
        operator,
        inputs,
        outputs,
        group="channel",
        computed=lambda t: t["y"].unsqueeze(1),
    )


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list | torch.Size) else value)


def _float(t: Tensor) -> Tensor:
    return t if t.is_floating_point() else t.float()


def future_steps(steps: int) -> str:
    """Why a convolution that reads the future is left out."""
    return f"a convolution that reads {steps} step{'s' if steps != 1 else ''} of the future: it is not causal"


FUNCTIONS: dict[str, Callable[[Call], Reading | str]] = {
    "causal_conv1d_fn": _causal_conv1d,
    "causal_conv1d": _causal_conv1d,
}
# What is captured inside of these is closer to the model than their results.
OPEN = frozenset({"causal_conv1d_fn", "causal_conv1d"})
MODULES = (
    ModuleRecogniser(_is_gated_convolution, _gated_convolution),
    ModuleRecogniser(_is_dynamic_convolution, _dynamic_convolution),
)
