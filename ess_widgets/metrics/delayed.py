"""Nested elimination that postpones pivots which are small beside what they are coupled to.

:mod:`~ess_widgets.metrics.elimination` divides by every pivot when its turn comes. That costs digits where a part of
``T`` has a singular value at the threshold, though no ``H_p`` may have one, and where ``T`` is larger than
``τ`` by more than about 1e6. Here such directions are handed down to both halves and eliminated
there, together with the inputs or outputs that make a large pivot with them. At most as many directions as a half has outputs and
inputs can be coupled to it, so the work stays O(N³), several times that of the plain elimination.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ess_widgets.metrics._inertia import eliminate, negatives

__all__ = ["count_delayed"]

_LEAF = 16
_EPS = torch.finfo(torch.float64).eps
_SLACK = 2.0
# What an elimination may add to a Schur complement, in units of the threshold: eps times this is the error of a step.
_GROWTH = 1e6
# Couplings that are taken for rounding, in units of eps; as much as they are is added to the error.
_NOISE = 64.0


@dataclass
class _Node:
    """What is left of ``K`` on delayed directions, then the outputs, then the inputs ``first : first + m``."""

    K: Tensor
    delayed: int
    m: int
    first: int
    negative: int
    error: float


def count_delayed(T: Tensor, tau: float, at: list[int]) -> tuple[Tensor, Tensor]:
    """Count ``#{σ(H_p) > τ}`` of one matrix at every split; arguments and results as for a plain count.

    Parameters
    ----------
    T : Tensor, ``(N, N)``, float64
        Finite. Only the blocks ``T[p:, :p]`` enter.
    tau : float
        The threshold, positive.
    at : list of int
        Splits, each in ``0 .. N``.

    Returns
    -------
    counts : int64 Tensor, ``(P,)``
    error : float64 Tensor, ``(P,)``
        The count is right for some threshold between ``τ (1 - error)`` and ``τ (1 + error)``.

    Examples
    --------
    A delay: every singular value is 1, and so are those of many parts.

    >>> T = torch.eye(40, dtype=torch.float64).roll(3, 0).tril()
    >>> count_delayed(T, 0.999999, [1, 2, 20, 38])[0]
    tensor([1, 2, 3, 2])
    """
    N = T.shape[-1]
    counts = torch.zeros(N + 1, dtype=torch.int64)
    errors = torch.zeros(N + 1, dtype=torch.float64)
    X = T / tau
    inner = {p for p in at if 0 < p < N}
    identity = torch.eye(N, dtype=T.dtype, device=T.device)
    whole = torch.cat([torch.cat([identity, X], dim=-1), torch.cat([X.mT, identity], dim=-1)])
    growth = max(_GROWTH, 4.0 * float(torch.linalg.vector_norm(X)))
    waiting = [_Node(whole, 0, N, 0, 0, 0.0)]
    del whole, identity
    while waiting:
        node = waiting.pop()
        asked = [p for p in range(node.first, node.first + node.m) if p in inner]
        if not asked:
            continue
        if node.m <= _LEAF:
            _close(node, asked, counts, errors)
        else:
            waiting += [_half(node, late, growth) for late in (False, True)]
            del node
    return counts[at], errors[at]


def _half(node: _Node, late: bool, growth: float) -> _Node:
    """The outputs and inputs of one half, with what the other half's are eliminated into."""
    d, m = node.delayed, node.m
    h = m // 2
    outputs, inputs = range(d, d + m), range(d + m, d + 2 * m)
    gone = [*range(d), *(inputs[:h] if late else outputs[h:])]
    kept = [*outputs[h:], *inputs[h:]] if late else [*outputs[:h], *inputs[:h]]
    P, W, S = (node.K[rows][:, columns] for rows, columns in ((gone, gone), (gone, kept), (kept, kept)))
    P, W, S, negative, magnitude = _reduce(P, W, S, growth)
    return _Node(
        torch.cat([torch.cat([P, W], dim=-1), torch.cat([W.mT, S], dim=-1)]),
        len(P),
        m - h if late else h,
        node.first + h if late else node.first,
        node.negative + negative,
        node.error + _SLACK * _EPS * magnitude,
    )


def _reduce(P: Tensor, W: Tensor, S: Tensor, growth: float) -> tuple[Tensor, Tensor, Tensor, int, float]:
    """Eliminate from ``[[P, W], [Wᵀ, S]]`` the directions of ``P`` that may be; the rest, with what was counted."""
    solved, negative, magnitude = (part[0] for part in eliminate(P[None], W[None]))
    if magnitude <= growth:
        return P[:0, :0], W[:0], S - W.mT @ solved, int(negative), float(magnitude)
    # Directions by how strongly they are coupled: most are not, or weakly, and go first.
    U, strength, _ = torch.linalg.svd(W)
    strong = int((strength.square() > growth).sum())
    coupled = max(strong, int((strength > _EPS * float(strength.max())).sum()))
    P, W = U.mT @ P @ U, U.mT @ W
    count, total = 0, float(torch.linalg.vector_norm(P))
    for start in (coupled, strong, 0):
        # Coupled to the others alone, then to what is kept and to the strong; in the end all that is left.
        values, Q = torch.linalg.eigh(P[start:, start:])
        coupling = Q.mT @ torch.cat([P[start:, :start], W[start:]], dim=-1)
        size = coupling.square().sum(dim=-1)
        good = size <= growth * values.abs()
        # What is nothing but rounding is left out, and so is what it would add.
        noise = ~good & (size.sqrt() <= _NOISE * _EPS * max(1.0, total))
        total += float(size[noise].sum().sqrt()) / (_SLACK * _EPS)
        coupling[noise] = 0.0
        good |= noise
        divided = torch.where(values[:, None] == 0, 0.0, coupling / values[:, None])[good]
        chosen = coupling[good]
        added = chosen.mT @ divided
        total += float((chosen.square().sum(dim=-1) / values[good].abs()).nan_to_num(0.0, 0.0).sum())
        count += int((values[good] < 0).sum())
        stay = ~good
        rest = torch.cat([coupling[stay][:, :start], torch.diag(values[stay])], dim=-1)
        P = torch.cat(
            [torch.cat([P[:start, :start] - added[:start, :start], coupling[stay][:, :start].mT], -1), rest]
        )
        W = torch.cat([W[:start] - added[:start, start:], coupling[stay][:, start:]])
        S = S - added[start:, start:]
    if W.shape[1] < len(P) < len(U):
        # More than can be coupled to what is kept: now it shows which are not.
        P, W, S, more, again = _reduce(P, W, S, growth)
        count, total = count + more, total + again
    return P, W, S, count, total


def _close(node: _Node, asked: list[int], counts: Tensor, errors: Tensor) -> None:
    """Count at each split of a leaf, by one small factorisation each."""
    d, m = node.delayed, node.m
    always = list(range(d))
    rows = torch.tensor([[*always, *range(d + p - node.first, d + p - node.first + m)] for p in asked])
    windows = node.K[rows[:, :, None], rows[:, None, :]]
    negative, _ = negatives(windows)
    counts[asked] = node.negative + negative.cpu()
    errors[asked] = node.error + _SLACK * _EPS * torch.linalg.vector_norm(windows, dim=(-2, -1)).cpu()
