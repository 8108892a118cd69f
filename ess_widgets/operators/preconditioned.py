"""Preconditioned DeltaNet: what is written is divided by how much its features were written before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators._arguments import check_range
from ess_widgets.operators._attention_checks import check_number
from ess_widgets.operators._delta_inputs import Inputs, default_scale, unit
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import DiagonalPlusLowRank

__all__ = ["preconditioned_delta_rule", "preconditioned_gated_delta_rule", "preconditioned_kda"]


def preconditioned_delta_rule(
    q: Any,
    k: Any,
    beta: Any,
    *,
    beta_atk: Any,
    g_atk: Any = None,
    log_atk_scale: Any = -0.2,
    squash_x: float = 1.5,
    squash_eps: float = 1e-6,
    scale: float | None = None,
    normalise: bool = False,
    norm_eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """Preconditioned DeltaNet: the delta rule that erases along ``k`` and writes along ``M_t ⊙ k``.

    ``s_t = (I - β_t (M_t ⊙ k_t) k_tᵀ) s_{t-1} + β_t (M_t ⊙ k_t) u_t``, ``y_t = scale · q_tᵀ s_t``, with
    ``M_t = x ** -squash(log(a_t + ε) - c)``, ``squash(z) = z / (1 + |z|)``, and the running power of the
    keys, this one included: ``a_t = exp(g_atk_t) a_{t-1} + β_atk_t k_t²``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., L, d_k)``
        As in :func:`~ess_widgets.operators.delta_rule`: the keys after their L2 normalisation.
    beta : Tensor or ndarray, ``(..., L)``
        Writing strength, after its sigmoid.
    beta_atk : Tensor or ndarray, ``(..., L)``
        Weight of each key in the preconditioner, not negative.
    g_atk : Tensor or ndarray, ``(..., L)``, optional
        **Logarithm** of the decay of the preconditioner, at most 0; no decay by default.
    log_atk_scale : float or Tensor, ``(...)``
        Centre ``c``, one number or one per head.
    squash_x : float
        ``x``: every entry of ``M`` lies between ``1 / x`` and ``x``. At least 1.
    squash_eps : float
        ``ε``, positive.
    scale, normalise, norm_eps, valid
        As in :func:`~ess_widgets.operators.delta_rule`. Padding does not enter the preconditioner.

    Returns
    -------
    Recurrence
        Of order ``d_k``: the preconditioner depends on keys alone and stores nothing of the inputs.

    Raises
    ------
    ValueError, TypeError
        As :func:`~ess_widgets.operators.gated_delta_rule`, and if ``beta_atk`` is negative somewhere.

    References
    ----------
    Tumma, Loo, Rus, "Preconditioned DeltaNet: Curvature-aware Sequence Modeling for Linear Recurrences",
    arXiv:2604.21100; ``naive_recurrent_precond_gated_delta_rule`` of flash-linear-attention at ``g = 0``.

    Examples
    --------
    With ``squash_x=1`` nothing is preconditioned.

    >>> import torch
    >>> q, k, beta = torch.randn(5, 2), torch.randn(5, 2), torch.rand(5)
    >>> from ess_widgets.operators import delta_rule
    >>> op = preconditioned_delta_rule(q, k, beta, beta_atk=beta, squash_x=1.0)
    >>> torch.equal(op.matrix(), delta_rule(q, k, beta).matrix())
    True
    """
    atk = (beta_atk, g_atk, log_atk_scale, squash_x, squash_eps)
    return _build(
        q, k, None, beta, atk, scale, (normalise, norm_eps), valid, name="preconditioned delta rule"
    )


def preconditioned_gated_delta_rule(
    q: Any,
    k: Any,
    g: Any,
    beta: Any,
    *,
    beta_atk: Any,
    g_atk: Any = None,
    log_atk_scale: Any = -0.2,
    squash_x: float = 1.5,
    squash_eps: float = 1e-6,
    scale: float | None = None,
    normalise: bool = False,
    norm_eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """Preconditioned Gated DeltaNet: the preconditioned delta rule on a state that decays as a whole first.

    ``s_t = exp(g_t) (I - β_t (M_t ⊙ k_t) k_tᵀ) s_{t-1} + β_t (M_t ⊙ k_t) u_t``.

    Parameters
    ----------
    q, k, beta
        As in :func:`preconditioned_delta_rule`.
    g : Tensor or ndarray, ``(..., L)``
        **Logarithm** of the decay of the state, at most 0.
    beta_atk, g_atk, log_atk_scale, squash_x, squash_eps, scale, normalise, norm_eps, valid
        As in :func:`preconditioned_delta_rule`.

    Returns
    -------
    Recurrence
        Of order ``d_k``.

    Raises
    ------
    ValueError, TypeError
        As :func:`preconditioned_delta_rule`.

    References
    ----------
    arXiv:2604.21100; ``naive_recurrent_precond_gated_delta_rule`` of flash-linear-attention.

    Examples
    --------
    >>> import torch
    >>> k, ones = torch.eye(2), torch.ones(2)
    >>> preconditioned_gated_delta_rule(k + 1, k, -ones, ones, beta_atk=ones, scale=1.0)
    Recurrence('preconditioned gated delta rule', shape=(2, 2), n=2, ...)
    """
    atk = (beta_atk, g_atk, log_atk_scale, squash_x, squash_eps)
    name = "preconditioned gated delta rule"
    return _build(q, k, g, beta, atk, scale, (normalise, norm_eps), valid, name=name)


def preconditioned_kda(
    q: Any,
    k: Any,
    g: Any,
    beta: Any,
    *,
    beta_atk: Any,
    g_atk: Any = None,
    log_atk_scale: Any = -0.2,
    squash_x: float = 1.5,
    squash_eps: float = 1e-6,
    scale: float | None = None,
    normalise: bool = False,
    norm_eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """Preconditioned Kimi Delta Attention: every feature of the state decays at its own rate first.

    ``s_t = (I - β_t (M_t ⊙ k_t) k_tᵀ) Diag(exp(g_t)) s_{t-1} + β_t (M_t ⊙ k_t) u_t``.

    Parameters
    ----------
    q, k, beta
        As in :func:`preconditioned_delta_rule`.
    g : Tensor or ndarray, ``(..., L, d_k)``
        **Logarithm** of the decay of each feature, at most 0.
    beta_atk, g_atk, log_atk_scale, squash_x, squash_eps, scale, normalise, norm_eps, valid
        As in :func:`preconditioned_delta_rule`.

    Returns
    -------
    Recurrence
        Of order ``d_k``.

    Raises
    ------
    ValueError, TypeError
        As :func:`preconditioned_delta_rule`.

    References
    ----------
    arXiv:2604.21100; ``naive_recurrent_precond_kda`` of flash-linear-attention.

    Examples
    --------
    >>> import torch
    >>> k, ones = torch.eye(2), torch.ones(2)
    >>> preconditioned_kda(k + 1, k, -torch.ones(2, 2), ones, beta_atk=ones, scale=1.0)
    Recurrence('preconditioned KDA', shape=(2, 2), n=2, ...)
    """
    atk = (beta_atk, g_atk, log_atk_scale, squash_x, squash_eps)
    norm = (normalise, norm_eps)
    return _build(q, k, g, beta, atk, scale, norm, valid, features=True, name="preconditioned KDA")


def _build(
    q: Any,
    k: Any,
    g: Any,
    beta: Any,
    atk: tuple[Any, ...],
    scale: Any,
    norm: tuple[bool, Any],
    valid: Any,
    *,
    features: bool = False,
    name: str,
) -> Recurrence:
    x = Inputs(q, k, (g, 2 if features else 1), (beta, 1), (atk[0], 1), (atk[1], 1), valid=valid)
    q_, k_ = (unit(x.q, norm[1]), unit(x.k, norm[1])) if norm[0] else (x.q, x.k)
    alpha = k_.new_ones(1, 1) if g is None else x.decay(g, "g", features=features)
    strength = x.per_position(beta, "beta").unsqueeze(-1)
    written = strength * k_ * _preconditioner(x, k_, *atk)
    A = DiagonalPlusLowRank(alpha, -written.unsqueeze(-1), (alpha * k_).unsqueeze(-1))
    return Recurrence(A, written, default_scale(scale, x.d) * q_, valid=x.valid, name=name)


def _preconditioner(
    x: Inputs, k: Tensor, beta_atk: Any, g_atk: Any, log_atk_scale: Any, squash_x: Any, squash_eps: Any
) -> Tensor:
    """``M``, ``(..., L, d_k)``."""
    weight = x.per_position(beta_atk, "beta_atk").unsqueeze(-1)
    check_range(weight, "beta_atk", 0.0, math.inf, "it weighs the squares of the keys.")
    decay = weight.new_ones(x.L, 1) if g_atk is None else x.decay(g_atk, "g_atk")
    base, eps = check_number(squash_x, "squash_x"), check_number(squash_eps, "squash_eps", positive=True)
    if base < 1:
        raise ValueError(f"squash_x must be at least 1 (1: no preconditioning), but is {base}.")
    power = _running_sum(decay, weight * k.square())
    distance = (power + eps).log() - x.per_head(log_atk_scale, "log_atk_scale")
    return torch.exp(-math.log(base) * distance / (1.0 + distance.abs()))


def _running_sum(decay: Tensor, value: Tensor) -> Tensor:
    """``a_t = decay_t a_{t-1} + value_t`` along the last but one dimension, in ``log2(L)`` steps.

    Decays are only ever multiplied, so those of 0 and 1e-300 are as good as any.
    """
    decay = decay.expand(*decay.shape[:-2], value.shape[-2], 1)
    step = 1
    while step < value.shape[-2]:
        value = torch.cat(
            [
                value[..., :step, :].expand(_joint(decay, value, step)),
                value[..., step:, :] + decay[..., step:, :] * value[..., :-step, :],
            ],
            dim=-2,
        )
        decay = torch.cat([decay[..., :step, :], decay[..., step:, :] * decay[..., :-step, :]], dim=-2)
        step *= 2
    return value


def _joint(decay: Tensor, value: Tensor, rows: int) -> torch.Size:
    lead = np.broadcast_shapes(decay.shape[:-2], value.shape[:-2])
    return torch.Size([*lead, rows, value.shape[-1]])
