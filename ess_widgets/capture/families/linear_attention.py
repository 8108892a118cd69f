"""Linear attention, plain, normalised, with fixed decays and with gates, by flash-linear-attention's functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ess_widgets.capture.families._expected import takes
from ess_widgets.capture.families.kernels import Kernel, expand, named, per_channel, restart, scale_of
from ess_widgets.capture.reading import Call, Reading
from ess_widgets.operators import (
    Operator,
    gated_linear_attention,
    lightning_attention,
    linear_attention,
    retention,
)

__all__ = ["FUNCTIONS"]

# In the denominators of flash-linear-attention's kernels.
_EPS, _EPS_SQUARES = 1e-10, 1e-6


def _linear(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    return _plain(t, t["q"], t["k"], bool(t["normalize"]), _EPS, scale_of(t), valid)


def _plain(
    t: Mapping[str, Any],
    q: Tensor,
    k: Tensor,
    normalise: bool,
    eps: float,
    scale: float | None,
    valid: Tensor | None,
) -> Operator:
    if t["starts"] is None:
        return linear_attention(q, k, normalise=normalise, eps=eps, scale=scale, valid=valid)
    q = q.double() * (q.shape[-1] ** -0.5 if scale is None else scale)
    if normalise:
        keys = expand(k, q.shape[1]).double()
        own = t["starts"].cumsum(0)
        total = torch.cat([keys[:, :, own == i].cumsum(2) for i in range(int(own[-1]) + 1)], dim=2)
        q = q / ((q * total).sum(-1, keepdim=True) + eps)
    return gated_linear_attention(q, k, restart(None, t["starts"], q), scale=1.0, valid=valid)


def _taylor(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """Based: scores ``1 + s + s²/2``."""
    q, k = t["q"].double(), t["k"].double()
    scale = scale_of(t)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    q, k = (torch.cat([torch.ones_like(x[..., :1]), x, _squares(x) / math.sqrt(2)], dim=-1) for x in (q, k))
    return _plain(t, q, k, t["use_norm"] is not False, _EPS_SQUARES, 1.0, valid)


def _quadratic(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """ReBased: scores ``s²``."""
    q, k = t["q"].double(), t["k"].double()
    scale = 1.0 if t["use_scale"] is False else scale_of(t)
    q = _squares(q * (q.shape[-1] ** -0.5 if scale is None else scale))
    normalise = t["use_norm"] is not False and t["use_normalize"] is not False
    eps = _EPS_SQUARES if t["eps"] is None else float(t["eps"])
    return _plain(t, q, _squares(k), normalise, eps, 1.0, valid)


def _squares(x: Tensor) -> Tensor:
    """Products of pairs of features, so that those of ``q`` and ``k`` give the square of ``q·k``."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    return x[..., i] * x[..., j] * torch.where(i == j, 1.0, math.sqrt(2))


