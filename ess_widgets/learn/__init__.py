"""What effective state-size is good for while a model is made: watching, diagnosing, initialising, regularising, compressing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ess_widgets.learn.diagnosis import Diagnosis, Finding, Thresholds, diagnose
from ess_widgets.learn.modulation import Modulation, modulation

from .distillation import Distillation, distil
from .history import History, LayerMeasurement, Measurement
from .initialisation import InitProfile, OutOfReachError, Scale, find_scale, init_profile
from .monitor import Monitor
from .reduction import RankCurve, Reduction, rank_curve, reduce
from .regularisation import Regulariser

if TYPE_CHECKING:
    from .callbacks_lightning import LightningMonitor
    from .callbacks_trainer import TrainerMonitor

__all__ = [
    "Diagnosis",
    "Distillation",
    "Finding",
    "History",
    "InitProfile",
    "LayerMeasurement",
    "LightningMonitor",
    "Measurement",
    "Modulation",
    "Monitor",
    "OutOfReachError",
    "RankCurve",
    "Reduction",
    "Regulariser",
    "Scale",
    "Thresholds",
    "TrainerMonitor",
    "diagnose",
    "distil",
    "find_scale",
    "init_profile",
    "modulation",
    "rank_curve",
    "reduce",
]

# Needing packages that not everybody has.
_LATER = {"LightningMonitor": "callbacks_lightning", "TrainerMonitor": "callbacks_trainer"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
