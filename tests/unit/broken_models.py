"""Small models whose heads can be broken one by one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, WIDTH = 4, 8
DIM = HEADS * WIDTH


class Attention(nn.Module):
    """Softmax attention with rotary-free queries and keys; ``bias`` is added to the scores of each head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.out = nn.Linear(DIM, DIM, bias=False)
        self.bias: dict[int, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        batch, L, _ = x.shape
        q, k, v = self.qkv(x).view(batch, L, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        mask = torch.full((L, L), -torch.inf).triu(1).repeat(HEADS, 1, 1)
        for head, bias in self.bias.items():
            mask[head] += bias(L)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(batch, L, DIM))  # type: ignore[no-any-return]


def chunk_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> tuple[Tensor, None]:
    """Gated linear attention as flash-linear-attention lays it out, ``(batch, L, heads, features)``."""
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    rows = []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp().unsqueeze(-1) + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * scale, state))
    return torch.stack(rows, 1), None


class GLA(nn.Module):
    """Gated linear attention; ``gate`` holds what each head's log gates are moved by."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.g = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))
        self.out = nn.Linear(DIM, DIM, bias=False)
        self.gate = torch.zeros(HEADS)
        self.scale_gate = torch.ones(HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, g = (part(x).unflatten(-1, (HEADS, WIDTH)) for part in (self.q, self.k, self.v, self.g))
        g = F.logsigmoid(g) / 16 * self.scale_gate[:, None] + self.gate[:, None]
        y, _ = chunk_gla(q, k, v, g, scale=WIDTH**-0.5)
        return self.out(F.rms_norm(y, y.shape[-1:]).flatten(-2))  # type: ignore[no-any-return]


class Model(nn.Module):
    """Two mixers with residual connections, on embedded tokens."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, DIM)
        self.layers = nn.ModuleList(kind() for _ in range(2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=1.0 if parameter.shape[0] == 64 else 2.0 * DIM**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(F.rms_norm(x, x.shape[-1:]))
        return x  # type: ignore[no-any-return]


def ids(length: int = 48, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def on_first(L: int) -> Tensor:
    return torch.where(torch.arange(L) == 0, 40.0, 0.0)


def on_previous(L: int) -> Tensor:
    lag = torch.arange(L)[:, None] - torch.arange(L)
    return torch.where((lag == 1) | ((lag == 0) & (torch.arange(L) == 0)), 40.0, 0.0)


def on_itself(L: int) -> Tensor:
    return 40.0 * torch.eye(L)
