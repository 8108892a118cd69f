"""Trained models to try things on: `load` finds one whatever the machine has."""

from ess_widgets.demo.loader import DEFAULT, load

__all__ = ["DEFAULT", "load"]
