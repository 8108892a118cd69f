"""Small models that several tests share, among them attention that the package has never seen."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB = 61


class Heads(nn.Module):
    """Projections to queries, keys and values, and back; subclasses say how they attend."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(0.3)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(batch, heads, L, dim)`` each."""
        q, k, v = self.qkv(x).chunk(3, -1)
        return tuple(t.unflatten(-1, (self.heads, self.dim)).transpose(1, 2) for t in (q, k, v))  # type: ignore[return-value]

    def merge(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))


def forbidden(L: int) -> Tensor:
    return torch.ones(L, L, dtype=torch.bool).triu(1)


class Fused(Heads):
    """``scaled_dot_product_attention`` with dropout that a careless author never switches off."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.merge(F.scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=True))


class InPlace(Heads):
    """Scores that are scaled, biased, masked and cleaned in place."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        L = x.shape[1]
        scores = q @ k.mT
        scores /= math.sqrt(self.dim)
        scores += 0.1 * (torch.arange(L) - torch.arange(L)[:, None])
        scores.masked_fill_(forbidden(L), -math.inf)
        weights = scores.softmax(-1)
        weights = self.drop(weights)
        return self.merge(weights @ v)


class Einsum(Heads):
    """``(batch, L, heads, dim)`` throughout, ``scores[...] = `` for the mask."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in self.split(x))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.dim**-0.5
        scores[..., forbidden(x.shape[1])] = -1e9
        weights = F.softmax(scores.float(), dim=-1).to(v.dtype)
        return self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class Merged(Heads):
    """One dimension for (batch, heads), or for (heads, batch), and ``bmm``."""

    def __init__(self, *args: Any, heads_first: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heads_first = heads_first

    def forward(self, x: Tensor) -> Tensor:
        batch, L, _ = x.shape
        order = (1, 0) if self.heads_first else (0, 1)
        q, k, v = (t.permute(*order, 2, 3).reshape(-1, L, self.dim) for t in self.split(x))
        bias = torch.zeros(L, L, dtype=q.dtype).masked_fill(forbidden(L), torch.finfo(q.dtype).min)
        scores = torch.baddbmm(bias.expand(q.shape[0], L, L), q, k.mT, beta=1.0, alpha=self.dim**-0.5)
        y = torch.bmm(torch.softmax(scores, -1), v)
        if self.heads_first:
            return self.out(y.view(self.heads, batch, L, self.dim).permute(1, 2, 0, 3).flatten(2))
        return self.merge(y.view(batch, self.heads, L, self.dim))


class TimeFirst(nn.Module):
    """``(L, batch, width)`` around another mixer of ``(batch, L, width)``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


class SharedKeys(Heads):
    """One key and value head for all queries, as an einsum without a head in them."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        k, v = k[:, 0], v[:, 0]
        scores = torch.einsum("bhqd,bkd->bhqk", q, k).masked_fill(forbidden(x.shape[1]), -math.inf)
        return self.merge(torch.einsum("bhqk,bkd->bhqd", scores.softmax(-1), v))


class OwnSoftmax(Heads):
    """No softmax is called at all."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scores = torch.where(forbidden(x.shape[1]), -math.inf, q @ k.transpose(-1, -2))
        e = torch.exp(scores - scores.amax(-1, keepdim=True))
        return self.merge((e / e.sum(-1, keepdim=True)).matmul(v))


class Transposed(Heads):
    """Values on the left: ``vᵀ pᵀ``."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        p = (q @ k.mT).masked_fill(forbidden(x.shape[1]), -math.inf).softmax(-1)
        return self.merge((v.mT @ p.mT).mT)


class Additive(Heads):
    """Bahdanau's scores: no product of queries and keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.score = nn.Parameter(torch.randn(self.dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scores = torch.tanh(q[:, :, :, None] + k[:, :, None]) @ self.score
        p = scores.masked_fill(forbidden(x.shape[1]), -math.inf).softmax(-1)
        return self.merge(p @ v)


class TalkingHeads(Heads):
    """Scores are mixed across heads before the softmax."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.talk = nn.Parameter(torch.randn(self.heads, self.heads))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scores = torch.einsum("bhqk,hg->bgqk", q @ k.mT, self.talk)
        return self.merge(scores.masked_fill(forbidden(x.shape[1]), -math.inf).softmax(-1) @ v)


class Sink(Heads):
    """A learned sink takes a share of every row and is dropped; heads are gated by a mask."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sink = nn.Parameter(torch.randn(self.heads))
        self.register_buffer("gate", torch.tensor([1.0, 0.5, 1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scores = (q @ k.mT).masked_fill(forbidden(x.shape[1]), -math.inf)
        sink = self.sink.reshape(1, -1, 1, 1).expand(x.shape[0], -1, x.shape[1], 1)
        p = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        return self.merge((p * self.gate.view(1, -1, 1, 1)) @ v)


class Relative(Heads):
    """Transformer-XL's shifted positions: padding, views and slices between the product and the softmax."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.position = nn.Parameter(torch.randn(self.heads, 64, self.dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        batch, L = x.shape[:2]
        r = torch.einsum("bhqd,hkd->bhqk", q, self.position[:, :L])
        r = F.pad(r, (1, 0)).view(batch, self.heads, L + 1, L)[:, :, 1:].reshape(batch, self.heads, L, L)
        scores = (q @ k.mT + r) * self.dim**-0.5
        return self.merge(scores.masked_fill(forbidden(L), -math.inf).softmax(-1) @ v)


UNSEEN = (
    Fused, InPlace, Einsum, Merged, SharedKeys, OwnSoftmax, Transposed, Additive, TalkingHeads, Sink, Relative,
)  # fmt: skip


class Block(nn.Module):
    """A mixer, batch normalisation and a network per token, with dropout: what training must not notice."""

    def __init__(self, mixer: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.attn = mixer
        self.norm = nn.BatchNorm1d(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(self.norm(x.transpose(1, 2)).transpose(1, 2))


class TinyLM(nn.Module):
    """A language model of such blocks."""

    def __init__(self, *mixers: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(Block(mixer, width) for mixer in mixers or (Fused(width), InPlace(width)))
        self.head = nn.Linear(width, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tokens(batch: int = 2, length: int = 12) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))
