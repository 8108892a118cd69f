"""Spectra at every position of a matrix whose past-to-future blocks have low numerical rank.

The positions ``p`` in ``[a, b)`` share the outputs from ``b`` on and the inputs before ``a``. Where
``T[b:, :b]`` and ``T[a:, :a]`` have rank ``r``, orthogonal projections replace these shared parts by ``r``
rows and ``r`` columns; halving ``[a, b)`` on and on, each position is left with one small matrix that has
the singular values of ``H_p``. Orthogonal throughout, and scaled to each position's own size: no digit is
lost where the spectrum falls fast or where neighbouring positions differ by many orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ess_widgets.metrics._svd import one_thread, singular_values

__all__ = ["rank_estimate", "spectra"]

# Positions that share one leaf: fewer cost more projections, more cost larger decompositions.
_LEAF = 8
# Rows of the largest matrices that torch has cuSOLVER decompose as a batch.
_BATCHED = 32
# Columns of a basis beyond the rank that a random sketch shows, and those added where it misses something.
_SPARE = 2
# Rounding of one projection or one small decomposition, in units of eps times the norm of what it is applied
# to; several times what is seen.
_ROUNDING = 8.0
# Entries of T that are worked on at once: 128 MB in float64.
_ENTRIES = 2**24
# Squares of smaller numbers (T's largest entry being 1) vanish in float64.
_UNDERFLOW = 1e-150
_EPS = torch.finfo(torch.float64).eps


def spectra(
    T: Tensor, at: Sequence[int], *, rank_limit: int | None = None, discard: float = 0.0
) -> tuple[Tensor, Tensor] | None:
    """Singular values of ``H_p = T[p:, :p]`` where all of these have low numerical rank.

    About ``O(N² r + N r³)`` operations in place of ``O(N⁴)``.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``
        float32 or float64, on the CPU or a CUDA device. Entries on and above the diagonal do not enter.
    at : sequence of int
        Splits ``p``, in ``0 .. N``.
    rank_limit : int, optional
        The largest rank worth compressing to; ``N // 4``, at least 8, by default. A caller that has another
        route sets it to where that one becomes cheaper.
    discard : float
        Absolute error allowed in each singular value, beyond rounding. A thousandth of the tie band of a
        tolerance, say: it lowers the rank where the spectrum decays slowly, or ends in the rounding of a
        narrower dtype. By default nothing above rounding is discarded.

    Returns
    -------
    sigma : Tensor, ``(B, P, K)``
        Descending, float64; those beyond ``K`` are zero within the bound.
    bound : Tensor, ``(B, P)``
        No singular value of ``H_p`` is farther than this from the one returned: the measured norms of all
        that was discarded, and an estimate of the rounding, a small multiple of ``eps`` times the
        Frobenius norm of ``H_p``, whatever the size of the rest of ``T``.
    None
        In place of both, where a rank above ``rank_limit`` is met; most often from a few samples, for a few
        hundredths of what any dense route costs.

    References
    ----------
    The range finder is that of Halko, Martinsson and Tropp, SIAM Review 53 (2011); what it finds is
    verified, so that chance enters the time, never the result beyond its bound.

    Examples
    --------
    >>> import torch
    >>> q, k = torch.randn(2, 1, 128, 4, dtype=torch.float64)
    >>> sigma, bound = spectra(q @ k.mT, range(128))
    >>> (sigma > 1e-3).sum(dim=-1)[0, :6]
    tensor([0, 1, 2, 3, 4, 4])
    >>> spectra(torch.randn(1, 128, 128), range(128)) is None
    True
    """
    N = T.shape[-1]
    wanted = torch.as_tensor(list(at), dtype=torch.int64)
    limit = _limit(N, rank_limit)
    if T.shape[0] == 0:
        empty = torch.zeros(0, len(wanted), dtype=torch.float64, device=T.device)
        return empty.unsqueeze(-1), empty
    step = max(1, _ENTRIES // (N * N))
    parts = []
    with one_thread(T.device):
        if limit < N // 2 and bool((rank_estimate(T, limit=limit, discard=discard) > limit).any()):
            return None
        for start in range(0, T.shape[0], step):
            part = _compressed(T[start : start + step], wanted, limit, discard)
            if part is None:
                return None
            parts.append(part)
    K = max(sigma.shape[-1] for sigma, _ in parts)
    sigmas = [torch.nn.functional.pad(sigma, (0, K - sigma.shape[-1])) for sigma, _ in parts]
    return torch.cat(sigmas), torch.cat([bound for _, bound in parts])


def rank_estimate(T: Tensor, *, limit: int | None = None, discard: float = 0.0) -> Tensor:
    """The largest numerical rank among the blocks below the diagonal, estimated from random sketches.

    Cheap (a pass over these blocks and a few small QR), to choose who takes this route. Of the blocks are
    taken the lower left quarter, the same of the two remaining triangles, and so on while their size exceeds
    the limit. Singular values below about ``1e-15`` of a block's largest do not count.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``
    limit : int, optional
        Ranks above are not told apart; ``N // 4``, at least 8, by default.
    discard : float
        Singular values below do not count either.

    Returns
    -------
    Tensor, ``(B,)``
        int64, at most ``limit + 1``.

    Examples
    --------
    >>> import torch
    >>> rank_estimate(torch.ones(1, 64, 64).tril())
    tensor([1])
    """
    B, N = T.shape[0], T.shape[-1]
    limit = _limit(N, limit)
    found = torch.zeros(B, dtype=torch.int64, device=T.device)
    count, size = 1, N
    while B and size > 1:
        low = torch.nonzero(found <= limit).squeeze(-1)
        kept = T if len(low) == B else T[low]
        half = size // 2
        blocks = _diagonal_blocks(kept[:, : count * size, : count * size], size)[..., size - half :, :half]
        ranks = _sketched_rank(blocks.flatten(0, 1), limit, discard)
        found[low] = found[low].maximum(ranks.view(len(low), count).amax(dim=-1))
        count, size = 2 * count, half
        if half // 2 <= limit or not bool((found <= limit).any()):
            break
    return found


def _sketched_rank(G: Tensor, limit: int, discard: float) -> Tensor:
    """Of each matrix ``(b, k, l)``, ``limit + 1`` for all that is above."""
    unit = _power_of_two(_largest(G))
    found = torch.full((G.shape[0],), limit + 1, dtype=torch.int64, device=G.device)
    todo = torch.arange(G.shape[0], device=G.device)
    # Most low ranks are very low, and most others show it in a small sketch: size up in two steps.
    for size in sorted({min(48, limit), limit}):
        sketch = _fold(_fold(G[todo] / unit[todo, None, None], size + 1).mT, size + 1)
        rank = _diagonal_rank(torch.linalg.qr(sketch, mode="r")[1], discard / unit[todo])
        settled = rank <= size
        found[todo[settled]] = rank[settled]
        todo = todo[~settled]
        if not len(todo):
            break
    return found


def _limit(N: int, limit: int | None) -> int:
    return max(8, N // 4) if limit is None else limit


def _fold(G: Tensor, size: int) -> Tensor:
    """Add up the rows, with random signs, into ``size`` rows: ``(b, k, l)`` to ``(b, min(k, size), l)``."""
    k = G.shape[-2]
    if k <= size:
        return G.double()
    signs = torch.randint(0, 2, (k, 1), generator=_random(k)).double() * 2 - 1
    signed = G * signs.to(G.device)
    padded = torch.nn.functional.pad(signed, (0, 0, 0, -k % size))
    return padded.reshape(G.shape[0], -1, size, G.shape[-1]).sum(dim=1)


def _largest(T: Tensor) -> Tensor:
    # Without a copy of the magnitudes.
    return torch.maximum(T.amax(dim=(-2, -1)), -T.amin(dim=(-2, -1))).double()


def _power_of_two(largest: Tensor) -> Tensor:
    """One near it: dividing by that rounds nothing."""
    return torch.exp2(torch.frexp(largest).exponent.double().clamp(-1000, 1000))


def _random(seed: int) -> torch.Generator:
    """Its own, so that no global random state moves and results repeat."""
    return torch.Generator().manual_seed(seed)


def _diagonal_rank(R: Tensor, discard: Tensor) -> Tensor:
    """Numerical rank from the triangular factor of randomly mixed columns, ``(b, k, l)`` to ``(b,)``."""
    diagonal = R.diagonal(dim1=-2, dim2=-1).abs()
    scale = R.square().sum(dim=(-2, -1)).sqrt() / math.sqrt(max(1, R.shape[-1]))
    negligible = (_noise(R) * scale).maximum(discard)
    return _last(diagonal > negligible.unsqueeze(-1))


def _noise(M: Tensor) -> float:
    """Rounding of products with such a matrix, relative to its norm: sums of as many terms as it has rows."""
    return _EPS * (4 + math.sqrt(max(M.shape[-2:])))


def _last(flags: Tensor) -> Tensor:
    """One more than the index of the last True, ``(b, k)`` to ``(b,)``."""
    index = torch.arange(1, flags.shape[-1] + 1, device=flags.device)
    return (flags * index).amax(dim=-1) if flags.shape[-1] else flags.sum(dim=-1)


@dataclass
class _Level:
    """All nodes of one size: ``[a, a + size)`` for each ``a`` in ``starts``.

    ``corner (B, n, f, g)``: what the ``f`` compressed outputs read of the ``g`` compressed past inputs;
    ``past (B, n, size, g)``: what a node's own outputs read of them; ``future (B, n, f, size)``: what the
    compressed outputs read of the node's own inputs.
    """

    starts: Tensor
    size: int
    corner: Tensor
    past: Tensor
    future: Tensor


def _compressed(T: Tensor, wanted: Tensor, limit: int, discard: float) -> tuple[Tensor, Tensor] | None:
    B, N = T.shape[0], T.shape[-1]
    depth = max(0, math.ceil(math.log2(max(1, N) / _LEAF)))
    size = -(-N // 2**depth)
    X = torch.zeros(B, size << depth, size << depth, dtype=torch.float64, device=T.device)
    X[:, :N, :N] = T
    X.tril_(-1)
    largest = _largest(X)
    unit = _power_of_two(largest)
    X /= unit[:, None, None]
    bound = torch.zeros(B, size << depth, dtype=torch.float64, device=T.device)
    bound[:, 1:] = _UNDERFLOW * N * (largest > 0)[:, None]
    splits = torch.unique(wanted[wanted < N]).to(T.device)
    # Each level may use its part of it.
    allowed = discard / max(1, depth) / unit
    level = _Level(
        torch.zeros(1, dtype=torch.int64, device=T.device),
        size << depth,
        X.new_zeros(B, 1, 0, 0),
        X.new_zeros(B, 1, size << depth, 0),
        X.new_zeros(B, 1, 0, size << depth),
    )
    rank = 24
    for _ in range(depth):
        halved = _halve(X, level, splits, bound, limit, rank, allowed)
        if halved is None:
            return None
        level = halved
        rank = max(level.corner.shape[-2:])
    sigma = _leaves(X, level, splits, bound)
    sigma, bound = sigma * unit[:, None, None], bound * unit[:, None]
    # Rounding may leave traces in values that the shape of H_p forbids.
    shape = torch.minimum(splits, N - splits).unsqueeze(-1)
    sigma = sigma.masked_fill(torch.arange(sigma.shape[-1], device=T.device) >= shape, 0.0)
    # p = N, where nothing is left, reads the zeros of position 0.
    where = torch.where(wanted < N, wanted, 0).to(T.device)
    row = torch.searchsorted(splits, where) if len(splits) else where
    empty = (wanted >= N).to(T.device)
    sigma = sigma[:, row] if len(splits) else sigma.new_zeros(B, len(wanted), sigma.shape[-1])
    return sigma.masked_fill(empty[:, None], 0.0), bound[:, where].masked_fill(empty, 0.0)


def _halve(
    X: Tensor, level: _Level, splits: Tensor, bound: Tensor, limit: int, guess: int, allowed: Tensor
) -> _Level | None:
    """The next level; adds to ``bound`` what its projections discard. None where the rank is too high."""
    half, f = level.size // 2, level.corner.shape[-2]
    g = level.corner.shape[-1]
    lower = _diagonal_blocks(X, level.size)[..., half:, :half][:, level.starts // level.size]
    # What the outputs after the middle read of the inputs before it.
    G = torch.cat(
        [
            torch.cat([level.corner, level.future[..., :half]], dim=-1),
            torch.cat([level.past[..., half:, :], lower], dim=-1),
        ],
        dim=-2,
    )
    left = _holds(level.starts, half, splits)
    right = _holds(level.starts + half, half, splits)
    # The left halves see its rows as outputs that they share; their position p uses the columns before p.
    outputs = _project(G[:, left], g, limit, guess, allowed)
    # The right halves see its columns as inputs that they share; their position p uses the rows from p on.
    mirrored = torch.cat([G[..., :f, :], G[..., f:, :].flip(-2)], dim=-2).mT
    inputs = _project(mirrored[:, right], f, limit, guess, allowed)
    if outputs is None or inputs is None:
        return None
    errors = bound.view(bound.shape[0], -1, half)
    errors[:, level.starts[left] // half] += outputs[1][..., :half]
    errors[:, level.starts[right] // half + 1] += inputs[1][..., 1:].flip(-1)

    rows, columns = outputs[0], inputs[0].mT
    columns = torch.cat([columns[..., :f, :], columns[..., f:, :].flip(-2)], dim=-2)
    r, s = rows.shape[-2], columns.shape[-1]
    # Both kinds of children in one batch: fewer rows or columns than the widest are filled with zeros.
    fl, fr = max(r, f), max(g, s)
    return _Level(
        torch.cat([level.starts[left], level.starts[right] + half]),
        half,
        torch.cat([_fill(rows[..., :g], fl, fr), _fill(columns[..., :f, :], fl, fr)], dim=1),
        torch.cat([_fill(level.past[:, left, :half], half, fr), _fill(columns[..., f:, :], half, fr)], dim=1),
        torch.cat(
            [_fill(rows[..., g:], fl, half), _fill(level.future[:, right][..., half:], fl, half)], dim=1
        ),
    )


def _diagonal_blocks(X: Tensor, size: int) -> Tensor:
    """``(B, N, N)`` to ``(B, N / size, size, size)``, a view."""
    count = X.shape[-1] // size
    tiled = X.view(-1, count, size, count, size)
    return tiled.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _holds(starts: Tensor, size: int, splits: Tensor) -> Tensor:
    """Whether any of the splits lies in ``[start, start + size)``."""
    return torch.searchsorted(splits, starts) < torch.searchsorted(splits, starts + size)


def _fill(M: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(M, (0, columns - M.shape[-1], 0, rows - M.shape[-2]))


def _project(M: Tensor, shared: int, limit: int, guess: int, allowed: Tensor) -> tuple[Tensor, Tensor] | None:
    """Replace the rows of ``M (B, n, k, shared + h)`` by fewer with the same Gram matrix.

    Returns them, ``(B, n, r, shared + h)``, with what this may change in the first ``shared + c`` columns, in
    norm, for each ``c`` in ``0 .. h``: relative to these columns alone, or to ``allowed`` where that is more.
    None if ``r`` would exceed the limit.
    """
    noise = _noise(M)
    norm = _prefix_norms(M, shared)
    scale = norm.clamp(min=_UNDERFLOW).maximum(allowed[:, None, None] / (4 * noise))
    scale = torch.cat([scale[..., :1].expand(*scale.shape[:-1], shared), scale[..., 1:]], dim=-1)
    A = M / scale.unsqueeze(-2)
    size = torch.linalg.vector_norm(A, dim=(-2, -1)).clamp(min=1.0)
    columns, full = A.shape[-1], min(A.shape[-2:])
    width = min(guess + 8, full)
    while True:
        random = torch.randn(columns, width, generator=_random(columns), dtype=torch.float64)
        Q, R = torch.linalg.qr(A @ random.to(A.device))
        above = R.diagonal(dim1=-2, dim2=-1).abs() > noise * size.unsqueeze(-1)
        rank = int(_last(above).max()) if above.numel() else 0
        while rank + _SPARE <= width or width == full:
            if rank > limit:
                return None
            rank = min(rank + _SPARE, width)
            rows = Q[..., :rank].mT @ M
            rest = M - Q[..., :rank] @ rows
            missed = _prefix_norms(rest, shared)
            accepted = (2 * noise * size.unsqueeze(-1) * norm).maximum(allowed[:, None, None])
            if rank == full or bool((missed <= accepted).all()):
                return rows, missed + (_ROUNDING * _EPS + noise / 4) * norm
        if width >= limit + 8:
            return None
        width = min(2 * width, full)


def _prefix_norms(M: Tensor, shared: int) -> Tensor:
    """Norm of the first ``shared + c`` columns, for all ``c``: ``(..., k, shared + h)`` to ``(..., h + 1)``."""
    squares = M.square().sum(dim=-2)
    first = squares[..., :shared].sum(dim=-1, keepdim=True)
    return torch.cat([first, squares[..., shared:]], dim=-1).cumsum(dim=-1).sqrt()


def _leaves(X: Tensor, level: _Level, splits: Tensor, bound: Tensor) -> Tensor:
    """Singular values at each split, ``(B, splits, K)``; adds their rounding to ``bound``."""
    B, size = X.shape[0], level.size
    f, g = level.corner.shape[-2:]
    K = max(min(f + size - q, g + q) for q in range(size))
    sigma = X.new_zeros(B, len(splits), K)
    lower = _diagonal_blocks(X, size)
    for q in range(size):
        nodes = torch.isin(level.starts + q, splits)
        at = level.starts[nodes] + q
        if not len(at):
            continue
        own = lower[..., q:, :q][:, level.starts[nodes] // size]
        H = torch.cat(
            [
                torch.cat([level.corner[:, nodes], level.future[:, nodes][..., :q]], dim=-1),
                torch.cat([level.past[:, nodes][..., q:, :], own], dim=-1),
            ],
            dim=-2,
        )
        # A GPU takes larger ones one after the other; a CPU is better at that.
        host = H.cpu() if min(H.shape[-2:]) > _BATCHED else H
        values = singular_values(host.flatten(0, 1)).to(H.device)
        values = values.reshape(B, len(at), values.shape[-1])
        sigma[:, torch.searchsorted(splits, at), : values.shape[-1]] = values
        bound[:, at] += _ROUNDING * _EPS * H.square().sum(dim=(-2, -1)).sqrt()
    return sigma
