"""Work within a device's memory: half the batch, a quarter, … and in the end the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ess_widgets.metrics._svd import working_dtype

__all__ = ["within_memory"]

Results = tuple[Tensor, Tensor]


def within_memory(compute: Callable[[Tensor], Results], T: Tensor) -> Results:
    """``compute(T)`` of a batch ``T (B, N, N)`` in float64; results ``(B, ...)`` on the device of ``T``.

    A device without float64 (MPS) hands over to the CPU at once, one that runs out
    of memory halves the batch and says so when a single matrix has to go to the CPU.
    """
    device = T.device
    if device.type == "mps":
        return _moved(compute(T.cpu().double()), device)
    found = _try(compute, T)
    if found is not None:
        return found
    # Out of the exception handler, which would keep the failed call's memory.
    if len(T) > 1:
        half = len(T) // 2
        lower, upper = within_memory(compute, T[:half]), within_memory(compute, T[half:])
        return torch.cat([lower[0], upper[0]]), torch.cat([lower[1], upper[1]])
    warnings.warn(
        f"{device} has no memory left for one operator of {T.shape[-1]} x {T.shape[-1]}; it is worked on by the CPU, "
        "which is slower.",
        RuntimeWarning,
        stacklevel=2,
    )
    return _moved(compute(T.cpu().double()), device)


def _try(compute: Callable[[Tensor], Results], T: Tensor) -> Results | None:
    try:
        return compute(T.double())
    except torch.OutOfMemoryError:
        if T.device.type == "cpu":
            raise
        return None


def _moved(found: Results, device: torch.device) -> Results:
    dtype = working_dtype(device)
    return found[0].to(device, dtype), found[1].to(device, dtype)
