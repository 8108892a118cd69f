"""State modulation: how much of the past a model drops at delimiters, and whether the delimiter is why."""

from ess_widgets.learn.modulation.call import modulation
from ess_widgets.learn.modulation.result import Modulation

__all__ = ["Modulation", "modulation"]
