"""Recurrences of every form, and their matrix by the definition, in extended precision where there is any."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.operators import (
    DenseTransition,
    Diagonal,
    DiagonalPlusLowRank,
    Recurrence,
    Transition,
)

FORMS = ("scalar", "diagonal", "dense", "low rank", "invariant diagonal", "invariant dense")


def wide(part: Tensor) -> Any:
    """A numpy array in long double."""
    array = part.detach().numpy()
    return array.astype(np.clongdouble if np.iscomplexobj(array) else np.longdouble)


def transition_matrix(A: Transition, t: int, n: int) -> Any:
    """``A_t`` of an unbatched transition, ``(n, n)``."""
    parts = [
        wide(part)[0 if part.shape[-tail - 1] == 1 else t]
        for part, tail in zip(A.parts, A.tails, strict=True)
    ]
    if isinstance(A, Diagonal):
        return np.diag(np.broadcast_to(parts[0], n))
    if isinstance(A, DenseTransition):
        return parts[0]
    d, U, V = parts
    return np.diag(np.broadcast_to(d, n)) + U @ V.T


def by_definition(op: Recurrence) -> Any:
    """``T`` of a recurrence without leading dimensions, by stepping every input's state, ``(d*L, d*L)``."""
    n, d, L = op.order, op.block, op.length
    B, C = (wide(X).reshape(L, d, n) for X in (op.B, op.C))
    T = np.zeros((L, d, L, d), dtype=np.longdouble)
    states = np.zeros((n, L, d), dtype=np.result_type(B, C, *map(wide, op.A.parts)))
    for t in range(L):
        if op.read == "before":
            T[t] = np.tensordot(C[t], states, 1).real
        states = np.tensordot(transition_matrix(op.A, t, n), states, 1)
        states[:, t] += B[t].T
        if op.read == "after":
            T[t] = np.tensordot(C[t], states, 1).real
        if op.D is not None:
            T[t, :, t] += wide(op.D).reshape(L, d, d)[t]
    return T.reshape(L * d, L * d)


@st.composite
def recurrences(draw: st.DrawFn, longest: int = 20, direct: bool = True) -> Recurrence:
    """With or without leading dimensions, of every form, order, field, block and precision."""
    L, n = draw(st.integers(1, longest)), draw(st.integers(1, 5))
    block = draw(st.sampled_from([None, None, 1, 2, 3]))
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]))
    is_complex = dtype is not torch.bfloat16 and draw(st.booleans())
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def tensor(*shape: int, may_be_complex: bool = True) -> Tensor:
        field = dtype.to_complex() if is_complex and may_be_complex else dtype
        return torch.randn(*shape, generator=random, dtype=field if dtype is not torch.bfloat16 else None).to(
            field
        )

    # B carries the first leading dimension, C the second; A has either or none.
    lead_B, lead_C = draw(st.sampled_from([((), ()), ((2, 1), (1, 3)), ((1,), (2,))]))
    channels = () if block is None else (block,)
    B, C = tensor(*lead_B, L, *channels, n), tensor(*lead_C, L, *channels, n)
    lead_A = draw(st.sampled_from([lead_B, lead_C]))
    form = draw(st.sampled_from(FORMS))
    A: Any
    if form == "scalar":
        A = tensor(*lead_A, L)
    elif form == "dense":
        A = tensor(*lead_A, L, n, n)
    elif form == "invariant dense":
        A = DenseTransition(tensor(1, n, n))
    elif form == "invariant diagonal":
        A = Diagonal(tensor(1, n))
    elif form == "low rank":
        r = draw(st.integers(1, 2))
        d = tensor(*draw(st.sampled_from([(1, 1), (L, 1), (L, n), (1, n)])))
        A = DiagonalPlusLowRank(d, tensor(*lead_A, L, n, r), tensor(L, n, r))
    else:
        zeros = (torch.rand(*lead_A, L, n, generator=random) > 0.2).to(dtype)
        A = tensor(*lead_A, L, n) * zeros
    D = None
    if direct and draw(st.booleans()):
        D = tensor(L, *channels, *channels, may_be_complex=False)
    valid = (torch.rand(L, generator=random) > 0.3) if draw(st.booleans()) else None
    return Recurrence(A, B, C, D, read=draw(st.sampled_from(["after", "before"])), block=block, valid=valid)


def entries(op: Recurrence) -> list[Recurrence]:
    """All leading entries, each without leading dimensions."""
    lead = op.shape[:-2]
    return [op[index] if lead else op for index in np.ndindex(*lead)]
