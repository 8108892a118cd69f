"""Getting operators out of a live model."""

from ess_widgets.capture.core import Capture, LayerCapture, capture, run
from ess_widgets.capture.errors import Cancelled, CaptureError, NotCausalError, UnknownLayerError
from ess_widgets.capture.residual import residual

__all__ = [
    "Cancelled",
    "Capture",
    "CaptureError",
    "LayerCapture",
    "NotCausalError",
    "UnknownLayerError",
    "capture",
    "residual",
    "run",
]
