"""Metrics as they are given at every step: numbers, or tensors that are not waited for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["columns_of", "scalar"]


def scalar(name: str, value: Any) -> Any:
    """A number, or a copy of a tensor on its device."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must be one number, but has the shape {tuple(value.shape)}; take its mean()."
            )
        value = value.detach()
        return float(value) if value.device.type == "cpu" else value.clone()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be a number or a tensor with one element, not {type(value).__name__}."
        ) from None


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Values by name, tensors of one device read in one transfer."""
    places = [
        (name, k) for k, row in enumerate(rows) for name, value in row.items() if isinstance(value, Tensor)
    ]
    by_device: dict[torch.device, list[tuple[str, int]]] = {}
    for name, k in places:
        by_device.setdefault(rows[k][name].device, []).append((name, k))
    for group in by_device.values():
        together = torch.stack(
            [
                rows[k][name].reshape(()).double()
                if rows[k][name].device.type != "mps"
                else rows[k][name].reshape(()).float()
                for name, k in group
            ]
        )
        for (name, k), value in zip(group, together.tolist(), strict=True):
            rows[k][name] = value
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}
