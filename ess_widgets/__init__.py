"""See what a sequence model remembers: its operators, their effective state-size, and linked views of both.

torch is the one heavy import made here; the views and what they bring along load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ess_widgets import operators

# Not lazily: a subpackage has the function's name, and this import, its first, is what gives the name to the function.
from ess_widgets.capture import Capture, LayerCapture, capture, jacobian, register, unregister
from ess_widgets.metrics import ceiling, ess, spectrum

if TYPE_CHECKING:
    from ess_widgets.widgets import (
        Explorer,
        LayerGridView,
        OperatorView,
        ProfileView,
        Selection,
        SpectrumView,
        TokenView,
        explore,
    )

    __version__: str

__all__ = [
    "Capture",
    "Explorer",
    "LayerCapture",
    "LayerGridView",
    "OperatorView",
    "ProfileView",
    "Selection",
    "SpectrumView",
    "TokenView",
    "__version__",
    "capture",
    "ceiling",
    "ess",
    "explore",
    "jacobian",
    "operators",
    "register",
    "spectrum",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = version("ess-widgets")
    elif name in __all__:
        value = getattr(import_module("ess_widgets.widgets"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
