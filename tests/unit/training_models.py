"""Small models that are trained in tests: dropout, batch normalisation, and an input that is random."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

VOCAB, LENGTH = 12, 10


class Block(nn.Module):
    """Causal attention with dropout, and batch normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.dropout = nn.Dropout(0.2)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        y = self.dropout(y.transpose(1, 2).reshape(batch, length, width))
        normed: Tensor = self.norm((x + y).mT).mT
        return normed


class Tiny(nn.Module):
    """Two blocks; ``(batch, length)`` integers in, logits out."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.out = nn.Linear(width, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(x)
        return logits


def probe(seed: int = 7) -> Tensor:
    """Two sequences to measure on."""
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def train(
    model: nn.Module, steps: int, after: Callable[[Tensor], None] = lambda loss: None
) -> Iterator[Tensor]:
    """Steps of AdamW on random data drawn from the global stream; yields each loss."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        ids = torch.randint(VOCAB, (4, LENGTH))
        loss = cross_entropy(model(ids).mT, ids)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        after(loss)
        yield loss


class Clock:
    """A clock that is set by hand; a measurement takes ``cost``, whatever it really takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
