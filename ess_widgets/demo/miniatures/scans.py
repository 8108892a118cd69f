"""The recurrences of the miniatures in plain torch: names, arguments and layouts are flash-linear-attention's and Mamba's.

`ess_widgets.capture` knows functions of these names, whoever wrote them, and checks what they return.
Shapes: ``(batch, L, heads, features)``; log gates ``g`` are at most 0. All update the state before they read it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["chunk_gla", "chunk_linear_attn", "naive_recurrent_gated_delta_rule", "selective_scan"]

CHUNK = 8


def chunk_linear_attn(q: Tensor, k: Tensor, v: Tensor, scale: float, normalize: bool = False) -> Tensor:
    """``S_t = S_{t-1} + k_t v_tᵀ``, ``o_t = scale * S_tᵀ q_t``, all positions at once."""
    scores = torch.einsum("bihd, bjhd -> bhij", q * scale, k).tril()
    if normalize:
        scores = scores / (scores.sum(-1, keepdim=True) + 1e-10)
    return torch.einsum("bhij, bjhv -> bihv", scores, v)


def chunk_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> Tensor:
    """``S_t = Diag(exp g_t) S_{t-1} + k_t v_tᵀ``, ``o_t = scale * S_tᵀ q_t``, a few positions at a time.

    Every exponent is a sum of log gates over a stretch of positions, so nothing overflows however strong they are.
    """
    length, size = q.shape[1], min(CHUNK, q.shape[1])
    missing = -length % size
    # (batch, heads, chunks, positions, features)
    q, k, v, g = (
        F.pad(x, (0, 0, 0, 0, 0, missing)).view(len(x), -1, size, *x.shape[2:]).permute(0, 3, 1, 2, 4)
        for x in (q * scale, k, v, g)
    )
    past = g.cumsum(-2)  # decay since the chunk began
    between = past.unsqueeze(-2) - past.unsqueeze(-3)  # from each position to each
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)[..., None]
    scores = (between.masked_fill(later, -torch.inf).exp() * q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1)
    whole = past[..., -1:, :]
    added = (k * (whole - past).exp()).mT @ v
    S = torch.zeros_like(added[:, :, 0])
    states = []
    for decay, new in zip(whole.exp().mT.unbind(2), added.unbind(2), strict=True):
        states.append(S)
        S = S * decay + new
    y = scores @ v + (q * past.exp()) @ torch.stack(states, dim=2)
    return y.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length]


def naive_recurrent_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, scale: float
) -> Tensor:
    """``S_t = exp(g_t) (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ``; ``beta`` and ``g`` are ``(batch, L, heads)``."""
    S = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for q_t, k_t, v_t, beta_t, g_t in zip(*(x.unbind(1) for x in (q * scale, k, v, beta, g)), strict=True):
        S = S * g_t.exp()[..., None, None]
        known = torch.einsum("bhd, bhdv -> bhv", k_t, S)
        S = S + torch.einsum("bhd, bhv -> bhdv", k_t * beta_t[..., None], v_t - known)
        outputs.append(torch.einsum("bhd, bhdv -> bhv", q_t, S))
    return torch.stack(outputs, dim=1)


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """S6: ``s_t = exp(Δ_t A) s_{t-1} + Δ_t B_t u_t``, ``y_t = C_t · s_t`` for each channel.

    ``u`` and ``delta`` are ``(batch, L, channels)``, ``A`` ``(channels, n)``, ``B`` and ``C`` ``(batch, L, n)``.
    """
    s = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True):
        s = s * (delta_t[..., None] * A).exp() + (delta_t * u_t)[..., None] * B_t[:, None]
        outputs.append((s * C_t[:, None]).sum(-1))
    return torch.stack(outputs, dim=1)
