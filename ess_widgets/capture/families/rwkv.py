"""RWKV: the fourth version's weighted means per channel, the sixth's and the seventh's matrix states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ess_widgets.capture.families._expected import takes
from ess_widgets.capture.families.delta_rule import rank_one
from ess_widgets.capture.families.kernels import Kernel, named, scale_of
from ess_widgets.capture.reading import Call, Reading
from ess_widgets.operators import Operator, Recurrence, rwkv4, rwkv6, rwkv7

__all__ = ["FUNCTIONS"]


@takes("time_decay w", "time_first u", "key k: 3", "value v: 3")
def _wkv(call: Call) -> Reading | str:
    """RWKV-4: ``(batch, L, channels)``, each channel an operator; the first two arguments hold one number each."""
    decay, bonus = call.first("time_decay", "w"), call.first("time_first", "u")
    k, v, y = call.first("key", "k"), call.first("value", "v"), call.output
    if y is None or any(not isinstance(item, Tensor) for item in (decay, bonus, k, v)) or k.ndim != 3:
        return "it was expected to be given decays and boni of channels, and k and v, (batch, L, channels)"
    if _summed(call.first("state", "initial_state")):
        return "it goes on from an earlier state; run the full sequence in one call"
    batch, L, channels = k.shape
    tensors = {"k": k.mT, "v": v.mT.unsqueeze(-1), "y": y.mT.unsqueeze(-1), "decay": decay, "bonus": bonus}

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        return rwkv4(t["k"], -t["decay"].double().exp(), t["bonus"], valid=valid)

    return Reading(
        "RWKV",
        (batch, channels, L),
        tensors,
        operator,
        lambda t: t["v"],
        lambda t: t["y"],
        group="channel",
    )


def _summed(state: Any) -> bool:
    """Whether numerators or denominators are stored; beside them is the maximum of exponents, of any value."""
    if isinstance(state, Tensor) and state.ndim == 4:  # (batch, 3, 1, channels)
        state = state.unbind(1)
    elif isinstance(state, Tensor):  # (batch, channels, 3)
        state = state.unbind(-1)
    return isinstance(state, tuple | list) and any(
        isinstance(part, Tensor) and bool(part.any()) for part in state[:2]
    )


def _six(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    op = rwkv6(t["q"], t["k"], t["w"], t["u"], scale=_factor(t), valid=valid)
    if t["starts"] is None:
        return op
    # The last token of a packed sequence is read by itself alone, through the bonus.
    last = t["starts"].roll(-1)[:, None]
    log_decay = t["w"].double().masked_fill(last, -torch.inf)
    keys = op.B.masked_fill(last, 0.0)
    forgets = rwkv6(t["q"], t["k"], log_decay, t["u"], scale=_factor(t), valid=valid)
    return Recurrence(forgets.A, keys, op.C, op.D, read="before", valid=valid, name=op.name)


def _factor(t: Mapping[str, Any]) -> float:
    scale = scale_of(t)
    return float(t["q"].shape[-1] ** -0.5) if scale is None else scale


def _seven(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """With ``a`` and ``b`` of the generalised delta rule, as the kernels take them."""
    return rank_one(t, t["q"], t["k"], t["a"].double(), t["b"], t["w"].double(), valid)


def _seven_by_key(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
    """With removal keys ``kk`` and learning rates ``a``."""
    kk, w = t["kk"].double(), t["w"].double()
    if t["starts"] is not None:
        kk, w = kk.masked_fill(t["starts"][:, None], 0.0), w.masked_fill(t["starts"][:, None], -torch.inf)
    return rwkv7(t["q"], w, t["k"], kk, t["a"], scale=_factor(t), valid=valid)


_SIX = Kernel("RWKV", _six, along=("q", "k", "v", "w"), options=("scale", "u"))
_SEVEN = Kernel("RWKV", _seven, along=("q", "k", "v", "w", "a", "b"), given={"scale": 1.0})
_SEVEN_BY_KEY = Kernel("RWKV", _seven_by_key, along=("q", "k", "v", "w", "kk", "a"), given={"scale": 1.0})

FUNCTIONS = {
    **named(_wkv, "rwkv_linear_attention rwkv_linear_attention_cpu fused_recurrent_rwkv4"),
    **named(_SIX, "chunk_rwkv6 fused_recurrent_rwkv6"),
    **named(replace(_SIX, head_first=True), "naive_recurrent_rwkv6 naive_chunk_rwkv6"),
    **named(_SEVEN, "chunk_rwkv7 fused_recurrent_rwkv7"),
    **named(_SEVEN_BY_KEY, "fused_mul_recurrent_rwkv7"),
}
