"""Balanced coordinates of an operator's state at every position, and the recurrence in the first few of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ess_widgets.metrics import realization
from ess_widgets.metrics._svd import one_thread
from ess_widgets.operators import DenseTransition, Operator, Recurrence

__all__ = ["Balanced", "Rule", "balance", "read_before", "state"]

# How many singular values to keep: given those of some entries ``(b, P, K)``, which entries, and which positions.
Rule = Callable[[Tensor, slice, slice], Tensor]

_BYTES = 2**27


@dataclass(frozen=True)
class Balanced:
    """A recurrence of order ``k`` in balanced coordinates, leading dimensions flattened to ``(N,)``.

    ``x_{t+1} = A_t x_t + B_t u_t``, ``y_t = C_t x_t + D_t u_t``, where ``x_t`` is the state before position ``t``.

    Attributes
    ----------
    sigma : Tensor, ``(N, L, K)``
        All singular values of ``H_t``, descending, zero-padded.
    slack : Tensor, ``(N, L)``
        How far they may be off.
    ranks : Tensor, ``(N, L)``
        Coordinates kept at each position; those beyond are zero.
    A, B, C, D : Tensor, ``(N, L, k, k)``, ``(N, L, d, k)``, ``(N, L, d, k)``, ``(N, L, d, d)``
    """

    sigma: Tensor
    slack: Tensor
    ranks: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor

    def cut(self, ranks: Tensor) -> Balanced:
        """Only the first ``ranks``, ``(N, L)`` or broadcastable, of the coordinates kept here."""
        ranks = torch.minimum(ranks, self.ranks)
        k = max(1, int(ranks.amax()))
        kept = (torch.arange(k, device=ranks.device) < ranks.unsqueeze(-1)).to(self.A.dtype)
        following = torch.cat([kept[:, 1:], torch.zeros_like(kept[:, :1])], dim=1)
        A = self.A[..., :k, :k] * following.unsqueeze(-1) * kept.unsqueeze(-2)
        B, C = self.B[..., :k] * following.unsqueeze(-2), self.C[..., :k] * kept.unsqueeze(-2)
        return Balanced(self.sigma, self.slack, ranks, A, B, C, self.D)

    def tail(self) -> Tensor:
        """Discarded singular values, ``(N, L, K)``, descending; each as large as it may be, 0 where it may be 0."""
        K = self.sigma.shape[-1]
        index = self.ranks.unsqueeze(-1) + torch.arange(K, device=self.ranks.device)
        sigma, slack = self.sigma.gather(-1, index.clamp(max=K - 1)), self.slack.unsqueeze(-1)
        tail = (sigma + slack).where((index < K) & (sigma > slack), 0.0)
        return tail[..., : int((tail > 0).sum(-1).amax())]

    def recurrence(self, like: Operator) -> Recurrence:
        """As an operator with the leading dimensions and the padding of ``like``."""
        lead, d = like.shape[:-2], like.block
        A, B, C, D = (part.reshape(*lead, *part.shape[1:]) for part in (self.A, self.B, self.C, self.D))
        if d == 1:
            B, C, D = B.squeeze(-2), C.squeeze(-2), D[..., 0, 0]
        block = d if d > 1 else None
        op = Recurrence(DenseTransition(A), B, C, D, read="before", block=block, name="reduced")
        # Marked only: the state is carried through padding in coordinates that change there too.
        op.valid = like.valid
        return op


@torch.no_grad()
def balance(op: Operator, rule: Rule) -> Balanced:
    """Balanced coordinates of ``op``, as many at each position as ``rule`` says, and no more than can be told from 0."""
    if isinstance(op, Recurrence) and state(op) <= op.block * op.length:
        return _of_recurrence(op, rule)
    return _of_matrix(op, rule)


def state(op: Recurrence) -> int:
    """Real numbers in the state."""
    return op.order * (2 if op.is_complex else 1)


def _of_recurrence(op: Recurrence, rule: Rule) -> Balanced:
    lead, d, L, n = op.shape[:-2], op.block, op.length, state(op)
    at_once = max(1, _BYTES // (64 * L * n * n))
    parts = []
    for start in range(0, lead.numel(), at_once):
        rows = slice(start, min(start + at_once, lead.numel()))
        entries = torch.arange(rows.start, rows.stop, device=op.device)
        part = op[torch.unravel_index(entries, lead)] if lead else op
        parts.append(_part_of_recurrence(part, rule, rows, _possible(L, d, n, op.device)))
    return _joined(parts)


def _part_of_recurrence(op: Recurrence, rule: Rule, rows: slice, possible: Tensor) -> Balanced:
    given = op
    op, scale = _scaled(given)
    found = realization.factors(op)
    b, L, n = rows.stop - rows.start, op.length, state(op)
    reach, observe, bound = (
        X.reshape(b, L, *X.shape[X.ndim - tail :])
        for X, tail in ((found.reach, 2), (found.observe, 2), (found.bound, 0))
    )
    core = observe.mT @ reach
    if not bool(torch.isfinite(core).all()):
        raise ValueError(
            "the state grows beyond the range of floats: cut the sequence into shorter pieces, or rescale A."
        )
    with one_thread(op.device):
        U, sigma, Vh = torch.linalg.svd(core)
    eps = torch.finfo(core.dtype).eps
    norms = torch.linalg.vector_norm(observe, dim=-1) * torch.linalg.vector_norm(reach, dim=-1)
    rounding = (1 + n**0.5) * eps * norms.sum(-1) + 4 * n**0.5 * eps * sigma[..., 0]
    slack = bound.nan_to_num(nan=torch.inf, posinf=torch.inf) + rounding
    sigma = sigma.where(torch.arange(n, device=op.device) < possible.unsqueeze(-1), 0.0)
    told = (sigma > rounding.unsqueeze(-1)).sum(-1)
    ranks = torch.minimum(rule(sigma, rows, slice(0, L)), told)
    k = max(1, int(ranks.amax()))
    kept = torch.arange(k, device=op.device) < ranks.unsqueeze(-1)
    roots = torch.where(kept, sigma[..., :k], 1.0).rsqrt().where(kept, 0.0).unsqueeze(-2)
    left, right = observe @ U[..., :k] * roots, reach @ Vh[..., :k, :].mT * roots
    following = torch.cat([left[:, 1:], torch.zeros_like(left[:, :1])], dim=1)
    A, B, C, _ = read_before(op, right)
    D = _direct(given)
    # Half the exponent each: as a whole it may leave the range of floats.
    half = scale // 2
    to_B, to_C = (_two_to(exponent).view(-1, 1, 1) for exponent in (half, scale - half))
    return Balanced(
        sigma * to_B * to_C,
        slack * to_B[..., 0] * to_C[..., 0],
        ranks,
        following.mT @ A,
        B @ following * to_B.unsqueeze(-1),
        C * to_C.unsqueeze(-1),
        D,
    )


def _scaled(op: Recurrence) -> tuple[Recurrence, Tensor]:
    """``B`` and ``C`` divided by powers of two that bring them near 1, where squares stay in range; and the exponents' sums."""
    tail = 2 if op.block > 1 else 1
    parts, total = [], torch.zeros((), dtype=torch.int64, device=op.device)
    for X in (op.B, op.C):
        largest = X.abs().double().flatten(X.ndim - tail - 1).amax(-1)
        exponent = torch.frexp(largest)[1].long().clamp(-1000, 1000)
        wide = X.to(torch.complex128 if X.is_complex() else torch.float64)
        parts.append(wide / _two_to(exponent).view(*exponent.shape, *(1,) * (tail + 1)))
        total = total + exponent
    block = op.block if op.block > 1 else None
    return Recurrence(op.A, *parts, read=op.read, block=block), total.reshape(-1)