def _retention(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    q, k = t["q"], t["k"]
    if t["starts"] is None:
        return retention(q, k, scale=scale_of(t), valid=valid)
    heads = torch.arange(q.shape[1], dtype=torch.float64, device=q.device)
    return _fixed(t, torch.log1p(-torch.exp2(-5.0 - heads)), valid)


def _lightning(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    q = t["q"]
    heads = torch.arange(q.shape[1], dtype=torch.float64, device=q.device)
    slope = 8 / q.shape[1] * (1 - t["layer_idx"] / t["num_layers"]) * heads
    if t["starts"] is None:
        return lightning_attention(q, t["k"], slope, scale=scale_of(t), valid=valid)
    return _fixed(t, -slope, valid)


def _fixed(t: Mapping[str, Any], log_decay: Tensor, valid: Tensor | None) -> Operator:
    """One decay per head, in packed sequences."""
    q = t["q"]
    g = log_decay[:, None, None].expand(*q.shape[:3], 1)
    return gated_linear_attention(q, t["k"], restart(g, t["starts"], q), scale=scale_of(t), valid=valid)


def _gated(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """Gates per head (``g`` of three dimensions, ``g_gamma``), per key channel and per value channel."""
    q, k = t["q"], t["k"]
    g: Tensor | None = None
    for gate in (t["g"], t["gk"]):
        if gate is not None:
            gate = expand(gate, q.shape[1]).double()
            gate = gate.unsqueeze(-1) if gate.ndim == 3 else gate
            g = gate if g is None else g + gate
    if t["g_gamma"] is not None:
        gamma = t["g_gamma"].double()[:, None, None]
        g = gamma.expand(*q.shape[:3], 1) if g is None else g + gamma
    if t["gv"] is not None:
        by_value = per_channel(expand(t["gv"], q.shape[1]).double())
        width = t["gv"].shape[-1]
        q, k = (expand(x, t["q"].shape[1]).repeat_interleave(width, dim=1) for x in (q, k))
        g = by_value if g is None else g.repeat_interleave(width, dim=1) + by_value
    g = restart(g, t["starts"], q)
    if g is None:
        return linear_attention(q, k, scale=scale_of(t), valid=valid)
    return gated_linear_attention(q, k, g, scale=scale_of(t), valid=valid)


def _family(t: Mapping[str, Any]) -> str:
    gated = any(t[gate] is not None for gate in ("g", "gk", "gv"))
    return "gated linear attention" if gated else "linear attention"


def _slots(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """Gated slot attention: the second pass, whose queries are a softmax of what the first pass read."""
    heads = t["q"].shape[1]
    q, k, s = (expand(x, heads).double() for x in (t["q"], t["k"], t["s"]))
    if t["g"] is None:
        z = s.logcumsumexp(2)
        g, s = torch.cat([z[:, :, :1], z[:, :, :-1]], dim=2) - z, (s - z).exp()
    else:
        g = expand(t["g"], heads).double()
    scale = scale_of(t)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    own = None if valid is None else valid.expand(q.shape[0], 1, q.shape[2])[..., None, None]
    memory = q.new_zeros(*q.shape[:2], q.shape[-1], s.shape[-1])
    rows = []
    for i in range(q.shape[2]):
        after = memory * g[:, :, i].exp().unsqueeze(-2) + k[:, :, i].unsqueeze(-1) * s[:, :, i].unsqueeze(-2)
        memory = after if own is None else torch.where(own[:, :, i], after, memory)
        rows.append((q[:, :, i].unsqueeze(-2) @ memory).squeeze(-2))
    queries = torch.stack(rows, dim=2).softmax(-1)
    return gated_linear_attention(queries, s, g, scale=1.0, valid=valid)


@takes("x: 3", "g: 3")
def _hgrn(call: Call) -> Reading | str:
    """``h = exp(g) h + x`` for each channel: ``x`` and ``g`` are ``(batch, L, channels)``."""
    x, g, y = call.first("x"), call.first("g"), call.output
    if y is None or any(not isinstance(item, Tensor) or item.ndim != 3 for item in (x, g, y)):
        return "it was expected to be given x and g, (batch, L, channels)"
    rest = {name: item for name, item in call.arguments.items() if name not in ("x", "g")}
    one_head = {"v": x.unsqueeze(2), "gv": g.unsqueeze(2)}
    return _HGRN(replace(call, arguments={**rest, **one_head}, result=y.unsqueeze(2)))


def _channels(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    g = per_channel(t["gv"])
    one = torch.ones_like(g)
    return gated_linear_attention(one, one, restart(g, t["starts"], g), scale=1.0, valid=valid)


_HGRN = Kernel("gated linear recurrence", _channels, along=("v", "gv"), options=(), by_channel=lambda t: True)
_LINEAR = Kernel("linear attention", _linear, options=("scale", "normalize"))
_BASED = Kernel("linear attention", _taylor, options=("scale", "use_norm"))
_REBASED = Kernel(
    "linear attention", _quadratic, options=("scale", "use_scale", "use_norm", "use_normalize", "eps")
)
_RETENTION = Kernel("linear attention", _retention)
_LIGHTNING = Kernel("linear attention", _lightning, options=("scale", "layer_idx", "num_layers"))
_GATES = ("g", "gk", "gv")
_GATED = Kernel(
    _family,
    _gated,
    along=("q", "k", "v", *_GATES),
    optional=_GATES,
    options=("scale", "g_gamma"),
    by_channel=lambda t: t["gv"] is not None,
)
_SLOTS = Kernel(
    "gated linear attention", _slots, along=("q", "k", "v", "s", "g"), optional=("g",), packs=False
)

FUNCTIONS = {
    **named(
        _LINEAR,
        "chunk_linear_attn fused_chunk_linear_attn fused_recurrent_linear_attn naive_recurrent_linear_attn "
        "naive_chunk_linear_attn",
    ),
    **named(_BASED, "fused_chunk_based parallel_based"),
    **named(replace(_BASED, head_first=True), "naive_parallel_based naive_chunk_based"),
    **named(_REBASED, "parallel_rebased"),
    **named(replace(_REBASED, head_first=True), "naive_parallel_rebased"),
    **named(_RETENTION, "chunk_retention fused_chunk_retention fused_recurrent_retention parallel_retention"),
    **named(replace(_RETENTION, head_first=True), "naive_retention"),
    **named(_LIGHTNING, "chunk_lightning_attn fused_recurrent_lightning_attn"),
    **named(
        _GATED,
        "chunk_simple_gla fused_chunk_simple_gla fused_recurrent_simple_gla parallel_simple_gla "
        "naive_chunk_simple_gla naive_recurrent_simple_gla naive_parallel_simple_gla "
        "chunk_gla fused_chunk_gla fused_recurrent_gla naive_recurrent_gla fused_chunk fused_recurrent",
    ),
    **named(_SLOTS, "chunk_gsa fused_recurrent_gsa naive_recurrent_gsa chunk_abc"),
    **named(replace(_SLOTS, head_first=True), "naive_recurrent_abc"),
    **named(_hgrn, "chunk_hgrn fused_recurrent_hgrn naive_recurrent_hgrn naive_chunk_hgrn"),
}
