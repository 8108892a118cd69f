"""RWKV-4, -5 and -6: outputs read the state before it is updated, with a bonus for the current token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._arguments import (
    broadcast_to,
    cast_up,
    check_finite,
    check_range,
    queries_and_keys,
    real,
    silence,
)
from ess_widgets.operators._attention_checks import check_number, floating
from ess_widgets.operators.checks import broadcast_valid
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import Diagonal

__all__ = ["rwkv4", "rwkv5", "rwkv6"]

_DECAY_ADVICE = (
    "the decay of one step is exp(log_decay), so pass -exp(time_decay), or w of the RWKV-6 kernels."
)


def rwkv4(k: Any, log_decay: Any, bonus: Any, *, valid: Any = None) -> Recurrence:
    """RWKV-4, one operator per channel with a state of one number, normalised like a softmax.

    With ``w = -log_decay``::

        y_t = (Σ_{j<t} exp(-(t-1-j) w + k_j) v_j + exp(bonus + k_t) v_t)
            / (Σ_{j<t} exp(-(t-1-j) w + k_j)     + exp(bonus + k_t))

    computed with a running maximum of the exponents, as RWKV's kernels do. Rows of ``T`` sum to one.

    Parameters
    ----------
    k : Tensor or ndarray, ``(..., channels, L)``
        Keys, the channels before the positions.
    log_decay : Tensor or ndarray, broadcastable to ``(..., channels)``
        At most 0: ``-exp(time_decay)`` in terms of the model's parameter.
    bonus : Tensor or ndarray, broadcastable to ``(..., channels)``
        ``time_first``, also called ``u``.
    valid : bool Tensor, broadcastable to ``(..., channels, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Reads before it updates. Leading dimensions ``(..., channels)``; TSS is 1. The receptance
        ``sigmoid(r)`` stays outside.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape, not finite, or a log decay is positive.

    References
    ----------
    Peng et al., RWKV, 2023 (arXiv 2305.13048).

    Examples
    --------
    >>> import torch
    >>> rwkv4(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1))[0].matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]], dtype=torch.float64)
    """
    k = floating(k, "k")
    if k.ndim < 1 or 0 in k.shape:
        raise ValueError(f"k must be (..., channels, L) and not empty, but its shape is {tuple(k.shape)}.")
    valid = broadcast_valid(valid, k.shape, k.device)
    k = cast_up(k)
    check_finite(silence(k, valid, inner=0), "k")
    k = silence(k, valid, -torch.inf, inner=0)
    lead, layout = tuple(k.shape[:-1]), "one number per channel, (..., channels)"
    bonus = broadcast_to(real(bonus, "bonus"), lead, "bonus", layout)
    check_finite(bonus, "bonus")
    log_decay = broadcast_to(real(log_decay, "log_decay"), lead, "log_decay", layout)
    check_range(log_decay, "log_decay", -torch.inf, 0.0, _DECAY_ADVICE)
    # Padding leaves the state as it is.
    steps = silence(log_decay[..., None].expand(k.shape), valid, 0.0, inner=0)

    # Numerator and denominator share the state, held as exp(-m) times its value.
    m, total = torch.full_like(bonus, -torch.inf), torch.zeros_like(bonus)
    rows: list[tuple[Tensor, ...]] = []
    for t in range(k.shape[-1]):
        top = torch.maximum(m, bonus + k[..., t])
        past, now = _ratio(m, top), _ratio(bonus + k[..., t], top)
        share = past * total + now
        decayed = m + steps[..., t]
        m = torch.maximum(decayed, k[..., t])
        decay, entering = _ratio(decayed, m), _ratio(k[..., t], m)
        total = decay * total + entering
        rows.append((decay, entering, past / share, now / share))
    A, B, C, D = (torch.stack(part, dim=-1) for part in zip(*rows, strict=True))
    return Recurrence(
        Diagonal(A[..., None]), B[..., None], C[..., None], D, read="before", valid=valid, name="RWKV-4"
    )


def rwkv5(r: Any, k: Any, log_decay: Any, bonus: Any, *, scale: float = 1.0, valid: Any = None) -> Recurrence:
    """RWKV-5 (Eagle): a matrix state per head with a fixed decay per key channel.

    ``y_t = scale * r_tᵀ (S_{t-1} + Diag(u) k_t v_tᵀ)``, ``S_t = Diag(w) S_{t-1} + k_t v_tᵀ``. So
    ``T_ij = scale * r_i · w^(i-1-j) ⊙ k_j`` for ``j < i`` and ``T_ii = scale * r_i · u ⊙ k_i``.

    Parameters
    ----------
    r, k : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Receptances and keys.
    log_decay : Tensor or ndarray, broadcastable to ``(..., heads, d_k)``
        ``log w``, at most 0: ``-exp(time_decay)`` in terms of the model's parameter.
    bonus : Tensor or ndarray, broadcastable to ``(..., heads, d_k)``
        ``u``, also called ``time_faaaa``.
    scale : float
        Factor on the scores.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Reads before it updates. Leading dimensions are those of ``r``; TSS is ``min(d_k, i)``. Group norm
        and output gate are outside.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape, not finite, or a log decay is positive.

    References
    ----------
    Peng et al., Eagle and Finch, 2024 (arXiv 2404.05892).

    Examples
    --------
    >>> import math, torch
    >>> r = k = torch.ones(3, 1)
    >>> rwkv5(r, k, torch.tensor([-math.log(2)]), torch.tensor([3.0])).matrix()
    tensor([[3.0000, 0.0000, 0.0000],
            [1.0000, 3.0000, 0.0000],
            [0.5000, 1.0000, 3.0000]], dtype=torch.float64)
    """
    r, k, valid = queries_and_keys(r, k, valid, names=("r", "k"))
    log_decay = real(log_decay, "log_decay")
    broadcast_to(log_decay, _per_channel(r), "log_decay", "(..., heads, d_k)")
    log_decay = log_decay[..., None, :] if log_decay.ndim else log_decay[None, None]
    check_range(log_decay, "log_decay", -torch.inf, 0.0, _DECAY_ADVICE)
    return _matrix_state(r, k, log_decay, bonus, scale, valid, "RWKV-5")


def rwkv6(r: Any, k: Any, log_decay: Any, bonus: Any, *, scale: float = 1.0, valid: Any = None) -> Recurrence:
    """RWKV-6 (Finch): a matrix state per head with decays that depend on the input.

    ``y_t = scale * r_tᵀ (S_{t-1} + Diag(u) k_t v_tᵀ)``, ``S_t = Diag(w_t) S_{t-1} + k_t v_tᵀ``. So
    ``T_ij = scale * r_i · (w_{i-1} ⊙ … ⊙ w_{j+1}) ⊙ k_j`` for ``j < i`` and ``T_ii = scale * r_i · u ⊙ k_i``.

    Parameters
    ----------
    r, k : Tensor or ndarray, ``(..., heads, L, d_k)`` or ``(L, d_k)``
        Receptances and keys.
    log_decay : Tensor or ndarray, broadcastable to ``(..., heads, L, d_k)``
        ``log w_t``, at most 0: what flash-linear-attention's kernels call ``w``; ``-exp(w)`` of the model.
    bonus : Tensor or ndarray, broadcastable to ``(..., heads, d_k)``
        ``u``, also called ``time_faaaa``.
    scale : float
        Factor on the scores.
    valid : bool Tensor, broadcastable to ``(..., heads, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and does not decay the state.

    Returns
    -------
    Recurrence
        Reads before it updates. Leading dimensions are those of ``r``; TSS is ``min(d_k, i)``. Group norm
        and output gate are outside.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape, not finite, or a log decay is positive.

    References
    ----------
    Peng et al., Eagle and Finch, 2024 (arXiv 2404.05892).

    Examples
    --------
    The decay of a position acts on what came before it, once a later output reads.

    >>> import math, torch
    >>> r = k = torch.ones(3, 1)
    >>> rwkv6(r, k, torch.tensor([0.5, 0.25, 0.125]).log()[:, None], torch.tensor([3.0])).matrix()
    tensor([[3.0000, 0.0000, 0.0000],
            [1.0000, 3.0000, 0.0000],
            [0.2500, 1.0000, 3.0000]], dtype=torch.float64)
    """
    r, k, valid = queries_and_keys(r, k, valid, names=("r", "k"))
    log_decay = real(log_decay, "log_decay")
    if log_decay.ndim < 2:
        raise ValueError(
            f"log_decay must be (..., heads, L, d_k), but its shape is {tuple(log_decay.shape)}."
        )
    broadcast_to(log_decay, tuple(r.shape), "log_decay", "(..., heads, L, d_k)")
    log_decay = silence(log_decay, valid)
    check_range(log_decay, "log_decay", -torch.inf, 0.0, _DECAY_ADVICE)
    return _matrix_state(r, k, log_decay, bonus, scale, valid, "RWKV-6")


def _per_channel(r: Tensor) -> tuple[int, ...]:
    return (*r.shape[:-2], r.shape[-1])


def _matrix_state(
    r: Tensor, k: Tensor, log_decay: Tensor, bonus: Any, scale: float, valid: Tensor | None, name: str
) -> Recurrence:
    bonus = real(bonus, "bonus")
    u = broadcast_to(bonus, _per_channel(r), "bonus", "(..., heads, d_k)")[..., None, :]
    check_finite(bonus, "bonus")
    r = r * check_number(scale, "scale")
    D = (r * u * k).sum(dim=-1)
    return Recurrence(Diagonal(log_decay.exp()), k, r, D, read="before", valid=valid, name=name)


def _ratio(a: Tensor, top: Tensor) -> Tensor:
    """``exp(a - top)`` for ``a <= top``, with nothing over nothing as 1."""
    nothing = top == -torch.inf
    return torch.where(nothing, 1.0, torch.exp(a - torch.where(nothing, 0.0, top)))
