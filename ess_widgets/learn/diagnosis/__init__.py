"""What goes wrong with a model's memory, layer by layer and head by head."""

from ess_widgets.learn.diagnosis.advice import Advice
from ess_widgets.learn.diagnosis.diagnosis import Diagnosis, diagnose
from ess_widgets.learn.diagnosis.findings import Finding
from ess_widgets.learn.diagnosis.thresholds import Thresholds

__all__ = ["Advice", "Diagnosis", "Finding", "Thresholds", "diagnose"]
