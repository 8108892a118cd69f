"""Tensors that several heads or samples use in common, without copies until they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Shared"]


@dataclass(frozen=True)
class Shared:
    """Distinct ``items`` and, for each entry of the operator's leading dimensions, which of them it uses.

    ``index`` holds one integer tensor of the leading shape per leading dimension of ``items``; it is empty
    where a single item serves all, and ``gather`` then returns that item alone, to be broadcast.
    """

    items: Tensor
    index: tuple[Tensor, ...]

    @classmethod
    def broadcast(cls, value: Tensor, lead: torch.Size, inner: int) -> Shared:
        """Take a tensor that broadcasts to ``lead`` and its last ``inner`` dimensions, without copying."""
        outer = value.ndim - inner
        index = []
        for dim in reversed(range(outer)):
            at = dim - outer + len(lead)
            if value.shape[dim] == 1 or value.stride(dim) == 0:
                value = value.select(dim, 0)
                continue
            shape = [1] * len(lead)
            shape[at] = lead[at]
            index.append(torch.arange(lead[at], device=value.device).view(shape).expand(lead))
        return cls(value, tuple(reversed(index)))

    def __getitem__(self, where: tuple[Any, ...]) -> Shared:
        """Index the leading dimensions."""
        return Shared(self.items, tuple(part[where] for part in self.index))

    def gather(self) -> Tensor:
        """The item of each leading entry."""
        return self.items[self.index] if self.index else self.items

    def map(self, f: Callable[[Tensor], Tensor]) -> Shared:
        """Apply ``f``, which keeps leading dimensions, to the distinct items."""
        return Shared(f(self.items), self.index)

    def to(self, device: torch.device | str) -> Shared:
        return Shared(self.items.to(device), tuple(part.to(device) for part in self.index))

    @staticmethod
    def map_pairs(a: Shared, b: Shared, f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``f`` of every distinct pair of items, one result per leading entry."""
        index = (*a.index, *b.index)
        if not index:
            return f(a.items, b.items)
        lead = index[0].shape
        table = torch.stack([part.reshape(-1) for part in index])
        # One row per distinct pair, and for each leading entry the row it uses.
        pairs, which = torch.unique(table, dim=1, return_inverse=True)
        first, second = tuple(pairs[: len(a.index)]), tuple(pairs[len(a.index) :])
        results = f(Shared(a.items, first).gather(), Shared(b.items, second).gather())
        return results[which].reshape(*lead, *results.shape[1:])
