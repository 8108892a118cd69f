"""S5 and LRU: one time-invariant state-space model that mixes all channels of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._arguments import (
    broadcast_to,
    check_finite,
    check_length,
    check_range,
    real,
    real_or_complex,
)
from ess_widgets.operators._discretisation import Discretization, discretise
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import Diagonal

__all__ = ["lru", "s5"]


def s5(
    Lambda: Any,
    B: Any,
    C: Any,
    delta: Any,
    D: Any = None,
    *,
    length: int,
    discretization: Discretization = "zoh",
    conj_sym: bool = True,
    valid: Any = None,
) -> Recurrence:
    """S5: one diagonal state-space model that mixes all channels of a layer, blocks ``T_ij`` of ``d × d``.

    ``x_t = Λ̄ x_{t-1} + B̄ u_t``, ``y_t = 2·Re(C x_t) + D u_t``, discretised as in :func:`s4d`; so
    ``T_ij = 2·Re(C Diag(Λ̄)^(i-j) B̄)`` for ``j ≤ i``.

    Parameters
    ----------
    Lambda : complex Tensor or ndarray, ``(..., n)``
        Continuous poles, real part at most 0.
    B : Tensor or ndarray, ``(..., n, d)``
        Input matrix, continuous.
    C : Tensor or ndarray, ``(..., d, n)``
        Output matrix.
    delta : float or Tensor, broadcastable to ``(..., n)``
        Step sizes, positive; S5 learns one per pole.
    D : Tensor or ndarray, ``(..., d)`` or ``(..., d, d)``, optional
        Skip connection.
    length : int
        ``L``, the number of positions.
    discretization : {"zoh", "bilinear"}
    conj_sym : bool
        Whether ``Lambda`` holds one of each conjugate pair, as S5 does by default; without, ``y = Re(C x)``.
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
        A sample's own tokens; padding neither reads nor is read, and leaves the state as it is.

    Returns
    -------
    Recurrence
        ``block`` is ``d``: ``H_i = T[d*i:, :d*i]``; TSS is ``min(2n, d*i)`` for complex parameters.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, ``Lambda`` has a positive real part, or Δ is
        not positive.

    References
    ----------
    Smith et al., Simplified State Space Layers for Sequence Modeling, 2022 (arXiv 2208.04933).

    Examples
    --------
    >>> import math, torch
    >>> B, C = torch.ones(1, 2), torch.ones(2, 1)
    >>> op = s5(torch.tensor([-1.0]), B, C, math.log(2), length=2, conj_sym=False)
    >>> op.matrix()
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000, 0.0000],
            [0.2500, 0.2500, 0.5000, 0.5000],
            [0.2500, 0.2500, 0.5000, 0.5000]], dtype=torch.float64)
    """
    length = check_length(length)
    Lambda, B, C, D = _matrices(Lambda, B, C, D)
    if isinstance(delta, int | float) and not isinstance(delta, bool):
        delta = torch.tensor(
            float(delta),
            dtype=torch.float32 if Lambda.device.type == "mps" else torch.float64,
            device=Lambda.device,
        )
    step = broadcast_to(real(delta, "delta"), tuple(Lambda.shape), "delta", "(..., n)")
    decay, B = discretise(Lambda, B.mT, step, discretization, name="Lambda")
    return _recurrence(decay, B, 2.0 * C if conj_sym else C, D, length, valid, "S5")


def lru(
    Lambda: Any, B: Any, C: Any, D: Any = None, *, gamma: Any = None, length: int, valid: Any = None
) -> Recurrence:
    """The linear recurrent unit (LRU): complex diagonal, mixing all channels, blocks ``T_ij`` of ``d × d``.

    ``x_t = Λ x_{t-1} + γ ⊙ (B u_t)``, ``y_t = Re(C x_t) + D u_t``; so ``T_ij = Re(C Diag(Λ)^(i-j) Diag(γ) B)``
    for ``j ≤ i``.

    Parameters
    ----------
    Lambda : complex Tensor or ndarray, ``(..., n)``
        Discrete poles, ``exp(-exp(nu_log) + i exp(theta_log))``, modulus at most 1.
    B : Tensor or ndarray, ``(..., n, d)``
        Input matrix.
    C : Tensor or ndarray, ``(..., d, n)``
        Output matrix.
    D : Tensor or ndarray, ``(..., d)`` or ``(..., d, d)``, optional
        Skip connection.
    gamma : Tensor or ndarray, ``(..., n)``, optional
        Input normalisation, ``exp(gamma_log)``, at the start ``sqrt(1 - |Λ|²)``. By default ``B`` is taken
        as already normalised.
    length : int
        ``L``, the number of positions.
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
        A sample's own tokens; padding neither reads nor is read, and leaves the state as it is.

    Returns
    -------
    Recurrence
        ``block`` is ``d``: ``H_i = T[d*i:, :d*i]``; TSS is ``min(2n, d*i)`` for complex parameters.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, or a pole lies outside the unit circle.

    References
    ----------
    Orvieto et al., Resurrecting Recurrent Neural Networks for Long Sequences, 2023 (arXiv 2303.06349).

    Examples
    --------
    A pole at ``i`` turns by a quarter each step.

    >>> import torch
    >>> op = lru(torch.tensor([1j]), torch.ones(1, 1), torch.ones(1, 1), length=4)
    >>> op.matrix()[:, 0].round(decimals=6) + 0.0
    tensor([ 1.,  0., -1.,  0.], dtype=torch.float64)
    """
    length = check_length(length)
    Lambda, B, C, D = _matrices(Lambda, B, C, D)
    check_range(
        Lambda.abs(), "|Lambda|", 0.0, 1.0 + 1e-6, "the poles are discrete ones, inside the unit circle."
    )
    B = B.mT
    if gamma is not None:
        gamma = broadcast_to(real(gamma, "gamma"), tuple(Lambda.shape), "gamma", "(..., n)")
        check_finite(gamma, "gamma")
        B = gamma[..., None, :] * B
    return _recurrence(Lambda, B, C, D, length, valid, "LRU")


def _matrices(Lambda: Any, B: Any, C: Any, D: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Poles and matrices whose shapes fit, cast up; ``D`` as ``(..., d, d)``."""
    Lambda, B, C = real_or_complex(Lambda, "Lambda"), real_or_complex(B, "B"), real_or_complex(C, "C")
    shapes = f"Lambda has shape {tuple(Lambda.shape)}, B {tuple(B.shape)} and C {tuple(C.shape)}"
    if Lambda.ndim < 1 or B.ndim < 2 or C.ndim < 2 or 0 in (*Lambda.shape, *B.shape, *C.shape):
        raise ValueError(
            f"Lambda must be (..., n), B (..., n, d) and C (..., d, n), none empty, but {shapes}."
        )
    n, d = B.shape[-2:]
    if Lambda.shape[-1] != n or C.shape[-2:] != (d, n):
        raise ValueError(f"Lambda must be (..., n), B (..., n, d) and C (..., d, n), but {shapes}.")
    for part, name in ((Lambda, "Lambda"), (B, "B"), (C, "C")):
        check_finite(part, name)
    if D is None:
        return Lambda, B, C, None
    D = real(D, "D")
    if D.ndim > 1 and D.shape[-2:] == (d, d):
        return Lambda, B, C, D
    if D.ndim < 1 or D.shape[-1] != d:
        raise ValueError(
            f"D must be (..., d) or (..., d, d) with d = {d}, but its shape is {tuple(D.shape)}."
        )
    return Lambda, B, C, torch.diag_embed(D)


def _recurrence(
    decay: Tensor, B: Tensor, C: Tensor, D: Tensor | None, length: int, valid: Any, name: str
) -> Recurrence:
    d, n = C.shape[-2:]
    return Recurrence(
        Diagonal(decay[..., None, :]),
        B[..., None, :, :].expand(*B.shape[:-2], length, d, n),
        C[..., None, :, :],
        None if D is None else D[..., None, :, :],
        block=d,
        valid=valid,
        name=name,
    )
