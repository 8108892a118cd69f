"""Mamba in one fused call, which returns what follows the output projection."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.capture.families._expected import takes
from ess_widgets.capture.families._fused import PACKED, Kept, Parts, activated, short_inside
from ess_widgets.capture.families._scan import scan, steps, wide
from ess_widgets.capture.families._undo import Ending, settled
from ess_widgets.capture.families.selective_ssm import FAMILY, s6
from ess_widgets.capture.reading import Call, Reading
from ess_widgets.operators import Operator

__all__ = ["inner", "s6_readings"]


def _s6_parts(t: Kept) -> Parts:
    short = t["xz"].chunk(2, dim=1)[0]
    u = activated(short, t) if t["u"] is None else t["u"]
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
    return Parts(short, u.unsqueeze(-1), step, B, C)


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


def _s6_operator(t: Kept, valid: Tensor | None) -> Operator:
    parts = _s6_parts(t)
    return s6(parts.step, t["A"], parts.B, parts.C, valid=valid)


def _s6_outputs(t: Kept) -> Tensor:
    parts, A = _s6_parts(t), t["A"]
    precise = wide(parts.step)
    step, u = parts.step.to(precise), parts.u.to(precise)
    B, C = (_per_channel(x, A, step.shape[-1]) for x in (parts.B, parts.C))
    decay = torch.exp(step.unsqueeze(-1) * A[:, None])
    mixed = scan(decay, step.unsqueeze(-1) * B, 2 * C if A.is_complex() else C, u)
    gate = F.silu(t["xz"].chunk(2, dim=1)[1].to(precise)).mT
    D = t["D"]
    skip = None if D is None else (u.squeeze(-1) * D.to(precise)[:, None]).mT
    return settled(
        mixed.squeeze(-1).mT, Ending(skip, gate, None, t["out_weight"], t["out_bias"]), t["known"]
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


@takes("xz: 3", "A: 2", "conv1d_weight: 2 3", "x_proj_weight: 2", "delta_proj_weight: 2")
def inner(call: Call) -> Reading | tuple[Reading, ...] | str:
    """``mamba_inner_fn(xz, conv1d_weight, …, A, B, C, D, delta_bias, …)``, ``xz`` ``(batch, 2 channels, L)``."""
    given = call.first
    xz, A = given("xz"), given("A")
    if xz is None or A is None or call.output is None or xz.ndim != 3:
        return "arguments xz (batch, 2 channels, L) and A were expected"
    if given("cu_seqlens", "seq_idx") is not None:
        return PACKED
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
    return s6_readings(kept)


def s6_readings(kept: dict[str, Any]) -> tuple[Reading, ...]:
    batch, both, L = kept["xz"].shape
    shape = (batch, both // 2, L)
    ssm = Reading(
        FAMILY,
        shape,
        kept,
        _s6_operator,
        lambda t: _s6_parts(t).u,
        _s6_outputs,
        group="channel",
        computed=lambda t: t["known"].unsqueeze(1),
    )
    return short_inside(kept, shape, lambda t: t["xz"].chunk(2, dim=1)[0]), ssm
