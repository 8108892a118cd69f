"""The monitor as a callback of transformers' Trainer."""

from __future__ import annotations

from typing import Any

from .monitor import Monitor

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("TrainerMonitor needs transformers: pip install transformers accelerate.") from error

__all__ = ["TrainerMonitor"]


class TrainerMonitor(TrainerCallback):  # type: ignore[misc]
    """Feeds a :class:`Monitor` from ``transformers.Trainer``, which tells the loss at its logging steps.

    Parameters
    ----------
    probe_inputs : optional
        As in :class:`Monitor`: what the model is called with, ``input_ids`` for example.
    monitor : Monitor, optional
        One that exists already, instead of ``probe_inputs``.
    **options
        As in :class:`Monitor`. With ``path`` a run that resumes from a checkpoint continues its history.

    Attributes
    ----------
    monitor : Monitor or None
        None until training starts, and where another process does the monitoring.

    Raises
    ------
    TypeError
        If not exactly one of ``probe_inputs`` and ``monitor`` is given.
    ImportError
        If transformers is not installed.
    """

    def __init__(self, probe_inputs: Any = None, *, monitor: Monitor | None = None, **options: Any) -> None:
        if (probe_inputs is None) == (monitor is None):
            raise TypeError("Give either probe_inputs or a monitor.")
        if monitor is not None and options:
            raise TypeError("The monitor that is given has its options already.")
        self.monitor = monitor
        self._probe, self._options = probe_inputs, options

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Make the monitor."""
        if not state.is_world_process_zero:
            self.monitor = None
        elif self.monitor is None:
            self.monitor = Monitor(model, self._probe, start=state.global_step == 0, **self._options)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step."""
        if self.monitor is not None:
            self.monitor.step(step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Take the loss and what else is logged for the present step."""
        if self.monitor is None or state.global_step != self.monitor.steps or not state.global_step:
            return
        known = {
            name: value
            for name, value in (logs or {}).items()
            if isinstance(value, (int, float))
            and name not in ("epoch", "step", "total_flos")
            and not name.startswith("train_")
        }
        if known:
            self.monitor.step(step=state.global_step, **known)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what is not written yet."""
        if self.monitor is not None:
            self.monitor.flush()
