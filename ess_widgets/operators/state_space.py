"""S4D: a time-invariant state-space model per channel."""

from __future__ import annotations

from typing import Any

from ess_widgets.operators._arguments import broadcast_to, check_finite, check_length, real, real_or_complex
from ess_widgets.operators._discretisation import Discretization, discretise
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import Diagonal

__all__ = ["s4d"]


def s4d(
    A: Any,
    B: Any,
    C: Any,
    delta: Any,
    D: Any = None,
    *,
    length: int,
    discretization: Discretization = "zoh",
    valid: Any = None,
) -> Recurrence:
    """S4D, a diagonal state-space model per channel, ``T_ij = 2·Re(Σ_n C_n Ā_n^(i-j) B̄_n)`` for ``j ≤ i``.

    ``x_t = Ā x_{t-1} + B̄ u_t``, ``y_t = 2·Re(C x_t) + D u_t``, where the stored half of each conjugate pair
    stands for both. Discretised with step Δ, either by zero-order hold, ``Ā = exp(ΔA)``,
    ``B̄ = (Ā - 1) / A · B``, or bilinearly, ``Ā = (1 + ΔA/2) / (1 - ΔA/2)``, ``B̄ = ΔB / (1 - ΔA/2)``.

    Parameters
    ----------
    A : complex Tensor or ndarray, ``(..., channels, n)``
        Continuous poles, real part at most 0. A real ``A`` (S4D-Real) is not doubled: ``y = C x``.
    B, C : Tensor or ndarray, broadcastable to ``(..., channels, n)``
        S4D often fixes ``B`` to ones.
    delta : Tensor or ndarray, broadcastable to ``(..., channels)``
        Step size, positive.
    D : Tensor or ndarray, broadcastable to ``(..., channels)``, optional
        Skip connection; only on the diagonal, where it makes no difference to ESS.
    length : int
        ``L``, the number of positions.
    discretization : {"zoh", "bilinear"}
    valid : bool Tensor, broadcastable to ``(..., channels, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and leaves the state as it is.

    Returns
    -------
    Recurrence
        Leading dimensions ``(..., channels)``; TSS is ``min(2n, i)`` (``min(n, i)`` for real parameters).

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, ``A`` has a positive real part, or Δ is not
        positive.

    References
    ----------
    Gu et al., On the Parameterization and Initialization of Diagonal State Space Models, 2022
    (arXiv 2206.11893).

    Examples
    --------
    A pair of poles at ``±i``: the kernel of an undamped oscillator.

    >>> import math, torch
    >>> A = torch.tensor([[1j]])
    >>> op = s4d(A, torch.ones(1, 1), torch.ones(1, 1), torch.tensor([math.pi / 2]), length=4)
    >>> op.state_size
    tensor([0, 1, 2, 2])
    >>> op[0].matrix()[:, 0].round(decimals=6) + 0.0
    tensor([ 2., -2., -2.,  2.], dtype=torch.float64)
    """
    length = check_length(length)
    A = real_or_complex(A, "A")
    if A.ndim < 1 or 0 in A.shape:
        raise ValueError(f"A must be (..., channels, n) and not empty, but its shape is {tuple(A.shape)}.")
    layout = "(..., channels, n)"
    B = broadcast_to(real_or_complex(B, "B"), tuple(A.shape), "B", layout)
    C = broadcast_to(real_or_complex(C, "C"), tuple(A.shape), "C", layout)
    check_finite(C, "C")
    per_channel = tuple(A.shape[:-1])
    step = broadcast_to(real(delta, "delta"), per_channel, "delta", "one step per channel, (..., channels)")
    decay, entering = discretise(A, B, step[..., None], discretization, name="A")
    if D is not None:
        D = broadcast_to(real(D, "D"), per_channel, "D", "(..., channels)")[..., None]
    return Recurrence(
        Diagonal(decay[..., None, :]),
        entering[..., None, :].expand(*per_channel, length, A.shape[-1]),
        (2.0 * C if A.is_complex() else C)[..., None, :],
        D,
        valid=valid,
        name="S4D",
    )
