"""Tolerance-ESS of dense operators at every position: exact counts, if asked certified at both edges of a narrow band."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ess_widgets.metrics._pool import in_parallel
from ess_widgets.metrics._svd import singular_values
from ess_widgets.metrics.delayed import count_delayed
from ess_widgets.metrics.elimination import count, middle
from ess_widgets.metrics.reference import OVERFLOW

__all__ = ["TIE", "tolerance"]

# The band around the threshold: half its width, relative, where rounding allows.
TIE = 1e-6
_EPS = torch.finfo(torch.float64).eps
# Half the band in units of eps * ‖T‖² / τ², what squares in the elimination are rounded to; wide enough for most.
_MARGIN = 256.0
# Where the band need not be wider than this, one count is expected to stay within ``TIE``.
_PREDICTABLE = 1e-4
# Wider bands hold so many singular values that comparing their edges settles little.
_WIDEST = 1e-2
# Decompositions of single blocks that cost as much as the elimination with delayed pivots: N over this.
_FEW = 32
# Where eps * ‖T‖ is this close to the threshold, only a decomposition, which orders what it rounds, makes sense.
_HOPELESS = 1e-2
# Thresholds outside of this are brought near 1 first.
_PLAIN = 2.0**-300, 2.0**300
# Shorter sequences are done before two threads have found a common pace.
_LONG = 768
# Matrix entries per piece of parallel work.
_ENTRIES = 2**19


def tolerance(T: Tensor, tau: Tensor, at: list[int], *, certify: bool = True) -> tuple[Tensor, Tensor]:
    """Count ``#{σ(H_p) > τ}`` for ``H_p = T[p:, :p]``.

    Certified counts are taken at ``τ (1 - δ)`` and ``τ (1 + δ)``. Where both agree, and rounding cannot have moved either
    across ``τ``, the count is certain. The few others are settled by a singular value decomposition, the many,
    as in a matrix full of ties, by elimination with delayed pivots. Else one count at ``τ`` does wherever the rounding
    in it stays within 1e-6 of ``τ``; a value that is nearer to it than that may be counted either way.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``, float64
        Only blocks ``T[p:, :p]`` enter.
    tau : Tensor, ``(B,)``, float64
        Thresholds, positive.
    at : list of int
        Splits, each in ``0 .. N``.
    certify : bool
        Whether to count at both edges of the band everywhere.

    Returns
    -------
    counts : int64 Tensor, ``(B, P)``
    band : float64 Tensor, ``(B, P)``
        Singular values between ``τ (1 - band)`` and ``τ (1 + band)`` may be counted either way, as in any
        computation in float64; zero where the count is certain.

    Examples
    --------
    >>> T = torch.eye(6, dtype=torch.float64).roll(2, 0).tril()[None]
    >>> tolerance(T, torch.tensor([0.5], dtype=torch.float64), [0, 1, 2, 3, 4, 5])[0]
    tensor([[0, 1, 2, 2, 2, 1]])
    """
    size = torch.linalg.vector_norm(T, dim=(-2, -1)) / tau
    large = (~(_MARGIN * _EPS * size.square() <= _PREDICTABLE) | (tau < _PLAIN[0])).nonzero().flatten()
    size[large] = _norm(T[large]) / tau[large]
    extreme = ((tau < _PLAIN[0]) | (tau > _PLAIN[1])) & (size < _PLAIN[1])
    if bool(extreme.any()):
        # In units of a power of two near the threshold, or squares would leave the range of float64.
        exponent = torch.where(extreme, -torch.frexp(tau).exponent, 0)
        tau = _times_power(tau, exponent)
        T = _times_power(T.tril(-1), exponent[:, None, None])
    half = (_MARGIN * _EPS * size.square()).clamp(min=TIE, max=_WIDEST)
    if certify or bool((half > _PREDICTABLE).any()):
        counts, error, doubtful = _both_edges(T, tau, half, at)
        band = torch.zeros_like(error)
    else:
        (counts,), band = _counts(T, tau[None], at)
        error, doubtful = band, ~(band <= TIE)
    again = (doubtful & (error > half[:, None] / 2) & (error < _WIDEST / 4)).any(dim=1)
    if bool(again.any()):
        # Rounding grew beyond the band somewhere: a wider one may hold it, and still no singular value.
        rows = again.nonzero().flatten()
        columns = doubtful[rows].any(dim=0).nonzero().flatten()
        here = rows[:, None], columns
        wide = torch.where(error[here] < _WIDEST / 4, 4 * error[here], TIE).amax(dim=1)
        found, _, open_ = _both_edges(T[rows], tau[rows], wide, [at[c] for c in columns.tolist()])
        settled = doubtful[here] & ~open_
        counts[here] = torch.where(settled, found, counts[here])
        doubtful[here] &= open_
        band[here] = torch.where(settled, 0.0, band[here])
    some = doubtful.any(dim=1).nonzero().flatten().tolist()
    results = in_parallel(
        [partial(_settle, T[b], float(tau[b]), at, doubtful[b].nonzero().flatten().tolist()) for b in some],
        T.device,
    )
    for b, (found, width) in zip(some, results, strict=True):
        counts[b, doubtful[b]] = found.to(T.device)
        band[b, doubtful[b]] = width.to(T.device)
    return counts, band


def _norm(T: Tensor) -> Tensor:
    """Of what is below the diagonal, all that enters; without overflow on the way."""
    T = T.tril(-1)
    largest = torch.linalg.vector_norm(T, ord=torch.inf, dim=(-2, -1)).clamp(min=torch.finfo(T.dtype).tiny)
    norm: Tensor = torch.linalg.vector_norm(T / largest[:, None, None], dim=(-2, -1)) * largest
    return norm


def _times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """``x * 2**exponent`` without overflow of the factor."""
    half = exponent // 2
    return torch.ldexp(torch.ldexp(x, half), exponent - half)


def _both_edges(T: Tensor, tau: Tensor, half: Tensor, at: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, the rounding in them, and where it or a singular value may lie between the edges ``τ (1 ± half)``."""
    counts, error = _counts(T, torch.stack([tau * (1.0 - half), tau * (1.0 + half)]), at)
    return counts[0], error, (counts[0] != counts[1]) | ~(error <= half[:, None] / 2)


