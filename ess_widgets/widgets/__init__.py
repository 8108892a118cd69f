"""Linked views for notebooks: the explorer and its parts, each usable on its own."""

from .explorer import Explorer, explore
from .layer_grid_view import LayerGridView
from .operator_view import OperatorView
from .playground import Playground, playground
from .profile_view import ProfileView
from .selection import Selection
from .spectrum_view import SpectrumView
from .token_view import TokenView
from .training_view import TrainingView

__all__ = [
    "Explorer",
    "LayerGridView",
    "OperatorView",
    "Playground",
    "ProfileView",
    "Selection",
    "SpectrumView",
    "TokenView",
    "TrainingView",
    "explore",
    "playground",
]
