"""Training as it happens: ESS and metrics against the step, and the operators of a chosen step."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import numpy as np
import traitlets as t

from ess_widgets.metrics import ess, spectrum
from ess_widgets.operators import Dense

from .measured import Measured
from .requests import answer
from .selection import Extent, Selection
from .tokens import indexed
from .training_data import training_data
from .view import View
from .wire import operator_data, profile_data, spectrum_data
from .worker import Worker

__all__ = ["TrainingView"]

# Seconds between two pictures of a running training, and how many times longer than drawing one.
_PAUSE, _TIMES = 0.4, 30.0
# While training runs and its newest step is followed, all singular values of a head of this length at most.
_SMALL = 128


class TrainingView(View, Measured):
    """ESS and metrics of a training against the step; a chosen step shows its operators, profiles and spectra.

    It follows the training while a cell runs it, from a thread of its own. Without a kernel the curves of the saved
    page still show.

    Parameters
    ----------
    monitor : ess_widgets.learn.Monitor
    labels : sequence of str, optional
        A label for each position of the probe's first sample.
    selection : Selection, optional
        Shared with other views: layer, head, position.
    **traits
        ``scale``, ``against``, ``title``, ….

    Attributes
    ----------
    step : int or None
        The chosen step, that of a measurement (a value is moved to the nearest one); None follows the newest.
    shown : {"ess", "ceiling", "state_size"}
        Whether the lines are ESS, or utilisation against either limit.

    Examples
    --------
    >>> import torch
    >>> from ess_widgets.learn import Monitor
    >>> model = torch.nn.LSTM(3, 4, batch_first=True)
    >>> monitor = Monitor(model, torch.randn(1, 6, 3), every=1)
    >>> for loss in (0.9, 0.5, 0.4):
    ...     monitor.step(loss=loss)
    >>> view = TrainingView(monitor)
    >>> view.step = 2
    >>> view.wait()
    >>> view.training_data["points"], view.operator_data["length"], view.status["message"]
    (3, 6, 'operators of step 2')
    >>> view.close()
    """

    _view = t.Unicode("TrainingView").tag(sync=True)

    step = t.Int(None, allow_none=True).tag(sync=True, echo_update=False)
    shown = t.Enum(["ess", "ceiling", "state_size"], "ess").tag(sync=True, echo_update=False)
    scale = t.Enum(["log", "linear"], "log").tag(sync=True, echo_update=False)

    tokens = t.Dict(None, allow_none=True).tag(sync=True)
    layers = t.List(t.Dict()).tag(sync=True)
    training_data = t.Dict().tag(sync=True)
    operator_data = t.Dict().tag(sync=True)
    spectrum_data = t.Dict().tag(sync=True)
    profile_data = t.Dict().tag(sync=True)
    status = t.Dict({"phase": "idle", "message": "", "progress": None}).tag(sync=True)

    def __init__(
        self,
        monitor: Any,
        *,
        labels: Sequence[str] | None = None,
        selection: Selection | None = None,
        **traits: Any,
    ) -> None:
        self._monitor = monitor
        self._labels = None if labels is None else [str(label) for label in labels]
        self._worker: Worker | None = None
        self._stale = True
        self._urgent = threading.Event()
        self._next = 0.0
        self._shown_detail: tuple[Any, ...] = ()
        self._detail: tuple[Dense, np.ndarray] | None = None
        self._error: BaseException | None = None
        traits = {**monitor.measure_options, **traits}
        traits.setdefault("title", f"{type(monitor.model).__name__} in training")
        super().__init__(selection=selection, **traits)
        self.on_msg(self._on_message)
        self.selection.observe(self._on_choice, ["layer", "head", "position"])
        self._draw_lines()
        self._worker = Worker(self._work, self._fail, "ess_widgets training view")
        self._worker.wake()
        monitor.views.append(self)

    def wait(self, timeout: float | None = 600.0) -> Awaitable[None] | None:
        """Return when the view shows what is known; an awaitable where an event loop is running.

        Raises
        ------
        TimeoutError
            It is not up to date in time.
        Exception
            Whatever drawing it raised.
        """
        assert self._worker is not None
        self._urgent.set()
        later = self._worker.wait(timeout)
        if later is None:
            self._raise()
            return None

        async def wait() -> None:
            await later
            self._raise()

        return wait()

    def refresh(self) -> None:
        """Say that there is something new; it shows a moment later."""
        self._stale = True
        if self._worker is not None:
            self._worker.wake()

    def close(self) -> None:
        """Stop following the training, and close the widget."""
        if self in self._monitor.views:
            self._monitor.views.remove(self)
        if self._worker is not None:
            self._worker.close()
            self._urgent.set()
        super().close()

    # What wakes the worker

    @t.validate("step")
    def _check_step(self, proposal: Any) -> int | None:
        value: int | None = proposal.value
        if value is None:
            return None
        steps = [m.step for m in self._monitor.history.good]
        return min(steps, key=lambda step: abs(step - value)) if steps else value

    @t.observe("step", "kind", "tol", "relative")
    def _on_choice(self, change: Any) -> None:
        if self._worker is not None:
            self._urgent.set()
            self._worker.wake()

    def _on_message(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        detail = self._detail
        if detail is not None:
            found = answer(detail[0], self.selection.layer, int(self.selection.head), content)
            if found is not None:
                self.send(*found)

    # What the worker does, the most urgent first

    def _work(self) -> bool:
        began = time.thread_time()
        try:
            if self._show_detail():
                return True
            if not self._stale:
                return False
            wait = self._next - time.monotonic()
            if wait > 0 and self._monitor.running:
                self._urgent.wait(wait)
                self._urgent.clear()
                return True
            self._stale = False
            self._draw_lines()
            self._next = time.monotonic() + max(_PAUSE, _TIMES * (time.thread_time() - began))
            return True
        finally:
            self._monitor.spend(time.thread_time() - began)

    def _draw_lines(self) -> None:
        self._monitor.flush()
        with self._monitor.lock:
            history = self._monitor.history
            data = training_data(history, self._monitor.measure_options)
            newest = history.good[-1] if history.good else None
        layers = (
            self.layers if newest is None else [self._layer(name, m) for name, m in newest.layers.items()]
        )
        self._publish(training_data=data, layers=layers, status=self._told())

    def _layer(self, name: str, measured: Any) -> dict[str, Any]:
        picture = self._monitor.snapshots.shape(name)
        kept = list(range(len(measured.groups))) if picture is None else picture
        groups = [measured.groups[k] for k in kept]
        return {
            "name": name,
            "family": measured.family,
            "heads": len(groups),
            "group": measured.group,
            "groups": None if groups == list(range(measured.of)) else groups,
            "of": measured.of,
            "residual": measured.residual,
            "limit": measured.limit,
        }

    def _told(self) -> dict[str, Any]:
        step = self._shown_detail[0] if self._shown_detail else None
        message = "" if step is None else f"operators of step {step:,}"
        wanted = self.step
        if step is None:
            message = "no operators are kept" if self._monitor.history.good else "nothing is measured yet"
        elif wanted is not None and wanted != step:
            message = f"operators of step {step:,}, the nearest that is kept"
        return {"phase": "ready", "message": message, "progress": None}

    def _show_detail(self) -> bool:
        """Show the operator, profile and spectrum of what is chosen; False when it is shown."""
        monitor = self._monitor
        wanted = self.step
        step = monitor.snapshots.nearest(math.inf if wanted is None else wanted)
        pictures = None if step is None else monitor.snapshots.at(step)
        if pictures is None:
            return False
        selection = self.selection
        name = selection.layer if selection.layer in pictures else next(iter(pictures))
        picture = pictures[name]
        head = min(int(selection.head), len(picture.heads) - 1)
        key = (step, name, head, self.measure)
        if key != self._shown_detail[:4]:
            self._shown_detail = ()
            self._choose(pictures, name)
            self._show_operator(name, head, picture)
            self._shown_detail = (*key, wanted)
            self._publish(status=self._told())
            return True
        if wanted != self._shown_detail[4]:
            self._shown_detail = (*key, wanted)
            self._publish(status=self._told())
        return self._show_spectrum(name, head)

    def _choose(self, pictures: Mapping[str, Any], name: str) -> None:
        """Let the selection be something that there is."""
        selection = self.selection
        heads = {layer: len(picture.heads) for layer, picture in pictures.items()}
        length = pictures[name].ess.shape[-1]
        extent = Extent(list(pictures), heads, length)
        if selection._extent != extent:
            selection._fit(extent, layer=name)
        if selection.position is None:
            selection.position = length // 2
        if len((self.tokens or {}).get("labels", [])) != length:
            fits = self._labels is not None and len(self._labels) == length
            self.tokens = indexed(length, self._labels if fits else None)

    def _show_operator(self, name: str, head: int, picture: Any) -> None:
        operators = Dense(picture.matrix, valid=picture.valid, block=picture.block)
        curves = picture.ess
        asked = self.measure.data()
        if asked != self._monitor.measure_options or np.isnan(curves).any():
            curves = ess(operators, **asked).cpu().numpy()
        length = curves.shape[-1]
        self._detail = operators[head], np.full((length, max(picture.block * (length // 2), 1)), np.nan)
        self._publish(
            operator_data=operator_data(operators[head], name, head),
            profile_data=profile_data(curves, picture.state_size, picture.ceiling, name, asked),
            spectrum_data=spectrum_data(self._detail[1], name, head, picture.block),
        )

    def _show_spectrum(self, name: str, head: int) -> bool:
        """Compute singular values that are not known yet: at the brushed position first."""
        assert self._detail is not None
        operator, values = self._detail
        unknown = np.isnan(values[:, 0])
        if not unknown.any():
            return False
        position = self.selection.position
        all_ = len(values) <= _SMALL or self.step is not None or not self._monitor.running
        if position is not None and position < len(values) and unknown[position] and len(values) > _SMALL:
            where = [int(position)]
        elif all_:
            (missing,) = unknown.nonzero()
            where = [int(i) for i in missing[: max(1, int(64 * (_SMALL / len(values)) ** 3))]]
            if len(values) <= _SMALL:
                where = [int(i) for i in missing]
        else:
            return False
        found = spectrum(operator, positions=where).cpu().numpy()
        values[where] = 0.0
        values[where, : found.shape[-1]] = found
        self._publish(spectrum_data=spectrum_data(values, name, head, operator.block))
        return True

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._publish(
            status={"phase": "error", "message": f"{type(error).__name__}: {error}", "progress": None}
        )

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
