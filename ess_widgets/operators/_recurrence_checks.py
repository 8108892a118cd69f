"""Checks on the arguments of a recurrence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators.checks import as_tensor
from ess_widgets.operators.transitions import DenseTransition, Diagonal, Transition, parameter

__all__ = ["by_channel", "check_finite", "common_shape", "direct", "transition"]


def by_channel(B: Any, C: Any, block: int | None) -> tuple[Tensor, Tensor]:
    """``B`` and ``C`` as ``(..., L, d, n)``."""
    B, C = parameter(B, "B"), parameter(C, "C")
    shapes = f"B has shape {tuple(B.shape)} and C {tuple(C.shape)}"
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise ValueError(f"block must be a positive integer or None, but is {block!r}.")
    form, least = ("(..., L, n)", 2) if block is None else (f"(..., L, {block}, n) as block={block} says", 3)
    if B.ndim < least or C.ndim < least:
        raise ValueError(f"B and C must be {form}, but {shapes}.")
    if block is None:
        B, C = B.unsqueeze(-2), C.unsqueeze(-2)
    elif B.shape[-2] != block or C.shape[-2] != block:
        raise ValueError(f"B and C must be {form}, but {shapes}.")
    if B.shape[-1] != C.shape[-1]:
        raise ValueError(f"B and C must have states of one size (last dimension), but {shapes}.")
    if 0 in B.shape or 0 in C.shape:
        raise ValueError(f"B and C must not be empty, but {shapes}.")
    return B, C


def direct(D: Any, block: int | None) -> Tensor | None:
    """``D`` as ``(..., L, d, d)``."""
    if D is None:
        return None
    part = parameter(D, "D")
    if part.is_complex():
        raise ValueError("D must be real: it is added to the real part of what is read from the state.")
    if block is None:
        if part.ndim < 1:
            raise ValueError("D must be (..., L), but is a single number; use D.expand(L) or D[None].")
        return part.unsqueeze(-1).unsqueeze(-1)
    if part.ndim < 3 or part.shape[-2:] != (block, block):
        raise ValueError(
            f"D must be (..., L, {block}, {block}) as block={block} says, but its shape is {tuple(part.shape)}."
        )
    return part


def transition(A: Any, B: Tensor, C: Tensor) -> Transition:
    """A tensor as the transition that its dimensions beyond the leading ones of ``B`` and ``C`` say."""
    n, leading, L = B.shape[-1], max(B.ndim, C.ndim) - 3, max(B.shape[-3], C.shape[-3])
    if isinstance(A, Transition):
        if A.order not in (1, n):
            raise ValueError(
                f"A has a state of size {A.order}, but B and C have one of {n} (last dimension)."
            )
        return A
    A = parameter(A, "A")
    position, entries = A.shape[leading : leading + 1], A.shape[leading + 1 :]
    if position and (position[0] in (1, L) or L == 1):
        if len(entries) == 0:
            return Diagonal(A.unsqueeze(-1))
        if entries in ((1,), (n,)):
            return Diagonal(A)
        if entries == (n, n):
            return DenseTransition(A)
    raise ValueError(
        f"A of shape {tuple(A.shape)} is none of (..., {L}), (..., {L}, {n}), (..., {L}, 1) and "
        f"(..., {L}, {n}, {n}) where (...) are {leading} dimensions, as many as B and C have: write them out with "
        "size 1, or say what A is with Diagonal, DenseTransition or DiagonalPlusLowRank."
    )


def common_shape(A: Transition, B: Tensor, C: Tensor, D: Tensor | None, valid: Any) -> torch.Size:
    """The leading shape and the length, ``(..., L)``, that all parts broadcast to."""
    parts = {"B": B, "C": C} | ({} if D is None else {"D": D})
    devices = {"A": A.device} | {name: part.device for name, part in parts.items()}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all parts must be on one device, but are: {found}.")
    lengths = {"A": A.length} | {name: part.shape[-3] for name, part in parts.items()}
    leads = {"A": A.lead} | {name: part.shape[:-3] for name, part in parts.items()}
    if valid is not None:
        valid = as_tensor(valid, "valid")
        lengths["valid"], leads["valid"] = (valid.shape[-1] if valid.ndim else 1), valid.shape[:-1]
    L = max(lengths.values())
    if not set(lengths.values()) <= {1, L}:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"all parts must cover the same positions, or one for all, but have: {found}.")
    try:
        lead = torch.broadcast_shapes(*leads.values())  # type: ignore[no-untyped-call]
    except RuntimeError:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in leads.items())
        raise ValueError(f"leading dimensions must broadcast, but are: {found}.") from None
    return torch.Size([*lead, L])


def check_finite(A: Transition, B: Tensor, C: Tensor, D: Tensor | None) -> None:
    parts = [
        *((f"A's {name}", part) for name, part in zip(A.names, A.parts, strict=True)),
        ("B", B),
        ("C", C),
    ]
    if D is not None:
        parts.append(("D", D))
    for name, part in parts:
        bad = ~torch.isfinite(part)
        if bool(bad.any()):
            first = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"{name} is not finite: {int(bad.sum())} of {bad.numel()} entries are NaN or infinite, the "
                f"first at {first} of {tuple(bad.shape)}. If these are padding, say so with valid=."
            )
