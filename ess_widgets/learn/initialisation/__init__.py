"""ESS at initialisation, and the scale of a featurizer that gives a wanted one."""

from ess_widgets.learn.initialisation.profile import InitProfile, init_profile
from ess_widgets.learn.initialisation.scale import OutOfReachError, Scale, find_scale

__all__ = ["InitProfile", "OutOfReachError", "Scale", "find_scale", "init_profile"]
