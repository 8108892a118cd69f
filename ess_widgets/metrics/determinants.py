"""Log-determinants of a causal matrix at every split position, by one nested elimination."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ess_widgets.metrics._svd import one_thread

__all__ = ["NestedElimination", "log_determinants"]

# Blocks of at most this many positions are finished by elementwise elimination, one vector operation over all
# blocks, matrices and shifts. Measured on one Zen 3 core: LAPACK takes 0.7 µs for a block of 8, elementwise 0.2;
# at 16 they meet.
_LEAF = 16
# Symmetric products of factors with at least this many rows are formed without their upper right quarter.
_STRIPS = 128
# Entries of the matrices of one chunk (matrices x shifts). Measured: smaller ones are all overhead, ten times as
# large ones leave the cache. A GPU wants all it can get.
_CHUNK, _CHUNK_GPU = 2**20, 2**26


def log_determinants(T: Tensor, at: Sequence[int], shifts: Sequence[float]) -> Tensor:
    r"""``Σ_k log(1 + σ_k² / s²)`` of ``H_p = T[p:, :p]`` for every split ``p`` and shift ``s``.

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
    return NestedElimination(T.tril(-1), at)(T.new_tensor([list(shifts)] * T.shape[0]))


class NestedElimination:
    r"""Log-determinants of a strictly lower triangular matrix at every split, for shifts asked for later.

    The matrix ``[[I, X], [Xᵀ, -I]]`` with ``X = T / s`` has ``Π_k (1 + σ_k² / s²)`` as its determinant's modulus
    on outputs ``p:`` and inputs ``:p``. All splits in ``[a, b)`` share outputs ``b:`` and inputs ``:a``: these
    are eliminated once, the interval is halved, and so on. The matrix is quasi-definite, so no order of
    elimination needs pivoting. On the CPU it takes as many threads of its own as torch may use, because
    batches of small factorisations do not.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``
        float64, zero on and above the diagonal.
    at : sequence of int
        Splits in ``0 .. N``, in any order.
    """

    def __init__(self, T: Tensor, at: Sequence[int]) -> None:
        N = T.shape[-1]
        levels = 0
        while N > _LEAF << levels:
            levels += 1
        self.size = -(-N // (1 << levels)) << levels
        columns = [k for k, p in enumerate(at) if 0 < p < N]
        self.splits = len(at)
        self.tree = _Tree(self.size, levels, sorted({at[k] for k in columns}))
        place = {p: k for k, p in enumerate(self.tree.order)}
        self.source = torch.tensor([place[at[k]] for k in columns], dtype=torch.long, device=T.device)
        self.target = torch.tensor(columns, dtype=torch.long, device=T.device)
        entries = _CHUNK if T.device.type == "cpu" else _CHUNK_GPU
        self.at_once = max(1, entries // self.size**2)
        pad = self.size - N
        self.root = _Root(torch.nn.functional.pad(T, (0, pad, 0, pad)) if pad else T, self.tree)

    def __call__(self, shifts: Tensor, items: Tensor | None = None) -> Tensor:
        """Log-determinants ``(items, S, P)`` at shifts ``(items, S)``, of all matrices or those at ``items``."""
        X = self.root.X
        count, S = shifts.shape
        result = X.new_zeros(count, S, self.splits)
        if not count or not S or not len(self.target):
            return result
        rows = min(count, max(1, self.at_once // S))
        columns = min(S, max(1, self.at_once // rows))
        chunks = [
            (slice(b, b + rows), slice(k, k + columns))
            for b in range(0, count, rows)
            for k in range(0, S, columns)
        ]
        workers = min(torch.get_num_threads(), len(chunks)) if X.device.type == "cpu" else 1

        def work(first: int) -> None:
            space: _Work | None = None
            with one_thread(X.device):
                for rows, columns in chunks[first::workers]:
                    root = self.root[rows if items is None else items[rows]]
                    s = shifts[rows, columns]
                    G = s.numel()
                    if space is None or space.G != G:
                        space = None  # frees it before the next is made
                        space = _Work(X, self.tree, G)
                    logs = _eliminate(root, self.tree, s, space)
                    result[rows, columns].index_copy_(-1, self.target, logs.index_select(-1, self.source))

        if workers == 1:
            work(0)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(work, range(workers)))
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
                self.first.append(new.add_(self.first[-1][:, :h, :h]) if level else new)
            if last:
                block = X[:, N - h :, N - m : N - h]
                new = block @ block.mT
                self.last.append(new.add_(self.last[-1][:, h:, h:]) if level else new)

    def __getitem__(self, items: slice | Tensor) -> _Root:
        part = _Root.__new__(_Root)
        part.X = self.X[items]
        part.first, part.last = ([gram[items] for gram in grams] for grams in (self.first, self.last))
        return part


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
        for level, ((left, right), edges) in enumerate(zip(tree.parents, tree.edges, strict=True)):
            h, count = tree.size >> (level + 1), len(left) + len(right)
            inner = max(len(left) - edges[0], len(right) - edges[1])
            P, Y, Q = (X.new_empty(count, G, h, h) for _ in range(3))
            self.blocks.append((P, Y, Q))
            self.rows.append(X.new_empty(inner, G, 2 * h, h))


def _eliminate(root: _Root, tree: _Tree, s: Tensor, work: _Work) -> Tensor:
    """Log-determinants ``(rows, shifts, splits in the tree's order)``."""
    X, N = root.X, tree.size
    rows, S = s.shape
    G = rows * S
    shift, square = s[..., None, None], s.square()[..., None, None]
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
                torch.div(gram[level][:, None], square, out=touched.view(rows, S, h, h))
                touched.diagonal(dim1=-2, dim2=-1).add_(1)
                untouched.zero_().diagonal(dim1=-2, dim2=-1).fill_(1)
                corner = X[:, None, at : at + h, at : at + h]
                torch.div(corner, shift, out=outs[1][edge].view(rows, S, h, h))
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
        P = Q = eye.repeat(1, G, 1, 1)
    return _leaves(P, Y, Q, logs).reshape(rows, S, -1)


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
    size = 1 << (m - 1).bit_length()
    # [[P, Y], [Yᵀ, -Q]] with output k at 2k and input k at 2k + 1, so that halves are contiguous. Items last:
    # every operation below is one pass over contiguous numbers of all items.
    shape = 2 * size, 2 * size, n * G
    M = P.new_zeros(shape) if m < size else P.new_empty(shape)
    outputs, inputs = slice(0, 2 * m, 2), slice(1, 2 * m, 2)
    P, Y, Q = (A.view(n * G, m * m).mT.contiguous().view(m, m, n * G) for A in (P, Y, Q))
    M[outputs, outputs] = P
    M[outputs, inputs] = Y
    M[inputs, outputs] = Y.transpose(0, 1)
    torch.neg(Q, out=M[inputs, inputs])
    for k in range(m, size):
        M[2 * k, 2 * k], M[2 * k + 1, 2 * k + 1] = 1, -1
    logs = logs.reshape(1, -1)
    blocks = 1
    while size > 1:
        logs = _halve(M, logs, blocks)
        blocks, size = 2 * blocks, size // 2
    logs = logs + M.diagonal(dim1=0, dim2=1)[:, ::2].mT.log()
    return logs[:m].view(m, n, G).permute(2, 1, 0).reshape(G, n * m)


def _halve(M: Tensor, logs: Tensor, blocks: int) -> Tensor:
    """One step of the recursion for all blocks on the diagonal of ``M (w * blocks, w * blocks, items)``, in place.

    ``logs (blocks, items)`` become those of the halves, ``(2 * blocks, items)``.
    """
    items = M.shape[-1]
    w = M.shape[0] // blocks
    half, h = w // 2, w // 4
    diagonal = M.view(blocks, w, blocks, w, items).diagonal(dim1=0, dim2=2)
    D = diagonal.permute(3, 0, 1, 2)
    # Rows of the pivots: outputs of the second half, inputs of the first.
    rows = M.new_empty(2, h, h + half, blocks, items)
    rows[0, :, :h] = D[:, half::2, half::2].permute(1, 2, 0, 3)
    rows[0, :, h:] = D[:, half::2, :half].permute(1, 2, 0, 3)
    rows[1, :, :h] = D[:, 1:half:2, 1:half:2].permute(1, 2, 0, 3)
    rows[1, :, h:] = D[:, 1:half:2, half:].permute(1, 2, 0, 3)
    rows = rows.permute(1, 2, 3, 0, 4)
    kept = M.view(2 * blocks, half, 2 * blocks, half, items).diagonal(dim1=0, dim2=2)
    kept = kept.permute(0, 1, 3, 2).unflatten(2, (blocks, 2))
    sign = M.new_tensor([1.0, -1.0])[:, None]
    gain = logs[:, None]
    for k in range(h):
        pivot = rows[k, k]
        row = rows[k, k + 1 :]
        scaled = row / pivot
        if k + 1 < h:
            rows[k + 1 :, k + 1 :].addcmul_(row[: h - k - 1, None], scaled[None], value=-1)
        row, scaled = row[h - k - 1 :], scaled[h - k - 1 :]
        kept.addcmul_(row[:, None], scaled[None], value=-1)
        gain = gain + (pivot * sign).log()
    return gain.reshape(2 * blocks, items)
