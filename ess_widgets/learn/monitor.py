"""Effective state-size of a model while it is trained."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ess_widgets.capture import UnknownLayerError

from .history import History, HistoryFile, LayerMeasurement, Measurement, metrics_line, refuse_another
from .identity import described
from .measuring import Measure, PositionError, Probe, measure
from .pacing import Pace
from .scalars import columns_of, scalar
from .snapshots import LayerSnapshot, Snapshots
from .tensorboard import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ess_widgets.learn.callbacks_lightning import LightningMonitor
    from ess_widgets.learn.callbacks_trainer import TrainerMonitor
    from ess_widgets.widgets.training_view import TrainingView

__all__ = ["Monitor"]

# Metrics wait on their device for this many steps or seconds at most before they are read.
_WAITING, _SECONDS = 1024, 5.0


class Monitor:
    """Watches what the layers of ``model`` remember while it is trained.

    The model is run on the probe inputs now and then, on a structural copy in eval mode that shares its weights: training
    goes on bit by bit as it would without. A measurement that fails is recorded with its reason and warned of once; it
    never ends the training.

    Parameters
    ----------
    model : torch.nn.Module
    probe_inputs : Tensor, array, mapping or tuple
        What to call it with, as in :func:`ess_widgets.capture`; kept as it is now. A few sequences of the length that
        matters say more than many.
    every : int, optional
        Measure at multiples of so many steps. By default as often as ``overhead`` allows, in a long run at most five
        hundred times while the number of steps grows by a factor of e.
    overhead : float
        Largest share of the training time that monitoring may take; the first measurement counts too.
    layers : optional
        Which layers, as in :func:`ess_widgets.capture`.
    kind, tol, relative
        Which ESS, as in :func:`ess_widgets.ess`.
    positions : iterable of int, optional
        Where ESS is measured; everywhere by default.
    spectra : iterable of int, optional
        Where singular values are recorded, the 32 largest of each head; at a quarter, a half and three quarters of the
        length by default, nowhere for ``()``.
    groups : int
        Of a layer with more heads or channels than this, evenly spaced ones are measured.
    path : str or Path, optional
        A file (JSON lines) to which the history is written as it grows. If it exists, the history in it is continued.
    tensorboard : str, Path or SummaryWriter, optional
        A directory for TensorBoard, or a writer: scalars are written at each measurement.
    snapshots : float
        Megabytes of operators to keep, so that a view can show those of an earlier step. They are not written to ``path``.
    start : bool
        Whether to measure now, before the first step.
    clock : callable
        What tells the time, in seconds.

    Attributes
    ----------
    history : History
        Metrics of every step, and the measurements.
    steps : int
        Optimiser steps taken.
    snapshots : Snapshots
        Operators of measured steps, within the budget.
    views : list of TrainingView
        What is told of news.
    lock : threading.RLock
        Held while the history changes; hold it to read the history on another thread.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type or out of range.
    ValueError
        ``path`` holds the history of another model, other probe inputs, or another measure.
    UnknownLayerError
        ``layers`` names something that does not exist.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.LSTM(3, 4, batch_first=True)
    >>> optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = Monitor(model, torch.randn(2, 6, 3), every=2)
    >>> for x in torch.randn(4, 5, 7, 3):
    ...     loss = model(x)[0].square().mean()
    ...     loss.backward()
    ...     optimiser.step()
    ...     optimiser.zero_grad()
    ...     monitor.step(loss=loss)
    >>> [measurement.step for measurement in monitor.history.measurements]
    [0, 2, 4]
    >>> monitor.frame()[["step", "layer", "ess"]].shape
    (3, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        probe_inputs: Any,
        *,
        every: int | None = None,
        overhead: float = 0.05,
        layers: Any = None,
        kind: str = "entropy",
        tol: float = 1e-3,
        relative: bool = False,
        positions: Iterable[int] | None = None,
        spectra: Iterable[int] | None = None,
        groups: int = 32,
        path: str | Path | None = None,
        tensorboard: Any = None,
        snapshots: float = 64.0,
        start: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
        if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ValueError(f"every must be a number of steps, 1 or more, but is {every!r}.")
        if not 0 < overhead < math.inf:
            raise ValueError(f"overhead must be a share of the training time above 0, but is {overhead!r}.")
        if kind not in ("entropy", "tolerance"):
            raise ValueError(f"kind must be 'entropy' or 'tolerance', but is {kind!r}.")
        if not 0 < tol < math.inf:
            raise ValueError(f"tol must be a finite number above 0, but is {tol!r}.")
        if not isinstance(groups, int) or groups < 1 or not 0 <= snapshots < math.inf:
            raise ValueError(
                f"groups must be an integer of at least 1 and snapshots a number of at least 0, but are {groups!r} and "
                f"{snapshots!r}."
            )
        began = clock()
        self.model = model
        self.history = History()
        self.steps = 0
        self._clock = clock
        self._layers = layers
        self._how = Measure(
            kind,
            float(tol),
            bool(relative),
            _places(positions, "positions"),
            _places(spectra, "spectra", 0),
            groups,
        )
        self._probe = Probe(probe_inputs)
        self.snapshots = Snapshots(snapshots)
        self._pace = Pace(every, overhead)
        self.lock = threading.RLock()  # views read on other threads
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._stepped = False  # whether this process has made the present step
        self._warned = False
        self._tried = False
        self.views: list[TrainingView] = []
        self._of = described(model, self._probe.inputs, self._how)
        self._file = None if path is None else HistoryFile(Path(path), self._of)
        self._board: Board | None = None
        self._flushed = began
        if self._file is not None:
            for line in self._file.lines:
                self.history.apply(line)
            self._file.lines.clear()
            self._continue()
        if tensorboard is not None:
            self._board = Board(tensorboard, self.steps if self.history.last is not None else None)
        self._left = clock()
        self._pace.monitoring += self._left - began
        if start and self.history.last is None:
            self.measure()

    def step(self, step: int | None = None, **metrics: Any) -> None:
        """Say that the optimiser took a step; measure if it is time.

        Parameters
        ----------
        step : int, optional
            Its number, from 1; the next one by default. A smaller one than the last, as where training resumes from an
            earlier checkpoint, supersedes what was recorded from there on; the last one again completes its metrics.
        **metrics : float or Tensor with one element
            Loss, accuracy and the like. Tensors on a GPU are not waited for.
        """
        began = self._clock()
        self._trained(began)
        values = {name: scalar(name, value) for name, value in metrics.items()}
        with self.lock:
            again = step is not None and step == self.steps and self._stepped
            if not again:
                self._advance(self.steps + 1 if step is None else int(step))
            if again and self._waiting and self._waiting[-1][0] == self.steps:
                self._waiting[-1][1].update(values)
            else:
                self._waiting.append((self.steps, values))
            self._stepped = True
        spent = self._leave(began)
        if not again and self._pace.due(self.steps):
            self.measure()
        elif len(self._waiting) >= _WAITING or spent - self._flushed > _SECONDS:
            self._timed(self.flush)
        self._refresh()

    def measure(self) -> Measurement:
        """Measure now, whether or not it is time.

        Returns
        -------
        Measurement
            With ``failed`` set where it could not be made.
        """
        _synchronise(self.model)  # what is queued on a GPU is training
        began = self._clock()
        self._trained(began)
        layers: dict[str, LayerMeasurement] = {}
        pictures: dict[str, LayerSnapshot] = {}
        failed = None
        try:
            layers, pictures = measure(self.model, self._probe, self._layers, self._how, self.snapshots)
        except Exception as error:  # whatever it is, training goes on
            if not self._tried and isinstance(error, (UnknownLayerError, PositionError)):
                raise
            failed = f"{type(error).__name__}: {error}"
            _release(error)
        self._tried = True
        found = Measurement(self.steps, self._clock() - began, layers, failed)
        with self.lock:
            self.history.add(found)
            self.snapshots.add(self.steps, pictures)
        self.flush(found)
        self._leave(began, measured=True)
        if failed is not None and not self._warned:
            self._warned = True
            _warn(
                f"ess_widgets could not measure the model at step {self.steps}, and says so only once: {failed} "
                "Training goes on; monitor.failures tells of every such step."
            )
        self._refresh()
        return found

    @property
    def overhead(self) -> float:
        """Time spent on monitoring over time spent on training, in this process so far; NaN before the second step."""
        return self._pace.overhead

    @property
    def running(self) -> bool:
        """Whether a step was taken in the last seconds."""
        return self._clock() - self._left < _SECONDS

    @property
    def measure_options(self) -> dict[str, Any]:
        """``kind``, ``tol`` and ``relative``."""
        return {"kind": self._how.kind, "tol": self._how.tol, "relative": self._how.relative}

    def spend(self, seconds: float) -> None:
        """Count time that was spent on monitoring elsewhere, as a view does, while training is running."""
        if self.running:
            with self.lock:
                self._pace.monitoring += seconds

    @property
    def failures(self) -> dict[int, str]:
        """Why measurements failed, by step."""
        return {m.step: m.failed for m in self.history.measurements if m.failed is not None}

    def flush(self, measured: Measurement | None = None) -> None:
        """Read the metrics that wait on their device, and write what is new to the file and to TensorBoard."""
        with self.lock:
            waiting, self._waiting = self._waiting, []
            lines: list[Mapping[str, Any]] = []
            if waiting:
                steps = [step for step, _ in waiting]
                columns = columns_of([values for _, values in waiting])
                self.history.log(steps, columns)
                lines.append(metrics_line(steps, columns))
            if measured is not None:
                lines.append({"measurement": measured.to_json()})
            self._flushed = self._clock()
            self._write(lines, safely=measured is not None)
            if measured is not None and self._board is not None:
                try:
                    self._board.write(measured, self.history, self.overhead)
                except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
                    self._board = None
                    _warn(f"TensorBoard's scalars can no longer be written: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Write what is not written yet, and let go of TensorBoard's file."""
        self.flush()
        if self._board is not None:
            self._board.close()
        self._refresh()

    def frame(self, heads: bool = False) -> DataFrame:
        """The measurements as a table.

        Parameters
        ----------
        heads : bool
            A row for each head, instead of the average over them.

        Returns
        -------
        pandas.DataFrame
            ``step``, ``layer`` (and ``head``), ``family``, ``ess``, ``of_state_size``, ``of_ceiling``, ``residual``,
            ``seconds``, ``failed``, and the metrics of that step; one of a name that is taken, as ``ess``, is
            ``logged_ess``.
        """
        from .tables import measurements

        self.flush()
        return measurements(self.history, heads)

    to_pandas = frame

    def metrics(self) -> DataFrame:
        """Metrics of every step as a table, ``step`` and a column for each name."""
        from .tables import metrics

        self.flush()
        return metrics(self.history)

    def figure(self, *, of: str = "ess", log: bool = True) -> Figure:
        """ESS above the metrics, against the step, in matplotlib.

        Parameters
        ----------
        of : {"ess", "ceiling", "state_size"}
            ESS, or utilisation against either limit.
        log : bool
            Whether a metric called "loss" has a logarithmic axis.
        """
        from .training_figure import training

        self.flush()
        return training(self, of=of, log=log)

    def view(self, **options: Any) -> TrainingView:
        """A live view for notebooks: ESS and metrics against the step; a chosen step shows its operators.

        Parameters
        ----------
        **options
            As in :class:`ess_widgets.widgets.TrainingView`.
        """
        from ess_widgets.widgets.training_view import TrainingView

        return TrainingView(self, **options)

    def lightning(self) -> LightningMonitor:
        """A callback for Lightning that feeds this monitor."""
        from .callbacks_lightning import LightningMonitor

        return LightningMonitor(monitor=self)

    def trainer(self) -> TrainerMonitor:
        """A callback for transformers' ``Trainer`` that feeds this monitor."""
        from .callbacks_trainer import TrainerMonitor

        return TrainerMonitor(monitor=self)

    def state_dict(self) -> dict[str, Any]:
        """What to put into a checkpoint: the step and the history, without operators."""
        self.flush()
        with self.lock:
            return {"of": dict(self._of), "steps": self.steps, "history": self.history.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: later records, in the file too, are superseded.

        Raises
        ------
        ValueError
            If it is of another model, other probe inputs, or another measure.
        """
        refuse_another(state["of"], self._of, "this checkpoint")
        step = int(state["steps"])
        with self.lock:
            self._waiting.clear()
            last = self.history.last
            if self._file is not None and last is not None and last >= step and self._knows(state):
                self._rewind(step)
            else:
                self.history = History()
                for line in state["history"]:
                    self.history.apply(line)
                self.snapshots.rewind(-1)
                self._write([{"rewind": -1}, *state["history"]])
            self.steps = step
            self._continue(step)
        self._left = self._clock()

    def __repr__(self) -> str:
        last = self.history.good[-1] if self.history.good else None
        told = "" if last is None else f", last at step {last.step}"
        share = "" if math.isnan(self.overhead) else f", overhead {100 * self.overhead:.1f} %"
        return f"Monitor({len(self.history.measurements)} measurements{told}, {self.steps} steps{share})"

    # What happens inside

    def _knows(self, state: Mapping[str, Any]) -> bool:
        """Whether the history in the file holds all measurements of a checkpoint."""
        wanted = {line["measurement"]["step"] for line in state["history"] if "measurement" in line}
        return wanted <= {m.step for m in self.history.measurements}

    def _continue(self, step: int | None = None) -> None:
        """Take up a history."""
        last = self.history.last
        self.steps = (last or 0) if step is None else step
        self._stepped = False
        if self.history.good:
            self._pace.expect(self.history.good[-1].step, self.history.good[-1].seconds)

    def _advance(self, step: int) -> None:
        if step < 0:
            raise ValueError(f"step must be 0 or more, but is {step}.")
        last = self.history.last
        if step <= self.steps or (last is not None and step <= last):
            self.flush()
            self._rewind(step - 1)
        self.steps = step

    def _rewind(self, step: int) -> None:
        self.history.rewind(step)
        self.snapshots.rewind(step)
        self._pace.rewind(step)
        self._write([{"rewind": step}])

    def _trained(self, until: float) -> None:
        """What has passed since monitoring ended was training; before the first step it may be anything."""
        if self._stepped:
            self._pace.training += until - self._left

    def _leave(self, began: float, measured: bool = False) -> float:
        """Account for the time since ``began``; what follows is training again."""
        self._left = self._clock()
        if measured:
            self._pace.measured(self.steps, self._left - began)
        else:
            self._pace.monitoring += self._left - began
        return self._left

    def _timed(self, work: Callable[[], object]) -> None:
        began = self._clock()
        self._trained(began)
        work()
        self._leave(began)

    def _refresh(self) -> None:
        for view in list(self.views):
            view.refresh()

    def _write(self, lines: list[Mapping[str, Any]], safely: bool = True) -> None:
        if self._file is None or not lines:
            return
        try:
            self._file.write(lines, safely)
        except OSError as error:
            _warn(
                f"the training history can no longer be written to {self._file.path} and is kept in memory alone: {error}"
            )
            self._file = None


def _places(positions: Iterable[int] | None, name: str, least: int = 1) -> tuple[int, ...] | None:
    if positions is None:
        return None
    found = tuple(positions)
    for position in found:
        if not hasattr(position, "__index__") or isinstance(position, bool):
            raise TypeError(f"{name} must be integers, but one is {position!r}.")
    places = tuple(sorted({position.__index__() for position in found}))
    if len(places) < least or (places and places[0] < 0):
        raise ValueError(
            f"{name} must be 0 or more{', and at least one' if least else ''}, but are {list(found)}."
        )
    return places


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _synchronise(model: nn.Module) -> None:
    for device in {parameter.device for parameter in model.parameters()}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def _release(error: BaseException) -> None:
    """Let go of what the failed measurement holds: its frames, and a GPU's cache."""
    error.__traceback__ = None
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        torch.cuda.empty_cache()