def _two_to(exponent: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)


def read_before(op: Recurrence, X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``A X``, ``B``, ``C X`` and ``D`` of the same recurrence in real numbers, read before it is updated.

    ``X`` is ``(N, L, n, k)``, with the leading dimensions of ``op`` flattened.
    """
    lead = op.shape[:-2]
    stepped = _step(op, X.reshape(*lead, *X.shape[1:])).reshape(X.shape)
    B, C = _real_parts(op)
    return stepped, B, C @ (X if op.read == "before" else stepped), _direct(op)


def _direct(op: Recurrence) -> Tensor:
    """The blocks on the diagonal of ``T``, ``(N, L, d, d)``."""
    B, C = _real_parts(op)
    b, L, d, _ = B.shape
    D = B.new_zeros(b, L, d, d) if op.D is None else op.D.to(B.dtype).reshape(b, L, d, d)
    return D if op.read == "before" else D + C @ B.mT


def _real_parts(op: Recurrence) -> tuple[Tensor, Tensor]:
    """``B`` and ``C`` for the state written as [real; imaginary], ``(N, L, d, n)``."""
    b, L, d = op.shape[:-2].numel(), op.length, op.block
    B, C = (Y.reshape(b, L, d, op.order) for Y in (op.B, op.C))
    return _real(B, 1.0), _real(C, -1.0)


def _step(op: Recurrence, X: Tensor) -> Tensor:
    """``A_t X_t`` in real numbers."""
    if not op.is_complex:
        return op.A.to(dtype=X.dtype).apply(X)
    n = op.order
    Y = op.A.to(dtype=torch.complex128).apply(torch.complex(X[..., :n, :], X[..., n:, :]))
    return torch.cat([Y.real, Y.imag], dim=-2)


def _real(X: Tensor, sign: float) -> Tensor:
    """Rows that add to, or read (``sign=-1``), a complex state written as [real; imaginary]."""
    dtype = torch.float64
    return torch.cat([X.real, sign * X.imag], dim=-1).to(dtype) if X.is_complex() else X.to(dtype)


def _of_matrix(op: Operator, rule: Rule) -> Balanced:
    """One singular value decomposition per position, ``O(L⁴)``."""
    lead, d, L = op.shape[:-2], op.block, op.length
    T = op.matrix().detach().double().reshape(-1, *op.shape[-2:])
    possible = _possible(L, d, d * L, T.device)
    parts = []
    with one_thread(T.device):
        for row in range(lead.numel()):
            parts.append(_part_of_matrix(T[row], d, rule, slice(row, row + 1), possible))
    return _joined(parts)


def _part_of_matrix(T: Tensor, d: int, rule: Rule, rows: slice, possible: Tensor) -> Balanced:
    L = len(possible)
    sigma = T.new_zeros(L, max(1, int(possible.amax())))
    ranks = torch.zeros(L, dtype=torch.int64, device=T.device)
    # Observability and reachability of what is kept, one position at a time: A, B, C link neighbours.
    A, B, C = [T.new_zeros(0, 0)] * L, [T.new_zeros(d, 0)] * L, [T.new_zeros(d, 0)] * L
    previous = T.new_zeros(d * L, 0)
    for t in range(L):
        U, s, Vh = torch.linalg.svd(T[d * t :, : d * t], full_matrices=False)
        sigma[t, : len(s)] = s
        told = (s > _rounding(s, L * d)).sum()
        r = int(torch.minimum(rule(sigma[None, t : t + 1], rows, slice(t, t + 1)), told))
        ranks[t], root = r, s[:r].sqrt()
        observe = U[:, :r] * root
        C[t] = observe[:d]
        if t:
            A[t - 1] = (U[:, :r] / root).mT @ previous[d:]
            B[t - 1] = (Vh[:r, -d:] * root.unsqueeze(-1)).mT
        previous = observe
    k = max(1, int(ranks.amax()))
    A[-1], B[-1] = T.new_zeros(0, len(C[-1].mT)), T.new_zeros(d, 0)
    pad = torch.nn.functional.pad
    A = [pad(X, (0, k - X.shape[1], 0, k - X.shape[0])) for X in A]
    B, C = ([pad(X, (0, k - X.shape[1])) for X in Y] for Y in (B, C))
    D = T.reshape(L, d, L, d).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    slack = _rounding(sigma, L * d)
    return Balanced(
        sigma[None],
        slack[None, :, 0],
        ranks[None],
        torch.stack(A)[None],
        torch.stack(B)[None],
        torch.stack(C)[None],
        D[None],
    )


def _rounding(sigma: Tensor, size: int) -> Tensor:
    rounding: Tensor = 8 * size**0.5 * torch.finfo(sigma.dtype).eps * sigma[..., :1]
    return rounding


def _possible(L: int, d: int, n: int, device: torch.device) -> Tensor:
    at = torch.arange(L, device=device)
    return torch.minimum(at, L - at).mul(d).clamp(max=n)


def _joined(parts: list[Balanced]) -> Balanced:
    """All entries, with as many coordinates as the one that has most."""
    k = max(part.A.shape[-1] for part in parts)
    pad = torch.nn.functional.pad

    def all_of(name: str, square: bool = False, widen: bool = True) -> Tensor:
        X = [getattr(part, name) for part in parts]
        if not widen:
            return torch.cat(X)
        return torch.cat([pad(x, (0, k - x.shape[-1]) + (0, k - x.shape[-1]) * square) for x in X])

    return Balanced(
        all_of("sigma", widen=False),
        all_of("slack", widen=False),
        all_of("ranks", widen=False),
        all_of("A", square=True),
        all_of("B"),
        all_of("C"),
        all_of("D", widen=False),
    )
