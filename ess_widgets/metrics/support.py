"""Structure that a matrix shows by its zeros: windows, short convolutions, documents, padding.

Of ``H_p = T[p:, :p]`` only the rows that read something before ``p`` and the columns that are read from ``p`` on
matter. Consecutive splits share most of them, so they are answered together on a small matrix that holds only
these positions: ``O(N w²)`` for a window ``w`` instead of ``O(N³)``, whatever the route that answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Segment", "apply", "segments"]

# Routes cost about m² (m + this) for m positions: small problems run at less than the full speed of a machine.
_OVERHEAD = 256
# Segments are used where they promise at most this share of the work.
_GAIN = 0.6
# Looked at first: one row in so many, and whether more than this share of its entries is not zero in each matrix.
_SAMPLE, _FULL = 8, 0.8
# Patterns of zeros within one batch that are told apart; beyond, all are treated as having their union.
_PATTERNS = 32
# Entries of small matrices that are stacked at once: 128 MB.
_ENTRIES = 2**24


@dataclass(frozen=True)
class Segment:
    """Splits that are answered together on ``T[index][:, index]``.

    Attributes
    ----------
    order : int array
        Which entries of the list of splits, by ascending split.
    index : int array
        The positions that take part, ascending.
    splits : int array
        For each split, how many of these positions come before it.
    """

    order: np.ndarray[Any, Any]
    index: np.ndarray[Any, Any]
    splits: np.ndarray[Any, Any]

    @property
    def before(self) -> int:
        """Positions before the first split."""
        return int(self.splits[0])

    @property
    def steps(self) -> np.ndarray[Any, Any]:
        """The splits, counted from the first one."""
        steps: np.ndarray[Any, Any] = self.splits - self.splits[0]
        return steps


def segments(T: Tensor, at: list[int]) -> list[Segment]:
    """Groups of splits that need only a small part of ``T`` each, whichever of the batch is asked.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``
        Only zeros and non-zeros are looked at; a position counts if it does for any of the batch.
    at : list of int
        Splits, each in ``0 .. N``.

    Returns
    -------
    list of Segment
        In which every entry of ``at`` occurs once; empty where nothing would be gained.

    Examples
    --------
    Two documents of forty tokens each:

    >>> T = torch.block_diag(torch.ones(40, 40), torch.ones(40, 40)).tril()[None]
    >>> [(len(part.splits), len(part.index)) for part in segments(T, list(range(80)))]
    [(40, 40), (40, 40)]
    """
    if 0 in T.shape or _is_full(T):
        return []
    parts, cost = _plan(*_reach(T), at)
    return parts if cost <= _GAIN * _cost(T.shape[-1]) else []


def apply(route: Callable[..., Any], T: Tensor, at: list[int], *others: Tensor) -> Any:
    """``route(T, at, *others)``, by way of segments where that is cheaper.

    Parameters
    ----------
    route : callable
        Takes a matrix ``(b, n, n)``, splits of it, and parts of ``others``; returns one tensor ``(b, p, ...)`` or a
        tuple of such. It must depend on each ``H_p`` alone, and not on zero rows and columns of it.
    T : Tensor, ``(B, N, N)``
    at : list of int
        Splits, each in ``0 .. N``.
    *others : Tensor, ``(B, ...)``
        What belongs to each matrix, such as a threshold.

    Returns
    -------
    What ``route`` returns for the whole. Dimensions after ``(b, p)`` are padded with zeros to their largest size.

    Examples
    --------
    >>> def nuclear_norm(T, at):
    ...     return torch.stack([torch.linalg.svdvals(T[:, p:, :p]).sum(-1) for p in at], dim=1)
    >>> band = torch.ones(1, 300, 300).tril().triu(-3)
    >>> torch.allclose(apply(nuclear_norm, band, [1, 2, 150]), nuclear_norm(band, [1, 2, 150]))
    True
    """
    if not at or 0 in T.shape or _is_full(T):
        return route(T, at, *others)
    first, last = _reach(T, union=False)
    N = T.shape[-1]
    whole = _cost(N)
    parts, cost = _plan(first.min(axis=0), last.max(axis=0), at)
    patterns, member = np.unique(np.concatenate([first, last], axis=1), axis=0, return_inverse=True)
    member = member.reshape(-1)
    if 1 < len(patterns) <= _PATTERNS:
        plans = [_plan(pattern[:N], pattern[N:], at) for pattern in patterns]
        # A pattern of its own can still need everything: that part then takes the route as it is.
        costs = [min(one, whole) for _, one in plans]
        counts = np.bincount(member, minlength=len(patterns))
        if np.dot(costs, counts) <= _GAIN * len(T) * min(cost, whole):
            groups = [
                torch.from_numpy(np.flatnonzero(member == n)).to(T.device) for n in range(len(patterns))
            ]
            results = [
                _run(
                    route, T[rows], at, [part[rows] for part in others], plan if one <= _GAIN * whole else []
                )
                for rows, (plan, one) in zip(groups, plans, strict=True)
            ]
            return _each(lambda *each: _unsort(each, groups), *results)
    return _run(route, T, at, list(others), parts if cost <= _GAIN * whole else [])


def _cost(size: Any) -> Any:
    return size**2 * (size + float(_OVERHEAD)) + _OVERHEAD


def _reach(T: Tensor, union: bool = True) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The first input of each output, ``N`` where it has none, and the last output of each input, or -1.

    For the union over the batch ``(N,)`` each, or for each matrix ``(B, N)``.
    """
    N = T.shape[-1]
    nonzero = T != 0
    if union:
        nonzero = nonzero.any(dim=0)
    count = torch.arange(1, N + 1, device=T.device, dtype=torch.int16 if N < 2**15 else torch.int32)
    first = N - (nonzero * count.flip(0)).amax(dim=-1)
    last = (nonzero * count.unsqueeze(-1)).amax(dim=-2) - 1
    return first.cpu().numpy().astype(np.int64), last.cpu().numpy().astype(np.int64)


