"""How many CPU threads torch may use, for the calling thread alone."""

from __future__ import annotations

import threading

import torch

__all__ = ["use_threads"]


def use_threads(count: int, default: int) -> None:
    """Let torch use ``count`` CPU threads in this thread.

    ``torch.set_num_threads`` also sets what threads that have not used torch yet will start with;
    a thread of no other use sets that back to ``default``.
    """
    if torch.get_num_threads() == count:
        return
    torch.set_num_threads(count)
    if count != default:
        restore = threading.Thread(target=torch.set_num_threads, args=(default,))
        restore.start()
        restore.join()
