"""What is proven about the error of a truncation, from discarded singular values alone.

Write ``x_t`` for the state before position ``t`` in balanced coordinates: what is reached and what is observed are both
``Σ_t = diag(σ_k(H_t))``. A *removal* sets coordinates ``k ∈ K_t`` to zero at every position ``t`` of a set ``S``. All of ``T - T_r`` is
a sum over removals, in any order: what is left of a balanced system after one still satisfies
``A Σ_t Aᵀ + B Bᵀ ≤ Σ_{t+1}`` and ``Aᵀ Σ_{t+1} A + Cᵀ C ≤ Σ_t``, which is all that is used.

**Lemma.** Let ``a_t ≥ 1`` and ``b_t > 0`` not increase with ``t``, and at each ``t ∈ S``, with ``a, b`` before it and ``a', b'`` after it, and for
each removed ``σ = σ_k(H_t)``, ``k ∈ K_t``::

    (a' σ + b' / σ) (1 / (a σ) + σ / b) ≤ 4.

Then the removal changes ``T`` by at most ``2 √b_0`` in operator norm. Before the first removal ``a`` may be infinite, after the last ``b'``
may be 0.

*Proof.* Let ``z`` be the state after removal, filled up with zeros, ``w`` what is removed on the way to ``t + 1``, ``d = x - z``, ``p = x + z``. Then
``d_{t+1} = A d_t + w`` and ``p_{t+1} = A p_t + 2 B u_t - w``; ``d`` and ``p`` agree in the removed coordinates ``v``. From the
second inequality ``|e_t|² ≤ dᵀΣd|_t - dᵀΣd|_{t+1} + 2 wᵀΣv - wᵀΣw``, from the first
``0 ≤ pᵀΣ⁻¹p|_t - pᵀΣ⁻¹p|_{t+1} + 4|u_t|² - 2 wᵀΣ⁻¹v - wᵀΣ⁻¹w``. Multiply by ``a_t`` and ``b_t`` and add over ``t``: what ``a`` and ``b`` lose at a
removal leaves ``-(a-a') vᵀΣv - (b-b') vᵀΣ⁻¹v``, and the condition says that, coordinate by coordinate, the quadratic form in ``(w, v)``
is nowhere positive. What remains is ``Σ|e|² ≤ 4 b_0 Σ|u|²``. ∎

So one position costs ``max σ``; one singular value that is constant, or rises and then falls, costs twice its
maximum: the bound known for systems that do not vary in time (Enns 1984; Glover 1984), and for ``σ`` monotone in time
(Shokoohi, Silverman and Van Dooren 1983; Lall and Beck 2003; Sandberg and Rantzer 2004). A ``σ`` that goes up and down
costs more. Here ``a`` and ``b`` are found by dynamic programming over their ratio, for nested spans of positions, each span as one
removal or as several, whichever is cheaper.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["frobenius_bound", "lower_bound", "one_removal", "spectral_bound", "textbook"]

# Spans of positions grow by this factor.
_FAN = 4
# Ratios sqrt(b/a), relative to the largest singular value of a span, 1 among them; and how many steps they move at once.
_RATIO = 1.15
_GRID = _RATIO ** torch.arange(-29.0, 3.0, dtype=torch.float64)
_LOG_KAPPA = 2 * torch.arange(-2.0, 3.0, dtype=torch.float64) * math.log(_RATIO)
_KAPPA = _LOG_KAPPA.exp()
# Rounding in the search itself.
_MARGIN = 1 + 1e-9
_AT_ONCE = 2**20


def spectral_bound(tail: Tensor) -> Tensor:
    """A bound on ``‖T - T_r‖``.

    Parameters
    ----------
    tail : Tensor, ``(N, L, K)``
        Discarded singular values at each position, descending; 0 where fewer are discarded.

    Returns
    -------
    Tensor, ``(N,)``

    Examples
    --------
    One singular value, always 1: twice that, and less where the sequence is short.

    >>> bounds = [spectral_bound(torch.ones(1, L, 1, dtype=torch.float64)).item() for L in (1, 2, 16, 256)]
    >>> [round(bound, 2) for bound in bounds]
    [1.0, 1.16, 1.92, 2.0]
    """
    N, L, K = tail.shape
    if K == 0 or L == 0 or not bool(tail.any()):
        return tail.new_zeros(N)
    high, low = _grouped(tail)
    # All together as one more group, in front.
    least = torch.where(low > 0, low, torch.inf).amin(-1, keepdim=True)
    least = least.where(high[..., :1] > 0, 0.0)
    high, low = torch.cat([high[..., :1], high], dim=-1), torch.cat([least, low], dim=-1)
    cost = high
    size = 1
    while size < L:
        size *= _FAN
        fill = -L % size
        spans = -(-L // size)
        cost = _summed(cost, spans)
        spread = [pad(part, (0, 0, 0, fill)).view(N, spans, size, -1).mT for part in (high, low)]
        cost = torch.minimum(cost, one_removal(*spread))
        cost[..., 0] = torch.minimum(cost[..., 0], cost[..., 1:].sum(-1))
    bound: Tensor = cost[..., 0].sum(-1) * _MARGIN
    return bound


def frobenius_bound(tail: Tensor) -> Tensor:
    """A bound on ``‖T - T_r‖_F``: the sum over positions of the norm of what is discarded there, ``(N,)``.

    Cut one position after the other: the change at ``i`` is ``O_i (1 - Π_i) R̂_i``, where ``R̂_i R̂_iᵀ ≤ Σ_i``.
    """
    norms: Tensor = torch.linalg.vector_norm(tail, dim=-1)
    return norms.sum(-1)


def lower_bound(tail: Tensor) -> tuple[Tensor, Tensor]:
    """What no operator with these ranks can go below, in both norms, ``(N,)`` each (Eckart and Young at each position)."""
    return tail.amax((-2, -1)), torch.linalg.vector_norm(tail, dim=-1).amax(-1)


def textbook(tail: Tensor) -> Tensor:
    """``2 Σ_k max_i σ_k(H_i)``, ``(N,)``."""
    return 2 * tail.amax(-2).sum(-1)


def one_removal(high: Tensor, low: Tensor) -> Tensor:
    """The lemma's ``2 √b_0`` for removals between ``low`` and ``high``, ``(..., positions)``; 0 where nothing is removed.

    Infinite where no sequences are found.
    """
    shape = high.shape[:-1]
    high, low = high.flatten(0, -2), low.flatten(0, -2)
    step = max(1, _AT_ONCE // (len(_GRID) * len(_KAPPA)))
    starts = range(0, len(high), step)
    pieces = [_one_removal(high[start : start + step], low[start : start + step]) for start in starts]
    return torch.cat(pieces).view(shape)


def _one_removal(high: Tensor, low: Tensor) -> Tensor:
    rows, positions = high.shape
    top = high.amax(-1, keepdim=True)
    scale = top.where(top > 0, 1.0)
    removed = high > 0
    # Squares relative to the largest, none so small that it has no inverse; where nothing is removed any number will do.
    x_high, x_low = ((part / scale).clamp(min=1e-140).square().where(removed, 1.0) for part in (high, low))
    at = torch.arange(positions, device=high.device)
    first = torch.where(removed, at, positions).amin(-1)
    last = torch.where(removed, at, -1).amax(-1)
    m = _GRID.to(high.device).square()
    # The logarithm of the least b here, relative to a at the end, for every ratio m = b/a here.
    W = torch.full((rows, len(m)), torch.inf, dtype=high.dtype, device=high.device)
    b_0 = torch.zeros(rows, dtype=high.dtype, device=high.device)
    # Another choice: b falls where σ does and a falls where σ rises, b = a σ². Its b_0 is σ² at the end times all falls.
    following = torch.zeros_like(b_0)
    after = torch.zeros_like(b_0)
    for t in reversed(removed.any(0).nonzero().squeeze(-1).tolist()):
        x = x_high[:, t, None]
        log = x_high[:, t].log()
        following = torch.where(last == t, log, following + (log - after).clamp(min=0.0) * removed[:, t])
        after = torch.where(removed[:, t], log, after)
        begins = (first == t) & (last > t)
        if bool(begins.any()):
            least = (W + torch.log(((x / m + 1) / 4).clamp(min=1.0))).amin(-1)
            b_0 = torch.where(begins, least.exp(), b_0)
        inside = _inside(W, m, x, x_low[:, t, None], removed[:, t, None])
        ends = torch.log(torch.maximum(m, (m + x) / 4))
        W = torch.where((last == t)[:, None], ends, inside)
    alike = (high == low).all(-1)
    bound = 2 * torch.minimum(b_0, following.exp().where(alike, torch.inf)).sqrt()
    return scale.squeeze(-1) * torch.where(first == last, 1.0, bound).where(first < positions, 0.0)


def _inside(W: Tensor, m: Tensor, high: Tensor, low: Tensor, removed: Tensor) -> Tensor:
    """One position earlier: the best over where the ratio goes, of what ``b`` has to lose."""
    kappa = _KAPPA.to(W.device)
    padded = pad(W, (len(kappa) // 2,) * 2, value=torch.inf).unfold(-1, len(kappa), 1)
    # g = a'/a and h = b'/b = κ g, both at most 1, with g (1 + x/m) + h (1 + m/x) <= 4 at both ends.
    m, high, low = m.unsqueeze(-1), high.unsqueeze(-1), low.unsqueeze(-1)
    needed = torch.maximum((1 + high / m) + kappa * (1 + m / high), (1 + low / m) + kappa * (1 + m / low)) / 4
    free = kappa.clamp(min=1.0)
    return (
        padded
        + torch.where(removed.unsqueeze(-1), torch.maximum(needed, free), free).log()
        - _LOG_KAPPA.to(W.device)
    ).amin(-1)


def _grouped(tail: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest of some neighbouring singular values, ``(N, L, groups)``: of each of the first, of more and more
    later on."""
    edges, width = [0], 1
    while edges[-1] < tail.shape[-1]:
        edges.append(min(edges[-1] + width, tail.shape[-1]))
        width = max(1, edges[-1] // 4)
    pieces = [tail[..., start:stop] for start, stop in itertools.pairwise(edges)]
    high = torch.stack([piece[..., 0] for piece in pieces], dim=-1)
    low = torch.stack([piece.where(piece > 0, torch.inf).amin(-1) for piece in pieces], dim=-1)
    return high, low.where(high > 0, 0.0)


def _summed(cost: Tensor, spans: int) -> Tensor:
    """Costs of the spans before, ``(N, spans before, ...)``, added up for the larger ones."""
    fill = spans * _FAN - cost.shape[1]
    cost = torch.cat([cost, cost.new_zeros(cost.shape[0], fill, *cost.shape[2:])], dim=1) if fill else cost
    return cost.view(cost.shape[0], spans, _FAN, *cost.shape[2:]).sum(2)
