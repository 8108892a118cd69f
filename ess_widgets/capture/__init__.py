"""Getting operators out of a live model."""

from ess_widgets.capture.core import Capture, LayerCapture, capture, run
from ess_widgets.capture.errors import Cancelled, CaptureError, NotCausalError, UnknownLayerError
from ess_widgets.capture.linearisation.jacobian import jacobian
from ess_widgets.capture.live import Live
from ess_widgets.capture.registry import register, unregister
from ess_widgets.capture.residual import residual

__all__ = [
    "Cancelled",
    "Capture",
    "CaptureError",
    "LayerCapture",
    "Live",
    "NotCausalError",
    "UnknownLayerError",
    "capture",
    "jacobian",
    "register",
    "residual",
    "run",
    "unregister",
]
