"""TSS, the state-size an architecture provides: one rule for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators.checks import as_tensor

__all__ = ["causal_last_reader", "count_from_last_reader", "given_state_size", "mask_last_reader"]


def mask_last_reader(allowed: Tensor) -> Tensor:
    """The last output that may read each input, -1 where none may: ``(..., L, L)`` bool to ``(..., L)``."""
    L = allowed.shape[-1]
    last = L - 1 - allowed.flip(-2).to(torch.uint8).argmax(dim=-2)
    return torch.where(allowed.any(dim=-2), last, -1)


def causal_last_reader(valid: Tensor) -> Tensor:
    """The same for full causal reading among valid positions: ``(..., L)`` bool to ``(..., L)``."""
    position = torch.arange(valid.shape[-1], device=valid.device)
    last = torch.where(valid, position, -1).amax(dim=-1, keepdim=True)
    return torch.where(valid, last, -1)


def count_from_last_reader(last: Tensor) -> Tensor:
    """TSS at ``i``: the inputs ``j < i`` whose last reader is at ``i`` or later."""
    L = last.shape[-1]
    position = torch.arange(L, device=last.device).expand_as(last)
    kept = last > position
    # An input is held from position j + 1 on, up to and including its last reader.
    steps = torch.zeros(*last.shape[:-1], L + 1, dtype=torch.int64, device=last.device)
    steps.scatter_add_(-1, position + 1, kept.long())
    steps.scatter_add_(-1, torch.where(kept, last + 1, L), -kept.long())
    return steps.cumsum(-1)[..., :L]


def given_state_size(
    value: Any, shape: torch.Size, valid: Tensor | None, device: torch.device, block: int = 1
) -> Tensor:
    """TSS from what a user gives: None (full causal reading), an int, or a tensor ``(L,)``, ``(..., L)``."""
    L = shape[-1] // block
    if valid is None:
        available = block * torch.arange(L, device=device)
    else:
        available = block * count_from_last_reader(causal_last_reader(valid))
    if value is None:
        return available
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"state_size must not be negative, but is {value}.")
        return available.clamp(max=value)
    size = as_tensor(value, "state_size").to(device)
    if size.dtype is torch.bool or size.is_floating_point() or size.is_complex():
        raise TypeError(
            f"state_size counts stored numbers and must hold integers, but its dtype is {size.dtype}."
        )
    if bool((size < 0).any()):
        raise ValueError("state_size must not be negative.")
    lead = torch.Size([*shape[:-2], L])
    try:
        size.expand(lead)
    except RuntimeError:
        raise ValueError(
            f"state_size of shape {tuple(size.shape)} fits neither (L,) nor (..., L) = {tuple(lead)}."
        ) from None
    size = size.long()
    return size.expand(L) if size.ndim <= 1 else size.expand(lead)
