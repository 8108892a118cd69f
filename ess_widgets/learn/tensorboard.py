"""Measurements as scalars of TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .history import History, Measurement

__all__ = ["Board"]


class Board:
    """Where scalars go.

    Parameters
    ----------
    tensorboard : str, Path or SummaryWriter
        A directory, or a writer, which stays its owner's to close.
    step : int or None
        The last step of a history that is continued: what was written of later ones is taken back.

    Raises
    ------
    TypeError
        If it is neither.
    ImportError
        If tensorboard is not installed.
    """

    def __init__(self, tensorboard: Any, step: int | None) -> None:
        self._own = isinstance(tensorboard, (str, Path))
        if not self._own:
            if not hasattr(tensorboard, "add_scalar"):
                raise TypeError(
                    f"tensorboard must be a directory or a SummaryWriter, not {type(tensorboard).__name__}."
                )
            self._writer = tensorboard
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "Writing TensorBoard's files needs the package tensorboard: pip install tensorboard."
            ) from error
        purge: dict[str, Any] = {} if step is None else {"purge_step": step + 1}
        self._writer = SummaryWriter(str(tensorboard), **purge)

    def write(self, found: Measurement, history: History, overhead: float) -> None:
        """What was measured, and the metrics of that step.

        Of other steps none: TensorBoard takes longer for a number than a small model for a step.
        """
        for name, layer in found.layers.items():
            values = {
                "ess": layer.ess.mean(),
                "utilisation_of_ceiling": layer.of_ceiling.mean(),
                "utilisation_of_state_size": layer.of_state_size.mean(),
                "residual": layer.residual,
            }
            for what, value in values.items():
                self._writer.add_scalar(f"{what}/{name}", float(value), found.step)
        if history.steps and history.steps[-1] == found.step:
            for name, column in history.metrics.items():
                self._writer.add_scalar(f"metrics/{name}", column[-1], found.step)
        if not math.isnan(overhead):
            self._writer.add_scalar("monitor/overhead", overhead, found.step)
        self._writer.flush()

    def close(self) -> None:
        """Close a writer of its own."""
        if self._own:
            self._writer.close()
