"""Operators of measured steps, kept within a budget of memory."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

__all__ = ["LayerSnapshot", "Snapshots"]

# A step may take this part of the budget: a few steps side by side say more than one in full.
_PART = 8


@dataclass(frozen=True)
class LayerSnapshot:
    """A layer's operators for one sample.

    Attributes
    ----------
    heads : tuple of int
        Which of the measured heads are kept.
    matrix : Tensor, ``(heads, d*L, d*L)``
        On the CPU.
    valid : Tensor or None
        The sample's own tokens, ``(L,)``.
    block : int
        ``d``, rows for each position.
    ess : ndarray, ``(heads, L)``
        NaN at positions that were not measured.
    state_size, ceiling : ndarray, ``(heads, L)``
    """

    heads: tuple[int, ...]
    matrix: Tensor
    valid: Tensor | None
    block: int
    ess: np.ndarray
    state_size: np.ndarray
    ceiling: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        curves = self.ess.nbytes + self.state_size.nbytes + self.ceiling.nbytes
        return self.matrix.numel() * self.matrix.element_size() + curves


class Snapshots:
    """Layers by step. Where the budget is exceeded a step is left out, so that the others stay evenly spread.

    Parameters
    ----------
    megabytes : float
        Budget; 0 keeps nothing.

    Examples
    --------
    >>> import torch
    >>> kept = Snapshots(3 * 4 * 16 / 1e6)
    >>> curve = np.zeros((1, 0))
    >>> for step in range(5):
    ...     layer = LayerSnapshot((0,), torch.zeros(1, 4, 4), None, 1, curve, curve, curve)
    ...     kept.add(step, {"mixer": layer})
    >>> kept.steps
    [0, 2, 4]
    """

    def __init__(self, megabytes: float) -> None:
        self.budget = megabytes * 1e6
        self._lock = threading.Lock()  # views read on other threads
        self._kept: dict[int, dict[str, LayerSnapshot]] = {}

    @property
    def steps(self) -> list[int]:
        """Which steps are kept, ascending."""
        with self._lock:
            return sorted(self._kept)

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        with self._lock:
            return self._size()

    def share(self, sizes: Mapping[str, int], heads: Mapping[str, int]) -> dict[str, list[int]]:
        """Which heads of each layer to keep, evenly spaced, so that a step takes its part of the budget.

        Parameters
        ----------
        sizes : dict of str to int
            Bytes that one head of a layer takes.
        heads : dict of str to int
            How many there are.
        """
        whole = sum(sizes[name] * heads[name] for name in heads)
        part = self.budget / _PART
        if whole <= part or whole == 0:
            return {name: list(range(count)) for name, count in heads.items()}
        if sum(sizes.values()) > self.budget:
            return {name: [] for name in heads}
        scale = part / whole
        return {name: _spread(count, max(1, int(count * scale))) for name, count in heads.items()}

    def add(self, step: int, layers: Mapping[str, LayerSnapshot]) -> None:
        """Keep a step."""
        if not layers:
            return
        with self._lock:
            self._kept[step] = dict(layers)
            while self._size() > self.budget and self._kept:
                steps = sorted(self._kept)
                if len(steps) < 3:
                    del self._kept[steps[0]]
                    continue
                # The first and the last stay; of the others goes the one whose neighbours are closest.
                gaps = [after - before for before, after in zip(steps, steps[2:], strict=False)]
                del self._kept[steps[1 + gaps.index(min(gaps))]]

    def nearest(self, step: float) -> int | None:
        """The kept step closest to ``step``."""
        steps = self.steps
        if not steps:
            return None
        at = bisect_left(steps, step)
        return (
            steps[-1]
            if at == len(steps)
            else min(steps[max(0, at - 1) : at + 1], key=lambda kept: abs(kept - step))
        )

    def at(self, step: int) -> dict[str, LayerSnapshot] | None:
        """The layers of a step, if it is kept."""
        with self._lock:
            return self._kept.get(step)

    def shape(self, layer: str) -> list[int] | None:
        """Which of a layer's measured heads are kept, by the newest step; None if nothing is."""
        with self._lock:
            for step in sorted(self._kept, reverse=True):
                if layer in self._kept[step]:
                    return list(self._kept[step][layer].heads)
        return None

    def rewind(self, step: int) -> None:
        """Forget what is later than ``step``."""
        with self._lock:
            for later in [kept for kept in self._kept if kept > step]:
                del self._kept[later]

    def _size(self) -> int:
        return sum(layer.nbytes for layers in self._kept.values() for layer in layers.values())


def _spread(count: int, most: int) -> list[int]:
    return [i * count // most for i in range(most)] if count > most else list(range(count))
