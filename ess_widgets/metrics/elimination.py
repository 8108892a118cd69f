"""How many singular values of every ``H_p`` exceed a threshold, by nested elimination and inertia: O(N³).

``K = [[I, X], [Xᵀ, I]]``, with ``X`` the strictly lower part of ``T / τ``, restricted to the outputs ``p:`` and the
inputs ``:p`` is ``[[I, H_p / τ], [H_pᵀ / τ, I]]`` and has exactly ``#{σ(H_p) > τ}`` negative eigenvalues. The splits
in ``[a, b)`` share the outputs ``b:`` and the inputs ``:a``. These are eliminated once, their negative pivots
counted, and the Schur complement on the outputs and inputs inside ``[a, b)`` is halved: the left half eliminates
the right half's outputs, the right half the left half's inputs. Inertia is additive (Haynsworth), so counts add up.

An error in a Schur complement is the same error in ``K``: errors add up along the way, unamplified. They are estimated
at each step, so that a count is known to be that for some threshold within ``τ (1 ± error)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ess_widgets.metrics._inertia import eliminate, negatives

__all__ = ["count", "middle"]

# Splits that a leaf holds at most. Below, one small factorisation per split is cheaper than more levels.
_LEAF = 8
# Entries of Schur complements worked on at once: 4 MB, about what stays in a cache.
_ENTRIES = 2**20
# From this size on the two halves are worth the care of their own batches.
_LARGE = 128
_EPS = torch.finfo(torch.float64).eps
# Rounding of one step, in units of eps times the magnitudes that enter it.
_SLACK = 2.0


@dataclass
class _Nodes:
    """A batch of nodes of one size ``m``: what is left of ``K`` on the outputs and inputs ``a : a + m``.

    ``outputs``, ``cross`` (rows for outputs, columns for inputs) and ``inputs`` are ``(n, m, m)``; ``first`` holds the
    ``a`` of each node, ``run`` which of the (threshold, matrix) pairs it belongs to, ``negative`` the negative
    pivots so far, and ``error`` the error so far in units of the threshold: ``(n,)`` each.
    """

    outputs: Tensor
    cross: Tensor
    inputs: Tensor
    first: Tensor
    run: Tensor
    negative: Tensor
    error: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return (getattr(self, name) for name in self.__dataclass_fields__)

    def __getitem__(self, index: slice | Tensor) -> _Nodes:
        return _Nodes(*(part[index] for part in self))


def count(T: Tensor, tau: Tensor, at: list[int]) -> tuple[Tensor, Tensor]:
    """Count ``#{σ(H_p) > τ}`` for every threshold, matrix and split.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``, float64
        Finite. Only the blocks ``T[p:, :p]`` enter.
    tau : Tensor, ``(E, B)``, float64
        Thresholds, positive.
    at : list of int
        Splits, each in ``0 .. N``.

    Returns
    -------
    counts : int64 Tensor, ``(E, B, P)``
    error : float64 Tensor, ``(E, B, P)``
        The count is right for some threshold between ``τ (1 - error)`` and ``τ (1 + error)``; infinite where a pivot
        vanished or left the range of float64.

    Examples
    --------
    >>> T = torch.ones(1, 4, 4, dtype=torch.float64).tril()
    >>> counts, error = count(T, torch.tensor([[1.8], [1.7]], dtype=torch.float64), [0, 1, 2, 3])
    >>> counts[:, 0]
    tensor([[0, 0, 1, 0],
            [0, 1, 1, 1]])
    """
    E, (B, N) = len(tau), T.shape[:2]
    counts = torch.zeros(E * B, N + 1, dtype=torch.int64, device=T.device)
    errors = torch.zeros(E * B, N + 1, dtype=torch.float64, device=T.device)
    inner = sorted({p for p in at if 0 < p < N})
    if inner:
        tree = _Tree(N, inner, counts, errors)
        batch = max(1, _ENTRIES // (E * tree.size**2 // 2))
        for start in range(0, B, batch):
            part = slice(start, start + batch)
            tree.plant(T[part], tau[:, part], torch.arange(E * B, device=T.device).view(E, B)[:, part])
        tree.finish()
    index = torch.tensor(at, dtype=torch.int64, device=T.device)
    return counts[:, index].view(E, B, len(at)), errors[:, index].view(E, B, len(at))


def _join(nodes: list[_Nodes]) -> _Nodes:
    return nodes[0] if len(nodes) == 1 else _Nodes(*map(torch.cat, zip(*nodes, strict=True)))


def _half(nodes: _Nodes, late: bool, untouched: bool = False) -> _Nodes:
    """One half of each node. The late half is the early one with outputs and inputs exchanged.

    ``untouched`` says that the pivots are the identity, with no coupling to what is kept of their own kind.
    """
    h = nodes.cross.shape[-1] // 2
    keep, gone = slice(None, h), slice(h, None)
    same, cross, other = nodes.outputs, nodes.cross, nodes.inputs
    if late:
        keep, gone = gone, keep
        same, cross, other = other, cross.mT, same
    to_other = cross[:, gone, keep]
    same_kept, cross_kept, other_kept = same[:, keep, keep], cross[:, keep, keep], other[:, keep, keep]
    if untouched:
        other_kept = torch.baddbmm(other_kept, to_other.mT, to_other, alpha=-1)
        negative, magnitude = nodes.negative, to_other.square().sum(dim=(-2, -1))
    else:
        to_same = same[:, gone, keep]
        # LAPACK wants its right-hand sides column by column, and leaves its solutions so.
        coupling = torch.cat([same[:, keep, gone], to_other.mT], dim=-2).mT
        solved, negative, magnitude = eliminate(same[:, gone, gone], coupling)
        solved_same, solved_other = solved[..., :h].mT, solved[..., h:].mT
        same_kept = torch.baddbmm(same_kept, solved_same, to_same, alpha=-1)
        cross_kept = torch.baddbmm(cross_kept, solved_same, to_other, alpha=-1)
        other_kept = torch.baddbmm(other_kept, solved_other, to_other, alpha=-1)
        negative = nodes.negative + negative
    if late:
        same_kept, cross_kept, other_kept = other_kept, cross_kept.mT, same_kept
    return _Nodes(
        same_kept,
        cross_kept,
        other_kept,
        nodes.first + h if late else nodes.first,
        nodes.run,
        negative,
        nodes.error + _SLACK * _EPS * magnitude,
    )


def _gram(rows: Tensor) -> Tensor:
    """``rows @ rowsᵀ``, without computing what symmetry gives."""
    m = rows.shape[-2]
    if m < 2 * _LARGE:
        return rows @ rows.mT
    gram = rows.new_empty(*rows.shape[:-1], m)
    half = m // 2
    early, late = rows[..., :half, :], rows[..., half:, :]
    gram[..., :half, :half], gram[..., half:, half:] = _gram(early), _gram(late)
    torch.matmul(late, early.mT, out=gram[..., half:, :half])
    gram[..., :half, half:] = gram[..., half:, :half].mT
    return gram


def _identity_less(gram: Tensor, scale: Tensor) -> Tensor:
    """``I - scale² gram`` for scales ``(E, B, 1, 1)``: ``(E * B, m, m)``."""
    less = (gram * -scale.square()).flatten(0, 1)
    less.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return less


def _leaf_and_size(N: int) -> tuple[int, int]:
    """Splits per leaf, and the smallest ``leaf * 2**depth`` that is at least ``N``."""
    depth = max(0, (-(-N // _LEAF) - 1).bit_length())
    leaf = -(-N // 2**depth)
    return leaf, leaf << depth


def middle(N: int) -> int:
    """The first split of the later half: the halves share next to no work."""
    return _leaf_and_size(N)[1] // 2


class _Tree:
    """The tree of halves over ``N`` splits, pruned to those asked for, and where their counts go."""

    def __init__(self, N: int, at: list[int], counts: Tensor, errors: Tensor) -> None:
        self._leaf, self.size = _leaf_and_size(N)
        asked = torch.zeros(self.size + 1, dtype=torch.int64)
        asked[torch.tensor(at) + 1] = 1
        self._asked_before = asked.cumsum(0)
        self._counts, self._errors = counts, errors
        self._waiting: list[_Nodes] = []

    def plant(self, T: Tensor, tau: Tensor, run: Tensor) -> None:
        """Start from the whole. Nothing is factored: the first pivots are the identity."""
        N, n = T.shape[-1], run.numel()
        scale = 1.0 / tau[..., None, None]
        # What is on and above the diagonal is carried along, and lies outside every block that is used.
        gap = self.size - N
        X = torch.nn.functional.pad(T, (0, gap, 0, gap)) if gap else T
        small = self.size == self._leaf
        m = self.size if small else self.size // 2
        identity = torch.eye(m, dtype=T.dtype, device=T.device).expand(n, m, m)
        run = run.flatten()
        zero = torch.zeros_like(run)
        if small:
            cross = (X * scale).flatten(0, 1)
            self._grow(_Nodes(identity, cross, identity, zero, run, zero, zero.to(T.dtype)), 0)
            return
        shared = X[:, m:, :m]
        error = _SLACK * _EPS * (shared.square().sum(dim=(-2, -1)) / tau.square()).flatten()
        if self._asks(0, m):
            cross = (X[:, :m, :m] * scale).flatten(0, 1)
            inputs = _identity_less(_gram(shared.mT), scale)
            self._grow(_Nodes(identity, cross, inputs, zero, run, zero, error), 0)
        if self._asks(m, m):
            cross = (X[:, m:, m:] * scale).flatten(0, 1)
            outputs = _identity_less(_gram(shared), scale)
            self._grow(_Nodes(outputs, cross, identity, zero + m, run, zero, error), m)

    def _asks(self, first: int, m: int) -> bool:
        return bool(self._asked_before[first + m] > self._asked_before[first])

    def _grow(self, nodes: _Nodes, first: int) -> None:
        """Halve a batch of large nodes that all start at ``first``, depth first."""
        n, m = nodes.cross.shape[:2]
        if not self._asks(first, m):
            return
        if m < _LARGE or m == self._leaf:
            self._waiting.append(nodes)
            if sum(len(some.cross) for some in self._waiting) * m * m >= _ENTRIES:
                self.finish()
        elif n > 1 and n * m * m > _ENTRIES:
            self._grow(nodes[: n // 2], first)
            self._grow(nodes[n // 2 :], first)
        else:
            # At either end of the sequence nothing eliminated has touched the pivots: they are the identity.
            self._grow(_half(nodes, late=False, untouched=first == 0), first)
            self._grow(_half(nodes, late=True, untouched=first + m == self.size), first + m // 2)

    def finish(self) -> None:
        """Halve the small nodes that wait, all in one batch, down to the leaves."""
        if not self._waiting:
            return
        nodes = _join(self._waiting)
        self._waiting = []
        before = self._asked_before.to(nodes.first.device)
        while True:
            m = nodes.cross.shape[-1]
            asked = before[nodes.first + m] > before[nodes.first]
            if not bool(asked.all()):
                nodes = nodes[asked]
            if m == self._leaf:
                break
            nodes = _join([_half(nodes, late=False), _half(nodes, late=True)])
        self._close(nodes)

    def _close(self, nodes: _Nodes) -> None:
        """Count at each split of a leaf, by one small factorisation each."""
        n, m = nodes.cross.shape[:2]
        whole = torch.cat(
            [
                torch.cat([nodes.outputs, nodes.cross], dim=-1),
                torch.cat([nodes.cross.mT, nodes.inputs], dim=-1),
            ],
            dim=-2,
        )
        # Outputs p: and inputs :p are the rows and columns p .. p + m - 1: windows along the diagonal.
        windows = whole.as_strided((n, m, m, m), (4 * m * m, 2 * m + 1, 2 * m, 1)).reshape(-1, m, m)
        negative, magnitude = negatives(windows)
        split = nodes.first[:, None] + torch.arange(m, device=whole.device)
        # At either end there is nothing to count.
        inside = (split > 0) & (split < self._counts.shape[-1] - 1)
        at = nodes.run[:, None].expand_as(split)[inside], split[inside]
        self._counts[at] = (nodes.negative[:, None] + negative.view(n, m))[inside]
        self._errors[at] = (nodes.error[:, None] + _SLACK * _EPS * magnitude.view(n, m))[inside]
