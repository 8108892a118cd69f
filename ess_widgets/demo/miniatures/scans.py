"""The recurrences of the miniatures in plain torch: names, arguments and layouts are flash-linear-attention's and Mamba's.

`ess_widgets.capture` knows functions of these names, whoever wrote them, and checks what they return.
Shapes: ``(batch, L, heads, features)``; log gates ``g`` are at most 0. All update the state before they read it.
"""

from __future__ import annotations

import torch
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
    q = q * scale
    S = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for q_c, k_c, v_c, g_c in zip(*(x.split(CHUNK, dim=1) for x in (q, k, v, g)), strict=True):
        past = g_c.cumsum(1)  # decay since the chunk began
        between = past[:, :, None] - past[:, None]  # from each position to each, (batch, i, j, heads, features)
        later = torch.ones(between.shape[1:3], dtype=torch.bool, device=q.device).triu(1)[:, :, None, None]
        decay = between.masked_fill(later, -torch.inf).exp()
        scores = torch.einsum("bihd, bjhd, bijhd -> bhij", q_c, k_c, decay)
        inside = torch.einsum("bhij, bjhv -> bihv", scores, v_c)
        outputs.append(inside + torch.einsum("bihd, bhdv -> bihv", q_c * past.exp(), S))
        left = (past[:, -1:] - past).exp()  # decay until the chunk ends
        S = S * past[:, -1].exp().unsqueeze(-1) + torch.einsum("bjhd, bjhv -> bhdv", k_c * left, v_c)
    return torch.cat(outputs, dim=1)


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