def _is_full(T: Tensor) -> bool:
    """Whether a sample of rows has too few zeros for segments to pay, in any matrix of the batch."""
    N = T.shape[-1]
    rows = torch.arange(min(N - 1, _SAMPLE - 1), N, _SAMPLE, device=T.device)
    share = (T[:, rows] != 0).sum(dim=(-2, -1)) / (rows + 1).sum()
    return bool((share > _FULL).all())


def _plan(
    first: np.ndarray[Any, Any], last: np.ndarray[Any, Any], at: list[int]
) -> tuple[list[Segment], float]:
    """The cheapest of a few ways to cut the splits into segments, and its cost."""
    # Positions that neither read nor are read, such as padding, are left out.
    position = np.arange(len(first))
    active = np.flatnonzero((first < position) | (last > position))
    number = np.searchsorted(active, np.arange(len(first) + 1))
    N, first, last = len(active), number[first[active]], number[np.maximum(last[active], 0)]
    position = np.arange(N)
    # Of H_p: column j takes part for j < p <= last_j, row i for first_i < p <= i.
    columns = _overlaps(position + 1, last + 1, N)
    rows = _overlaps(first + 1, position + 1, N)
    order = np.argsort(at, kind="stable")
    splits = number[np.asarray(at, dtype=np.int64)[order]]
    # A split that nothing crosses, such as the start of a document, starts anew.
    part_of = np.cumsum(columns == 0)[splits]
    begins = splits[np.searchsorted(part_of, part_of, side="left")]
    best: tuple[float, np.ndarray[Any, Any]] | None = None
    length = 1
    while True:
        piece = (splits - begins) // length
        edge = np.flatnonzero(np.r_[True, (np.diff(part_of) != 0) | (np.diff(piece) != 0)])
        low, high = splits[edge], splits[np.r_[edge[1:], len(splits)] - 1]
        cost = float(_cost(columns[low] + (high - low) + rows[high]).sum())
        if best is None or cost < best[0]:
            best = cost, edge
        if length > N:
            break
        length *= 2
    cost, edge = best
    parts = []
    for start, stop in zip(edge, [*edge[1:], len(splits)], strict=True):
        low, high = splits[start], splits[stop - 1]
        before = np.flatnonzero(last[:low] >= low)
        after = high + np.flatnonzero(first[high:] < high)
        index = active[np.concatenate([before, np.arange(low, high), after])]
        parts.append(Segment(order[start:stop], index, splits[start:stop] - low + len(before)))
    return parts, cost


def _overlaps(start: np.ndarray[Any, Any], stop: np.ndarray[Any, Any], N: int) -> np.ndarray[Any, Any]:
    """How many of the intervals ``start .. stop - 1`` hold each of ``0 .. N``."""
    some = start < stop
    steps = np.bincount(start[some], minlength=N + 2) - np.bincount(stop[some], minlength=N + 2)
    return np.cumsum(steps)[: N + 1]


