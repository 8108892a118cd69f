"""What an operator remembers at each position: spectra, effective state-size, and what to hold it against."""

from ess_widgets.metrics.aggregates import Aggregates, aggregate
from ess_widgets.metrics.anytime import Partial, anytime
from ess_widgets.metrics.differentiable import entropy_ess, sample_positions, tolerance_surrogate
from ess_widgets.metrics.limits import ceiling, utilisation
from ess_widgets.metrics.reference import from_spectrum, spectra, vectors
from ess_widgets.metrics.routes import Profile, ess, profile, spectrum
from ess_widgets.metrics.state_matrix import state_matrix_rank

__all__ = [
    "Aggregates",
    "Partial",
    "Profile",
    "aggregate",
    "anytime",
    "ceiling",
    "entropy_ess",
    "ess",
    "from_spectrum",
    "profile",
    "sample_positions",
    "spectra",
    "spectrum",
    "state_matrix_rank",
    "tolerance_surrogate",
    "utilisation",
    "vectors",
]
