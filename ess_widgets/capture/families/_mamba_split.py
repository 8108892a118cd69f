"""Mamba-2 in one fused call, which returns what follows the output projection."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.capture.families._expected import takes
from ess_widgets.capture.families._fused import PACKED, Kept, Parts, activated, short_inside
from ess_widgets.capture.families._scan import filled, scan, steps, wide
from ess_widgets.capture.families._undo import Ending, settled
from ess_widgets.capture.families.selective_ssm import FAMILY, STATE, ssd_heads
from ess_widgets.capture.reading import Call, Reading
from ess_widgets.operators import Operator

__all__ = ["split_scan", "ssd_readings"]


def _widths(t: Kept) -> tuple[int, int, int, int]:
    """Channels of the gated MLP beside, of the scan, of ``B`` and ``C`` together, and heads."""
    heads = t["A"].shape[0]
    inner = heads * t["head_width"]
    both = t["conv_weight"].shape[0] - inner
    return (t["projected"].shape[-1] - 2 * inner - both - heads) // 2, inner, both, heads


def _ssd_split(t: Kept) -> tuple[Tensor, ...]:
    """``z0, x0, z, xBC, dt`` of what the input projection returned, ``(batch, L, …)``."""
    mlp, inner, both, heads = _widths(t)
    return tuple(t["projected"].split([mlp, mlp, inner, inner + both, heads], dim=-1))


def _ssd_parts(t: Kept) -> Parts:
    _, _, _, mixed, dt = _ssd_split(t)
    _, inner, both, heads = _widths(t)
    short = mixed.mT
    x, B, C = torch.split(activated(short, t).mT, [inner, both // 2, both // 2], dim=-1)
    batch, L = x.shape[:2]
    B, C = (v.reshape(batch, L, t["groups"], -1) for v in (B, C))
    step = steps(dt, t["dt_bias"], True, t["limits"], narrow=False).mT
    return Parts(short, x.reshape(batch, L, heads, -1).transpose(1, 2), step, B, C)


def _ssd_operator(t: Kept, valid: Tensor | None) -> Operator:
    parts = _ssd_parts(t)
    return ssd_heads(parts.step, t["A"], parts.B, parts.C, valid=valid)


def _ssd_outputs(t: Kept) -> Tensor:
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
    own = settled(mixed, Ending(skip, factor, beside, t["out_weight"], t["out_bias"]), t["known"])
    return own.unflatten(-1, (heads, width)).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]


def _side_by_side(x: Tensor) -> Tensor:
    """``(batch, heads, L, width)`` as ``(batch, L, heads * width)``."""
    return x.transpose(1, 2).flatten(2)


@takes("zxbcdt: 3", "A: 1", "conv1d_weight: 2 3", "dt_bias: 1")
def split_scan(call: Call) -> Reading | tuple[Reading, ...] | str:
    """``mamba_split_conv1d_scan_combined(zxbcdt, conv1d_weight, …)``, ``zxbcdt`` ``(batch, L, …)``."""
    given = call.first
    projected, A, D = given("zxbcdt"), given("A"), given("D")
    if not isinstance(projected, Tensor) or A is None or projected.ndim != 3 or call.output is None:
        return "arguments zxbcdt (batch, L, channels) and A were expected"
    if given("seq_idx", "cu_seqlens") is not None:
        return PACKED
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
    return ssd_readings(kept)


def ssd_readings(kept: dict[str, Any]) -> tuple[Reading, ...]:
    batch, L, _ = kept["projected"].shape
    shape = (batch, kept["A"].shape[0], L)
    ssm = Reading(
        FAMILY,
        shape,
        kept,
        _ssd_operator,
        lambda t: _ssd_parts(t).u,
        _ssd_outputs,
        computed=lambda t: t["known"].unsqueeze(1),
    )
    channels = kept["conv_weight"].shape[0]
    return short_inside(kept, (batch, channels, L), lambda t: _ssd_split(t)[3].mT), ssm
