"""How deep and how wide a curve dips between two positions, against what its surroundings lead one to expect."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Dips", "Shoulders", "measure", "placebos", "shoulders"]

Array = np.ndarray[Any, Any]
FEWEST = 2  # positions that a shoulder must have


@dataclass(frozen=True)
class Shoulders:
    """The positions on both sides whose mean is the baseline, each side non-empty."""

    left: range
    right: range


def shoulders(cuts: range, taken: Collection[int], length: int, window: int, gap: int) -> Shoulders | str:
    """The positions at a distance of ``gap+1 … window`` on both sides, up to the next delimiter's cuts ``taken``.

    Returns what is in the way where there is no room: an end of the sequence, where the ceiling is close to 0, or
    another delimiter.
    """
    first, last = cuts[0], cuts[-1]
    if first - window < 1:
        return f"fewer than {window} positions from the start"
    if last + window > length - 1:
        return f"fewer than {window} positions from the end"
    low = max((at + 1 for at in taken if at < first), default=0)
    high = min((at - 1 for at in taken if at > last), default=length)
    left = range(max(first - window, low), first - gap)
    right = range(last + gap + 1, min(last + window, high) + 1)
    if len(left) < FEWEST or len(right) < FEWEST:
        return "another delimiter is too close"
    return Shoulders(left, right)


def placebos(
    size: int, taken: Collection[int], length: int, window: int, gap: int
) -> list[tuple[range, Shoulders]]:
    """Everything of ``size`` positions that is farther than ``gap`` from all delimiters and has room on both sides."""
    found = []
    for first in range(1, length):
        cuts = range(first, first + size)
        if any(cuts[0] - gap <= at <= cuts[-1] + gap for at in taken):
            continue
        sides = shoulders(cuts, taken, length, window, gap)
        if not isinstance(sides, str):
            found.append((cuts, sides))
    return found


@dataclass(frozen=True)
class Dips:
    """One dip in each of several curves, ``(heads,)`` each.

    Attributes
    ----------
    position : integers
        Among the cuts, where ESS is farthest below what is expected.
    ess, ceiling
        There.
    line
        ESS there on the straight line between the shoulders' means.
    expected
        What the line and the ceiling lead one to expect: from the line, cut off at the ceiling, to the line bent as the
        ceiling is (``line * ceiling / the ceiling's own line``), whatever is nearest to ESS. So neither a curve that
        does not notice the ceiling's bends dips there, nor one that follows them.
    width
        Positions in a row, around ``position``, that lack at least half as much; NaN where nothing is lacking.
        At most what the shoulders span.
    """

    position: Array
    ess: Array
    ceiling: Array
    line: Array
    expected: Array
    width: Array

    @property
    def lost(self) -> Array:
        return self.expected - self.ess

    @property
    def depth(self) -> Array:
        """``lost / expected``; 0 where the ceiling leaves nothing to lose, NaN where nothing was there at all."""
        return _share(self.lost, self.expected, self.line)

    @property
    def depth_raw(self) -> Array:
        """``(line - ess) / line``: the ceiling is not taken into account."""
        return _share(self.line - self.ess, self.line, self.line)


def _share(lost: Array, whole: Array, line: Array) -> Array:
    share = np.divide(lost, whole, out=np.zeros_like(whole), where=whole > 0)
    return np.where(line > 0, share, np.nan)


def measure(
    ess: Array, ceiling: Array, cuts: Sequence[int], sides: Shoulders, *, widths: bool = True
) -> Dips:
    """The dip of each curve, ``(heads, L)``, at the cuts."""
    span = np.arange(sides.left[0], sides.right[-1] + 1)
    here, limit = ess[:, span], ceiling[:, span]
    line, top = _line(ess, span, sides), _line(ceiling, span, sides)
    # Between a curve that does not notice the ceiling and one that follows it, the ceiling may explain anything.
    free = np.minimum(line, limit)
    bound = line * np.divide(limit, top, out=np.zeros_like(top), where=top > 0)
    expected = np.clip(here, np.minimum(free, bound), np.maximum(free, bound))
    inside = np.asarray(cuts) - span[0]
    rows = np.arange(len(ess))
    # Where the ceiling explains all of it, the lowest ESS.
    best = inside[(expected - here + 1e-6 * (line - here))[:, inside].argmax(axis=1)]
    return Dips(
        position=span[best],
        ess=here[rows, best],
        ceiling=limit[rows, best],
        line=line[rows, best],
        expected=expected[rows, best],
        width=_width(expected - here, best) if widths else np.full(len(ess), np.nan),
    )


def _line(curve: Array, span: Array, sides: Shoulders) -> Array:
    """Between the means of the two shoulders, and level beyond them, ``(heads, span)``."""
    left, right = np.asarray(sides.left), np.asarray(sides.right)
    a, b = left.mean(), right.mean()
    weight = np.clip((span - a) / (b - a), 0.0, 1.0)
    line: Array = curve[:, left].mean(1)[:, None] * (1 - weight) + curve[:, right].mean(1)[:, None] * weight
    return line


def _width(lack: Array, best: Array) -> Array:
    rows, count = np.arange(len(lack)), lack.shape[1]
    low = lack >= lack[rows, best][:, None] / 2
    at = np.arange(count)[None]
    # The nearest position on either side that lacks less than half.
    before = np.where(~low & (at < best[:, None]), at, -1).max(axis=1)
    after = np.where(~low & (at > best[:, None]), at, count).min(axis=1)
    return np.where(lack[rows, best] > 0, after - before - 1.0, np.nan)
