"""Tolerance-ESS in units of each position's own largest singular value.

The threshold differs from position to position, so that nothing can be eliminated in common. What can be shared is
the Gram matrix: from one position to the next it gains one outer product. Its eigenvalues are the squares of the
singular values, at half the cost of these. Squaring loses half of the digits, which ``tol`` leaves to spare
unless it is tiny; positions where a singular value is nearer to the threshold than the digits reach are decomposed.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from ess_widgets.metrics._pool import in_parallel
from ess_widgets.metrics._svd import singular_values

__all__ = ["relative_tolerance"]

_EPS = torch.finfo(torch.float64).eps
# Below, squares do not resolve the threshold, and singular values are computed directly.
_SMALLEST = 1e-6
# Splits per piece of parallel work, and matrix entries.
_SPLITS = 64
_ENTRIES = 2**22


def relative_tolerance(T: Tensor, tol: float, at: list[int]) -> tuple[Tensor, Tensor]:
    """Count ``#{σ(H_p) > tol * σ_1(H_p)}`` for ``H_p = T[p:, :p]``.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``, float64
        Only blocks ``T[p:, :p]`` enter.
    tol : float
        Positive.
    at : list of int
        Splits, each in ``0 .. N``.

    Returns
    -------
    counts : int64 Tensor, ``(B, P)``
    band : float64 Tensor, ``(B, P)``
        Singular values within this, relative, of the threshold may be counted either way; zero where the
        squares alone were certain.

    Examples
    --------
    >>> T = torch.diag(torch.tensor([1.0, 1e-2, 1e-4, 1.0], dtype=torch.float64)).roll(1, 0).tril()[None]
    >>> relative_tolerance(T, 1e-3, [1, 2, 3])[0]
    tensor([[1, 1, 1]])
    """
    B, N = T.shape[:2]
    counts = torch.zeros(B, N + 1, dtype=torch.int64, device=T.device)
    band = torch.zeros(B, N + 1, dtype=torch.float64, device=T.device)
    inner = sorted({p for p in at if 0 < p < N})
    each = max(1, _ENTRIES // N**2)
    pieces = [
        (slice(start, start + each), list(run))
        for start in range(0, B, each)
        for _, run in groupby(inner, key=lambda p: (p > N // 2, p // _SPLITS))
    ]

    def work(rows: slice, run: list[int]) -> None:
        found = _piece(T[rows], tol, run)
        counts[rows, run], band[rows, run] = found

    in_parallel([partial(work, *piece) for piece in pieces], T.device)
    return counts[:, at], band[:, at]


def _piece(T: Tensor, tol: float, run: list[int]) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(len(T), len(run), dtype=torch.int64, device=T.device)
    band = torch.zeros(len(T), len(run), dtype=torch.float64, device=T.device)
    if tol < _SMALLEST:
        every = torch.ones_like(counts, dtype=torch.bool)
        _decompose(T, tol, run, every, counts, band)
        return counts, band
    # Units of a power of two, so that squares stay within the range of float64.
    largest = T.abs().amax(dim=(-2, -1), keepdim=True)
    T = torch.ldexp(T, -torch.frexp(largest).exponent)
    N = T.shape[-1]
    tall = run[-1] <= N // 2
    doubtful = torch.zeros_like(counts, dtype=torch.bool)
    gram, before = None, 0
    # Grams of fewer inputs than outputs gain outputs as p falls; those of fewer outputs gain inputs as it rises.
    for k in reversed(range(len(run))) if tall else range(len(run)):
        p = run[k]
        if gram is None:
            H = T[:, p:, :p]
            gram = H.mT @ H if tall else H @ H.mT
        elif tall:
            new = T[:, p:before, :p]
            gram = torch.baddbmm(gram[:, :p, :p], new.mT, new)
        else:
            new = T[:, p:, before:p]
            gram = torch.baddbmm(gram[:, p - before :, p - before :], new, new.mT)
        before = p
        squares = torch.linalg.eigvalsh(gram)
        top = squares[:, -1:]
        rounding = 4.0 * _EPS * len(gram[0]) * top
        edge = tol**2 * top
        counts[:, k] = ((squares > edge) & (top > 0)).sum(dim=-1)
        # Beside what is near the threshold, what is so small that its square has left the range of float64.
        doubtful[:, k] = ((squares - edge).abs() <= rounding).any(dim=-1) | (top[:, 0] < 1e-200)
    _decompose(T, tol, run, doubtful, counts, band)
    return counts, band


def _decompose(T: Tensor, tol: float, run: list[int], which: Tensor, counts: Tensor, band: Tensor) -> None:
    for k in which.any(dim=0).nonzero().flatten().tolist():
        rows = which[:, k]
        H = T[rows, run[k] :, : run[k]]
        sigma = singular_values(H)
        counts[rows, k] = (sigma > tol * sigma[:, :1]).sum(dim=-1)
        band[rows, k] = _EPS * max(H.shape[-2:]) / tol
