"""What an operator remembers at each position: spectra, effective state-size, and what to hold it against."""

from ess_widgets.metrics.aggregates import Aggregates, aggregate
from ess_widgets.metrics.differentiable import entropy_ess, sample_positions, tolerance_surrogate
from ess_widgets.metrics.limits import ceiling, utilisation
from ess_widgets.metrics.reference import ess, from_spectrum, spectra, spectrum, vectors
from ess_widgets.metrics.state_matrix import state_matrix_rank

__all__ = [
    "Aggregates",
    "aggregate",
    "ceiling",
    "entropy_ess",
    "ess",
    "from_spectrum",
    "sample_positions",
    "spectra",
    "spectrum",
    "state_matrix_rank",
    "tolerance_surrogate",
    "utilisation",
    "vectors",
]
