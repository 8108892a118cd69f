"""Mamba and Mamba-2 as fused calls or inline: the short convolution and the scan recomputed from their weights.

A fused call returns what follows the output projection. The scan is computed again, and the result, led back through
projection, norm, gate and skip, says by how much that differs from what the model computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.capture.families._scan import filled, scan, steps, wide
from ess_widgets.capture.families._undo import Ending, settled
from ess_widgets.capture.families.selective_ssm import FAMILY, STATE, s6, ssd_heads
from ess_widgets.capture.reading import Call, ModuleCall, ModuleRecogniser, Reading, Recogniser
from ess_widgets.operators import Convolution, Operator, short_convolution

__all__ = ["FUNCTIONS", "MODULES"]

_PACKED = "documents are packed into one sequence inside a fused kernel; pass them one by one"
_Kept = Mapping[str, Any]


@dataclass(frozen=True)
class _Parts:
    """What a mixer computes on its way.

    Attributes
    ----------
    short : Tensor
        Input of the short convolution, ``(batch, channels, L)``.
    u : Tensor, ``(batch, groups, L, width)``
    step : Tensor, ``(batch, groups, L)``
        Δ.
    B, C : Tensor
        In the layout of :func:`s6` or :func:`ssd_heads`.
    """

    short: Tensor
    u: Tensor
    step: Tensor
    B: Tensor
    C: Tensor


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The causal convolution without its activation, ``x`` ``(batch, channels, L)``, ``weight`` ``(channels, K)``."""
    precision = torch.promote_types(x.dtype, torch.float32)
    weight = weight.reshape(weight.shape[0], 1, -1).to(precision)
    bias = None if bias is None else bias.to(precision)
    reach = weight.shape[-1] - 1
    return F.conv1d(x.to(precision), weight, bias, padding=reach, groups=x.shape[-2])[..., : x.shape[-1]]


def _activated(x: Tensor, t: _Kept) -> Tensor:
    return F.silu(_convolved(x, t["conv_weight"], t["conv_bias"])).to(x.dtype)


# Mamba ----------------------------------------------------------------------------------------------------------


def _s6_parts(t: _Kept) -> _Parts:
    short = t["xz"].chunk(2, dim=1)[0]
    u = _activated(short, t) if t["u"] is None else t["u"]
    small = F.linear(u.mT, t["x_weight"].to(u.dtype)) if t["small"] is None else t["small"]
    n = t["A"].shape[-1] * (2 if t["A"].is_complex() else 1)
    low, B, C = small.split([small.shape[-1] - 2 * n, n, n], dim=-1)
    low, B, C = (_rms(x, w, t["eps"]) for x, w in ((low, t["dt_norm"]), (B, t["b_norm"]), (C, t["c_norm"])))
    dt = F.linear(low, t["dt_weight"].to(low.dtype))
    step = steps(dt, t["dt_bias"], t["softplus"], narrow=False).mT
    B, C = (
        _laid_out(own if bias is None else own + bias.to(own.dtype), t["A"]) if fixed is None else fixed
        for fixed, own, bias in ((t["B"], B, t["B_bias"]), (t["C"], C, t["C_bias"]))
    )
    return _Parts(short, u.unsqueeze(-1), step, B, C)


def _laid_out(x: Tensor, A: Tensor) -> Tensor:
    """``(batch, L, n)`` as ``(batch, n, L)``; pairs of real and imaginary parts as ``(batch, n, 2 L)``."""
    if not A.is_complex():
        return x.mT
    return x.unflatten(-1, (-1, 2)).movedim(1, 2).flatten(2)  # type: ignore[no-untyped-call,no-any-return]


def _rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _s6_operator(t: _Kept, valid: Tensor | None) -> Operator:
    parts = _s6_parts(t)
    return s6(parts.step, t["A"], parts.B, parts.C, valid=valid)


