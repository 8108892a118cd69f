"""Log-determinants of a causal matrix at every split position, by one nested elimination."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["log_determinants"]

# Blocks of at most this many positions are finished by elementwise elimination, one vector operation over all
# blocks, matrices and shifts. Measured on one Zen 3 core: LAPACK takes 0.7 µs for a block of 8, elementwise 0.2;
# at 16 they meet.
_LEAF = 8
# Symmetric products of factors with at least this many rows are formed without their upper right quarter.
_STRIPS = 128
# Entries of the working arrays of one chunk (matrices x shifts), measured: larger ones leave the cache.
_CHUNK = 2**18


def log_determinants(T: Tensor, at: Sequence[int], shifts: Sequence[float]) -> Tensor:
    r"""``Σ_k log(1 + σ_k² / s²)`` of ``H_p = T[p:, :p]`` for every split ``p`` and shift ``s``.

    The matrix ``[[I, X], [Xᵀ, -I]]`` with ``X = T / s`` has this as the logarithm of its determinant's modulus
    on outputs ``p:`` and inputs ``:p``. All splits in ``[a, b)`` share outputs ``b:`` and inputs ``:a``: these
    are eliminated once, the interval is halved, and so on. The matrix is quasi-definite, so no order of
    elimination needs pivoting.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``
        float64. Only what is strictly below the diagonal is read.
    at : sequence of int
        Splits in ``0 .. N``, in any order.
    shifts : sequence of float
        The ``s``, positive.

    Returns
    -------
    Tensor, ``(B, S, P)``
        float64. NaN where rounding made a pivot lose its sign, which takes ``σ_1 / s`` near 1e8.

    Examples
    --------
    >>> import torch
    >>> log_determinants(torch.ones(1, 2, 2).tril().double(), [1], [1.0]).exp()
    tensor([[[2.]]], dtype=torch.float64)
    """
    B, N = T.shape[0], T.shape[-1]
    inner = sorted({p for p in at if 0 < p < N})
    result = T.new_zeros(B, len(shifts), len(at))
    if not inner or not B or not len(shifts):
        return result
    levels = 0
    while N > _LEAF << levels:
        levels += 1
    size = -(-N // (1 << levels)) << levels
    tree = _Tree(size, levels, inner)
    place = {p: k for k, p in enumerate(tree.order)}
    columns = [k for k, p in enumerate(at) if 0 < p < N]
    source = torch.tensor([place[at[k]] for k in columns], device=T.device)
    target = torch.tensor(columns, device=T.device)
    s = torch.tensor(list(shifts), dtype=T.dtype, device=T.device)
    per_item = size * size
    at_once = max(1, _CHUNK // per_item) if T.device.type == "cpu" else max(1, 2**27 // per_item)
    rows = min(B, max(1, at_once // len(shifts)))
    columns_at_once = max(1, min(len(shifts), at_once // rows))
    work: _Work | None = None
    for b in range(0, B, rows):
        X = torch.nn.functional.pad(T[b : b + rows].tril(-1), (0, size - N, 0, size - N))
        root = _Root(X, tree)
        for k in range(0, len(shifts), columns_at_once):
            part = s[k : k + columns_at_once]
            if work is None or work.G != len(X) * len(part):
                work = None  # frees it before the next is made
                work = _Work(X, tree, len(X) * len(part))
            logs = _eliminate(root, tree, part, work)
            result[b : b + rows, k : k + len(part)].index_copy_(-1, target, logs.index_select(-1, source))
    return result


class _Tree:
    """Which halves of which blocks hold a split that is asked for, level by level.

    The blocks of a level are kept in this order: the first halves of all blocks of the level above in their
    order, then the second halves. So the children of one side lie side by side, and the first (last) block of
    the matrix is the first (last) of its level.
    """

    def __init__(self, size: int, levels: int, wanted: Sequence[int]) -> None:
        self.size, self.levels = size, levels
        blocks = [0]
        # parents[l][side]: places, in level l, of the blocks whose half on that side is wanted.
        self.parents: list[tuple[list[int], list[int]]] = []
        # edges[l][side]: whether the first (last) block of the matrix is among those.
        self.edges: list[tuple[bool, bool]] = []
        for level in range(levels):
            needed = {p // (size >> (level + 1)) for p in wanted}
            left = [k for k, block in enumerate(blocks) if 2 * block in needed]
            right = [k for k, block in enumerate(blocks) if 2 * block + 1 in needed]
            self.parents.append((left, right))
            blocks = [2 * blocks[k] for k in left] + [2 * blocks[k] + 1 for k in right]
            self.edges.append((blocks[0] == 0, blocks[-1] == (2 << level) - 1))
        leaf = size >> levels
        # The splits, in the order in which the elimination gives them.
        self.order = [block * leaf + k for block in blocks for k in range(leaf)]


class _Root:
    """What does not depend on the shift: products along the first and the last block of every level."""

    def __init__(self, X: Tensor, tree: _Tree) -> None:
        self.X = X
        N = X.shape[-1]
        # first[l]: XᵀX over the outputs that the first block of level l + 1 has eliminated; last[l]: XXᵀ
        # over the inputs that the last one has.
        self.first: list[Tensor] = []
        self.last: list[Tensor] = []
        for level, (first, last) in enumerate(tree.edges):
            m = N >> level
            h = m // 2
            if first:
                block = X[:, h:m, :h]
                new = block.mT @ block
                self.first.append(new + self.first[-1][:, :h, :h] if level else new)
            if last:
                block = X[:, N - h :, N - m : N - h]
                new = block @ block.mT
                self.last.append(new + self.last[-1][:, h:, h:] if level else new)


def _pick(A: Tensor, places: list[int]) -> Tensor:
    """``A[places]``, a view where the places follow each other."""
    if places[-1] - places[0] == len(places) - 1:
        return A[places[0] : places[-1] + 1]
    return A[torch.tensor(places, device=A.device)]


class _Work:
    """Arrays for the blocks of every level, used again for every chunk of shifts: fresh memory is slow."""

    def __init__(self, X: Tensor, tree: _Tree, G: int) -> None:
        self.G = G
        self.blocks: list[tuple[Tensor, Tensor, Tensor]] = []
        self.rows: list[Tensor] = []
        for level, (left, right) in enumerate(tree.parents):
            h, count = tree.size >> (level + 1), len(left) + len(right)
            P, Y, Q = (X.new_empty(count, G, h, h) for _ in range(3))
            self.blocks.append((P, Y, Q))
            self.rows.append(X.new_empty(max(len(left), len(right)), G, 2 * h, h))


def _eliminate(root: _Root, tree: _Tree, s: Tensor, work: _Work) -> Tensor:
    """Log-determinants ``(rows, shifts, splits in the tree's order)``."""
    X, N = root.X, tree.size
    rows = X.shape[0]
    G = rows * len(s)
    shift, square = s[:, None, None], (s * s)[:, None, None]
    # Blocks run along dimension 0, (row, shift) along 1: outputs P, coupling Y (outputs x inputs), inputs Q.
    P = Y = Q = X
    logs = X.new_zeros(1, G)
    for level, (parents, edges) in enumerate(zip(tree.parents, tree.edges, strict=True)):
        m = N >> level
        h = m // 2
        outs = work.blocks[level]
        count = outs[0].shape[0]
        new_logs = X.new_empty(count, G)
        for side in (0, 1):
            places = parents[side]
            lo = side * len(parents[0])
            if edges[side]:
                # The outermost block has only eliminated variables that nothing had touched: pivots of 1.
                edge, gram, at = (0, root.first, 0) if side == 0 else (count - 1, root.last, N - h)
                touched, untouched = (outs[k][edge] for k in ((2, 0) if side == 0 else (0, 2)))
                torch.div(gram[level][:, None], square, out=touched.view(rows, len(s), h, h))
                touched.diagonal(dim1=-2, dim2=-1).add_(1)
                untouched.zero_().diagonal(dim1=-2, dim2=-1).fill_(1)
                corner = X[:, None, at : at + h, at : at + h]
                torch.div(corner, shift, out=outs[1][edge].view(rows, len(s), h, h))
                new_logs[edge] = logs[-side]
                places = places[1:] if side == 0 else places[:-1]
                lo += 1 - side
            if places:
                part = slice(lo, lo + len(places))
                _halves(
                    *(_pick(A, places) for A in (P, Y, Q, logs)),
                    side,
                    work.rows[level][: len(places)],
                    *(A[part] for A in (*outs, new_logs)),
                )
        (P, Y, Q), logs = outs, new_logs
    if not tree.levels:
        eye = torch.eye(N, dtype=X.dtype, device=X.device)
        Y = (X[:, None] / shift).reshape(1, G, N, N)
        P = Q = eye.expand(1, G, N, N)
    return _leaves(P, Y, Q, logs).reshape(rows, len(s), -1)


def _halves(
    P: Tensor,
    Y: Tensor,
    Q: Tensor,
    logs: Tensor,
    side: int,
    W: Tensor,
    P2: Tensor,
    Y2: Tensor,
    Q2: Tensor,
    logs2: Tensor,
) -> None:
    """Keep one half of each block: eliminate the outputs of the second half (side 0) or the inputs of the first."""
    n, G, h = P.shape[0], P.shape[1], P.shape[-1] // 2
    first, second = slice(0, h), slice(h, 2 * h)
    if side == 0:
        kept, pivot = first, P[..., second, second]
        W[..., :h, :] = P[..., second, first].mT
        W[..., h:, :] = Y[..., second, first].mT
    else:
        kept, pivot = second, Q[..., first, first]
        W[..., :h, :] = Y[..., second, first]
        W[..., h:, :] = Q[..., second, first]
    L, info = torch.linalg.cholesky_ex(pivot)
    torch.linalg.solve_triangular(L, W.mT, upper=False, out=W.mT)
    W = W.view(n * G, 2 * h, h)
    gain = L.diagonal(dim1=-2, dim2=-1).log().sum(-1).mul_(2).masked_fill_(info > 0, torch.nan)
    torch.add(logs, gain, out=logs2)
    outputs, inputs = W[:, :h], W[:, h:]
    signs = (-1, 1) if side == 0 else (1, -1)
    for old, new, left, right, sign in (
        (P, P2, outputs, outputs, signs[0]),
        (Y, Y2, outputs, inputs, -1),
        (Q, Q2, inputs, inputs, signs[1]),
    ):
        new.copy_(old[..., kept, kept])
        _add_product(new.view(n * G, h, h), left, right, sign)


def _add_product(A: Tensor, left: Tensor, right: Tensor, sign: int) -> None:
    """``A += sign * left rightᵀ``, but for the upper right quarter of large ones, which is never read."""
    h = A.shape[-1]
    if h < _STRIPS:
        torch.baddbmm(A, left, right.mT, alpha=sign, out=A)
        return
    k = h // 2
    for one, x, y in zip(A, left, right, strict=True):
        one[:k, :k].addmm_(x[:k], y[:k].mT, alpha=sign)
        one[k:].addmm_(x[k:], y.mT, alpha=sign)


def _leaves(P: Tensor, Y: Tensor, Q: Tensor, logs: Tensor) -> Tensor:
    """All splits of the last blocks: ``(G, blocks * m)``."""
    n, G, m = P.shape[:3]
    # Items last: every operation below is one pass over contiguous numbers of all items.
    M = P.new_empty(2 * m, 2 * m, n, G)
    M[:m, :m] = P.permute(2, 3, 0, 1)
    M[:m, m:] = Y.permute(2, 3, 0, 1)
    M[m:, :m] = Y.permute(3, 2, 0, 1)
    M[m:, m:] = Q.permute(2, 3, 0, 1).neg()
    out = M.new_empty(m, n * G)
    _halve(M.view(2 * m, 2 * m, n * G), logs.reshape(-1), out)
    return out.view(m, n, G).permute(2, 1, 0).reshape(G, n * m)


def _halve(M: Tensor, logs: Tensor, out: Tensor) -> None:
    """The recursion on ``[[P, Y], [Yᵀ, -Q]]``, ``(2m, 2m, items)``, elementwise, down to single splits."""
    m = M.shape[0] // 2
    if m == 1:
        torch.add(logs, M[0, 0].log(), out=out[0])
        return
    h = m // 2
    o1, o2 = list(range(h)), list(range(h, m))
    i1, i2 = list(range(m, m + h)), list(range(m + h, 2 * m))
    for pivots, kept, sign, target in ((o2, o1 + i1, 1, out[:h]), (i1, o2 + i2, -1, out[h:])):
        order = torch.tensor(pivots + kept, device=M.device)
        A = M[order[:, None], order]
        gain = logs
        for k in range(len(pivots)):
            pivot = A[k, k]
            row = A[k, k + 1 :]
            A[k + 1 :, k + 1 :].addcmul_(row[:, None], (row / pivot)[None], value=-1)
            gain = gain + (pivot if sign > 0 else -pivot).log()
        _halve(A[len(pivots) :, len(pivots) :], gain, target)