def _counts(T: Tensor, tau: Tensor, at: list[int]) -> tuple[Tensor, Tensor]:
    """Counts at thresholds ``(E, B)``, ``(E, B, P)``, and the largest rounding in them, ``(B, P)``."""
    B, N = T.shape[:2]
    each = max(1, _ENTRIES // N**2)
    parts = [slice(start, start + each) for start in range(0, B, each)]
    if len(parts) > 1:
        runs = in_parallel([partial(count, T[p], tau[:, p], at) for p in parts], T.device)
        counts, errors = (torch.cat(some, dim=1) for some in zip(*runs, strict=True))
    elif N < _LONG:
        ((counts, errors),) = in_parallel([partial(count, T, tau, at)], T.device)
    else:
        # The halves of the sequence are the independent pieces.
        halves = [p < middle(N) for p in at]
        runs = in_parallel(
            [
                partial(count, T, tau, [p for p, mine in zip(at, halves, strict=True) if mine is early])
                for early in (True, False)
            ],
            T.device,
        )
        back = torch.tensor(sorted(range(len(at)), key=lambda k: not halves[k])).argsort().to(T.device)
        counts, errors = (torch.cat(some, dim=-1)[..., back] for some in zip(*runs, strict=True))
    return counts, errors.amax(dim=0)


def _settle(T: Tensor, tau: float, at: list[int], doubtful: list[int]) -> tuple[Tensor, Tensor]:
    """Counts and bands of the splits ``at[d]`` of one matrix."""
    N = len(T)
    splits = [at[d] for d in doubtful]
    T = T.tril(-1)
    rounding = _EPS * float(_norm(T[None])) / tau
    if len(splits) > max(4, N // _FEW) and rounding < _HOPELESS:
        return count_delayed(T, tau, splits)
    counts, bands = [], []
    for p in splits:
        sigma = singular_values(T[None, p:, :p])[0]
        if not bool(torch.isfinite(sigma).all()):
            raise ValueError(OVERFLOW)
        counts.append((sigma > tau).sum())
        bands.append(_EPS * N * sigma.max() / tau)
    return torch.stack(counts), torch.stack(bands)
