"""How far a recurrence is from the operator it was made from, without their matrices where these are large."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ess_widgets.learn.reduction.balancing import read_before, state
from ess_widgets.metrics import realization, spectrum
from ess_widgets.metrics._svd import one_thread
from ess_widgets.operators import Dense, DenseTransition, Operator, Recurrence

__all__ = ["hankel_norms", "norms", "top_singular_value"]

# Rows up to which the matrix of the difference is formed, and up to which all its eigenvalues are computed.
_FORMED, _DECOMPOSED = 2048, 384
_ITERATIONS, _TOLERANCE = 120, 1e-8


@torch.no_grad()
def norms(op: Operator, reduced: Recurrence) -> tuple[Tensor, Tensor]:
    """Operator norm and Frobenius norm of ``T - T_r``, ``(...)`` each.

    The operator norm is that of an eigenvalue decomposition for up to 384 rows, else by Lanczos iterations until it settles
    to 1e-8, relative; it then is below the true one by about as much.
    """
    lead = op.shape[:-2]
    pairs = []
    with one_thread(op.device):
        for row in range(lead.numel()):
            one, other = _entry(op, row), _entry(reduced, row)
            pairs.append(_norms(one, other))
    largest, frobenius = (torch.stack(values).reshape(lead) for values in zip(*pairs, strict=True))
    return largest, frobenius


@torch.no_grad()
def hankel_norms(op: Operator, reduced: Recurrence) -> Tensor:
    """``‖H_i(T) - H_i(T_r)‖`` at every position, ``(..., L)``."""
    lead, L = op.shape[:-2], op.length
    rows = []
    for row in range(lead.numel()):
        one, other = _entry(op, row), _entry(reduced, row)
        if isinstance(one, Recurrence) and isinstance(other, Recurrence) and _small(one, other):
            sigma = realization.spectra(_difference(one, other))[0]
        else:
            sigma = spectrum(Dense(_matrix(one) - _matrix(other), block=one.block))
        rows.append(sigma[..., 0] if sigma.shape[-1] else sigma.new_zeros(L))
    return torch.stack(rows).reshape(*lead, L)


def _entry(op: Operator, row: int) -> Operator:
    lead = op.shape[:-2]
    return op[tuple(int(i) for i in torch.unravel_index(torch.tensor(row), lead))] if lead else op


def _small(op: Recurrence, reduced: Recurrence) -> bool:
    """Whether both states together are smaller than what is mixed."""
    return state(op) + state(reduced) <= op.block * op.length


def _matrix(op: Operator) -> Tensor:
    return op.matrix().detach().double()


def _norms(op: Operator, reduced: Operator) -> tuple[Tensor, Tensor]:
    size = op.shape[-1]
    if size > _FORMED and isinstance(op, Recurrence) and isinstance(reduced, Recurrence):
        return _swept(_difference(op, reduced))
    E = _matrix(op) - _matrix(reduced)
    frobenius = torch.linalg.matrix_norm(E)
    scale = E.abs().amax()
    if not bool(scale > 0):
        return scale, frobenius
    E = E / scale
    if size <= _DECOMPOSED:
        return torch.linalg.eigvalsh(E @ E.mT)[-1].clamp(min=0).sqrt() * scale, frobenius
    largest = top_singular_value(lambda x: E @ x, lambda y: E.mT @ y, E.new_empty(size))
    return largest * scale, frobenius


def _difference(op: Recurrence, reduced: Recurrence) -> Recurrence:
    """``T - T_r`` off the diagonal as a recurrence with both states; without leading dimensions."""
    n, k, L, d = state(op), reduced.order, op.length, op.block
    identity = torch.eye(n, dtype=torch.float64, device=op.device)
    A, B, C, _ = (part[0] for part in read_before(op, identity.expand(1, L, n, n)))
    A_r = reduced.A.apply(torch.eye(k, dtype=A.dtype, device=A.device).expand(L, k, k))
    both = A.new_zeros(L, n + k, n + k)
    both[:, :n, :n], both[:, n:, n:] = A, A_r
    B_r, C_r = (X.reshape(L, d, k) for X in (reduced.B, reduced.C))
    B, C = torch.cat([B, B_r], dim=-1), torch.cat([C, -C_r], dim=-1)
    return Recurrence(DenseTransition(both), B, C, read="before", block=d)


def _swept(E: Recurrence) -> tuple[Tensor, Tensor]:
    A, B, C = E.A.parts[0], *(X.reshape(E.length, E.block, E.order) for X in (E.B, E.C))
    reach = realization.factors(E).reach
    frobenius = torch.linalg.vector_norm(C @ reach)
    L, d, n = B.shape

    def forwards(u: Tensor) -> Tensor:
        added = torch.einsum("ldn,ld->ln", B, u.view(L, d))
        states, s = torch.zeros_like(added), added.new_zeros(n)
        for t in range(L):
            states[t] = s
            s = A[t] @ s + added[t]
        return torch.einsum("ldn,ln->ld", C, states).reshape(-1)

    def backwards(y: Tensor) -> Tensor:
        read = torch.einsum("ldn,ld->ln", C, y.view(L, d))
        costates, s = torch.zeros_like(read), read.new_zeros(n)
        for t in range(L - 1, -1, -1):
            costates[t] = s
            s = A[t].mT @ s + read[t]
        return torch.einsum("ldn,ln->ld", B, costates).reshape(-1)

    return top_singular_value(forwards, backwards, B.new_empty(L * d)), frobenius


def top_singular_value(
    forwards: Callable[[Tensor], Tensor], backwards: Callable[[Tensor], Tensor], like: Tensor
) -> Tensor:
    """Largest singular value of a square matrix by Golub and Kahan's bidiagonalisation, all vectors kept orthogonal."""
    random = torch.Generator().manual_seed(0)
    v = torch.randn(like.shape, dtype=torch.float64, generator=random).to(like.device)
    V, U = [v / v.norm()], list[Tensor]()
    diagonal, above = list[float](), list[float]()
    value, settled = 0.0, 0
    for step in range(min(_ITERATIONS, len(v))):
        u = _orthogonal(forwards(V[-1]), U)
        diagonal.append(float(u.norm()))
        if diagonal[-1] > 0:
            U.append(u / u.norm())
            v = _orthogonal(backwards(U[-1]), V)
        bidiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if step:
            bidiagonal += torch.diag(torch.tensor(above, dtype=torch.float64), 1)
        previous, value = value, float(torch.linalg.svdvals(bidiagonal)[0])
        settled = settled + 1 if abs(value - previous) <= _TOLERANCE * value else 0
        above.append(float(v.norm()))
        if settled == 3 or diagonal[-1] == 0 or above[-1] <= value * len(v) * torch.finfo(v.dtype).eps:
            break
        V.append(v / v.norm())
    return torch.tensor(value, dtype=torch.float64, device=like.device)


def _orthogonal(x: Tensor, basis: list[Tensor]) -> Tensor:
    if basis:
        Q = torch.stack(basis)
        for _ in range(2):
            x = x - Q.mT @ (Q @ x)
    return x