def _run(
    route: Callable[..., Any], T: Tensor, at: list[int], others: list[Tensor], parts: list[Segment]
) -> Any:
    """The route on each segment, put together; on the whole where there are none."""
    if not parts:
        return route(T, at, *others)
    results, order = [], []
    for stack in _stacks(parts, len(T)):
        lead = max(part.before for part in stack)
        size = max(1, lead + max(len(part.index) - part.before for part in stack))
        index = np.full((len(stack), size), -1)
        for row, part in zip(index, stack, strict=True):
            offset = lead - part.before
            row[offset : offset + len(part.index)] = part.index
        steps = np.unique(np.concatenate([part.steps for part in stack]))
        small = [part.repeat(len(stack), *(1,) * (part.ndim - 1)) for part in others]
        answer = route(_gather(T, index), [lead + int(step) for step in steps], *small)
        wanted = [np.searchsorted(steps, part.steps) for part in stack]
        results.append(_each(lambda part, w=wanted: _pick(part, w, len(T)), answer))
        order += [part.order for part in stack]
    place = torch.from_numpy(np.argsort(np.concatenate(order))).to(T.device)
    return _each(lambda *each: torch.cat(_aligned(each), dim=1)[:, place], *results)


def _stacks(parts: list[Segment], batch: int) -> Iterator[list[Segment]]:
    """Segments of about one size, to be answered in one call."""
    groups: dict[Any, list[Segment]] = {}
    for part in parts:
        # Of splits in one run, any others may be asked along; scattered ones are kept apart.
        run = None if part.steps[-1] < len(part.steps) else tuple(part.steps.tolist())
        key = _round(part.before), _round(len(part.index) - part.before), run
        groups.setdefault(key, []).append(part)
    for group in groups.values():
        while group:
            size = max(part.before for part in group) + max(len(part.index) - part.before for part in group)
            count = max(1, _ENTRIES // max(1, batch * size * size))
            yield group[:count]
            group = group[count:]


def _round(size: int) -> int:
    """Up to the next of 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …"""
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step


def _gather(T: Tensor, index: np.ndarray[Any, Any]) -> Tensor:
    """``T[:, index][..., index]`` for each row of ``index``, zero for -1: ``(G * B, m, m)``."""
    where = torch.from_numpy(index).to(T.device)
    absent = where < 0
    where = where.clamp(min=0)
    blocks = T[:, where.unsqueeze(-1), where.unsqueeze(-2)].transpose(0, 1)
    blocks = blocks.masked_fill((absent.unsqueeze(-1) | absent.unsqueeze(-2)).unsqueeze(1), 0.0)
    return blocks.reshape(-1, *blocks.shape[-2:])


def _pick(answer: Tensor, wanted: list[np.ndarray[Any, Any]], batch: int) -> Tensor:
    """Of ``(G * B, p, ...)`` the wanted splits of each segment, side by side: ``(B, P, ...)``."""
    each = answer.reshape(len(wanted), batch, *answer.shape[1:])
    row = torch.from_numpy(np.repeat(np.arange(len(wanted)), [len(w) for w in wanted])).to(answer.device)
    return each.transpose(0, 1)[:, row, torch.from_numpy(np.concatenate(wanted)).to(answer.device)]


def _each(f: Callable[..., Tensor], *answers: Any) -> Any:
    """``f`` of answers that are tensors or tuples of tensors."""
    if isinstance(answers[0], tuple):
        return tuple(f(*each) for each in zip(*answers, strict=True))
    return f(*answers)


def _aligned(answers: tuple[Tensor, ...]) -> list[Tensor]:
    """The same with dimensions after the second padded with zeros to one size."""
    full = [max(sizes) for sizes in zip(*(answer.shape[2:] for answer in answers), strict=True)]
    padded = []
    for answer in answers:
        gaps = [(0, want - have) for want, have in zip(full, answer.shape[2:], strict=True)]
        padded.append(torch.nn.functional.pad(answer, [n for gap in reversed(gaps) for n in gap]))
    return padded


def _unsort(answers: tuple[Tensor, ...], groups: list[Tensor]) -> Tensor:
    """Answers for parts of the batch, in the order of the whole."""
    return torch.cat(_aligned(answers))[torch.cat(groups).argsort()]
