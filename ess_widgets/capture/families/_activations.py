"""Undoing an activation that a kernel applies to what it mixed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["before"]

# Where an activation is flatter than this, a step is as if it had this slope.
_FLAT = 1e-3


def before(activation: str, result: Tensor, guess: Tensor, added: Tensor | None = None) -> Tensor:
    """What an activation was applied to.

    ``silu`` and ``gelu`` have a minimum and are flat far below it, so the result alone does not tell: the answer is
    ``guess`` where that explains the result to its rounding, elsewhere one step of Newton's from there.

    Parameters
    ----------
    activation : str
        "silu" or "gelu".
    result : Tensor
        What the model computed.
    guess : Tensor
        The same without the activation, computed once more.
    added : Tensor, optional
        What was added after the activation.
    """
    function, slope_of = _FUNCTIONS[activation]
    wide = torch.promote_types(result.dtype, torch.float32)
    z, y = guess.to(wide), result.to(wide)
    value = function(z)
    size = y.abs() + value.abs()
    if added is not None:
        value, size = value + added.to(wide), size + added.to(wide).abs()
    error = y - value
    slope = slope_of(z)
    slope = torch.where(slope.abs() < _FLAT, torch.full_like(slope, _FLAT), slope)
    # The guess is rounded too.
    rounding = 8 * torch.finfo(result.dtype).eps * (size + (slope * z).abs())
    return z + torch.where(error.abs() <= rounding, 0, error / slope)


def _silu_slope(z: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(z)
    return sigmoid * (1 + z * (1 - sigmoid))


def _gelu_slope(z: Tensor) -> Tensor:
    normal = (1 + torch.erf(z / math.sqrt(2))) / 2
    return normal + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, _silu_slope),
    "gelu": (F.gelu, _gelu_slope),
}
