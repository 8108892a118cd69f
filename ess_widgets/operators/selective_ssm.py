"""Selective state-space models: S6 (Mamba) per channel and SSD (Mamba-2) per head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._arguments import (
    broadcast_to,
    cast_up,
    check_finite,
    check_range,
    expand_heads,
    real,
    silence,
)
from ess_widgets.operators._attention_checks import floating
from ess_widgets.operators.checks import broadcast_valid
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import Diagonal

__all__ = ["selective_ssm", "ssd"]


def selective_ssm(delta: Any, A: Any, B: Any, C: Any, D: Any = None, *, valid: Any = None) -> Recurrence:
    """S6, the selective state-space model of Mamba, one operator per channel.

    ``h_t = exp(Δ_t A) ⊙ h_{t-1} + Δ_t B_t x_t``, ``y_t = C_t·h_t + D x_t``; so
    ``T_ij = C_i · exp(A (Δ_{j+1} + … + Δ_i)) ⊙ Δ_j B_j`` for ``j ≤ i``, with ``D`` on the diagonal.

    Parameters
    ----------
    delta : Tensor or ndarray, ``(..., channels, L)``
        Step sizes, after bias and softplus; at least 0.
    A : Tensor or ndarray, ``(channels, n)`` or ``(..., channels, n)``
        Continuous decay rates, ``-exp(A_log)``; at most 0.
    B, C : Tensor or ndarray, ``(..., L, n)``, or ``(..., channels, L, n)``
        Input and output vectors, by default shared by all channels as in Mamba: ``(batch, L, n)`` beside
        ``delta`` of ``(batch, channels, L)``. With one dimension more than ``delta`` they are per channel,
        or per group of channels.
    D : Tensor or ndarray, broadcastable to ``(..., channels)``, optional
        Skip connection; only on the diagonal, where it makes no difference to ESS.
    valid : bool Tensor, broadcastable to ``(..., channels, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and leaves the state as it is.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``delta``, ``(..., channels)``; TSS is ``min(n, i)``. The convolution
        before and the gate behind are not part of ``T``.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, ``A`` is positive or Δ negative.

    References
    ----------
    Gu and Dao, Mamba, 2023 (arXiv 2312.00752).

    Examples
    --------
    >>> import math, torch
    >>> delta = torch.full((1, 3), math.log(2))
    >>> op = selective_ssm(delta, torch.tensor([[-1.0]]), torch.ones(3, 1), torch.ones(3, 1) / math.log(2))
    >>> op[0].matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.0000],
            [0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """
    step, valid = _steps(delta, "delta", "channels", valid)
    A = real(A, "A")
    if A.ndim < 2 or 0 in A.shape:
        raise ValueError(f"A must be (channels, n) and not empty, but its shape is {tuple(A.shape)}.")
    n = A.shape[-1]
    A = broadcast_to(A, (*step.shape[:-1], n), "A", "(..., channels, n)")
    _check_rates(A)
    B, C = (_shared(x, name, step, n, valid) for x, name in ((B, "B"), (C, "C")))
    decay = torch.exp(step[..., None] * A[..., None, :])
    return _recurrence(decay, step[..., None] * B, C, D, step, valid, "S6")


def ssd(dt: Any, A: Any, B: Any, C: Any, D: Any = None, *, valid: Any = None) -> Recurrence:
    """SSD, the state-space model of Mamba-2, one operator per head with one decay for the whole state.

    ``h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_tᵀ``, ``y_t = C_tᵀ h_t + D x_t``; so
    ``T_ij = exp(A (Δ_{j+1} + … + Δ_i)) C_i·B_j Δ_j`` for ``j ≤ i``, with ``D`` on the diagonal.

    Parameters
    ----------
    dt : Tensor or ndarray, ``(..., heads, L)``
        Step sizes Δ, after bias, softplus and limits; at least 0.
    A : Tensor or ndarray, broadcastable to ``(..., heads)``
        Continuous decay rates, ``-exp(A_log)``; at most 0.
    B, C : Tensor or ndarray, ``(..., groups, L, n)``
        Input and output vectors; head ``h`` uses those of group ``h * groups // heads``.
    D : Tensor or ndarray, broadcastable to ``(..., heads)``, optional
        Skip connection; only on the diagonal, where it makes no difference to ESS.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and leaves the state as it is.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``dt``, ``(..., heads)``; TSS is ``min(n, i)``. The convolution before
        and gate and norm behind are not part of ``T``.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, ``A`` is positive or Δ negative.

    References
    ----------
    Dao and Gu, Transformers are SSMs, 2024 (arXiv 2405.21060).

    Examples
    --------
    Two heads, which forget at different rates, share one group.

    >>> import math, torch
    >>> dt, B = torch.full((2, 3), math.log(2)), torch.ones(1, 3, 4)
    >>> op = ssd(dt, torch.tensor([-1.0, -2.0]), B, B / 4 / math.log(2))
    >>> op.matrix()[:, 2]
    tensor([[0.2500, 0.5000, 1.0000],
            [0.0625, 0.2500, 1.0000]], dtype=torch.float64)
    """
    step, valid = _steps(dt, "dt", "heads", valid)
    A = broadcast_to(real(A, "A"), tuple(step.shape[:-1]), "A", "one rate per head, (..., heads)")
    _check_rates(A)
    B_ = real(B, "B")
    if B_.ndim < 3:
        raise ValueError(f"B must be (..., groups, L, n), but its shape is {tuple(B_.shape)}.")
    n = B_.shape[-1]
    B, C = (
        _grouped(real(x, name), name, step, n, "(..., heads, L, n)", valid)
        for x, name in ((B, "B"), (C, "C"))
    )
    decay = torch.exp(step * A[..., None])[..., None]
    return _recurrence(decay, step[..., None] * B, C, D, step, valid, "SSD")


def _steps(value: Any, name: str, group: str, valid: Any) -> tuple[Tensor, Tensor | None]:
    """Step sizes ``(..., groups, L)``, 0 in padding, and ``valid`` expanded."""
    step = floating(value, name)
    if step.ndim < 2 or 0 in step.shape:
        raise ValueError(
            f"{name} must be (..., {group}, L) and not empty, but its shape is {tuple(step.shape)}."
        )
    valid = broadcast_valid(valid, step.shape, step.device)
    step = silence(cast_up(step), valid, inner=0)
    check_finite(step, name)
    check_range(
        step, name, 0.0, torch.inf, "step sizes are positive: add the bias and apply softplus before."
    )
    return step, valid


def _check_rates(A: Tensor) -> None:
    check_finite(A, "A")
    check_range(A, "A", -torch.inf, 0.0, "decay rates are negative: pass A = -exp(A_log).")


def _shared(value: Any, name: str, step: Tensor, n: int, valid: Tensor | None) -> Tensor:
    """Input or output vectors of S6, with a dimension for channels."""
    x = real(value, name)
    layout = "(..., L, n) for all channels, or (..., channels, L, n)"
    if not 2 <= x.ndim <= step.ndim + 1:
        raise ValueError(
            f"{name} must be {layout}, but its shape is {tuple(x.shape)} beside steps of {tuple(step.shape)}."
        )
    if x.ndim <= step.ndim:
        x = x.unsqueeze(-3)
    return _grouped(x, name, step, n, layout, valid)


def _grouped(x: Tensor, name: str, step: Tensor, n: int, layout: str, valid: Tensor | None) -> Tensor:
    """Vectors of each head from those of its group; finite, zero in padding."""
    if 0 in x.shape:
        raise ValueError(f"{name} is empty, its shape is {tuple(x.shape)}.")
    x = expand_heads(x, step.shape[-2], inner=2)
    broadcast_to(x, (*step.shape, n), name, layout)
    x = silence(x, valid)
    check_finite(x, name)
    return x


def _recurrence(
    decay: Tensor, B: Tensor, C: Tensor, D: Any, step: Tensor, valid: Tensor | None, name: str
) -> Recurrence:
    if D is not None:
        D = broadcast_to(real(D, "D"), tuple(step.shape[:-1]), "D", "one number per group, (...)")[..., None]
    return Recurrence(Diagonal(decay), B, C, D, valid=valid, name=name)
