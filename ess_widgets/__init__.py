"""See what a sequence model remembers."""

from ess_widgets import operators
from ess_widgets.metrics import ceiling, ess, spectrum

__all__ = ["ceiling", "ess", "operators", "spectrum"]
