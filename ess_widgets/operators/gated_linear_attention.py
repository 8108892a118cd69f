"""Linear attention with a decay per key channel: GLA, WLA, GLA-S6, HGRN-2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ess_widgets.operators._arguments import (
    as_gates,
    broadcast_to,
    cast_up,
    check_finite,
    check_range,
    expand_heads,
    queries_and_keys,
    real,
    score_scale,
    silence,
)
from ess_widgets.operators._attention_checks import check_number, floating
from ess_widgets.operators.checks import broadcast_valid
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import Diagonal

__all__ = ["gated_linear_attention", "gla_s6", "hgrn2", "weighted_linear_attention"]


def gated_linear_attention(
    q: Any,
    k: Any,
    g: Any = None,
    *,
    gates: Any = None,
    scale: float | None = None,
    valid: Any = None,
) -> Recurrence:
    """Gated linear attention (GLA), ``T_ij = scale * q_i · (α_i ⊙ … ⊙ α_{j+1}) ⊙ k_j`` for ``j ≤ i``.

    As a recurrence: ``S_t = Diag(α_t) S_{t-1} + k_t v_tᵀ``, ``o_t = scale * q_tᵀ S_t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Queries and keys. ``k`` may have fewer heads: head ``h`` uses key head ``h * kv_heads // heads``.
    g : Tensor or ndarray, broadcastable to ``(..., heads, L, d_k)``
        ``log α``, at most 0, as flash-linear-attention takes its ``g``. A last dimension of size 1 stands
        for one gate per head (simple GLA). ``-inf`` forgets everything.
    gates : Tensor or ndarray, the same shapes
        ``α`` itself, in [0, 1], instead of ``g``.
    scale : float, optional
        Factor on the scores, ``d_k ** -0.5`` by default, as in softmax attention and flash-linear-attention.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``q``; TSS is ``min(d_k, i)``. Parameters are cast up to float64.

    Raises
    ------
    TypeError
        If tensors are of the wrong kind, or not exactly one of ``g`` and ``gates`` is given.
    ValueError
        If shapes do not fit, values are not finite, or gates are outside [0, 1].

    References
    ----------
    Yang et al., Gated Linear Attention Transformers, 2023 (arXiv 2312.06635).

    Examples
    --------
    >>> import torch
    >>> q = k = torch.ones(3, 1)
    >>> gated_linear_attention(q, k, gates=torch.tensor([[1.0], [0.5], [0.0]])).matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.0000],
            [0.0000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    q, k, valid = queries_and_keys(q, k, valid)
    decay, _ = as_gates(g, gates, tuple(q.shape), "(..., heads, L, d_k)", valid)
    return _recurrence(q, k, decay, scale, valid, "gated linear attention")


def weighted_linear_attention(
    q: Any, k: Any, w: Any, *, beta: float = 16.0, scale: float | None = None, valid: Any = None
) -> Recurrence:
    """Weighted linear attention (WLA): GLA whose gates are learned but do not depend on the input.

    ``T_ij = scale * q_i · α^(i-j) ⊙ k_j`` for ``j ≤ i`` with ``α = sigmoid(w)^(1/β)``. As a recurrence:
    ``S_t = Diag(α) S_{t-1} + k_t v_tᵀ``, ``o_t = scale * q_tᵀ S_t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Queries and keys. ``k`` may have fewer heads, as in :func:`gated_linear_attention`.
    w : Tensor or ndarray, broadcastable to ``(..., heads, d_k)``
        The learned vector, before the sigmoid; zero at the start.
    beta : float
        Temperature of the gates.
    scale : float, optional
        Factor on the scores, ``d_k ** -0.5`` by default.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``q``; TSS is ``min(d_k, i)``.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, or ``beta`` is not positive.

    References
    ----------
    Parnichkun et al., Quantifying Memory Utilization with Effective State-Size, 2025 (arXiv 2504.19561).

    Examples
    --------
    >>> import torch
    >>> op = weighted_linear_attention(torch.ones(3, 1), torch.ones(3, 1), torch.zeros(1), beta=1.0)
    >>> op.matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.0000],
            [0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """
    q, k, valid = queries_and_keys(q, k, valid)
    w = real(w, "w")
    broadcast_to(w, (*q.shape[:-2], q.shape[-1]), "w", "(..., heads, d_k)")
    check_finite(w, "w")
    decay = torch.exp(F.logsigmoid(w) / check_number(beta, "beta", positive=True))
    decay = decay[..., None, :] if decay.ndim else decay[None, None]
    return _recurrence(q, k, decay, scale, valid, "weighted linear attention")


def gla_s6(
    q: Any, k: Any, delta: Any, *, alpha: float, scale: float | None = None, valid: Any = None
) -> Recurrence:
    """GLA-S6: gated linear attention with S6's decays, ``A_t = exp(-[1 … d_k] / alpha * Δ_t)``.

    ``T_ij = scale * q_i · (A_i ⊙ … ⊙ A_{j+1}) ⊙ k_j`` for ``j ≤ i``. As a recurrence:
    ``S_t = Diag(A_t) S_{t-1} + k_t v_tᵀ``, ``o_t = scale * q_tᵀ S_t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Queries and keys. ``k`` may have fewer heads, as in :func:`gated_linear_attention`.
    delta : Tensor or ndarray, broadcastable to ``(..., heads, L, d_k)``
        ``Δ = softplus(W u)``, at least 0; a last dimension of size 1 stands for one Δ per head.
    alpha : float
        Divides the decay rates: a larger one remembers longer.
    scale : float, optional
        Factor on the scores, ``d_k ** -0.5`` by default.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``q``; TSS is ``min(d_k, i)``.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, Δ is negative, or ``alpha`` not positive.

    References
    ----------
    Parnichkun et al., Quantifying Memory Utilization with Effective State-Size, 2025 (arXiv 2504.19561).

    Examples
    --------
    >>> import math, torch
    >>> q = k = torch.ones(3, 2)
    >>> gla_s6(q, k, torch.full((3, 1), math.log(2)), alpha=1.0, scale=1.0).matrix()
    tensor([[2.0000, 0.0000, 0.0000],
            [0.7500, 2.0000, 0.0000],
            [0.3125, 0.7500, 2.0000]], dtype=torch.float64)
    """
    q, k, valid = queries_and_keys(q, k, valid)
    rates = torch.arange(1, q.shape[-1] + 1, dtype=q.dtype, device=q.device)
    rates = rates / check_number(alpha, "alpha", positive=True)
    delta = real(delta, "delta")
    if delta.ndim < 2:
        raise ValueError(f"delta must be (..., heads, L, d_k), but its shape is {tuple(delta.shape)}.")
    if q.ndim > 2:
        delta = expand_heads(delta, q.shape[-3], inner=2)
    broadcast_to(delta, tuple(q.shape), "delta", "(..., heads, L, d_k)")
    delta = silence(delta, valid)
    check_range(delta, "delta", 0.0, torch.inf, "apply softplus before.")
    return _recurrence(q, k, torch.exp(-rates * delta), scale, valid, "GLA-S6")


def hgrn2(
    q: Any, g: Any = None, *, gates: Any = None, scale: float | None = None, valid: Any = None
) -> Recurrence:
    """HGRN-2: gated linear attention whose keys are one minus its gates.

    ``S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_tᵀ``, ``o_t = scale * q_tᵀ S_t``, so
    ``T_ij = scale * q_i · (f_i ⊙ … ⊙ f_{j+1}) ⊙ (1 - f_j)`` for ``j ≤ i``.

    Parameters
    ----------
    q : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Queries (output gates in the paper's words).
    g : Tensor or ndarray, ``(..., heads, L, d_k)``
        ``log f``, at most 0, after the lower bound of the layer.
    gates : Tensor or ndarray, the same shape
        ``f`` itself, in [0, 1], instead of ``g``.
    scale : float, optional
        Factor on the scores, ``d_k ** -0.5`` by default.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``q``; TSS is ``min(d_k, i)``.

    Raises
    ------
    TypeError
        If tensors are of the wrong kind, or not exactly one of ``g`` and ``gates`` is given.
    ValueError
        If shapes do not fit, values are not finite, or gates are outside [0, 1].

    References
    ----------
    Qin et al., HGRN2: Gated Linear RNNs with State Expansion, 2024 (arXiv 2404.07904).

    Examples
    --------
    >>> import torch
    >>> hgrn2(torch.ones(3, 1), gates=torch.full((3, 1), 0.5)).matrix()
    tensor([[0.5000, 0.0000, 0.0000],
            [0.2500, 0.5000, 0.0000],
            [0.1250, 0.2500, 0.5000]], dtype=torch.float64)
    """
    q = floating(q, "q")
    if q.ndim < 2 or 0 in q.shape:
        raise ValueError(f"q must be (..., heads, L, d_k) and not empty, but its shape is {tuple(q.shape)}.")
    valid = broadcast_valid(valid, q.shape[:-1], q.device)
    q = silence(cast_up(q), valid)
    check_finite(q, "q")
    decay, k = as_gates(g, gates, tuple(q.shape), "(..., heads, L, d_k)", valid)
    return _recurrence(q, k.expand(q.shape), decay, scale, valid, "HGRN-2")


def _recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    decay: torch.Tensor,
    scale: float | None,
    valid: torch.Tensor | None,
    name: str,
) -> Recurrence:
    return Recurrence(Diagonal(decay), k, q * score_scale(scale, q), valid=valid, name=name)
