"""What the explorer's worker does: one short step at a time, the most urgent first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ess_widgets.capture import Cancelled, run

from .analysis import Analysis
from .grid import Grid
from .requests import answer
from .selection import Extent
from .threads import use_threads
from .tokens import indexed
from .wire import operator_data, profile_data, spectrum_data

if TYPE_CHECKING:
    from .explorer import Explorer

__all__ = ["Steps"]

PROFILE_EVERY, GRID_EVERY = 0.1, 0.25  # seconds between partial updates
SHORT = 192  # up to so many positions all singular values of a head are there in the time of one picture


class Steps:
    """From the explorer's wishes to its pictures.

    ``step`` looks at what is wanted now, does the most urgent part of what is missing, and returns False where nothing
    is. It runs on the worker's thread; ``rerun``, ``requests`` and ``close`` are for any thread.
    """

    def __init__(self, explorer: Explorer, model: nn.Module, layers: Any, sample: int, groups: int) -> None:
        self.analysis: Analysis | None = None
        self.requests: dict[str, Mapping[str, Any]] = {}
        self._explorer, self._model, self._layers, self._sample = explorer, model, layers, sample
        self._groups = groups
        self._arrived: tuple[Analysis, dict[str, Any] | None, float] | None = None
        self._grid: Grid | None = None
        self._error: BaseException | None = None
        self._wanted = self._done = self._generation = 0
        self._closed = False
        self._shown: dict[str, Any] = {}
        self._sent_at: dict[str, float] = {}
        self._seconds = 0.0
        self._started = 0.0
        self._threads = torch.get_num_threads()

    def rerun(self) -> None:
        """The input has changed."""
        self._wanted += 1
        self._error = None

    def close(self) -> None:
        self._closed = True

    def raise_error(self) -> None:
        """Raise what the computation raised, if it did."""
        if self._error is not None:
            raise self._error

    def fail(self, error: BaseException) -> None:
        """Say what a step raised."""
        if self._done != self._wanted:
            return  # a newer edit is already waiting
        self._arrived = None
        self._error = error
        text = str(error).strip()
        self._say(
            "error", text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
        )

    def step(self) -> bool:
        if self._done != self._wanted:
            self._run_model()
            return True
        if self._arrived is not None:
            return self._show_arrived(*self._arrived)
        analysis = self.analysis
        if analysis is None:
            return False
        analysis.measure(self._explorer.measure)
        if self.requests:
            self._answer(analysis, self.requests.popitem()[1])
            return True
        return (
            self._show_head(analysis)
            or self._show_brushed(analysis)
            or self._show_layer(analysis)
            or self._show_grid(analysis)
            or self._show_spectrum(analysis)
        )

    def _run_model(self) -> None:
        wanted = self._wanted
        self._done = wanted
        self._arrived = None
        self._say("running", "Running the model")
        self._started = time.perf_counter()

        def superseded() -> bool:
            return self._wanted != wanted or self._closed

        use_threads(self._threads, self._threads)
        try:
            call = self._explorer._source.call(self._model, self._explorer.text)
            captured = run(
                self._model,
                call.args,
                call.kwargs,
                layers=self._layers,
                should_stop=superseded,
                keep_output=False,
            )
            analysis = Analysis(captured, self._sample, groups=self._groups)
        except Cancelled:
            return
        finally:
            # The matrices to come are small: more threads only wait for each other.
            use_threads(1, self._threads)
        self._arrived = analysis, call.tokens, time.perf_counter() - self._started

    def _show_arrived(self, analysis: Analysis, tokens: dict[str, Any] | None, seconds: float) -> bool:
        """The first paint: the selected head of the new input, then everything changes at once."""
        explorer = self._explorer
        analysis.measure(explorer.measure)
        layer, head = self._chosen(analysis)
        if not self._ready(analysis, layer, head):
            return True
        previous, self.analysis, self._arrived = self.analysis, analysis, None
        self._seconds = seconds
        length = analysis.lengths[layer]
        if previous is None or self._grid is None or previous.heads != analysis.heads:
            self._grid = Grid(analysis.heads)
        else:
            self._grid.expire()
        explorer.selection._fit(Extent(analysis.layers, analysis.heads, length), layer=layer)
        if explorer.selection.position is None:
            explorer.selection.position = length // 2
        self._generation += 1
        self._shown = {}
        explorer._publish(
            tokens=indexed(length) if tokens is None else tokens,
            layers=analysis.layer_data(),
            grid_data=self._grid.data(explorer.measure.data()),
            status=_status("computing", f"Computing the other {analysis.noun}", 0.0),
            **self._head_traits(analysis, layer, head),
        )
        return True

    def _chosen(self, analysis: Analysis) -> tuple[str, int]:
        selection = self._explorer.selection
        layer = selection.layer
        if isinstance(layer, int) and 0 <= layer < len(analysis.layers):
            layer = analysis.layers[layer]
        if layer not in analysis.heads:
            layer = analysis.layers[len(analysis.layers) // 2]
        return layer, min(selection.head, analysis.heads[layer] - 1)

    def _ready(self, analysis: Analysis, layer: str, head: int) -> bool:
        """Compute a little of what the head's first picture needs; True when it is there."""
        if analysis.lengths[layer] <= SHORT:
            return analysis.advance(layer, head)
        if analysis.knows(layer, head):
            return True
        analysis.compute(layer, [head])
        return False

    def _show_head(self, analysis: Analysis) -> bool:
        layer, head = self._chosen(analysis)
        if self._shown.get("head") == (layer, head):
            return False
        if self._ready(analysis, layer, head):
            self._explorer._publish(**self._head_traits(analysis, layer, head))
        return True

    def _head_traits(self, analysis: Analysis, layer: str, head: int) -> dict[str, Any]:
        self._shown["head"] = layer, head
        return {
            "operator_data": operator_data(analysis.operator(layer, head), layer, head),
            **self._spectrum_traits(analysis, layer, head),
            **self._layer_traits(analysis, layer),
        }

    def _show_brushed(self, analysis: Analysis) -> bool:
        """Of a long input first the singular values at the brushed position, and about it."""
        layer, head = self._chosen(analysis)
        position = self._explorer.selection.position or 0
        values, whole = analysis.spectrum(layer, head)
        if whole or (values is not None and not np.isnan(values[position, 0])):
            return False
        analysis.advance(layer, head, position)
        self._explorer._publish(**self._spectrum_traits(analysis, layer, head))
        return True

    def _show_spectrum(self, analysis: Analysis) -> bool:
        """Last the singular values at all other positions."""
        layer, head = self._chosen(analysis)
        if self._shown.get("spectrum") == (layer, head, True):
            return False
        if analysis.advance(layer, head, self._explorer.selection.position):
            self._explorer._publish(**self._spectrum_traits(analysis, layer, head))
        return True

    def _spectrum_traits(self, analysis: Analysis, layer: str, head: int) -> dict[str, Any]:
        values, whole = analysis.spectrum(layer, head)
        if values is None:
            return {"spectrum_data": {}}
        self._shown["spectrum"] = layer, head, whole
        return {"spectrum_data": spectrum_data(values, layer, head, analysis.blocks[layer])}

    def _show_layer(self, analysis: Analysis) -> bool:
        layer, _ = self._chosen(analysis)
        if analysis.compute(layer):
            if self._due("profile", PROFILE_EVERY):
                self._explorer._publish(**self._layer_traits(analysis, layer))
            return True
        if self._shown.get("profile") != (layer, self._explorer.measure, True):
            self._explorer._publish(**self._layer_traits(analysis, layer))
            return True
        return False

    def _layer_traits(self, analysis: Analysis, layer: str) -> dict[str, Any]:
        ess, measure = analysis.profile(layer), self._explorer.measure
        self._shown["profile"] = layer, measure, not np.isnan(ess).any()
        self._sent_at["profile"] = time.perf_counter()
        return {"profile_data": profile_data(ess, *analysis.limits(layer), layer, measure.data())}

    def _show_grid(self, analysis: Analysis) -> bool:
        grid, measure = self._grid, self._explorer.measure
        assert grid is not None
        stamp = self._generation, measure
        if self._shown.get("grid") == stamp:
            return False
        if self._shown.get("filling") != stamp:
            self._shown["filling"] = stamp
            grid.expire()
        chosen, _ = self._chosen(analysis)
        total = sum(analysis.heads.values())
        known = 0
        until = time.perf_counter() + 0.03
        for layer in [chosen, *(name for name in analysis.layers if name != chosen)]:
            heads = range(analysis.heads[layer])
            known += len(heads)
            if all(grid.is_fresh(layer, head, stamp) for head in heads):
                continue
            if layer not in analysis.residuals:
                analysis.verify(layer)
                return True
            if analysis.compute(layer):
                if self._due("grid", GRID_EVERY):
                    self._publish_grid(analysis, grid, known / total)
                return True
            limits = analysis.limits(layer)
            for head, ess in enumerate(analysis.profile(layer)):
                grid.fill(layer, head, stamp, ess, *(limit[head] for limit in limits))
            if time.perf_counter() > until:
                return True
        self._shown["grid"] = stamp
        self._publish_grid(analysis, grid, None)
        return False

    def _publish_grid(self, analysis: Analysis, grid: Grid, progress: float | None) -> None:
        self._sent_at["grid"] = time.perf_counter()
        heads = sum(analysis.heads.values())
        if progress is None:
            took = time.perf_counter() - self._started
            status = _status(
                "ready", f"Up to date: model {self._seconds:.2f} s, {heads} {analysis.noun} in {took:.1f} s"
            )
        else:
            status = _status("computing", f"{int(progress * heads)} of {heads} {analysis.noun}", progress)
        if self._error is not None:
            status = self._explorer.status
        self._explorer._publish(
            grid_data=grid.data(self._explorer.measure.data()), layers=analysis.layer_data(), status=status
        )

    def _answer(self, analysis: Analysis, request: Mapping[str, Any]) -> None:
        """What a view asks for beyond the traits; a request that no longer fits the input is dropped."""
        layer, head = request.get("layer"), request.get("head")
        if layer not in analysis.heads or not isinstance(head, int) or not 0 <= head < analysis.heads[layer]:
            return
        message = answer(analysis.operator(layer, head), layer, head, request)
        if message is not None:
            self._explorer.send(*message)

    def _due(self, name: str, seconds: float) -> bool:
        return time.perf_counter() - self._sent_at.get(name, 0.0) >= seconds

    def _say(self, phase: str, message: str) -> None:
        self._explorer._publish(status=_status(phase, message))


def _status(phase: str, message: str, progress: float | None = None) -> dict[str, Any]:
    return {"phase": phase, "message": message, "progress": progress}
