"""The matrix of a recurrence, from products of its transitions: no logarithms, no division by decays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ess_widgets.operators.transitions import Transition

__all__ = ["recurrence_matrix"]


def recurrence_matrix(A: Transition, B: Tensor, C: Tensor, *, before: bool) -> Tensor:
    """``Re(C_i A … A B_j)``, ``(..., d*L, d*L)``, for ``B`` and ``C`` of shape ``(..., L, d, n)``.

    Positions are cut into about ``sqrt(L)`` chunks. All chunks step through their positions together, carrying
    the states that their own inputs leave and the product of their transitions; then the states that earlier
    chunks left are handed on from chunk to chunk.
    """
    *lead, L, d, n = B.shape
    size = math.isqrt(L - 1) + 1
    count = -(-L // size)
    missing = size * count - L
    A = A.padded(missing)
    B, C = (torch.nn.functional.pad(part, (0, 0, 0, 0, 0, missing)) for part in (B, C))
    dtype = B.real.dtype
    T = torch.zeros(*lead, d * L, d * L, dtype=dtype, device=B.device)
    states = B.new_zeros(*lead, count, n, 0)
    through: Transition | None = None
    inside, entry = [], []
    for offset in range(size):
        at = slice(offset, None, size)
        step, reader = A.at(at), C[..., at, :, :]
        if before:
            inside.append(_real_product(reader, states))
            entry.append(reader if through is None else _times(reader, through))
        states = torch.cat([step.apply(states), B[..., at, :, :].mT], dim=-1)
        through = step.after(through, n)
        if not before:
            inside.append(_real_product(reader, states))
            entry.append(_times(reader, through))
    assert through is not None
    # (..., count, size * d, columns): what each chunk's outputs read of its own inputs, and of the state before.
    width = size * d
    own = torch.cat([torch.nn.functional.pad(rows, (0, width - rows.shape[-1])) for rows in inside], dim=-2)
    readers = torch.cat([rows.expand(*lead, count, d, n) for rows in entry], dim=-2)
    carried = B.new_zeros(*lead, n, 0)
    for chunk in range(count):
        start, stop = chunk * width, min((chunk + 1) * width, d * L)
        rows = slice(None, stop - start)
        T[..., start:stop, start:stop] = own[..., chunk, rows, rows]
        if chunk:
            T[..., start:stop, :start] = _real_product(readers[..., chunk, rows, :], carried)
        passed = through.at(slice(chunk, chunk + 1)).apply(carried.unsqueeze(-3)).squeeze(-3)
        carried = torch.cat([passed, states[..., chunk, :, :]], dim=-1)
    return T


def _times(rows: Tensor, product: Transition) -> Tensor:
    return product.transposed().apply(rows.mT).mT


def _real_product(X: Tensor, Y: Tensor) -> Tensor:
    """``Re(X @ Y)``."""
    if not X.is_complex():
        return X @ Y
    return torch.cat([X.real, -X.imag], dim=-1) @ torch.cat([Y.real, Y.imag], dim=-2)
