"""Profiles that get finer step by step, for interfaces that show what is known so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ess_widgets.metrics._checks import Kind, as_operator, check_kind, check_rtol, check_tol
from ess_widgets.metrics.limits import ceiling
from ess_widgets.metrics.routes import profile

__all__ = ["Partial", "anytime"]

# Positions of the first step, and how many times more each further step knows.
_FIRST = 17
_FINER = 4


@dataclass(frozen=True)
class Partial:
    """What is known of a profile so far.

    Attributes
    ----------
    known : bool Tensor, ``(L,)``
        Where ESS has been computed, or follows from its neighbours.
    values : Tensor, ``(..., L)``
        ESS where it is known, NaN elsewhere.
    lower, upper : Tensor, ``(..., L)``
        It lies between these, everywhere.
    """

    known: Tensor
    values: Tensor
    lower: Tensor
    upper: Tensor


def anytime(
    op: Any, kind: Kind = "entropy", tol: float = 1e-3, relative: bool = False, *, rtol: float = 1e-4
) -> Iterator[Partial]:
    """Effective state-size at a few positions first, then at ever more, in the end at all.

    At a fixed absolute tolerance neighbours differ by one at most: from ``i`` to ``i + 1``, ``H_i`` loses
    a row and gains a column. So a few positions bound the others, and those whose bounds meet are never computed.
    The entropy and the relative tolerance have no such bound; theirs is the ceiling.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., d*L, d*L)``
    kind, tol, relative, rtol
        As in :func:`ess`.

    Yields
    ------
    Partial
        Stop between two of them, and nothing more is computed.

    Raises
    ------
    ValueError, TypeError
        As :func:`ess` does; when it is called, not at the first step, where the arguments are at fault.

    Examples
    --------
    >>> import torch
    >>> for step in anytime(torch.ones(200, 200).tril(), kind="tolerance"):
    ...     print(int(step.known.sum()), float((step.upper - step.lower).max()))
    17 7.0
    77 2.0
    200 0.0
    """
    check_kind(kind)
    check_tol(tol)
    check_rtol(rtol)
    op = as_operator(op)
    return _steps(op, kind, tol, relative, rtol)


def _steps(op: Any, kind: Kind, tol: float, relative: bool, rtol: float) -> Iterator[Partial]:
    L, device = op.length, op.device
    # One row leaves and one column enters, of each of the d rows per position.
    slope = op.block if kind == "tolerance" and not relative else None
    top = ceiling(op).double() if device.type != "mps" else ceiling(op).float()
    values = torch.full_like(top, torch.nan)
    lower, upper = torch.zeros_like(top), top.clone()
    known = torch.zeros(L, dtype=torch.bool, device=device)
    count = _FIRST
    while not bool(known.all()):
        steps = min(count, L) - 1
        grid = torch.tensor(
            sorted({round(k * (L - 1) / max(1, steps)) for k in range(steps + 1)}), device=device
        )
        new = grid[~known[grid]]
        if len(new):
            found = profile(op, kind, tol, relative, new.tolist(), rtol=rtol).values
            values[..., new] = found
            known[new] = True
            lower[..., new] = upper[..., new] = found
            if slope is not None:
                _tighten(lower, upper, slope)
                settled = (lower == upper).reshape(-1, L).all(dim=0) & ~known
                values[..., settled] = lower[..., settled]
                known |= settled
            yield Partial(known.clone(), values.clone(), lower.clone(), upper.clone())
        count *= _FINER


def _tighten(lower: Tensor, upper: Tensor, slope: int) -> None:
    """Carry bounds along positions, in place: they change by at most ``slope`` from one to the next."""
    ramp = slope * torch.arange(lower.shape[-1], device=lower.device, dtype=lower.dtype)
    for bound, sign in ((upper, 1.0), (lower, -1.0)):
        signed = sign * bound
        forward = (signed - ramp).cummin(dim=-1).values + ramp
        backward = (signed + ramp).flip(-1).cummin(dim=-1).values.flip(-1) - ramp
        bound.copy_(sign * torch.minimum(forward, backward))
