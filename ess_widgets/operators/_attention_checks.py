"""Checks on the arguments of softmax attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._shared import Shared
from ess_widgets.operators.checks import as_tensor

__all__ = [
    "BLOCKED",
    "check_finite",
    "check_mask",
    "check_mask_causal",
    "check_number",
    "check_shapes",
    "check_sinks",
    "floating",
]

# Additive entries at or below this mean "may not read": -inf, finfo(...).min of any dtype, the -1e4 and -1e9
# written by hand. exp(-1e4) is 0 in float64 too, so only rows that may read nothing at all are affected.
BLOCKED = -1e4


def floating(value: Any, name: str) -> Tensor:
    """A real floating-point tensor of any precision."""
    tensor = as_tensor(value, name)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must hold real floating-point numbers, but its dtype is {tensor.dtype}.")
    return tensor


def check_number(value: Any, name: str, *, positive: bool = False) -> float:
    """One finite number, as a float."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must be one number, but is of type {type(value).__name__}; "
            "multiply what differs from head to head into q."
        ) from None
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{name} must be {'positive and ' if positive else ''}finite, but is {number}.")
    return number


def check_shapes(q: Tensor, k: Tensor) -> None:
    """Queries and keys fit each other and belong to the same positions."""
    shapes = f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}"
    if q.device != k.device:
        raise ValueError(f"q is on {q.device} and k on {k.device}; move them to one device.")
    if q.ndim < 2 or q.ndim != k.ndim:
        raise ValueError(f"q and k must both be (..., heads, L, d) or both (L, d), but {shapes}.")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"q and k must not be empty, but {shapes}.")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q and k must have the same number of features (last dimension), but {shapes}.")
    if q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"q and k must cover the same positions, but {shapes}. Effective state-size needs the square "
            "operator: run the full sequence in one forward pass, without a key-value cache "
            "(use_cache=False); cross-attention has none."
        )
    if q.ndim > 2 and (q.shape[:-3] != k.shape[:-3] or q.shape[-3] % k.shape[-3]):
        raise ValueError(
            "the leading dimensions of q and k must agree, and the number of query heads must be a multiple "
            f"of the number of key heads, but {shapes}."
        )


def check_finite(q: Tensor, k: Shared, valid: Tensor | None) -> None:
    """No NaN or infinity in queries and keys of a sample's own tokens."""
    for name, part in (("q", Shared(q, ())), ("k", k)):
        bad = part.map(lambda x: ~torch.isfinite(x).all(dim=-1)).gather()
        if valid is not None:
            bad = bad & valid
        if bool(bad.any()):
            first = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"{name} is not finite: NaN or infinity at {int(bad.sum())} of {bad.numel()} positions "
                f"(all heads counted), the first at {first}. If these are padding, say so with valid=."
            )


def check_mask(mask: Any, shape: torch.Size, device: torch.device) -> Tensor:
    """A boolean or additive mask that broadcasts to ``(..., L, L)``, its last two dimensions written out."""
    mask = as_tensor(mask, "mask")
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise TypeError(
            "mask must be boolean (True: may read) or additive floating point, "
            f"but its dtype is {mask.dtype}; for a mask of ones and zeros use mask.bool()."
        )
    try:
        mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not broadcast to (..., L, L) = {tuple(shape)}."
        ) from None
    if mask.is_floating_point() and bool((torch.isnan(mask) | (mask == math.inf)).any()):
        raise ValueError("mask holds NaN or +inf; an additive mask may hold finite numbers and -inf only.")
    square: Tensor = mask.to(device).expand(*mask.shape[:-2], *shape[-2:])
    return square


def check_mask_causal(mask: Shared | None, L: int) -> None:
    """Without ``is_causal`` it is the mask that must forbid the future."""
    if mask is None:
        if L > 1:
            raise ValueError(
                "is_causal=False without a mask lets every output read the future, and effective state-size "
                "needs a causal operator: leave is_causal out, or pass the causal mask."
            )
        return
    allowed = mask.items if mask.items.dtype is torch.bool else mask.items > BLOCKED
    future = allowed.triu(1)
    if bool(future.any()):
        first = tuple(future.nonzero()[0].tolist())
        raise ValueError(
            f"mask is not causal: its entry [..., {first[-2]}, {first[-1]}] is {mask.items[first].item()}, "
            f"which lets output {first[-2]} read the later input {first[-1]}. Pass is_causal=True beside a "
            "mask that only marks padding or documents; an encoder has no effective state-size."
        )


def check_sinks(sinks: Any, lead: torch.Size, device: torch.device) -> Tensor:
    """One finite logit per head."""
    sinks = floating(sinks, "sinks")
    if not bool(torch.isfinite(sinks).all()):
        raise ValueError("sinks must be finite, but hold NaN or infinity.")
    try:
        per_head: Tensor = sinks.to(device).expand(lead)
    except RuntimeError:
        raise ValueError(
            f"sinks of shape {tuple(sinks.shape)} do not broadcast to one logit per head, {tuple(lead)}."
        ) from None
    return per_head
