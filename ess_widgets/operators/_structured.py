"""Which sums, products and gated forms of operators are recurrences or convolutions again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators.base import Operator
from ess_widgets.operators.convolution import Convolution
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import DenseTransition, Diagonal, DiagonalPlusLowRank, Transition

__all__ = ["add", "gate", "multiply"]


def add(first: Operator, second: Operator) -> Operator | None:
    """The sum, or None where it has no structure."""
    if not _same_padding(first, second):
        return None
    if isinstance(first, Convolution) and isinstance(second, Convolution):
        return _add_kernels(first, second)
    if isinstance(first, Recurrence) and isinstance(second, Recurrence):
        return _side_by_side(first, second)
    return None


def multiply(first: Operator, second: Operator) -> Operator | None:
    """The product ``first @ second``, or None where it has no structure."""
    if not _same_padding(first, second):
        return None
    if isinstance(first, Convolution) and isinstance(second, Convolution):
        return _convolve_kernels(first, second)
    if isinstance(first, Recurrence) and isinstance(second, Recurrence):
        return _cascade(first, second)
    return None


def gate(op: Operator, g: Tensor | None, b: Tensor | None) -> Operator | None:
    """``g_i T_ij b_j``, or None where it has no structure."""
    if isinstance(op, Convolution):
        D = _times(op.D, g, b)
        if _constant(g) and _constant(b):
            # One number for all positions belongs in the kernel, which stays without gates.
            return Convolution(
                _times(op.kernel, *(None if x is None else x[..., :1] for x in (g, b))),
                input_gate=op.input_gate,
                output_gate=op.output_gate,
                length=op.length,
                D=D,
                valid=op.valid,
            )
        return Convolution(
            op.kernel,
            input_gate=b if op.input_gate is None else _times(op.input_gate, b),
            output_gate=g if op.output_gate is None else _times(op.output_gate, g),
            length=op.length,
            D=D,
            valid=op.valid,
        )
    if isinstance(op, Recurrence):
        B, C, D = _channels(op, work=True)
        # (..., d*L) as (..., L, d), in the precision of the matrix.
        g, b = (
            None if x is None else x.to(op.dtype).reshape(*x.shape[:-1], op.length, op.block) for x in (g, b)
        )
        if b is not None:
            B = B * b.unsqueeze(-1)
            D = None if D is None else D * b.unsqueeze(-2)
        if g is not None:
            C = C * g.unsqueeze(-1)
            D = None if D is None else D * g.unsqueeze(-1)
        return _recurrence(op, op.A, B, C, D, op.name)
    return None


def _same_padding(first: Operator, second: Operator) -> bool:
    if first.valid is None or second.valid is None:
        return first.valid is second.valid
    return first.valid.shape == second.valid.shape and torch.equal(first.valid, second.valid)


def _times(part: Tensor | None, *factors: Tensor | None) -> Tensor | None:
    for factor in factors:
        part = None if part is None else part if factor is None else part * factor
    return part


def _constant(gate: Tensor | None) -> bool:
    return gate is None or gate.stride(-1) == 0


def _add_kernels(first: Convolution, second: Convolution) -> Convolution | None:
    if first.gated or second.gated:
        return None
    taps, dtype = max(first.taps, second.taps), torch.promote_types(first.dtype, second.dtype)
    kernels = [torch.nn.functional.pad(op.kernel.to(dtype), (0, taps - op.taps)) for op in (first, second)]
    skips = [op.D.to(dtype) for op in (first, second) if op.D is not None]
    return Convolution(
        kernels[0] + kernels[1],
        length=first.length,
        D=None if not skips else skips[0] if len(skips) == 1 else skips[0] + skips[1],
        valid=first.valid,
    )


def _convolve_kernels(first: Convolution, second: Convolution) -> Convolution | None:
    h, k = _whole_kernel(first), _whole_kernel(second)
    if h is None or k is None:
        return None
    L, dtype = first.length, torch.promote_types(first.dtype, second.dtype)
    work = torch.float32 if first.device.type == "mps" else torch.float64
    lead = np.broadcast_shapes(h.shape[:-1], k.shape[:-1])
    h, k = (x[..., :L].to(work).expand(*lead, -1).reshape(-1, min(L, x.shape[-1])) for x in (h, k))
    # One group per kernel; torch correlates, so the second one is reversed.
    product = torch.nn.functional.conv1d(
        h.unsqueeze(0), k.flip(-1).unsqueeze(1), padding=k.shape[-1] - 1, groups=len(k)
    )
    return Convolution(product[0, :, :L].reshape(*lead, -1).to(dtype), length=L)


def _whole_kernel(op: Convolution) -> Tensor | None:
    """The kernel with the skip in it, where nothing makes one position different from another."""
    if op.gated or op.valid is not None:
        return None
    if op.D is None:
        return op.kernel
    if not _constant(op.D):
        return None
    kernel = op.kernel.to(op.dtype)
    return torch.cat([kernel[..., :1] + op.D[..., :1], kernel[..., 1:]], dim=-1)


def _side_by_side(first: Recurrence, second: Recurrence) -> Recurrence | None:
    """Both states in one, each with its own transition."""
    if first.read != second.read or first.is_complex != second.is_complex:
        return None
    A = _direct_sum(first, second)
    if A is None:
        return None
    (B1, C1, D1), (B2, C2, D2) = _channels(first), _channels(second)
    D = D1 if D2 is None else D2 if D1 is None else D1 + D2
    return _recurrence(first, A, _beside(B1, B2), _beside(C1, C2), D, _names(first, "+", second))


def _cascade(first: Recurrence, second: Recurrence) -> Recurrence | None:
    """``second`` drives ``first``, both with a real diagonal transition and read after the update.

    With ``y = C₂ s₂ + D₂ u`` the state ``(s₂, s₁)`` has ``s₁ = A₁ s₁ + B₁ y``, where ``s₂`` on the right is the updated
    one: a diagonal with ``B₁ (C₂ A₂)`` below it, of rank ``d``.
    """
    diagonal = isinstance(first.A, Diagonal) and isinstance(second.A, Diagonal)
    if not diagonal or first.is_complex or second.is_complex or {first.read, second.read} != {"after"}:
        return None
    (B1, C1, D1), (B2, C2, D2) = _channels(first, work=True), _channels(second, work=True)
    a1, a2 = _diagonal(first).to(first.dtype), _diagonal(second).to(second.dtype)
    zero1, zero2 = torch.zeros_like(B1), torch.zeros_like(B2)
    A = DiagonalPlusLowRank(_beside(a2, a1), _beside(zero2, B1).mT, _beside(C2 * a2.unsqueeze(-2), zero1).mT)
    made = C2 @ B2.mT if D2 is None else C2 @ B2.mT + D2
    passed = torch.zeros_like(C2) if D1 is None else D1 @ C2
    D = None if D1 is None or D2 is None else D1 @ D2
    return _recurrence(
        first, A, _beside(B2, made.mT @ B1), _beside(passed, C1), D, _names(first, "@", second)
    )


def _direct_sum(first: Recurrence, second: Recurrence) -> Transition | None:
    kinds = {type(first.A), type(second.A)}
    if kinds == {Diagonal}:
        return Diagonal(_beside(_diagonal(first), _diagonal(second)))
    if kinds == {DenseTransition}:
        (P,), (Q,) = first.A.parts, second.A.parts
        upper = torch.nn.functional.pad(P, (0, second.order))
        return DenseTransition(_beside(upper.mT, torch.nn.functional.pad(Q, (first.order, 0)).mT).mT)
    if kinds <= {Diagonal, DiagonalPlusLowRank}:
        (U1, V1), (U2, V2) = _low_rank(first), _low_rank(second)
        r1, r2 = U1.shape[-1], U2.shape[-1]
        pad = torch.nn.functional.pad
        U, V = (_beside(pad(X, (0, r2)).mT, pad(Y, (r1, 0)).mT).mT for X, Y in ((U1, U2), (V1, V2)))
        return DiagonalPlusLowRank(_beside(_diagonal(first), _diagonal(second)), U, V)
    return None


def _diagonal(op: Recurrence) -> Tensor:
    """The diagonal part of the transition, ``(..., L or 1, n)``."""
    a = op.A.parts[0]
    return a.expand(*a.shape[:-1], op.order)


def _low_rank(op: Recurrence) -> tuple[Tensor, Tensor]:
    if isinstance(op.A, DiagonalPlusLowRank):
        return op.A.parts[1], op.A.parts[2]
    empty = _diagonal(op).unsqueeze(-1)[..., :0]
    return empty, empty


def _beside(left: Tensor, right: Tensor) -> Tensor:
    """Put side by side along the last dimension; all others broadcast."""
    lead = np.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat([left.expand(*lead, -1), right.expand(*lead, -1)], dim=-1)


def _channels(op: Recurrence, work: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """``B``, ``C`` and ``D`` as ``(..., L, d, n)`` and ``(..., L, d, d)``; if so asked in the matrix's precision."""
    B, C, D = op.B, op.C, op.D
    if work:
        B, C = (x.to(op.dtype.to_complex() if x.is_complex() else op.dtype) for x in (B, C))
        D = None if D is None else D.to(op.dtype)
    if op.block > 1:
        return B, C, D
    return B.unsqueeze(-2), C.unsqueeze(-2), None if D is None else D[..., None, None]


def _recurrence(
    like: Recurrence, A: Transition, B: Tensor, C: Tensor, D: Tensor | None, name: str | None
) -> Recurrence:
    return Recurrence(A, B, C, D, read=like.read, block=like.block, valid=like.valid, name=name)


def _names(first: Recurrence, sign: str, second: Recurrence) -> str | None:
    return f"{first.name} {sign} {second.name}" if first.name and second.name else None
