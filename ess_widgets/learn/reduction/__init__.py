"""Order reduction: operators cut to a smaller state, with a proven bound on what is lost."""

from ess_widgets.learn.reduction.curve import RankCurve, rank_curve
from ess_widgets.learn.reduction.truncation import Reduction, ReductionError, reduce

__all__ = ["RankCurve", "Reduction", "ReductionError", "rank_curve", "reduce"]
