"""Singular values in the best precision a device has, on one thread, and within its memory."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ess_widgets.operators import Operator

__all__ = ["materialise", "one_piece", "one_thread", "singular_values", "threads", "working_dtype"]

_own = threading.local()


def working_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device (MPS) has none."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Let linear algebra on the CPU use one thread, for the calling thread alone.

    The matrices are small: a second thread gains little on an idle machine and costs a factor of ten to a
    hundred on a busy one, where the two wait for each other.
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    outer = getattr(_own, "threads", None)
    _own.threads = before if outer is None else outer
    torch.set_num_threads(1)
    # torch keeps the number per thread, but also hands the last one set to threads that start later.
    restore = threading.Thread(target=torch.set_num_threads, args=(before,))
    restore.start()
    restore.join()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _own.threads = outer


@contextmanager
def one_piece() -> Iterator[None]:
    """Mark the calling thread as one of several that share a piece of work each: it starts no others."""
    outer = getattr(_own, "threads", None)
    _own.threads = 1
    try:
        yield
    finally:
        _own.threads = outer


def threads() -> int:
    """How many threads the caller may use for pieces of work: torch's number, whatever ``one_thread`` has set it to."""
    return getattr(_own, "threads", None) or torch.get_num_threads()


def singular_values(H: Tensor) -> Tensor:
    """Singular values of ``(b, m, n)``, descending: ``(b, min(m, n))`` in the working dtype.

    Where a GPU's memory does not suffice the batch is halved, and a single matrix goes to the CPU.
    """
    if 0 in H.shape:
        return torch.zeros(H.shape[0], min(H.shape[-2:]), dtype=working_dtype(H.device), device=H.device)
    sigma = _try_singular_values(H)
    if sigma is not None:
        return sigma
    # Out of the exception handler, which would keep the failed call's memory.
    if H.shape[0] > 1:
        half = H.shape[0] // 2
        return torch.cat([singular_values(H[:half]), singular_values(H[half:])])
    _warn_cpu(H.device, f"the singular values of one {H.shape[-2]} x {H.shape[-1]} matrix")
    return singular_values(H.cpu()).to(H.device)


def _try_singular_values(H: Tensor) -> Tensor | None:
    # LAPACK is up to twice as fast on tall matrices as on wide ones.
    tall = H if H.shape[-2] >= H.shape[-1] else H.mT
    try:
        sigma: Tensor = torch.linalg.svdvals(tall.to(working_dtype(H.device)))
    except torch.OutOfMemoryError:
        if H.device.type == "cpu":
            raise
        return None
    return sigma


def materialise(op: Operator) -> Tensor:
    """``op.matrix()``, detached; on the CPU where the operator's own device has no memory for it."""
    with torch.no_grad(), one_thread(op.device):
        try:
            return op.matrix().detach()
        except torch.OutOfMemoryError:
            if op.device.type == "cpu":
                raise
        _warn_cpu(op.device, f"an operator of shape {tuple(op.shape)}")
        return op.to("cpu").matrix().detach()


def _warn_cpu(device: torch.device, what: str) -> None:
    warnings.warn(
        f"{device} has no memory left for {what}; this part is computed on the CPU, which is slower.",
        RuntimeWarning,
        stacklevel=4,
    )
