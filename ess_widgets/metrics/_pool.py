"""Independent pieces of work on as many threads as torch may use, with single-threaded linear algebra in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from ess_widgets.metrics._svd import one_piece, one_thread, threads

__all__ = ["in_parallel"]

Result = TypeVar("Result")


def in_parallel(pieces: Sequence[Callable[[], Result]], device: torch.device) -> list[Result]:
    """Call all ``pieces``, in order where there is one thread or a GPU; their results in order.

    torch releases the interpreter's lock in each operation. Pieces that share nothing run side by side without the waiting
    for one another that threads inside one small factorisation cost, also on a machine that is busy.
    """

    # torch keeps the mode per thread.
    graph = torch.is_grad_enabled()

    def alone(piece: Callable[[], Result]) -> Result:
        with one_thread(device), torch.set_grad_enabled(graph):
            return piece()

    def beside_others(piece: Callable[[], Result]) -> Result:
        with one_piece():
            return alone(piece)

    workers = min(len(pieces), threads())
    if workers <= 1 or device.type != "cpu":
        return [alone(piece) for piece in pieces]
    with ThreadPoolExecutor(workers, thread_name_prefix="ess_widgets") as pool:
        return list(pool.map(beside_others, pieces))
