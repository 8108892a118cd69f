"""From continuous to discrete time for diagonal state-space models."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ess_widgets.operators._arguments import check_finite, check_range

__all__ = ["Discretization", "discretise"]

Discretization = Literal["zoh", "bilinear"]


def discretise(
    A: Tensor, B: Tensor, step: Tensor, method: Discretization, *, name: str
) -> tuple[Tensor, Tensor]:
    """Discrete poles, shaped like ``A`` ``(..., n)``, and inputs, shaped like ``B`` ``(..., n)`` or ``(..., d, n)``.

    ``step`` broadcasts to ``A``, which errors call ``name``.
    """
    if method not in ("zoh", "bilinear"):
        raise ValueError(f"discretization must be 'zoh' or 'bilinear', but is {method!r}.")
    check_finite(A, name)
    check_finite(B, "B")
    check_finite(step, "delta")
    check_range(step, "delta", 0.0, torch.inf, "step sizes are positive; pass exp(log_step).")
    growth = (
        f"poles in continuous time decay, so pass -exp(log of their real part); {name} is not yet discrete."
    )
    check_range(A.real if A.is_complex() else A, f"Re({name})", -torch.inf, 0.0, growth)
    z = step * A
    if method == "zoh":
        decay, weight = torch.exp(z), step * _expm1_ratio(z)
    else:
        decay, weight = (1.0 + z / 2.0) / (1.0 - z / 2.0), step / (1.0 - z / 2.0)
    return decay, (weight if B.ndim == A.ndim else weight[..., None, :]) * B


def _expm1_ratio(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z`` with all digits, also near 0, for real parts that are not positive."""
    if z.is_complex():
        x, y = z.real, z.imag
        # Neither sum cancels where x <= 0.
        above = torch.complex(torch.expm1(x) * y.cos() - 2.0 * (y / 2.0).sin() ** 2, x.exp() * y.sin())
    else:
        above = torch.expm1(z)
    zero = z == 0
    return torch.where(zero, 1.0, above / torch.where(zero, 1.0, z))
