"""See what a sequence model remembers: its operators, their effective state-size, and linked views of both.

torch is the one heavy import made here; the views, the tasks and the tools for training load when they are first used.
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
    from ess_widgets import demo, learn, tasks
    from ess_widgets.learn import diagnose, modulation
    from ess_widgets.widgets import (
        Explorer,
        LayerGridView,
        OperatorView,
        ProfileView,
        Selection,
        SpectrumView,
        TokenView,
        explore,
        playground,
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
    "demo",
    "diagnose",
    "ess",
    "explore",
    "jacobian",
    "learn",
    "modulation",
    "operators",
    "playground",
    "register",
    "spectrum",
    "tasks",
    "unregister",
]

_ROOMS = ("demo", "learn", "tasks")
_LEARN = ("diagnose", "modulation")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = version("ess-widgets")
    elif name in _ROOMS:
        value = import_module(f"ess_widgets.{name}")
    elif name in __all__:
        value = getattr(import_module(f"ess_widgets.{'learn' if name in _LEARN else 'widgets'}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
