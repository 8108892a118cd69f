"""The paper's way: one singular value decomposition per position, the whole loop or a sample of it, scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    ``threads`` is what torch was allowed. ``sigma[k]`` is ``(len(heads), K)`` at position ``positions[k]``. ``deviation`` says by how much a sample
    of ``POSITIONS`` would have missed the time of a loop that ran whole.
    """

    seconds: float
    heads: list[int]
    positions: list[int]
    sigma: list[Tensor]
    whole: bool
    threads: int
    deviation: float | None

    def describe(self, length: int, heads: int) -> str:
        parts = ["whole" if self.whole else f"{len(self.positions)} of {length - 1} positions"]
        if len(self.heads) < heads:
            parts.append(f"{len(self.heads)} of {heads} heads")
        if self.threads < torch.get_num_threads():
            parts.append("one thread")
        return ", ".join(parts)


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
    """Time ``torch.linalg.svdvals`` over positions, all heads at once, in float64.

    With torch's own number of threads or with one, whichever a few positions show to be faster: where anything else
    runs on the machine, threads that wait for each other can slow small decompositions down a hundredfold.

    Parameters
    ----------
    matrices : callable
        The operators of some of the heads, ``(b, length, length)``; forming them is not timed.
    whole, sample : float
        Seconds that the whole loop may take, and else a sample.
    """
    estimate, threads = _fastest(matrices([0]))
    estimate *= heads
    if estimate <= whole:
        return _loop(matrices(list(range(heads))), list(range(heads)), list(range(1, length)), heads, threads)
    affordable = sample / estimate * heads * (length - 1)
    positions = spread(1, length, max(min(POSITIONS, int(affordable)), int(affordable / heads), 8))
    chosen = spread(0, heads, max(1, int(affordable / len(positions))))
    return _loop(matrices(chosen), chosen, positions, heads, threads)


def _fastest(one: Tensor) -> tuple[float, int]:
    """Seconds that the loop over one head may take, from three of its positions, and with how many threads."""
    length = one.shape[-1]
    tried = {}
    for threads in {torch.get_num_threads(), 1}:
        with _threads(threads):
            torch.linalg.svdvals(one[:, -4:, :4].double())  # starts threads and libraries
            tried[threads] = _scaled({p: _decompose(one, p)[0] for p in spread(1, length, 3)}, length)
    threads = min(tried, key=tried.__getitem__)
    return tried[threads], threads


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loop(T: Tensor, chosen: list[int], positions: list[int], heads: int, threads: int) -> Loop:
    T = T.double()
    length = T.shape[-1]
    with _threads(threads):
        took, sigma = zip(*(_decompose(T, p) for p in positions), strict=True)
    times = dict(zip(positions, took, strict=True))
    whole = len(chosen) == heads and len(positions) == length - 1
    deviation = None
    if whole:
        part = spread(1, length, POSITIONS)
        deviation = abs(_scaled({p: times[p] for p in part}, length) / sum(took) - 1.0)
    found = _scaled(times, length) * heads / len(chosen)
    return Loop(found, chosen, positions, list(sigma), whole, threads, deviation)


def _scaled(times: dict[int, float], length: int) -> float:
    """Seconds for all positions, from those for some and their share in the operations."""
    share = sum(cost(length, p) for p in times) / sum(cost(length, p) for p in range(1, length))
    return sum(times.values()) / share


def _decompose(T: Tensor, position: int) -> tuple[float, Tensor]:
    H = T[:, position:, :position].double()
    took, sigma = seconds(lambda: torch.linalg.svdvals(H), T.device)
    return took, sigma.cpu()
