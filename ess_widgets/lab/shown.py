"""What the panel has opened, for as long as it is open."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from . import static

if TYPE_CHECKING:
    from ess_widgets.widgets import Explorer

__all__ = ["Shown", "close", "find", "opened", "remember"]

_lock = threading.Lock()
_shown: dict[str, Shown] = {}


@dataclass
class Shown:
    """A view, and what it is of: ``name`` is the model's as listed, ``stamp`` that of its weights when it was shown."""

    name: str
    model: nn.Module
    view: Any
    explores: bool
    stamp: int

    @property
    def changed(self) -> bool:
        """Whether weights were written since."""
        return static.stamp(self.model) != self.stamp


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
    for one in reversed(views):
        if one.explores and one.view.comm is not None and name in (None, one.name):
            return one.view  # type: ignore[no-any-return]
    which = "" if name is None else f" of `{name}`"
    beside = "a model" if name is None else "it"
    raise KeyError(f"the panel has no explorer{which} open: press Explore beside {beside} first.")


def remember(name: str, model: nn.Module, view: Any, *, explores: bool) -> str:
    """Keep a widget until it is closed; return its ``model_id``."""
    key = str(view.model_id)
    with _lock:
        for old in [old for old, known in _shown.items() if known.view.comm is None]:
            del _shown[old]
        _shown[key] = Shown(name, model, view, explores, static.stamp(model))
    return key


def find(model_id: str | None) -> Shown | None:
    """What was opened under this id; None where it is closed."""
    with _lock:
        found = _shown.get(model_id or "")
    return None if found is None or found.view.comm is None else found


def close(model_id: str | None) -> None:
    """Close a widget that was opened here; nothing happens where it is closed already."""
    with _lock:
        found = _shown.pop(model_id or "", None)
    if found is not None:
        found.view.close()
