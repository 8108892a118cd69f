"""A thread that works while there is something to do, and a way to wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

__all__ = ["Worker"]


class Worker:
    """Calls ``step`` on a thread of its own until it returns False; ``wake`` makes it look again.

    Each step is short and decides anew what is most urgent, so that the newest wish wins without
    anything having to be cancelled. ``fail`` is given what a step raises.
    """

    def __init__(self, step: Callable[[], bool], fail: Callable[[BaseException], None], name: str) -> None:
        self._step, self._fail = step, fail
        self._changed = threading.Condition()
        self._wakes = 0
        self._busy = False
        self._closed = False
        self._waiters: list[Future[None]] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._busy

    @property
    def closed(self) -> bool:
        return self._closed

    def wake(self) -> None:
        with self._changed:
            self._wakes += 1
            self._busy = not self._closed
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, timeout: float | None) -> Awaitable[None] | None:
        """Block until there is nothing to do; where an event loop is running, return an awaitable instead."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("wait() was called from an observer that the computation itself runs.")
        waiter: Future[None] = Future()
        with self._changed:
            if self._busy:
                self._waiters.append(waiter)
            else:
                waiter.set_result(None)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            try:
                waiter.result(timeout)
            except FutureTimeout:
                raise self._late(timeout) from None
            return None
        return self._wait_async(waiter, timeout)

    async def _wait_async(self, waiter: Future[None], timeout: float | None) -> None:
        try:
            await asyncio.wait_for(asyncio.wrap_future(waiter), timeout)
        except asyncio.TimeoutError:
            raise self._late(timeout) from None

    def _late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"The views are not up to date after {timeout} s; the computation goes on.")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy or self._closed)
                seen = self._wakes
            if not self._closed:
                try:
                    if self._step():
                        continue
                except BaseException as error:  # noqa: BLE001 - a thread has nobody above it to tell
                    self._fail(error)
            with self._changed:
                if self._wakes != seen and not self._closed:
                    continue
                self._busy = False
                waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if waiter.set_running_or_notify_cancel():
                    waiter.set_result(None)
            if self._closed:
                return
