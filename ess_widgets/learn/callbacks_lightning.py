"""The monitor as a callback of Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .monitor import Monitor

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError("LightningMonitor needs Lightning: pip install lightning.") from error

__all__ = ["LightningMonitor"]


class LightningMonitor(Callback):  # type: ignore[misc]
    """Feeds a :class:`Monitor` from ``lightning.Trainer``.

    Parameters
    ----------
    probe_inputs : optional
        As in :class:`Monitor`: what ``model`` is called with.
    model : callable, optional
        Takes the LightningModule and returns the module to watch, by default itself.
    metrics : iterable of str, optional
        Which of the trainer's logged metrics to record beside the loss; all by default.
    monitor : Monitor, optional
        One that exists already, instead of ``probe_inputs``.
    **options
        As in :class:`Monitor`.

    Attributes
    ----------
    monitor : Monitor or None
        None until training starts, and where another process does the monitoring.

    Raises
    ------
    TypeError
        If not exactly one of ``probe_inputs`` and ``monitor`` is given.
    ImportError
        If Lightning is not installed.
    """

    def __init__(
        self,
        probe_inputs: Any = None,
        *,
        model: Callable[[Any], nn.Module] | None = None,
        metrics: list[str] | None = None,
        monitor: Monitor | None = None,
        **options: Any,
    ) -> None:
        if (probe_inputs is None) == (monitor is None):
            raise TypeError("Give either probe_inputs or a monitor.")
        if monitor is not None and (options or model is not None):
            raise TypeError("The monitor that is given has its model and options already.")
        self.monitor = monitor
        self._probe, self._model, self._metrics, self._options = probe_inputs, model, metrics, options
        self._state: dict[str, Any] | None = None
        self._seen = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the monitor, or take it up at the trainer's step."""
        if not trainer.is_global_zero:
            self.monitor = None
            return
        if self.monitor is None:
            model = pl_module if self._model is None else self._model(pl_module)
            self.monitor = Monitor(model, self._probe, start=self._state is None, **self._options)
        if self._state is not None:
            self.monitor.load_state_dict(self._state)
            self._state = None
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step, unless gradients are only gathered."""
        if self.monitor is None or trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        found = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        known = {"loss": found} if isinstance(found, Tensor) and found.numel() == 1 else {}
        for name, value in trainer.callback_metrics.items():
            if (self._metrics is None or name in self._metrics) and name not in known and value.numel() == 1:
                known[name] = value
        self.monitor.step(step=self._seen, **known)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what is not written yet."""
        if self.monitor is not None:
            self.monitor.flush()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write what is not written yet."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning puts into its checkpoints."""
        return {} if self.monitor is None else {"monitor": self.monitor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What Lightning found in a checkpoint; taken up when training starts."""
        self._state = state_dict.get("monitor")
