"""The delta rule and what came of it: gated, with gates per channel, several steps, generalised, preconditioned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.capture.families.kernels import (
    Kernel,
    expand,
    named,
    per_channel,
    restart,
    scale_of,
)
from ess_widgets.operators import (
    Operator,
    delta_product,
    delta_rule,
    gated_delta_product,
    gated_delta_rule,
    generalised_delta_rule,
    kda,
    preconditioned_gated_delta_rule,
    preconditioned_kda,
)

__all__ = ["FUNCTIONS", "rank_one"]

_NORM, _BETA, _GATE = "use_qk_l2norm_in_kernel", "use_beta_sigmoid_in_kernel", "use_gate_in_kernel"
_OPTIONS = ("scale", _NORM, _BETA, "allow_neg_eigval", _GATE, "A_log", "dt_bias", "lower_bound")
_GATES = ("g", "gk", "gv")


def _delta(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """DeltaNet, Gated DeltaNet and KDA: gates per head, per key channel or per value channel, or none."""
    q, k, beta = t["q"], t["k"], t["beta"]
    heads = t["y"].shape[1]
    beta = torch.ones_like(q[..., 0]) if beta is None else beta
    if t[_BETA]:
        beta = beta.double().sigmoid() * (2 if t["allow_neg_eigval"] else 1)
    g, by_key = _log_gate(t, heads)
    if _by_value(t):
        width = t["y"].shape[-1]
        q, k = (expand(x, heads).repeat_interleave(width, dim=1) for x in (q, k))
        beta, g = _each(beta, heads, width), None if g is None else g.repeat_interleave(width, dim=1)
        if t["gv"] is not None:
            by_value = per_channel(expand(t["gv"], heads).double())
            g = by_value if g is None else g + by_value
    g = restart(g, t["starts"], t["y"] if g is None else g)
    more: dict[str, Any] = {"scale": scale_of(t), "normalise": bool(t[_NORM]), "valid": valid}
    if g is None:
        return delta_rule(q, k, beta, **more)
    if by_key:
        return kda(q, k, g, beta, **more)
    return gated_delta_rule(q, k, g.squeeze(-1), beta, **more)


def _by_value(t: Mapping[str, Any]) -> bool:
    """Whether value channels differ in their gates or strengths."""
    return t["gv"] is not None or (t["beta"] is not None and t["beta"].ndim == 4)


def _each(beta: Tensor, heads: int, width: int) -> Tensor:
    """Strengths of each value channel, ``(batch, heads * width, L)``."""
    beta = expand(beta, heads)
    return beta.repeat_interleave(width, dim=1) if beta.ndim == 3 else per_channel(beta).squeeze(-1)


def _log_gate(t: Mapping[str, Any], heads: int) -> tuple[Tensor | None, bool]:
    """The log decay of keys, ``(batch, heads, L, 1 or features)``, and whether each feature has its own."""
    total: Tensor | None = None
    for gate in (t["g"], t["gk"]):
        if gate is None:
            continue
        gate = expand(gate, heads)
        gate = _activated(t, gate) if t[_GATE] and gate is not t["gk"] else gate.double()
        gate = gate.unsqueeze(-1) if gate.ndim == 3 else gate
        total = gate if total is None else total + gate
    return total, any(gate is not None and gate.ndim == 4 for gate in (t["g"], t["gk"]))


def _activated(t: Mapping[str, Any], gate: Tensor) -> Tensor:
    """The log decay of a gate before its activation, ``(batch, heads, L)`` or ``(batch, heads, L, features)``."""
    gate, A_log, bias, bound = gate.double(), t["A_log"], t["dt_bias"], t["lower_bound"]
    features = gate.shape[-1] if gate.ndim == 4 else 1
    tail = (gate.shape[1], 1, features) if gate.ndim == 4 else (gate.shape[1], 1)
    if bias is not None:
        gate = gate + bias.double().reshape(tail)
    rate = 1.0 if A_log is None else A_log.double().exp().reshape((-1, 1, 1)[: len(tail)])
    decay: Tensor = -rate * F.softplus(gate) if bound is None else bound * torch.sigmoid(rate * gate)
    return decay


def _product(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """DeltaProduct: several keys, values and strengths for each token."""
    q, k, beta = t["q"], t["k"], t["beta"]
    g = None if t["g"] is None else t["g"].double().unsqueeze(-1)
    g = restart(g, t["starts"], q)
    more: dict[str, Any] = {"scale": scale_of(t), "normalise": bool(t[_NORM]), "valid": valid}
    if g is None:
        return delta_product(q, k, beta, **more)
    return gated_delta_product(q, k, g.squeeze(-1), beta, **more)


def _generalised(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """DPLR and IPLR: the state is multiplied by ``Diag(exp(gk)) + b aᵀ``."""
    a = t["a"].double()
    g = None if t["gk"] is None else t["gk"].double()
    return rank_one(t, t["q"], t["k"], a, t["b"], g, valid)


def _comba(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """Comba: what ``p`` reads after the decay is erased along ``k``."""
    q, k = t["q"].double(), t["k"].double()
    p = k if t["p"] is None else t["p"].double()
    if t[_NORM]:
        q, k, p = (_unit(x) for x in (q, k, p))
    g = t["g"].double().unsqueeze(-1)
    beta = torch.ones_like(g) if t["beta"] is None else t["beta"].double().unsqueeze(-1)
    return rank_one(t, q, beta * k, g.exp() * p, -beta * k, g.expand_as(k), valid)


def _gdn2(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """Gated DeltaNet-2: erase gates per key channel; write gates belong to what is mixed."""
    heads = t["y"].shape[1]
    q, k = t["q"].double(), t["k"].double()
    if t[_NORM]:
        q, k = _unit(q), _unit(k)
    q, k, b = (expand(x, heads) for x in (q, k, t["b"].double()))
    g = expand(t["g"], heads)
    g = _activated(t, g) if t[_GATE] else g.double()
    return rank_one(t, q, k, g.exp() * b * k, -k, g, valid)


def rank_one(
    t: Mapping[str, Any], q: Tensor, k: Tensor, a: Tensor, b: Tensor, g: Tensor | None, valid: Tensor | None
) -> Operator:
    starts = t["starts"]
    if starts is not None:  # neither the decayed state nor what is read off it
        a = a.masked_fill(starts[:, None], 0.0)
        g = restart(torch.zeros_like(a) if g is None else g, starts, a)
    return generalised_delta_rule(q, k, a, b, g, scale=scale_of(t), valid=valid)


def _unit(x: Tensor) -> Tensor:
    normalised: Tensor = x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    return normalised


def _preconditioned(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    heads = t["y"].shape[1]
    g_atk = None if t["g_atk"] is None else expand(t["g_atk"], heads).double().unsqueeze(-1)
    g_atk = restart(g_atk, t["starts"], t["y"])
    centre = t["log_atk_scale"]
    if isinstance(centre, Tensor):
        centre = centre.double().reshape(-1)
        centre = expand(centre.unsqueeze(0), heads).squeeze(0) if centre.shape[0] > 1 else centre
    more: dict[str, Any] = {
        "beta_atk": expand(t["beta_atk"], heads),
        "g_atk": None if g_atk is None else g_atk.squeeze(-1),
        "log_atk_scale": -0.2 if centre is None else centre,
        "squash_x": 1.5 if t["x"] is None else float(t["x"]),
        "squash_eps": 1e-6 if t["eps"] is None else float(t["eps"]),
        "scale": scale_of(t),
        "normalise": bool(t[_NORM]),
        "norm_eps": t["norm_eps"],
        "valid": valid,
    }
    g, by_key = _log_gate(t, heads)
    g = restart(g, t["starts"], t["y"])
    g = t["y"].new_zeros(*t["y"].shape[:3], 1, dtype=torch.float64) if g is None else g
    q, k, beta = expand(t["q"], heads), expand(t["k"], heads), expand(t["beta"], heads)
    if by_key:
        return preconditioned_kda(q, k, g, beta, **more)
    return preconditioned_gated_delta_rule(q, k, g.squeeze(-1), beta, **more)


_DELTA = Kernel(
    "delta rule",
    _delta,
    along=("q", "k", "v", "beta", *_GATES),
    optional=("beta", *_GATES),
    options=_OPTIONS,
    by_channel=_by_value,
)
_HEADS_FIRST = replace(_DELTA, head_first=True)
# transformers' functions take whatever else the model was called with, and do not look at it.
_TRANSFORMERS = replace(_DELTA, options=(*_OPTIONS[1:],), swallows=True)
_PRODUCT = Kernel(
    "delta rule",
    _product,
    along=("q", "k", "v", "g", "beta"),
    optional=("g",),
    options=("scale", _NORM, "num_householder"),
)
_DPLR = Kernel("delta rule", _generalised, along=("q", "k", "v", "a", "b", "gk"), optional=("gk",))
_COMBA = Kernel(
    "delta rule",
    _comba,
    along=("q", "k", "v", "p", "g", "beta"),
    optional=("p", "beta"),
    options=("scale", _NORM),
)
_GDN2 = Kernel(
    "delta rule",
    _gdn2,
    along=("q", "k", "v", "g", "b", "w"),
    options=("scale", _NORM, _GATE, "A_log", "dt_bias", "lower_bound"),
    values=lambda t: t["w"] * expand(t["v"], t["w"].shape[1]),
)
_ATK = Kernel(
    "delta rule",
    _preconditioned,
    along=("q", "k", "v", "beta", "beta_atk", "g_atk", "g", "gk"),
    optional=("g_atk", "g", "gk"),
    options=(
        "scale",
        _NORM,
        _GATE,
        "A_log",
        "dt_bias",
        "lower_bound",
        "log_atk_scale",
        "x",
        "eps",
        "norm_eps",
    ),
    given={_NORM: True, "norm_eps": 1e-6},
)

FUNCTIONS = {
    **named(
        _DELTA,
        "chunk_delta_rule fused_chunk_delta_rule fused_recurrent_delta_rule parallel_delta_rule "
        "chunk_gated_delta_rule chunk_gdn fused_recurrent_gated_delta_rule fused_recurrent_gdn "
        "naive_recurrent_gated_delta_rule naive_chunk_gated_delta_rule "
        "chunk_kda fused_recurrent_kda naive_recurrent_kda naive_chunk_kda",
    ),
    **named(
        _HEADS_FIRST,
        "delta_rule_recurrence delta_rule_chunkwise delta_rule_parallel naive_delta_rule_parallel",
    ),
    **named(
        _TRANSFORMERS,
        "torch_chunk_gated_delta_rule torch_recurrent_gated_delta_rule chunk_kimi_delta_attention "
        "recurrent_kimi_delta_attention",
    ),
    **named(
        _PRODUCT,
        "chunk_gated_delta_product chunk_gated_delta_product_ref naive_recurrent_gated_delta_product",
    ),
    **named(
        _DPLR,
        "chunk_dplr_delta_rule fused_recurrent_dplr_delta_rule chunk_iplr_delta_rule "
        "fused_recurrent_iplr_delta_rule",
    ),
    **named(_COMBA, "chunk_comba fused_recurrent_comba naive_recurrent_comba naive_chunk_comba"),
    **named(_GDN2, "chunk_gdn2 fused_recurrent_gdn2 naive_recurrent_gdn2 naive_chunk_gdn2"),
    **named(
        _ATK,
        "chunk_precond_gated_delta_rule fused_recurrent_precond_gated_delta_rule chunk_precond_kda "
        "fused_recurrent_precond_kda",
    ),
    **named(replace(_ATK, given={_NORM: True, "norm_eps": 0.0}), "naive_recurrent_precond_gated_delta_rule"),
    **named(replace(_ATK, given={_NORM: False, "norm_eps": 0.0}), "naive_recurrent_precond_kda"),
}
