"""Batched singular values in the best precision a device has, robust against a lack of memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["one_thread", "singular_values", "working_dtype"]


def working_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device (MPS) has none."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Let linear algebra on the CPU use one thread, for the calling thread alone.

    The matrices are small: on a busy machine a second thread costs a factor of ten to a hundred in waiting, and on
    an idle one it gains little. The setting belongs to the calling thread, so others do not notice.
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def singular_values(H: Tensor) -> Tensor:
    """Singular values of ``(b, m, n)``, descending, ``(b, min(m, n))``.

    Where the device's memory does not suffice, the batch is halved, and a single matrix goes to the CPU.
    """
    if 0 in H.shape:
        return H.new_zeros(H.shape[0], min(H.shape[-2:]))
    try:
        return torch.linalg.svdvals(H)
    except torch.OutOfMemoryError:
        if H.shape[0] > 1:
            half = H.shape[0] // 2
            return torch.cat([singular_values(H[:half]), singular_values(H[half:])])
        if H.device.type == "cpu":
            raise
        warnings.warn(
            f"{H.device} is out of memory for one matrix of {H.shape[-2]} x {H.shape[-1]}; "
            "its singular values are computed on the CPU, which is slower.",
            RuntimeWarning,
            stacklevel=2,
        )
        return torch.linalg.svdvals(H.cpu()).to(H.device)
