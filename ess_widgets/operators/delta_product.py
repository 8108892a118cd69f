"""DeltaProduct: several steps of the delta rule for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._attention_checks import floating
from ess_widgets.operators._delta_inputs import Inputs, default_scale, unit
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import DiagonalPlusLowRank

__all__ = ["delta_product", "gated_delta_product"]


def delta_product(
    q: Any,
    k: Any,
    beta: Any,
    *,
    scale: float | None = None,
    normalise: bool = False,
    norm_eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """DeltaProduct: ``m`` steps of the delta rule per token, each with a key, a strength and an input of its own.

    ``s ← (I - β_tj k_tj k_tjᵀ) s + β_tj k_tj u_tj`` for ``j = 1 … m``, then ``y_t = scale · q_tᵀ s``.

    Parameters
    ----------
    q : Tensor or ndarray, ``(..., L, d_k)``
        Queries, one per token, as they enter.
    k : Tensor or ndarray, ``(..., m * L, d_k)``
        Keys, after their L2 normalisation (or give ``normalise=True``): those of token ``t`` are rows
        ``m * t … m * t + m - 1``, in the order of the steps. ``m`` follows from the shapes.
    beta : Tensor or ndarray, ``(..., m * L)``
        Writing strengths, in the same order.
    scale, normalise, norm_eps, valid
        As in :func:`~ess_widgets.operators.delta_rule`; ``valid`` marks tokens, ``(..., L)``.

    Returns
    -------
    Recurrence
        Of order ``d_k`` with ``block = m``: column ``m * t + j`` of ``matrix()`` is the input of step ``j``,
        so that it applies to values of shape ``(..., m * L, d_v)``. The output of token ``t`` is row
        ``m * t + m - 1``; the other rows are zero.

    Raises
    ------
    ValueError, TypeError
        As :func:`~ess_widgets.operators.delta_rule`, and if ``k`` does not hold a whole number of rows per
        token.

    References
    ----------
    Siems et al., "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products",
    arXiv:2502.10297; ``naive_recurrent_gated_delta_product`` of flash-linear-attention.

    Examples
    --------
    >>> import torch
    >>> q, k = torch.ones(1, 2), torch.eye(2)
    >>> delta_product(q, k, torch.ones(2), scale=1.0).matrix()
    tensor([[0., 0.],
            [1., 1.]], dtype=torch.float64)
    """
    return _product(q, k, None, beta, scale, (normalise, norm_eps), valid, "DeltaProduct")


def gated_delta_product(
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
    """Gated DeltaProduct: :func:`delta_product` on a state that decays once per token, before its steps.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., L, d_k)`` and ``(..., m * L, d_k)``
        As in :func:`delta_product`.
    g : Tensor or ndarray, ``(..., L)``
        **Logarithm** of the decay, at most 0; ``-inf`` empties the state.
    beta : Tensor or ndarray, ``(..., m * L)``
    scale, normalise, norm_eps, valid
        As in :func:`delta_product`.

    Returns
    -------
    Recurrence
        As :func:`delta_product`.

    Raises
    ------
    ValueError, TypeError
        As :func:`delta_product`, and if ``g`` is positive somewhere.

    Examples
    --------
    >>> import torch
    >>> q, k = torch.ones(2, 2), torch.eye(2).repeat(2, 1)
    >>> g = torch.full((2,), 0.5).log()
    >>> gated_delta_product(q, k, g, torch.full((4,), 0.5), scale=1.0).matrix()[-1]
    tensor([0.1250, 0.1250, 0.5000, 0.5000], dtype=torch.float64)
    """
    return _product(q, k, g, beta, scale, (normalise, norm_eps), valid, "gated DeltaProduct")


def _product(
    q: Any, k: Any, g: Any, beta: Any, scale: Any, norm: tuple[bool, Any], valid: Any, name: str
) -> Recurrence:
    m = _steps(floating(q, "q"), floating(k, "k"))
    x = Inputs(q, k, (g, 1), (beta, 1), valid=valid, steps=m)
    strength = x.per_position(beta, "beta", steps=m)
    strength = strength.reshape(*strength.shape[:-1], x.L, m)
    alpha = x.k.new_ones(1, 1) if g is None else x.decay(g, "g")
    q_, k_ = (unit(x.q, norm[1]), unit(x.k, norm[1])) if norm[0] else (x.q, x.k)
    k_ = k_.reshape(*k_.shape[:-2], x.L, m, x.d)
    Y, B = _carry(k_, strength)
    # All steps together are I - Σ_j k_j y_jᵀ, after the decay.
    A = DiagonalPlusLowRank(alpha, -k_.mT, (alpha.unsqueeze(-1) * Y).mT)
    C = torch.nn.functional.pad((default_scale(scale, x.d) * q_).unsqueeze(-2), (0, 0, m - 1, 0))
    return Recurrence(A, B, C, block=m, valid=x.valid, name=name)


def _steps(q: Tensor, k: Tensor) -> int:
    if q.ndim < 2 or k.ndim < 2 or 0 in q.shape or k.shape[-2] == 0 or k.shape[-2] % q.shape[-2]:
        raise ValueError(
            "q must be (..., L, d_k) and k (..., m * L, d_k) with m keys for each token, one after another, "
            f"but q has shape {tuple(q.shape)} and k {tuple(k.shape)}."
        )
    return int(k.shape[-2] // q.shape[-2])


def _carry(k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """``Y``, so that the steps multiply to ``I - Σ_j k_j y_jᵀ``, and the inputs carried to the last step.

    ``(..., L, m, d)`` keys and ``(..., L, m)`` strengths give both as ``(..., L, m, d)``.
    """
    m = k.shape[-2]
    gram = k @ k.mT
    written = beta.unsqueeze(-1) * k
    Y: list[Tensor] = []
    B: list[Tensor] = []
    for j in range(m):
        y = k[..., j, :]
        for i in range(j):
            y = y - gram[..., j, i, None] * Y[i]
        Y.append(beta[..., j, None] * y)
        erased = written[..., j, :]
        B = [b - erased * (k[..., j, :] * b).sum(-1, keepdim=True) for b in B] + [erased]
    return torch.stack(Y, dim=-2), torch.stack(B, dim=-2)
