"""Log-determinants of a causal matrix at every split position, by one nested elimination."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ess_widgets.metrics._svd import one_thread, threads

__all__ = ["NestedElimination", "log_determinants"]

# Blocks of at most this many positions are finished by elementwise elimination, one vector operation over all
# blocks, matrices and shifts. Measured on one Zen 3 core: LAPACK takes 0.7 µs for a block of 8, elementwise 0.2;
# at 16 they meet.
_LEAF = 16
# Entries of the blocks that are so finished at once on the CPU.
_LEAF_CHUNK = 2**17
# Blocks of at least this many positions are updated without what is never read.
_STRIPS = 128
# Entries of the matrices of one chunk (matrices x shifts). Measured: smaller ones are mostly overhead, for larger
# ones it stays the same. A GPU wants all it can get.
_CHUNK, _CHUNK_GPU = 2**22, 2**26


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
        while _LEAF << levels < N:
            levels += 1
        self.size = -(-N // (1 << levels)) << levels
        columns = [k for k, p in enumerate(at) if 0 < p < N]
        self.splits = len(at)
        self.tree = _Tree(self.size, levels, [at[k] for k in columns])
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
        workers = min(threads(), len(chunks)) if X.device.type == "cpu" else 1

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


class _Level:
    """How the blocks of one level come from those of the level above.

    The first and the last block of the matrix have eliminated only variables that nothing had touched, so that
    they follow from products that do not depend on the shift. They are not stored; the others are, in this
    order: second half of the first block, second halves of the stored ones; first halves of the stored ones,
    first half of the last block.
    """

    def __init__(self, stored: list[int], ends: tuple[bool, bool], last: int, needed: set[int]) -> None:
        # Places among the stored blocks whose second (first) half is wanted, and the same for the ends.
        self.second = [k for k, block in enumerate(stored) if 2 * block + 1 in needed]
        self.first = [k for k, block in enumerate(stored) if 2 * block in needed]
        self.of_ends = (ends[0] and last > 0 and 1 in needed, ends[1] and last > 0 and 2 * last in needed)
        # Whether the halves at the ends are wanted.
        self.ends = (ends[0] and 0 in needed, ends[1] and 2 * last + 1 in needed)
        self.stored = [
            *([1] if self.of_ends[0] else []),
            *(2 * stored[k] + 1 for k in self.second),
            *(2 * stored[k] for k in self.first),
            *([2 * last] if self.of_ends[1] else []),
        ]
        self.counts = len(self.second) + self.of_ends[0], len(self.first) + self.of_ends[1]


class _Tree:
    """Which halves of which blocks hold a split that is asked for, level by level."""

    def __init__(self, size: int, depth: int, wanted: Sequence[int]) -> None:
        self.size = size
        self.levels: list[_Level] = []
        stored: list[int] = []
        ends = (True, True)
        for level in range(depth):
            needed = {p // (size >> (level + 1)) for p in wanted}
            self.levels.append(_Level(stored, ends, (1 << level) - 1, needed))
            stored, ends = self.levels[-1].stored, self.levels[-1].ends
        # The splits, in the order in which the elimination gives them.
        leaf = size >> depth
        blocks = [*([0] if ends[0] else []), *stored]
        if depth and ends[1]:
            blocks.append((1 << depth) - 1)
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
        for depth, level in enumerate(tree.levels):
            m = N >> depth
            h = m // 2
            if level.ends[0]:
                block = X[:, h:m, :h]
                new = block.mT @ block
                self.first.append(new.add_(self.first[-1][:, :h, :h]) if depth else new)
            if level.ends[1]:
                block = X[:, N - h :, N - m : N - h]
                new = block @ block.mT
                self.last.append(new.add_(self.last[-1][:, h:, h:]) if depth else new)

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
        self.blocks: list[Tensor] = []
        self.pivots: list[Tensor] = []
        self.rows: list[Tensor] = []
        for depth, level in enumerate(tree.levels):
            h, widest = tree.size >> (depth + 1), max(level.counts)
            self.blocks.append(X.new_empty(sum(level.counts), G, 2 * h, 2 * h))
            self.pivots.append(X.new_empty(widest, G, h, h))
            self.rows.append(X.new_empty(widest, G, 2 * h, h))
        leaf = tree.size >> len(tree.levels)
        self.leaf_size = 1 << (leaf - 1).bit_length()
        items = G * max(1, len(self.blocks[-1]) if self.blocks else 1)
        self.leaves = min(items, max(1, _LEAF_CHUNK // self.leaf_size**2))
        if X.device.type != "cpu":
            self.leaves = items
        self.leaf_in = X.new_empty(4 * leaf**2 * self.leaves)
        self.leaf = X.new_empty(4 * self.leaf_size**2 * self.leaves)
        self.leaf_rows = X.new_empty(2 * self.leaf_size**2 * self.leaves)


def _eliminate(root: _Root, tree: _Tree, s: Tensor, work: _Work) -> Tensor:
    """Log-determinants ``(rows, shifts, splits in the tree's order)``."""
    X, N = root.X, tree.size
    items, S = s.shape
    G = items * S
    inverse = s.reciprocal()[..., None, None]
    square = inverse.square()

    def put(out: Tensor, source: Tensor, by: Tensor, eye: int = 0) -> None:
        """``source * by``, and so much on the diagonal, for every shift."""
        torch.mul(source[:, None], by, out=out.view(items, S, *out.shape[1:]))
        if eye:
            out.diagonal(dim1=-2, dim2=-1).add_(eye)

    # Blocks run along dimension 0, (item, shift) along 1. Each is [[P, Y], [Yᵀ, -Q]] on its own outputs and
    # inputs, after elimination of others; of it, Yᵀ and what couples earlier outputs to later inputs are not
    # kept up, nor the upper right quarters of large P and Q.
    M = X.new_empty(0, G, 2 * N, 2 * N)
    logs = X.new_zeros(0, G)
    for depth, level in enumerate(tree.levels):
        m = N >> depth
        h = m // 2
        head, tail = slice(0, h), slice(h, m)
        new = work.blocks[depth]
        new_logs = X.new_zeros(len(new), G)
        for side, places in ((1, level.second), (0, level.first)):
            count = level.counts[1 - side]
            if not count:
                continue
            pivots, W = work.pivots[depth][:count], work.rows[depth][:count]
            part = slice(0, count) if side == 1 else slice(level.counts[0], None)
            kept, kept_logs = new[part], new_logs[part]
            P, Y, Q = kept[..., :h, :h], kept[..., :h, h:], kept[..., h:, h:]
            if side == 1 and level.of_ends[0]:
                gram, corner = root.first[depth - 1], X[:, :m, :m]
                put(pivots[0], gram[:, head, head], square, eye=1)
                put(W[0, :, :h], corner[:, tail, head], inverse)
                put(W[0, :, h:], gram[:, tail, head], -square)
                P[0].zero_().diagonal(dim1=-2, dim2=-1).fill_(1)
                put(Y[0], corner[:, tail, tail], inverse)
                put(Q[0], gram[:, tail, tail], -square, eye=-1)
            elif side == 0 and level.of_ends[1]:
                gram, corner = root.last[depth - 1], X[:, N - m :, N - m :]
                put(pivots[-1], gram[:, tail, tail], square, eye=1)
                put(W[-1, :, :h], gram[:, head, tail], square)
                put(W[-1, :, h:], corner[:, tail, head].mT, inverse)
                put(P[-1], gram[:, head, head], square, eye=1)
                put(Y[-1], corner[:, head, head], inverse)
                Q[-1].zero_().diagonal(dim1=-2, dim2=-1).fill_(-1)
            if places:
                begin = int(side == 1 and level.of_ends[0])
                mine = slice(begin, begin + len(places))
                old = _pick(M, places)
                old_P, old_Y, old_Q = old[..., :m, :m], old[..., :m, m:], old[..., m:, m:]
                if side == 1:
                    # The second half, once the inputs of the first are eliminated.
                    torch.neg(old_Q[..., head, head], out=pivots[mine])
                    W[mine, :, :h] = old_Y[..., tail, head]
                    W[mine, :, h:] = old_Q[..., tail, head]
                else:
                    # The first half, once the outputs of the second are.
                    pivots[mine] = old_P[..., tail, tail]
                    W[mine, :, :h] = old_P[..., tail, head].mT
                    W[mine, :, h:] = old_Y[..., tail, head].mT
                stay = tail if side == 1 else head
                for target, source in ((P, old_P), (Y, old_Y), (Q, old_Q)):
                    target[mine] = source[..., stay, stay]
                kept_logs[mine] = _pick(logs, places)
            _reduce(pivots, W, 1 if side == 1 else -1, kept, kept_logs)
        M, logs = new, new_logs
    leaf = N >> len(tree.levels)
    ends = tree.levels[-1].ends if tree.levels else (True, False)
    parts = [_leaves(M, logs, work)] if len(M) else []
    for end, wanted in enumerate(ends):
        if wanted:
            at = slice(0, leaf) if end == 0 else slice(N - leaf, N)
            M = X.new_zeros(1, G, 2 * leaf, 2 * leaf)
            known = M[0, :, :leaf, :leaf] if end else M[0, :, leaf:, leaf:]
            if tree.levels:
                put(known, (root.last if end else root.first)[-1], square if end else -square)
            put(M[0, :, :leaf, leaf:], X[:, at, at], inverse)
            diagonal = M.diagonal(dim1=-2, dim2=-1)
            diagonal[..., :leaf] += 1
            diagonal[..., leaf:] -= 1
            made = _leaves(M, X.new_zeros(1, G), work)
            parts = [*parts, made] if end else [made, *parts]
    return torch.cat(parts, -1).reshape(items, S, -1)


def _reduce(pivots: Tensor, W: Tensor, sign: int, M: Tensor, logs: Tensor) -> None:
    """Eliminate pivots ``sign * (n, G, h, h)`` that couple by ``W (n, G, 2h, h)`` to ``M (n, G, 2h, 2h)``."""
    h = pivots.shape[-1]
    L, info = torch.linalg.cholesky_ex(pivots)
    torch.linalg.solve_triangular(L, W.mT, upper=False, out=W.mT)
    logs += L.diagonal(dim1=-2, dim2=-1).log().sum(-1).mul_(2).masked_fill_(info > 0, torch.nan)
    W, M = W.flatten(0, 1), M.flatten(0, 1)
    if h < _STRIPS:
        torch.baddbmm(M, W, W.mT, alpha=sign, out=M)
        return
    k = h // 2
    for one, w in zip(M, W, strict=True):
        for rows, columns in (
            (slice(0, k), slice(0, k)),
            (slice(k, h), slice(0, h)),
            (slice(0, k), slice(h, h + k)),
            (slice(k, h), slice(h, 2 * h)),
            (slice(h, h + k), slice(h, h + k)),
            (slice(h + k, 2 * h), slice(h, 2 * h)),
        ):
            one[rows, columns].addmm_(w[rows], w[columns].mT, alpha=sign)


def _leaves(M: Tensor, logs: Tensor, work: _Work) -> Tensor:
    """All splits of the last blocks: ``(G, blocks * m)``."""
    n, G, m = *M.shape[:2], M.shape[-1] // 2
    M, logs = M.flatten(0, 1), logs.reshape(1, -1)
    parts = [
        _leaf(M[k : k + work.leaves], logs[:, k : k + work.leaves], m, work)
        for k in range(0, n * G, work.leaves)
    ]
    return torch.cat(parts, -1).view(m, n, G).permute(2, 1, 0).reshape(G, n * m)


def _leaf(blocks: Tensor, logs: Tensor, m: int, work: _Work) -> Tensor:
    """``(m, items)``, from blocks ``(items, 2m, 2m)`` and ``(1, items)``."""
    items, size = len(blocks), work.leaf_size
    # Output k at 2k and input k at 2k + 1, so that halves are contiguous. Items last: every operation below is
    # one pass over contiguous numbers of all items.
    M = work.leaf[: 4 * size**2 * items].view(2 * size, 2 * size, items)
    turned = work.leaf_in[: 4 * m * m * items].view(4 * m * m, items)
    blocks = turned.copy_(blocks.view(items, 4 * m * m).mT).view(2 * m, 2 * m, items)
    outputs, inputs = slice(0, 2 * m, 2), slice(1, 2 * m, 2)
    if m < size:
        M.zero_()
        M.diagonal(dim1=0, dim2=1)[:, ::2].fill_(1)
        M.diagonal(dim1=0, dim2=1)[:, 1::2].fill_(-1)
    M[outputs, outputs] = blocks[:m, :m]
    M[outputs, inputs] = blocks[:m, m:]
    M[inputs, outputs] = blocks[:m, m:].transpose(0, 1)
    M[inputs, inputs] = blocks[m:, m:]
    parts = 1
    while size > 1:
        logs = _halve(M, logs, parts, work.leaf_rows)
        parts, size = 2 * parts, size // 2
    return (logs + M.diagonal(dim1=0, dim2=1)[:, ::2].mT.log())[:m]


def _halve(M: Tensor, logs: Tensor, blocks: int, space: Tensor) -> Tensor:
    """One step of the recursion for all blocks on the diagonal of ``M (w * blocks, w * blocks, items)``, in place.

    ``logs (blocks, items)`` become those of the halves, ``(2 * blocks, items)``.
    """
    items = M.shape[-1]
    w = M.shape[0] // blocks
    half, h = w // 2, w // 4
    diagonal = M.view(blocks, w, blocks, w, items).diagonal(dim1=0, dim2=2)
    D = diagonal.permute(3, 0, 1, 2)
    # Rows of the pivots: outputs of the second half, inputs of the first.
    shape = 2, h, h + half, blocks, items
    rows = space[: math.prod(shape)].view(shape)
    rows[0, :, :h] = D[:, half::2, half::2].permute(1, 2, 0, 3)
    rows[0, :, h:] = D[:, half::2, :half].permute(1, 2, 0, 3)
    rows[1, :, :h] = D[:, 1:half:2, 1:half:2].permute(1, 2, 0, 3)
    rows[1, :, h:] = D[:, 1:half:2, half:].permute(1, 2, 0, 3)
    rows = rows.permute(1, 2, 3, 0, 4)
    kept = M.view(2 * blocks, half, 2 * blocks, half, items).diagonal(dim1=0, dim2=2)
    kept = kept.permute(0, 1, 3, 2).view(half, half, blocks, 2, items)
    sign = M.new_tensor([1.0, -1.0])[:, None]
    for k in range(h):
        pivot = rows[k, k]
        row = rows[k, k + 1 :]
        scaled = row * pivot.reciprocal()
        if k + 1 < h:
            rows[k + 1 :, k + 1 :].addcmul_(row[: h - k - 1, None], scaled[None], value=-1)
        row, scaled = row[h - k - 1 :], scaled[h - k - 1 :]
        kept.addcmul_(row[:, None], scaled[None], value=-1)
    pivots = rows[:, :h].diagonal(dim1=0, dim2=1)
    return (logs[:, None] + (pivots * sign[..., None]).log().sum(-1)).reshape(2 * blocks, items)
