"""torch's own nonlinear recurrences: ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, by their Jacobian at the current input."""

from __future__ import annotations

from torch import nn

from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.linearisation.linearise import Options, linearise
from ess_widgets.capture.linearisation.linearised import Linearised
from ess_widgets.capture.reading import ModuleCall, ModuleRecogniser

__all__ = ["MODULES"]


def _read(call: ModuleCall) -> Linearised | str:
    try:
        return linearise(
            call.module, call.args, call.kwargs, call.result, Options(), type(call.module).__name__
        )
    except CaptureError as error:
        return str(error)


MODULES = (ModuleRecogniser(lambda module: isinstance(module, nn.RNNBase), _read, exclusive=True),)