def _s6_outputs(t: _Kept) -> Tensor:
    parts, A = _s6_parts(t), t["A"]
    precise = wide(parts.step)
    step, u = parts.step.to(precise), parts.u.to(precise)
    B, C = (_per_channel(x, A, step.shape[-1]) for x in (parts.B, parts.C))
    decay = torch.exp(step.unsqueeze(-1) * A[:, None])
    mixed = scan(decay, step.unsqueeze(-1) * B, 2 * C if A.is_complex() else C, u)
    gate = F.silu(t["xz"].chunk(2, dim=1)[1].to(precise)).mT
    D = t["D"]
    skip = None if D is None else (u.squeeze(-1) * D.to(precise)[:, None]).mT
    return _led_back(
        mixed.squeeze(-1).mT, Ending(skip, gate, None, t["out_weight"], t["out_bias"]), t
    ).mT.unsqueeze(-1)


def _per_channel(x: Tensor, A: Tensor, length: int) -> Tensor:
    """``(batch, 1 or channels, L, n)`` from the layouts of the kernel."""
    if x.ndim == 2:
        return x.to(torch.complex128 if x.is_complex() else wide(x))[None, :, None].expand(1, -1, length, -1)
    x = (x if x.ndim == 4 else x.unsqueeze(1)).mT.to(wide(x))
    if A.is_complex():
        pairs = x.reshape(*x.shape[:2], length, 2, x.shape[-1])
        x = torch.complex(pairs[..., 0, :], pairs[..., 1, :])
    return x.repeat_interleave(A.shape[0] // x.shape[1], 1) if x.shape[1] > 1 else x


def _inner(call: Call) -> Reading | tuple[Reading, ...] | str:
    """``mamba_inner_fn(xz, conv1d_weight, …, A, B, C, D, delta_bias, …)``, ``xz`` ``(batch, 2 channels, L)``."""
    given = call.first
    xz, A = given("xz"), given("A")
    if xz is None or A is None or call.output is None or xz.ndim != 3:
        return "arguments xz (batch, 2 channels, L) and A were expected"
    if given("cu_seqlens", "seq_idx") is not None:
        return _PACKED
    kept = {
        "xz": xz,
        "A": A,
        "B": given("B"),
        "C": given("C"),
        "D": given("D"),
        "conv_weight": given("conv1d_weight"),
        "conv_bias": given("conv1d_bias"),
        "x_weight": given("x_proj_weight"),
        "dt_weight": given("delta_proj_weight"),
        "dt_bias": given("delta_bias"),
        "B_bias": given("B_proj_bias"),
        "C_bias": given("C_proj_bias"),
        "out_weight": given("out_proj_weight"),
        "out_bias": given("out_proj_bias"),
        "softplus": bool(given("delta_softplus", default=True)),
        "dt_norm": given("dt_rms_weight"),
        "b_norm": given("b_rms_weight"),
        "c_norm": given("c_rms_weight"),
        "eps": given("b_c_dt_rms_eps", default=1e-6),
        "u": None,
        "small": None,
        "known": call.output if given("out_proj_weight") is not None else call.output.mT,
    }
    return _s6_readings(kept)


def _s6_readings(kept: dict[str, Any]) -> tuple[Reading, ...]:
    batch, both, L = kept["xz"].shape
    shape = (batch, both // 2, L)
    ssm = Reading(FAMILY, shape, kept, _s6_operator, lambda t: _s6_parts(t).u, _s6_outputs, group="channel")
    return _short(kept, shape, lambda t: t["xz"].chunk(2, dim=1)[0]), ssm


# Mamba-2 --------------------------------------------------------------------------------------------------------


def _widths(t: _Kept) -> tuple[int, int, int, int]:
    """Channels of the gated MLP beside, of the scan, of ``B`` and ``C`` together, and heads."""
    heads = t["A"].shape[0]
    inner = heads * t["head_width"]
    both = t["conv_weight"].shape[0] - inner
    return (t["projected"].shape[-1] - 2 * inner - both - heads) // 2, inner, both, heads


def _ssd_split(t: _Kept) -> tuple[Tensor, ...]:
    """``z0, x0, z, xBC, dt`` of what the input projection returned, ``(batch, L, …)``."""
    mlp, inner, both, heads = _widths(t)
    return tuple(t["projected"].split([mlp, mlp, inner, inner + both, heads], dim=-1))


def _ssd_parts(t: _Kept) -> _Parts:
    _, _, _, mixed, dt = _ssd_split(t)
    _, inner, both, heads = _widths(t)
    short = mixed.mT
    x, B, C = torch.split(_activated(short, t).mT, [inner, both // 2, both // 2], dim=-1)  # type: ignore[no-untyped-call]
    batch, L = x.shape[:2]
    B, C = (v.reshape(batch, L, t["groups"], -1) for v in (B, C))
    step = steps(dt, t["dt_bias"], True, t["limits"], narrow=False).mT
    return _Parts(short, x.reshape(batch, L, heads, -1).transpose(1, 2), step, B, C)


def _ssd_operator(t: _Kept, valid: Tensor | None) -> Operator:
    parts = _ssd_parts(t)
    return ssd_heads(parts.step, t["A"], parts.B, parts.C, valid=valid)


def _ssd_outputs(t: _Kept) -> Tensor:
    parts = _ssd_parts(t)
    precise = wide(parts.step)
    step, u = parts.step.to(precise), parts.u.to(precise)
    heads, width = u.shape[1], u.shape[-1]
    B, C = (
        v.to(precise).transpose(1, 2).repeat_interleave(heads // t["groups"], 1) for v in (parts.B, parts.C)
    )
    decay = torch.exp(step * t["A"].to(precise)[:, None]).unsqueeze(-1)
    mixed = _side_by_side(scan(decay, step.unsqueeze(-1) * B, C, u))
    z0, x0, z, _, _ = (part.to(precise) for part in _ssd_split(t))
    skip = None
    if t["D"] is not None:
        D = t["D"].to(precise).reshape(heads, -1)
        skip = _side_by_side(u * D[:, None])
    factor = F.silu(z)
    if t["norm_weight"] is not None:
        scanned = mixed if skip is None else mixed + skip
        normed = scanned if t["norm_first"] else scanned * factor
        square = normed.unflatten(-1, (t["norm_groups"], -1)).square().mean(-1, keepdim=True)  # type: ignore[no-untyped-call]
        scale = torch.rsqrt(square + t["eps"]).expand(
            *square.shape[:-1], normed.shape[-1] // square.shape[-2]
        )
        factor = factor * scale.flatten(-2) * t["norm_weight"].to(precise)
    beside = F.silu(z0) * x0 if z0.shape[-1] else None
    own = _led_back(mixed, Ending(skip, factor, beside, t["out_weight"], t["out_bias"]), t)
    return own.unflatten(-1, (heads, width)).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]


def _side_by_side(x: Tensor) -> Tensor:
    """``(batch, heads, L, width)`` as ``(batch, L, heads * width)``."""
    return x.transpose(1, 2).flatten(2)


def _split_scan(call: Call) -> Reading | tuple[Reading, ...] | str:
    """``mamba_split_conv1d_scan_combined(zxbcdt, conv1d_weight, …)``, ``zxbcdt`` ``(batch, L, …)``."""
    given = call.first
    projected, A, D = given("zxbcdt"), given("A"), given("D")
    if not isinstance(projected, Tensor) or A is None or projected.ndim != 3 or call.output is None:
        return "arguments zxbcdt (batch, L, channels) and A were expected"
    if given("seq_idx", "cu_seqlens") is not None:
        return _PACKED
    if filled(given("initial_states")):
        return STATE
    if given("activation", default="silu") not in ("silu", "swish"):
        return f"its activation {given('activation')!r} is not known"
    head_width = given("headdim", default=D.shape[1] if D is not None and D.ndim == 2 else None)
    groups = given("ngroups", default=1)
    if head_width is None:
        return "headdim was expected"
    kept = {
        "projected": projected,
        "A": A,
        "D": D,
        "conv_weight": given("conv1d_weight"),
        "conv_bias": given("conv1d_bias"),
        "dt_bias": given("dt_bias"),
        "limits": given("dt_limit", default=(0.0, float("inf"))),
        "head_width": head_width,
        "groups": groups,
        "norm_weight": given("rmsnorm_weight"),
        "norm_first": bool(given("norm_before_gate", default=True)),
        # The reference in plain torch normalises over all channels.
        "norm_groups": 1 if call.name.endswith("_ref") else groups,
        "eps": given("rmsnorm_eps", default=1e-6),
        "out_weight": given("outproj_weight"),
        "out_bias": given("outproj_bias"),
        "known": call.output,
    }
    return _ssd_readings(kept)


def _ssd_readings(kept: dict[str, Any]) -> tuple[Reading, ...]:
    batch, L, _ = kept["projected"].shape
    shape = (batch, kept["A"].shape[0], L)
    ssm = Reading(FAMILY, shape, kept, _ssd_operator, lambda t: _ssd_parts(t).u, _ssd_outputs)
    channels = kept["conv_weight"].shape[0]
    return _short(kept, (batch, channels, L), lambda t: _ssd_split(t)[3].mT), ssm


# Both -----------------------------------------------------------------------------------------------------------


def _led_back(mixed: Tensor, ending: Ending, t: _Kept) -> Tensor:
    return settled(mixed, ending, t["known"])


def _short(kept: dict[str, Any], shape: tuple[int, int, int], x: Callable[[_Kept], Tensor]) -> Reading:
    """The convolution inside a fused call, whose result nobody sees: ``y`` is torch's own, of the same weights."""
    batch, _, L = shape

    def operator(t: _Kept, valid: Tensor | None) -> Operator:
        kernel = short_convolution(t["conv_weight"], L).kernel
        return Convolution(kernel.expand(batch, -1, -1), length=L, valid=valid)

    def outputs(t: _Kept) -> Tensor:
        return _convolved(x(t), t["conv_weight"], None).unsqueeze(-1)

    names = ("xz", "projected", "conv_weight", "A", "head_width")
    return Reading(
        "convolution",
        shape,
        {name: kept[name] for name in names if name in kept},
        operator,
        lambda t: x(t).unsqueeze(-1),
        outputs,
        name=".conv1d",
        group="channel",
    )


# Modules --------------------------------------------------------------------------------------------------------


def _mamba(call: ModuleCall) -> Reading | tuple[Reading, ...] | str:
    """A ``Mamba`` of mamba_ssm whose scan runs inline or in a kernel that is not known by its name."""
    module: Any = call.module
    found = _projected(call)
    if isinstance(found, str):
        return found
    small, u = call.children.get("x_proj"), None
    batch, L, _ = found.shape
    inner = module.conv1d.weight.shape[0]
    if small is not None and small.input is not None and small.input.numel() == batch * L * inner:
        u = small.input.reshape(batch, L, inner).mT
    made = None if small is None or u is None or small.output is None else small.output.reshape(batch, L, -1)
    kept = {
        "xz": found.mT,
        "A": -torch.exp(module.A_log.float()),
        "D": module.D,
        "conv_weight": module.conv1d.weight,
        "conv_bias": module.conv1d.bias,
        "x_weight": module.x_proj.weight,
        "dt_weight": module.dt_proj.weight,
        "dt_bias": module.dt_proj.bias,
        "softplus": True,
        "u": u,
        "small": made,
        "eps": 1e-6,
        **dict.fromkeys(("B", "C", "B_bias", "C_bias", "dt_norm", "b_norm", "c_norm")),
        **_ended(call, batch, L),
    }
    return _s6_readings(kept)


def _mamba2(call: ModuleCall) -> Reading | tuple[Reading, ...] | str:
    """A ``Mamba2`` of mamba_ssm whose scan runs inline or in a kernel that is not known by its name."""
    module: Any = call.module
    found = _projected(call)
    if isinstance(found, str):
        return found
    batch, L, _ = found.shape
    norm = getattr(module, "norm", None) if getattr(module, "rmsnorm", True) else None
    inner = module.A_log.shape[0] * module.headdim
    eps, size = getattr(norm, "eps", 1e-5), getattr(norm, "group_size", None)
    kept = {
        "projected": found,
        "A": -torch.exp(module.A_log.float()),
        "D": module.D,
        "conv_weight": module.conv1d.weight,
        "conv_bias": module.conv1d.bias,
        "dt_bias": module.dt_bias,
        "limits": tuple(getattr(module, "dt_limit", (0.0, float("inf")))),
        "head_width": module.headdim,
        "groups": module.ngroups,
        "norm_weight": None if norm is None else norm.weight,
        "norm_first": bool(getattr(norm, "norm_before_gate", getattr(module, "norm_before_gate", False))),
        "norm_groups": 1 if not size else inner // size,
        "eps": eps,
        **_ended(call, batch, L),
    }
    return _ssd_readings(kept)


def _projected(call: ModuleCall) -> Tensor | str:
    """What the input projection made of the mixer's input, ``(batch, L, channels)``."""
    module: Any = call.module
    x = next(
        (i for i in (*call.args, *call.kwargs.values()) if isinstance(i, Tensor) and i.is_floating_point()),
        None,
    )
    if x is None or x.ndim != 3 or call.output is None or call.output.shape[:2] != x.shape[:2]:
        return "an input (batch, L, channels) was expected"
    if getattr(module, "activation", "silu") not in ("silu", "swish"):
        return f"its activation {module.activation!r} is not known"
    if any(call.kwargs.get(name) is not None for name in ("seq_idx", "cu_seqlens")):
        return _PACKED
    if any(getattr(i, "seqlen_offset", 0) for i in (*call.args, *call.kwargs.values())):
        return STATE
    made = call.children.get("in_proj")
    if made is not None and made.output is not None and made.output.shape[:2] == x.shape[:2]:
        return made.output
    bias = module.in_proj.bias
    weight = module.in_proj.weight
    return F.linear(x.to(weight.dtype), weight, bias)


def _ended(call: ModuleCall, batch: int, length: int) -> dict[str, Any]:
    """The input of the output projection where that was called, else its weights and the module's result."""
    module: Any = call.module
    taken = call.children.get("out_proj")
    if taken is not None and taken.input is not None and taken.input.shape[:2] == (batch, length):
        width = module.A_log.shape[0] * getattr(module, "headdim", 1)
        return {"known": taken.input[..., -width:], "out_weight": None, "out_bias": None}
    return {"known": call.output, "out_weight": module.out_proj.weight, "out_bias": module.out_proj.bias}


def _has(*names: str) -> Callable[[nn.Module], bool]:
    # Bidirectional variants have a second set of parameters for the way back.
    return lambda module: (
        all(getattr(module, name, None) is not None for name in names)
        and isinstance(module.conv1d, nn.Conv1d)
        and not hasattr(module, "A_b_log")
    )


FUNCTIONS: dict[str, Recogniser] = {
    **dict.fromkeys(("mamba_inner_fn", "mamba_inner_ref", "mamba_inner_fn_no_out_proj"), _inner),
    **dict.fromkeys(
        (
            "mamba_split_conv1d_scan_combined",
            "mamba2_split_conv1d_scan_combined",
            "mamba_split_conv1d_scan_ref",
        ),
        _split_scan,
    ),
}
MODULES = (
    ModuleRecogniser(
        _has(
            "in_proj",
            "conv1d",
            "x_proj",
            "dt_proj",
            "A_log",
            "D",
            "out_proj",
            "d_state",
            "dt_rank",
            "d_inner",
        ),
        _mamba,
    ),
    ModuleRecogniser(
        _has("in_proj", "conv1d", "dt_bias", "A_log", "D", "out_proj", "d_state", "headdim", "ngroups"),
        _mamba2,
    ),
)
