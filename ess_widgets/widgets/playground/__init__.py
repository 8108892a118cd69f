"""Toy operators for teaching: their effective state-size in closed form beside the measured one, without any model."""

from .poles import Pole
from .widget import Playground, playground

__all__ = ["Playground", "Pole", "playground"]
