"""Questions that take their time: on a thread of their own, telling how far they are, until they are cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Task"]

_EVERY = 0.1  # seconds between two words of progress


class Task:
    """How far a question is, and whether its answer is still wanted.

    Parameters
    ----------
    say : callable, optional
        Is given ``{"done": int, "of": int}`` now and then.
    """

    def __init__(self, say: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._say = say
        self._said_at = 0.0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Let it end soon; for any thread."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def progress(self, done: int, of: int) -> None:
        """Say that ``done`` of ``of`` layers are done, where the last word was long enough ago."""
        now = time.perf_counter()
        if self._say is not None and now - self._said_at >= _EVERY:
            self._said_at = now
            self._say({"done": done, "of": of})
