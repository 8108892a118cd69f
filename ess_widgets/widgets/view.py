"""What all views have in common: the bundle, the linked selection, atomic updates from any thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import traitlets as t
from anywidget import AnyWidget
from ipywidgets import widget_serialization

from .routing import Responsive
from .selection import Selection

__all__ = ["View"]

STATIC = Path(__file__).parent / "static"
if not (STATIC / "widget.js").exists():
    raise ImportError(
        f"{STATIC / 'widget.js'} is missing: the browser part has not been built. "
        "Install the package with pip, or run `npm ci && npm run build` in js/."
    )


class View(AnyWidget, Responsive):
    """A widget that shows a :class:`Selection` and can be updated from a worker thread."""

    _esm = STATIC / "widget.js"
    _css = STATIC / "widget.css"
    _view = t.Unicode().tag(sync=True)

    selection = t.Instance(Selection).tag(sync=True, **widget_serialization)
    title = t.Unicode("").tag(sync=True)

    def __init__(self, *, selection: Selection | None = None, **traits: Any) -> None:
        self._publishing = threading.local()
        unknown = sorted(name for name in traits if not self.has_trait(name))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}.")
        super().__init__(selection=Selection() if selection is None else selection, **traits)

    def _publish(self, **values: Any) -> None:
        """Set several traits and send them in one message, so that no browser sees half of them."""
        self._publishing.now = True
        try:
            for name, value in values.items():
                setattr(self, name, value)
        finally:
            self._publishing.now = False
        if self.comm is not None:
            self.send_state(set(values))

    def _should_send_property(self, key: str, value: Any) -> bool:
        if getattr(self._publishing, "now", False):
            return False
        return bool(super()._should_send_property(key, value))
