"""Lets messages of the browser arrive while a cell is running."""

from __future__ import annotations

from typing import Any

from ipywidgets import Widget

__all__ = ["Responsive"]


class Responsive(Widget):  # type: ignore[misc]
    """A widget whose messages arrive on the thread that the browser asked for: a subshell, not the running cell's.

    ipykernel (7.4) sends what the browser says to whichever shell spoke last through the same comm. For a widget
    that answers from a thread of its own that is the main shell, and an edit would wait for the running cell.
    """

    def open(self) -> None:
        super().open()
        self._forget_route()

    def _send(self, msg: Any, buffers: Any = None) -> None:
        super()._send(msg, buffers)
        self._forget_route()

    def _forget_route(self) -> None:
        if self.comm is not None:
            self.comm.__dict__.pop("_reply_subshell_id", None)
