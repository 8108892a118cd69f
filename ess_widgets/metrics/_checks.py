"""Checks on what a caller asks the metrics for."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ess_widgets.operators import Dense, Operator

__all__ = ["Kind", "as_operator", "check_chunk", "check_kind", "check_rtol", "check_tol", "position_list"]

Kind = Literal["entropy", "tolerance"]


def as_operator(op: Operator | Tensor | np.ndarray[Any, Any]) -> Operator:
    """An operator as it is; a matrix as :class:`~ess_widgets.operators.Dense`."""
    return op if isinstance(op, Operator) else Dense(op)


def check_kind(kind: str) -> None:
    if kind not in ("entropy", "tolerance"):
        raise ValueError(f"kind must be 'entropy' or 'tolerance', but is {kind!r}.")


def check_chunk(chunk: int | None) -> None:
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk must be a positive integer or None, but is {chunk!r}.")


def check_tol(tol: float) -> float:
    if isinstance(tol, bool) or not isinstance(tol, Real):
        raise TypeError(f"tol must be a number, but is of type {type(tol).__name__}.")
    tol = float(tol)
    if not math.isfinite(tol) or tol <= 0:
        raise ValueError(f"tol must be positive and finite, but is {tol}; 1e-2 or 1e-3 are usual.")
    return tol


def check_rtol(rtol: float) -> float:
    if isinstance(rtol, bool) or not isinstance(rtol, Real):
        raise TypeError(f"rtol must be a number, but is of type {type(rtol).__name__}.")
    rtol = float(rtol)
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must be between 0 and 1, but is {rtol}; 1e-4 is usual.")
    return rtol


def position_list(positions: Any, L: int) -> list[int]:
    """The positions asked for, as integers in ``0 .. L-1``; all of them for None."""
    if positions is None:
        return list(range(L))
    if isinstance(positions, Tensor | np.ndarray):
        if positions.ndim > 1:
            raise ValueError(f"positions must be one-dimensional, but has {positions.ndim} dimensions.")
        positions = positions.tolist()
    if not hasattr(positions, "__iter__"):
        positions = [positions]
    result = []
    for entry in positions:
        try:
            if isinstance(entry, bool | np.bool_):
                raise TypeError
            position = operator.index(entry)
        except TypeError:
            raise TypeError(
                f"positions must be integers, but hold {entry!r}; of a boolean mask give the nonzero indices."
            ) from None
        if not 0 <= position < L:
            raise ValueError(
                f"position {position} is out of range: positions run from 0 to {L - 1}, "
                "negative ones do not count from the end."
            )
        result.append(position)
    return result
