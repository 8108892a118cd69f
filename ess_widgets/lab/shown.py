"""What the panel has opened, for as long as it is open."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ess_widgets.widgets import Explorer

__all__ = ["close", "opened", "remember"]

_lock = threading.Lock()
_shown: dict[str, tuple[str, Any, bool]] = {}


def opened(name: str | None = None) -> Explorer:
    """Give the newest explorer that the panel opened.

    Parameters
    ----------
    name : str, optional
        As the panel lists the model: the variable, or an expression such as ``models['GLA']``.

    Returns
    -------
    Explorer

    Raises
    ------
    KeyError
        Where none is open.
    """
    with _lock:
        views = list(_shown.values())
    for known, view, explores in reversed(views):
        if explores and view.comm is not None and name in (None, known):
            return view  # type: ignore[no-any-return]
    which = "" if name is None else f" of `{name}`"
    beside = "a model" if name is None else "it"
    raise KeyError(f"the panel has no explorer{which} open: press Explore beside {beside} first.")


def remember(name: str, view: Any, *, explores: bool) -> str:
    """Keep a widget until it is closed; return its ``model_id``."""
    key = str(view.model_id)
    with _lock:
        for old in [old for old, (_, known, _) in _shown.items() if known.comm is None]:
            del _shown[old]
        _shown[key] = name, view, explores
    return key


def close(model_id: str) -> None:
    """Close a widget that was opened here; nothing happens where it is closed already."""
    with _lock:
        found = _shown.pop(model_id, None)
    if found is not None:
        found[1].close()
