"""The sequence mixers of the paper, each from ``(batch, L, width)`` to the same shape.

Heads of the linear ones have ``state`` key features and ``width / heads`` value channels; their outputs are normalised
per head, as flash-linear-attention does, which leaves the operator alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.demo.miniatures.scans import (
    chunk_gla,
    chunk_linear_attn,
    naive_recurrent_gated_delta_rule,
    selective_scan,
)

__all__ = [
    "GLA",
    "GLAS6",
    "MIXERS",
    "S6",
    "WLA",
    "GatedDeltaNet",
    "LinearAttention",
    "SoftmaxAttention",
    "rotate",
]


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions for ``(batch, L, heads, features)``, features in two halves; periods from ``2π`` to ``2π base``."""
    length, half = x.shape[1], x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(length, device=x.device, dtype=torch.float32)[:, None, None] * rates
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def positive(value: float, name: str) -> float:
    """``value``, if it is a positive number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, but it is {value}")
    return value


class _Heads(nn.Module):
    """Queries and keys of ``state`` features, values of ``width / heads`` channels, and the way back."""

    def __init__(self, width: int, heads: int, state: int) -> None:
        super().__init__()
        self.heads, self.state = heads, state
        self.q = nn.Linear(width, heads * state, bias=False)
        self.k = nn.Linear(width, heads * state, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    @property
    def scale(self) -> float:
        return float(self.state**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        y = self.mix(x, q, k, v)
        return self.out(F.rms_norm(y, y.shape[-1:]).flatten(-2))  # type: ignore[no-any-return]

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mixing itself; tensors are ``(batch, L, heads, features)``."""
        raise TypeError(f"{type(self).__name__} is no mixer: it does not say how it mixes")


class _Rotated(_Heads):
    """Positions by rotation, the slowest with a period of ``2π base``."""

    def __init__(self, width: int, heads: int, state: int, base: float = 10_000.0) -> None:
        super().__init__(width, heads, state)
        self.base = positive(base, "base")


class SoftmaxAttention(_Rotated):
    """SA: causal softmax attention with rotary positions."""

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, self.base), rotate(k, self.base), v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class LinearAttention(_Rotated):
    """LA: the scores as they are, with rotary positions; the state forgets nothing, ``A = I``."""

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return chunk_linear_attn(rotate(q, self.base), rotate(k, self.base), v, scale=self.scale)


class GLA(_Heads):
    """Gated linear attention: ``A = sigmoid(W2 W1 x)^(1/beta)``, ``W2 W1`` of rank 16."""

    def __init__(self, width: int, heads: int, state: int, beta: float = 16.0, rank: int = 16) -> None:
        super().__init__(width, heads, state)
        self.beta = positive(beta, "beta")
        self.gate = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, heads * state))

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        g = F.logsigmoid(self.gate(x)).view(k.shape) / self.beta
        return chunk_gla(q, k, v, g, scale=self.scale)


class WLA(_Heads):
    """Weighted linear attention: the same gates at every position, learned, zero before the sigmoid at the start."""

    def __init__(self, width: int, heads: int, state: int, beta: float = 16.0) -> None:
        super().__init__(width, heads, state)
        self.beta = positive(beta, "beta")
        self.w = nn.Parameter(torch.zeros(heads, state))

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        g = (F.logsigmoid(self.w) / self.beta).expand_as(k)
        return chunk_gla(q, k, v, g, scale=self.scale)


class GLAS6(_Heads):
    """GLA-S6: linear attention with S6's decays, ``A = exp(-[1 … n] / alpha * softplus(W x))``, one Δ per head."""

    def __init__(self, width: int, heads: int, state: int, alpha: float = 1024.0) -> None:
        super().__init__(width, heads, state)
        self.alpha = positive(alpha, "alpha")
        self.delta = nn.Linear(width, heads)

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rates = torch.arange(1, self.state + 1, device=x.device, dtype=x.dtype) / self.alpha
        return chunk_gla(q, k, v, -rates * F.softplus(self.delta(x))[..., None], scale=self.scale)


class GatedDeltaNet(_Heads):
    """Gated DeltaNet: unit keys, erased before they are written again, and one gate per head."""

    def __init__(self, width: int, heads: int, state: int) -> None:
        super().__init__(width, heads, state)
        self.beta = nn.Linear(width, heads)
        self.gate = nn.Linear(width, heads)

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        g = F.logsigmoid(self.gate(x)) / 16
        return naive_recurrent_gated_delta_rule(q, k, v, self.beta(x).sigmoid(), g, scale=self.scale)


class S6(nn.Module):
    """S6, the mixer of Mamba: ``state`` numbers for each channel, ``A = exp(-[1 … n] / alpha * Δ)``."""

    def __init__(self, width: int, heads: int, state: int, alpha: float = 1.0, rank: int = 16) -> None:
        super().__init__()
        self.alpha, self.state = positive(alpha, "alpha"), state
        self.u = nn.Linear(width, width, bias=False)
        up = nn.Linear(rank, width)
        self.delta = nn.Sequential(nn.Linear(width, rank, bias=False), up)
        self.bc = nn.Linear(width, 2 * state, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        # Steps from 0.001 to 0.1 at the start, as Mamba has them.
        steps = torch.logspace(-3, -1, width)
        with torch.no_grad():
            up.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor) -> Tensor:
        B, C = self.bc(x).chunk(2, dim=-1)
        rates = torch.arange(1, self.state + 1, device=x.device, dtype=x.dtype) / self.alpha
        A = -rates.expand(x.shape[-1], -1)
        y = selective_scan(self.u(x), F.softplus(self.delta(x)), A, B, C)
        return self.out(y * F.silu(self.gate(x)))  # type: ignore[no-any-return]


# By the paper's names; each takes (width, heads, state).
MIXERS: dict[str, Any] = {
    "SA": SoftmaxAttention,
    "LA": LinearAttention,
    "WLA": WLA,
    "GLA": GLA,
    "GLA-S6": GLAS6,
    "S6": S6,
    "GDN": GatedDeltaNet,
}
