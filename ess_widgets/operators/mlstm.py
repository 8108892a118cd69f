"""The matrix memory of xLSTM."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.operators._arguments import (
    broadcast_to,
    check_finite,
    expand_heads,
    queries_and_keys,
    real,
    score_scale,
    silence,
)
from ess_widgets.operators._attention_checks import check_number
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import Diagonal

__all__ = ["mlstm"]


def mlstm(
    q: Any,
    k: Any,
    igate: Any,
    fgate: Any,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """The mLSTM of xLSTM with exponential input gates and its stabilised normaliser.

    With ``m_t = max(log σ(f_t) + m_{t-1}, i_t)``, ``m_{-1} = 0``, decays ``a_t = exp(log σ(f_t) + m_{t-1} - m_t)``
    and inputs ``b_t = exp(i_t - m_t)``::

        C_t = a_t C_{t-1} + b_t k_t v_tᵀ,    n_t = a_t n_{t-1} + b_t k_t,
        h_t = scale * q_tᵀ C_t / (max(|scale * q_t·n_t|, exp(-m_t)) + eps)

    The normaliser is part of ``T``: it divides row ``t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Queries and keys. ``k`` may have fewer heads: head ``h`` uses key head ``h * kv_heads // heads``.
    igate, fgate : Tensor or ndarray, broadcastable to ``(..., heads, L)``
        Pre-activations of input gate (``exp``) and forget gate (``sigmoid``), after any soft cap.
    scale : float, optional
        Factor on the scores, ``d_k ** -0.5`` by default as in xLSTM.
    eps : float
        In the denominator, at least 0.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and leaves memory and normaliser alone.

    Returns
    -------
    Recurrence
        Leading dimensions are those of ``q``; TSS is ``min(d_k, i)``. Head norm and output gate are outside.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, or ``eps`` is negative.

    References
    ----------
    Beck et al., xLSTM, 2024 (arXiv 2405.04517).

    Examples
    --------
    Here the normaliser is the number of tokens so far: the forget gates are open, the input gates are 1.

    >>> import torch
    >>> q = k = torch.ones(3, 1)
    >>> mlstm(q, k, torch.zeros(3), torch.full((3,), 100.0), eps=0.0).matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]], dtype=torch.float64)
    """
    q, k, valid = queries_and_keys(q, k, valid)
    eps = check_number(eps, "eps")
    if eps < 0:
        raise ValueError(f"eps must not be negative, but is {eps}.")
    i = _gate(igate, "igate", q, valid, padding=-torch.inf)
    # A forget gate of inf is open: its logarithm is exactly 0.
    log_f = F.logsigmoid(_gate(fgate, "fgate", q, valid, padding=torch.inf))
    q = q * score_scale(scale, q)

    m = torch.zeros_like(i[..., 0])
    n = torch.zeros_like(q[..., 0, :])
    decays, inputs, maxima, normalisers = [], [], [], []
    for t in range(q.shape[-2]):
        previous, m = m, torch.maximum(log_f[..., t] + m, i[..., t])
        decay, entering = torch.exp(log_f[..., t] + previous - m), torch.exp(i[..., t] - m)
        n = decay[..., None] * n + entering[..., None] * k[..., t, :]
        decays.append(decay)
        inputs.append(entering)
        maxima.append(m)
        normalisers.append((q[..., t, :] * n).sum(dim=-1))
    a, b, m, qn = (torch.stack(part, dim=-1) for part in (decays, inputs, maxima, normalisers))
    # exp(-m) underflows for very open input gates; a query of zeros still reads nothing then.
    total = (torch.maximum(qn.abs(), torch.exp(-m)) + eps).clamp(min=torch.finfo(q.dtype).tiny)
    C = q / total[..., None]
    return Recurrence(Diagonal(a[..., None]), b[..., None] * k, C, valid=valid, name="mLSTM")


def _gate(value: Any, name: str, q: Tensor, valid: Tensor | None, padding: float) -> Tensor:
    """One finite pre-activation per position and head, ``(..., L)`` like ``q`` without its features."""
    gate = real(value, name)
    if q.ndim > 2:
        gate = expand_heads(gate, q.shape[-3], inner=1)
    gate = broadcast_to(gate, tuple(q.shape[:-1]), name, "(..., heads, L)")
    check_finite(silence(gate, valid, inner=0), name)
    return silence(gate, valid, padding, inner=0)
