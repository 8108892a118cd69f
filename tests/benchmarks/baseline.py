"""The paper's way: one singular value decomposition per position, the whole loop or a sample of it, scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .clock import seconds

# Seconds up to which the loop runs whole, and those that a sample of it may take.
WHOLE = 20.0
SAMPLE = 8.0
# Positions that a sample has where heads can be left out instead.
POSITIONS = 24


@dataclass(frozen=True)
class Loop:
    """What the loop took, or would have, and the singular values it found.

    ``sigma[k]`` is ``(len(heads), K)`` at position ``positions[k]``. ``deviation`` says by how much a sample
    of ``POSITIONS`` would have missed the time of a loop that ran whole.
    """

    seconds: float
    heads: list[int]
    positions: list[int]
    sigma: list[Tensor]
    whole: bool
    deviation: float | None

    def describe(self, length: int, heads: int) -> str:
        if self.whole:
            return "whole"
        part = f"{len(self.positions)} of {length - 1} positions"
        return part if len(self.heads) == heads else f"{part}, {len(self.heads)} of {heads} heads"


def cost(length: int, position: int) -> float:
    """Operations of one decomposition, up to a factor."""
    rows, columns = length - position, position
    return float(rows * columns * min(rows, columns))


def spread(first: int, stop: int, count: int) -> list[int]:
    """The middles of ``count`` equal parts of ``first .. stop - 1``; all of them where there are no more."""
    size = stop - first
    count = min(count, size)
    return [first + int((k + 0.5) * size / count) for k in range(count)]


def run(
    matrices: Callable[[list[int]], Tensor],
    length: int,
    heads: int,
    *,
    whole: float = WHOLE,
    sample: float = SAMPLE,
) -> Loop:
    """Time ``torch.linalg.svdvals`` over positions, all heads at once, in float64 and with torch's own threads.

    Parameters
    ----------
    matrices : callable
        The operators of some of the heads, ``(b, length, length)``; forming them is not timed.
    whole, sample : float
        Seconds that the whole loop may take, and else a sample.
    """
    one = matrices([0])
    torch.linalg.svdvals(one[:, -4:, :4].double())  # starts threads and libraries
    middle = length // 2
    took, _ = _decompose(one, middle)
    total = sum(cost(length, p) for p in range(1, length))
    estimate = heads * took * total / cost(length, middle)
    if estimate <= whole:
        return _loop(matrices(list(range(heads))), list(range(heads)), list(range(1, length)), heads)
    affordable = sample / estimate * heads * (length - 1)
    positions = spread(1, length, max(min(POSITIONS, int(affordable)), int(affordable / heads), 8))
    chosen = spread(0, heads, max(1, int(affordable / len(positions))))
    return _loop(matrices(chosen), chosen, positions, heads)


def _loop(T: Tensor, chosen: list[int], positions: list[int], heads: int) -> Loop:
    T = T.double()
    length = T.shape[-1]
    took, sigma = zip(*(_decompose(T, p) for p in positions), strict=True)
    times = dict(zip(positions, took, strict=True))
    whole = len(chosen) == heads and len(positions) == length - 1
    deviation = None
    if whole:
        part = spread(1, length, POSITIONS)
        deviation = abs(_scaled({p: times[p] for p in part}, length) / sum(took) - 1.0)
    found = _scaled(times, length) * heads / len(chosen)
    return Loop(found, chosen, positions, list(sigma), whole, deviation)


def _scaled(times: dict[int, float], length: int) -> float:
    """Seconds for all positions, from those for some and their share in the operations."""
    share = sum(cost(length, p) for p in times) / sum(cost(length, p) for p in range(1, length))
    return sum(times.values()) / share


def _decompose(T: Tensor, position: int) -> tuple[float, Tensor]:
    H = T[:, position:, :position].double()
    took, sigma = seconds(lambda: torch.linalg.svdvals(H), T.device)
    return took, sigma.cpu()
