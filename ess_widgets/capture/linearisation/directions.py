"""Which channels a linearisation is looked at through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["DEFAULT_DIRECTIONS", "FULL", "Directions", "choose"]

# The default takes all channels up to this size of T, and this many random directions beyond it.
FULL = 2048
DEFAULT_DIRECTIONS = 16


@dataclass(frozen=True)
class Directions:
    """What of the channels is kept.

    Attributes
    ----------
    read, write : Tensor ``(d_out, k)`` and ``(d_in, k)``, float64, or None
        Outputs are projected on the columns of ``read``, inputs move along those of ``write``. None: all channels.
    single : bool
        Whether each column is a group of its own, with ``L x L`` operators, instead of blocks of ``k``.
    note : str
        In words.
    """

    read: Tensor | None
    write: Tensor | None
    single: bool
    note: str


def choose(channels: Any, project: str, d_in: int, d_out: int, L: int, seed: int) -> Directions:
    """Make sense of ``channels=``; see :func:`ess_widgets.jacobian`."""
    if project not in ("random", "even"):
        raise ValueError(f"project must be 'random' or 'even', but is {project!r}.")
    if channels is None and max(d_in, d_out) * L > FULL:
        channels = min(DEFAULT_DIRECTIONS, d_in, d_out)
    if channels is None or (isinstance(channels, str) and channels == "all"):
        return Directions(None, None, False, f"all {_widths(d_in, d_out)} channels")
    if isinstance(channels, int) and not isinstance(channels, bool):
        return _count(channels, project, d_in, d_out, seed)
    if isinstance(channels, Tensor) and channels.ndim == 2:
        return _given(channels, channels, d_in, d_out)
    if isinstance(channels, tuple) and len(channels) == 2 and all(isinstance(c, Tensor) for c in channels):
        return _given(channels[0], channels[1], d_in, d_out)
    return _list(channels, d_in, d_out)


def _count(k: int, project: str, d_in: int, d_out: int, seed: int) -> Directions:
    limit = min(d_in, d_out)
    if not 1 <= k <= limit:
        raise ValueError(
            f"channels={k} directions do not fit: the module has {_widths(d_in, d_out)} channels."
        )
    if project == "even":
        write, read = (_picked(torch.arange(k) * d // k, d) for d in (d_in, d_out))
        return Directions(read, write, False, f"{k} evenly spaced of {_widths(d_in, d_out)} channels")
    generator = torch.Generator().manual_seed(seed)
    write = _orthonormal(d_in, k, generator)
    read = write if d_in == d_out else _orthonormal(d_out, k, generator)
    return Directions(
        read, write, False, f"projected on {k} random directions of {_widths(d_in, d_out)} channels"
    )


def _given(write: Tensor, read: Tensor, d_in: int, d_out: int) -> Directions:
    for matrix, d, side in ((write, d_in, "inputs"), (read, d_out, "outputs")):
        if matrix.ndim != 2 or matrix.shape[0] != d or not matrix.shape[1]:
            raise ValueError(
                f"the directions of the {side} must be columns of a matrix ({d}, k), but its shape is "
                f"{tuple(matrix.shape)}. Where inputs and outputs differ in width, pass a pair of matrices."
            )
        if not matrix.is_floating_point() or not bool(torch.isfinite(matrix).all()):
            raise ValueError("channels as a matrix of directions must hold finite floating numbers.")
    if write.shape[1] != read.shape[1]:
        raise ValueError(f"{write.shape[1]} directions of inputs do not match {read.shape[1]} of outputs.")
    k = write.shape[1]
    note = f"projected on {k} given direction{'s' if k > 1 else ''} of {_widths(d_in, d_out)} channels"
    return Directions(read.detach().double().cpu(), write.detach().double().cpu(), False, note)


def _list(channels: Any, d_in: int, d_out: int) -> Directions:
    try:
        wanted = [int(c.__index__()) for c in channels]
    except (TypeError, AttributeError):
        raise TypeError(
            "channels takes a number of directions, a list of channel indices, a matrix of directions (d, k), or 'all', "
            f"but is {channels!r}."
        ) from None
    limit = min(d_in, d_out)
    if not wanted or any(not -limit <= c < limit for c in wanted):
        raise ValueError(f"channels must be indices into {limit} channels, at least one, but are {wanted}.")
    index = torch.tensor([c % limit for c in wanted])
    note = f"channels {', '.join(str(int(c)) for c in index)}, each by itself"
    return Directions(_picked(index, d_out), _picked(index, d_in), True, note)


def _picked(index: Tensor, d: int) -> Tensor:
    return torch.eye(d, dtype=torch.float64)[:, index]


def _orthonormal(d: int, k: int, generator: torch.Generator) -> Tensor:
    """``k`` orthonormal columns, from the one Gaussian draw of a seed."""
    columns: Tensor = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]
    return columns


def _widths(d_in: int, d_out: int) -> str:
    return str(d_in) if d_in == d_out else f"{d_in} input and {d_out} output"
