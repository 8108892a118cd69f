"""Kimi Delta Attention."""

from __future__ import annotations

from typing import Any

from ess_widgets.operators._delta_inputs import Inputs, default_scale, unit
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import DiagonalPlusLowRank

__all__ = ["kda"]


def kda(
    q: Any,
    k: Any,
    g: Any,
    beta: Any,
    *,
    scale: float | None = None,
    normalise: bool = False,
    norm_eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """Kimi Delta Attention: every feature decays at its own rate first, then the delta rule erases and writes.

    ``s_t = (I - β_t k_t k_tᵀ) Diag(exp(g_t)) s_{t-1} + β_t k_t u_t``, ``y_t = scale · q_tᵀ s_t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., L, d_k)``
        As in :func:`~ess_widgets.operators.delta_rule`.
    g : Tensor or ndarray, ``(..., L, d_k)``
        **Logarithm** of the decay of each feature, at most 0, as in flash-linear-attention after its gate;
        ``-inf`` empties a feature.
    beta : Tensor or ndarray, ``(..., L)``
        Writing strength, after its sigmoid.
    scale, normalise, norm_eps, valid
        As in :func:`~ess_widgets.operators.delta_rule`.

    Returns
    -------
    Recurrence
        Of order ``d_k``.

    Raises
    ------
    ValueError, TypeError
        As :func:`~ess_widgets.operators.gated_delta_rule`.

    References
    ----------
    Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", arXiv:2510.26692;
    ``naive_recurrent_kda`` of flash-linear-attention.

    Examples
    --------
    >>> import torch
    >>> k = torch.eye(2)
    >>> g = torch.tensor([[0.5, 0.25], [0.5, 0.25]]).log()
    >>> kda(k + 1, k, g, torch.ones(2), scale=1.0).matrix()
    tensor([[2.0000, 0.0000],
            [0.5000, 2.0000]], dtype=torch.float64)
    """
    x = Inputs(q, k, (g, 2), (beta, 1), valid=valid)
    alpha = x.decay(g, "g", features=True)
    strength = x.per_position(beta, "beta").unsqueeze(-1)
    q_, k_ = (unit(x.q, norm_eps), unit(x.k, norm_eps)) if normalise else (x.q, x.k)
    written = strength * k_
    A = DiagonalPlusLowRank(alpha, -written.unsqueeze(-1), (alpha * k_).unsqueeze(-1))
    return Recurrence(A, written, default_scale(scale, x.d) * q_, valid=x.valid, name="KDA")
