"""Trained models to try things on: `load` finds one whatever the machine has; `Miniature` and `fit` make new ones."""

from ess_widgets.demo.loader import DEFAULT, load
from ess_widgets.demo.miniatures import MIXERS, Miniature
from ess_widgets.demo.training.fit import evaluate, fit

__all__ = ["DEFAULT", "MIXERS", "Miniature", "evaluate", "fit", "load"]
