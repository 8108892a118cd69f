"""What an operator remembers at each position: spectra, effective state-size, and what to hold it against."""

from ess_widgets.metrics.limits import ceiling, utilisation
from ess_widgets.metrics.reference import ess, from_spectrum, spectra, spectrum, vectors

__all__ = ["ceiling", "ess", "from_spectrum", "spectra", "spectrum", "utilisation", "vectors"]
