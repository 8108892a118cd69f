"""The numbers of the layer grid: one per head, filled in as they become known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .wire import grid_data

__all__ = ["Grid"]


class Grid:
    """Mean ESS and utilisations of every head; numbers of an earlier input stay until theirs are known."""

    def __init__(self, heads: Mapping[str, int]) -> None:
        self.heads = dict(heads)
        self._rows = {name: row for row, name in enumerate(heads)}
        shape = len(heads), max(heads.values())
        self._ess, self._state_size, self._ceiling = (np.full(shape, np.nan) for _ in range(3))
        self._fresh = np.zeros(shape)
        self._stamps: dict[tuple[str, int], object] = {}

    def is_fresh(self, layer: str, head: int, stamp: object) -> bool:
        return self._stamps.get((layer, head)) == stamp

    def expire(self) -> None:
        self._fresh[:] = 0

    def fill(
        self,
        layer: str,
        head: int,
        stamp: object,
        ess: np.ndarray,
        state_size: np.ndarray,
        ceiling: np.ndarray,
    ) -> None:
        """Take the head's ESS and limits, each ``(L,)``; utilisation is a ratio of sums over positions."""
        at = self._rows[layer], head
        self._ess[at] = ess.mean()
        for values, limit in ((self._state_size, state_size), (self._ceiling, ceiling)):
            values[at] = ess[1:].sum() / limit[1:].sum() if limit[1:].sum() > 0 else 0.0
        self._fresh[at] = 1
        self._stamps[layer, head] = stamp

    def data(self, settings: dict[str, Any]) -> dict[str, Any]:
        return grid_data(self._ess, self._state_size, self._ceiling, self._fresh, settings)
