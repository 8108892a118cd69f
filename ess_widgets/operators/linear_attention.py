"""Linear attention without data-dependent gates: plain, normalised, with a fixed decay per head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.operators._arguments import (
    broadcast_to,
    check_finite,
    check_range,
    queries_and_keys,
    real,
    score_scale,
    silence,
)
from ess_widgets.operators._attention_checks import check_number
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import Diagonal

__all__ = ["lightning_attention", "linear_attention", "retention"]

_FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: F.elu(x) + 1.0,
    "exp": torch.exp,
    "relu": F.relu,
    "softmax": lambda x: torch.softmax(x, dim=-1),
}


def linear_attention(
    q: Any,
    k: Any,
    *,
    feature_map: str | None = None,
    normalise: bool = False,
    eps: float = 1e-10,
    scale: float | None = None,
    valid: Any = None,
) -> Recurrence:
    """Linear attention, ``T_ij = scale * φ(q_i)·φ(k_j)`` for ``j ≤ i``.

    As a recurrence: ``S_t = S_{t-1} + φ(k_t) v_tᵀ``, ``o_t = scale * φ(q_t)ᵀ S_t``.

    Parameters
    ----------
    q : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Queries, as they enter the product (after rotary embedding, ...).
    k : Tensor or ndarray, ``(..., kv_heads, L, d_k)`` or ``(L, d_k)``
        Keys. ``heads`` may be a multiple of ``kv_heads``: head ``h`` uses key head ``h * kv_heads // heads``.
    feature_map : {"elu", "exp", "relu", "softmax"}, optional
        φ, applied to queries and keys: ``elu(x) + 1``, ``exp``, ``relu``, or a softmax over features. By
        default ``q`` and ``k`` are the features: apply any other map before.
    normalise : bool
        Divide row ``i`` by ``scale * φ(q_i)·Σ_{j ≤ i} φ(k_j) + eps``, so that rows of positive features sum
        to one.
    eps : float
        In that denominator; the default is that of flash-linear-attention.
    scale : float, optional
        Factor on the scores, ``d_k ** -0.5`` by default, as in softmax attention and flash-linear-attention.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``q``; TSS is ``min(d_k, i)``. Parameters are cast up to float64.

    Raises
    ------
    TypeError
        If ``q`` or ``k`` are not real floating-point tensors.
    ValueError
        If shapes do not fit, values are not finite, the feature map is unknown, or a normaliser is zero.

    References
    ----------
    Katharopoulos et al., Transformers are RNNs, 2020 (arXiv 2006.16236).

    Examples
    --------
    >>> import torch
    >>> q = k = torch.ones(3, 2)
    >>> linear_attention(q, k, scale=1.0).matrix()
    tensor([[2., 0., 0.],
            [2., 2., 0.],
            [2., 2., 2.]], dtype=torch.float64)
    >>> linear_attention(q, k, feature_map="elu", normalise=True).matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]], dtype=torch.float64)
    """
    q, k, valid = queries_and_keys(q, k, valid)
    if feature_map is not None:
        phi = _FEATURE_MAPS.get(feature_map) if isinstance(feature_map, str) else None
        if phi is None:
            raise ValueError(
                f"feature_map must be one of {', '.join(sorted(_FEATURE_MAPS))} or None, but is {feature_map!r}; "
                "apply another map to q and k before."
            )
        q, k = silence(phi(q), valid), silence(phi(k), valid)
        check_finite(q, "feature_map(q)")
        check_finite(k, "feature_map(k)")
    q = q * score_scale(scale, q)
    if normalise:
        total = (q * k.cumsum(dim=-2)).sum(dim=-1, keepdim=True) + check_number(eps, "eps")
        total = silence(total, valid, 1.0)
        if bool((total == 0).any()):
            raise ValueError(
                "the normaliser q_i·Σ k_j + eps is zero at some position: use features that are positive "
                "(feature_map='elu'), or a larger eps."
            )
        q = q / total
    return Recurrence(Diagonal(_one(k)), k, q, valid=valid, name="linear attention")


def retention(
    q: Any, k: Any, *, gamma: Any = None, scale: float | None = None, valid: Any = None
) -> Recurrence:
    """Retention (RetNet), ``T_ij = scale * γ^(i-j) q_i·k_j`` for ``j ≤ i``, with one decay per head.

    As a recurrence: ``S_t = γ S_{t-1} + k_t v_tᵀ``, ``o_t = scale * q_tᵀ S_t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Queries and keys after rotary embedding (xPos). ``k`` may have fewer heads, as in
        :func:`linear_attention`.
    gamma : float or Tensor, broadcastable to ``(..., heads)``, optional
        Decay per step, in [0, 1]. By default RetNet's ``1 - 2^(-5-h)`` for head ``h = 0, 1, ...``.
    scale : float, optional
        Factor on the scores, ``d_k ** -0.5`` by default.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``q``; TSS is ``min(d_k, i)``. The group normalisation behind it and
        the row normaliser that it cancels are not part of ``T``.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape, not finite, or a decay is outside [0, 1].

    References
    ----------
    Sun et al., Retentive Network, 2023 (arXiv 2307.08621).

    Examples
    --------
    >>> import torch
    >>> retention(torch.ones(3, 1), torch.ones(3, 1), gamma=0.5).matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.0000],
            [0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """
    q, k, valid = queries_and_keys(q, k, valid)
    lead = q.shape[:-2]
    if gamma is None:
        heads = lead[-1] if lead else 1
        gamma = 1.0 - torch.exp2(-5.0 - torch.arange(heads, dtype=q.dtype, device=q.device))
        gamma = gamma if lead else gamma[0]
    gamma = _per_head(gamma, "gamma", q)
    check_range(gamma, "gamma", 0.0, 1.0, "it is the decay of one step.")
    return _fixed_decay(q, k, gamma, scale, valid, "retention")


def lightning_attention(
    q: Any, k: Any, slope_rate: Any, *, scale: float | None = None, valid: Any = None
) -> Recurrence:
    """Lightning attention (TransNormer, MiniMax), ``T_ij = scale * exp(-s (i-j)) q_i·k_j`` for ``j ≤ i``.

    As a recurrence: ``S_t = exp(-s) S_{t-1} + k_t v_tᵀ``, ``o_t = scale * q_tᵀ S_t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Queries and keys as they enter the product (in MiniMax after SiLU). ``k`` may have fewer heads, as in
        :func:`linear_attention`.
    slope_rate : float or Tensor, broadcastable to ``(..., heads)``
        ``s ≥ 0`` of each head. MiniMax: ``2^(-8(h+1)/heads) * (1 - layer/(layers-1+1e-5) + 1e-5)``.
    scale : float, optional
        Factor on the scores, ``d_k ** -0.5`` by default; MiniMax has none, ``scale=1.0``.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``q``; TSS is ``min(d_k, i)``.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape, not finite, or a slope is negative.

    References
    ----------
    Qin et al., Lightning Attention-2, 2024 (arXiv 2401.04658); MiniMax-01, 2025 (arXiv 2501.08313).

    Examples
    --------
    >>> import math, torch
    >>> lightning_attention(torch.ones(2, 1), torch.ones(2, 1), slope_rate=math.log(2)).matrix()
    tensor([[1.0000, 0.0000],
            [0.5000, 1.0000]], dtype=torch.float64)
    """
    q, k, valid = queries_and_keys(q, k, valid)
    slope_rate = _per_head(slope_rate, "slope_rate", q)
    check_range(slope_rate, "slope_rate", 0.0, torch.inf, "the decay of one step is exp(-slope_rate).")
    return _fixed_decay(q, k, torch.exp(-slope_rate), scale, valid, "lightning attention")


def _per_head(value: Any, name: str, q: Tensor) -> Tensor:
    """One number per head, broadcastable to the leading dimensions of ``q``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=q.dtype, device=q.device)
    number = real(value, name)
    broadcast_to(number, tuple(q.shape[:-2]), name, "one number per head, (..., heads)")
    return number


def _fixed_decay(
    q: Tensor, k: Tensor, decay: Tensor, scale: float | None, valid: Tensor | None, name: str
) -> Recurrence:
    A = Diagonal(decay[..., None, None])
    return Recurrence(A, k, q * score_scale(scale, q), valid=valid, name=name)


def _one(like: Tensor) -> Tensor:
    """The transition that forgets nothing, ``(1, 1)``."""
    return torch.ones(1, 1, dtype=like.dtype, device=like.device)
