"""Attention in ``F.multi_head_attention_forward``, which ``nn.MultiheadAttention`` and the encoder layers call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.capture.attention.dot_product import DotProduct
from ess_widgets.capture.attention.layout import Layout
from ess_widgets.capture.interception.tape import Leaves

__all__ = ["arguments", "capture_heads", "crosses", "own_tokens", "why_not"]

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call, by name, defaults included."""
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def why_not(call: dict[str, Any]) -> str | None:
    """Why a call gives no square operator on its values."""
    query, key = call["query"], call["key"]
    if call["bias_k"] is not None:
        return "a learned key and value (add_bias_kv=True) join the sequence, so that y is not T u"
    if call["static_k"] is not None or call["static_v"] is not None:
        return "its keys or values are given from outside (static_k, static_v)"
    time = 0 if query.ndim in (2, 3) else 1
    if query.shape[time] != key.shape[time]:
        return f"{query.shape[time]} queries read {key.shape[time]} keys"
    return None


def crosses(call: dict[str, Any]) -> bool:
    """Whether queries and keys come from different tensors."""
    query, key = call["query"], call["key"]
    return not (query is key or (query.data_ptr() == key.data_ptr() and query.shape == key.shape))


def own_tokens(call: dict[str, Any]) -> Tensor | None:
    """``(batch, L)``, True for a sample's own tokens, from the key padding mask; None where all are."""
    mask = call["key_padding_mask"]
    if mask is None:
        return None
    own = torch.isfinite(mask) & (mask > -1e4) if mask.is_floating_point() else ~mask.bool()
    own = own if own.ndim == 2 else own.unsqueeze(0)
    return None if bool(own.all()) else own


def capture_heads(func: Callable[..., Any], call: dict[str, Any], leaves: Leaves) -> DotProduct:
    """Recompute queries, keys and values of a call, and its heads before the output projection."""
    heads = call["num_heads"]
    query, key, value = (
        t if t.ndim == 3 else t.unsqueeze(1) for t in (call["query"], call["key"], call["value"])
    )
    q, k, v = (_split(t, heads) for t in _project(call, query, key, value))
    # The same call with an identity for the output projection returns torch's own heads, side by side.
    width = heads * v.shape[-1]
    plain = {
        **call,
        "out_proj_weight": torch.eye(width, dtype=v.dtype, device=v.device),
        "out_proj_bias": None,
        "training": False,
    }
    y = func(**plain)[0]
    y = y if y.ndim == 3 else y.unsqueeze(1)
    batch, L = q.shape[0], q.shape[2]
    is_causal, mask = _mask(call, batch, heads, L, q.dtype)
    return DotProduct(
        leaves,
        Layout.of((batch, heads), batch),
        query=q,
        key=k,
        value=v,
        output=_split(y, heads),
        mask=mask,
        is_causal=is_causal,
        scale=None,
        sinks=torch.zeros(heads, device=q.device) if call["add_zero_attn"] else None,
    )


def _project(call: dict[str, Any], query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    bias = call["in_proj_bias"]
    biases = [None] * 3 if bias is None else bias.chunk(3)
    if call["use_separate_proj_weight"]:
        weights = [call["q_proj_weight"], call["k_proj_weight"], call["v_proj_weight"]]
    else:
        weights = call["in_proj_weight"].chunk(3)
    return [F.linear(t, w, b) for t, w, b in zip((query, key, value), weights, biases, strict=True)]


def _split(tensor: Tensor, heads: int) -> Tensor:
    """``(L, batch, heads * d)`` to ``(batch, heads, L, d)``."""
    length, batch, _ = tensor.shape
    return tensor.reshape(length, batch, heads, -1).permute(1, 2, 0, 3)


def _mask(
    call: dict[str, Any], batch: int, heads: int, L: int, dtype: torch.dtype
) -> tuple[bool, Tensor | None]:
    """Whether torch relies on the causal hint alone, and the additive mask it uses otherwise."""
    mask, padding = call["attn_mask"], call["key_padding_mask"]
    if call["is_causal"] and padding is None and not call["need_weights"]:
        return True, None
    total = None if mask is None else _additive(mask, dtype)
    if total is not None:
        total = (
            total.reshape(batch, heads, L, L)
            if total.ndim == 3 and total.shape[0] == batch * heads
            else total
        )
        total = total.unsqueeze(0) if total.ndim == 3 else total
    if padding is not None:
        extra = _additive(padding, dtype).reshape(batch, 1, 1, L)
        total = extra.expand(batch, 1, L, L) if total is None else total + extra
    return False, total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Torch's convention here: a boolean mask is True where reading is forbidden."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask.bool(), float("-inf"))
