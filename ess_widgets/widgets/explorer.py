"""The explorer: a live model and an input, shown as linked views that follow every edit."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from typing import Any

import numpy as np
import torch
import traitlets as t
from torch import Tensor, nn

from ess_widgets.capture import Cancelled, Capture, run

from .analysis import Analysis
from .grid import Grid
from .measured import Measured
from .requests import answer
from .selection import Extent, Selection
from .source import FixedInputs, Text
from .threads import use_threads
from .tokens import indexed
from .view import View
from .wire import operator_data, profile_data, spectrum_data
from .worker import Worker

__all__ = ["Explorer", "explore"]

SAMPLE_TEXT = "The past is what a model keeps of it. Change this text, and see what it remembers."
PROFILE_EVERY, GRID_EVERY = 0.1, 0.25  # seconds between partial updates


class Explorer(View, Measured):
    """Linked views of what each layer of ``model`` remembers of an input.

    The model runs on a thread of its own, on a structural copy in eval mode that shares the parameters:
    the user's model, its training and the kernel's cells are left alone. The newest edit wins.

    Parameters
    ----------
    model : torch.nn.Module
        The live model.
    tokenizer : object, optional
        A transformers tokenizer, or any object with ``encode(text)`` and ``decode(ids)``.
    text : str, optional
        The text to start with.
    inputs : Tensor, array, mapping or tuple, optional
        In place of a tokenizer and a text: what to call the model with.
    names : list of str, optional
        With ``inputs``: a label for each position.
    layers : optional
        Which layers, as in :func:`ess_widgets.capture`.
    sample : int
        Which sample of a batch of inputs is shown.
    max_tokens : int
        Longer texts are refused with a message.
    kind, tol, relative
        Which ESS, as in :func:`ess_widgets.ess`.
    scale : {"log", "linear"}
        Colour scale of the operator.
    against : {"ceiling", "state_size"}
        What utilisation is taken against.
    selection : Selection, optional
        Shared with other views.

    Attributes
    ----------
    text : str or None
        The text; setting it runs the model again.
    selection : Selection
        What is brushed; ``explorer.selection = {"position": 5}`` sets fields of it.
    profile : numpy.ndarray
        ESS of the selected layer, ``(heads, L)``.

    Raises
    ------
    TypeError
        ``model`` is not a module, or neither a tokenizer nor inputs are given.

    Examples
    --------
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> mask = torch.nn.Transformer.generate_square_subsequent_mask(6)
    >>> explorer = Explorer(layer, inputs={"src": torch.randn(1, 6, 8), "src_mask": mask})
    >>> explorer.wait()
    >>> explorer.profile.shape
    (2, 6)
    >>> explorer.close()
    """

    _view = t.Unicode("Explorer").tag(sync=True)

    text = t.Unicode(None, allow_none=True).tag(sync=True, echo_update=False)
    scale = t.Enum(["log", "linear"], "log").tag(sync=True, echo_update=False)

    tokens = t.Dict(None, allow_none=True).tag(sync=True)
    layers = t.List(t.Dict()).tag(sync=True)
    operator_data = t.Dict().tag(sync=True)
    spectrum_data = t.Dict().tag(sync=True)
    profile_data = t.Dict().tag(sync=True)
    grid_data = t.Dict().tag(sync=True)
    status = t.Dict({"phase": "idle", "message": "", "progress": None}).tag(sync=True)

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        text: str | None = None,
        *,
        inputs: Any = None,
        names: list[str] | None = None,
        layers: Any = None,
        sample: int = 0,
        max_tokens: int = 2048,
        **traits: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
        if (tokenizer is None) == (inputs is None):
            raise TypeError("Give either a tokenizer (and a text) or inputs.")
        if inputs is not None and text is not None:
            raise TypeError("A text needs a tokenizer; with inputs, label the positions by names=[...].")
        self._source = (
            FixedInputs(inputs, None if names is None else [str(name) for name in names])
            if tokenizer is None
            else Text(tokenizer, max_tokens)
        )
        if tokenizer is not None and text is None:
            text = SAMPLE_TEXT
        self._model, self._wanted_layers, self._sample = model, layers, sample
        self._analysis: Analysis | None = None
        self._arrived: tuple[Analysis, dict[str, Any] | None, float] | None = None
        self._grid: Grid | None = None
        self._error: BaseException | None = None
        self._requests: dict[str, Mapping[str, Any]] = {}
        self._wanted = self._done = self._generation = 0
        self._shown: dict[str, Any] = {}
        self._sent_at: dict[str, float] = {}
        self._seconds = 0.0
        self._started = 0.0
        self._threads = torch.get_num_threads()
        self._worker: Worker | None = None
        super().__init__(text=text, title=_title(model), **traits)
        self.on_msg(self._on_message)
        self.selection.observe(self._on_selection)
        self._worker = Worker(self._step, self._fail, f"ess_widgets explorer {self.title}")
        self._rerun()

    # What the user asks for

    @property
    def profile(self) -> np.ndarray:
        """ESS of the selected layer's heads at every position, ``(heads, L)``, float64.

        NaN for heads that are still being computed; see :meth:`wait`.
        """
        analysis, layer = self._analysis, self.selection.layer
        if analysis is None or layer not in analysis.heads:
            return np.empty((0, 0))
        return analysis.profile(layer)

    @property
    def captured(self) -> Capture | None:
        """The capture that is shown: operators, inputs, outputs and residuals by layer; None before the first."""
        return None if self._analysis is None else self._analysis.captured

    @property
    def inputs(self) -> Any:
        """What the model is called with, where the explorer has no tokenizer; settable."""
        return self._source.inputs if isinstance(self._source, FixedInputs) else None

    @inputs.setter
    def inputs(self, inputs: Any) -> None:
        if not isinstance(self._source, FixedInputs):
            raise TypeError("This explorer has a tokenizer: set explorer.text.")
        self._source = FixedInputs(inputs, self._source.names)
        self._rerun()

    def wait(self, timeout: float | None = 600.0) -> Awaitable[None] | None:
        """Return when the views are up to date in the kernel, layer grid included.

        Blocks in a plain script; where an event loop is running (a notebook) it returns an awaitable.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits for ever.

        Raises
        ------
        TimeoutError
            The views are not up to date in time; the computation goes on.
        Exception
            Whatever the computation raised.
        """
        assert self._worker is not None
        later = self._worker.wait(timeout)
        if later is None:
            self._raise()
            return None

        async def wait() -> None:
            await later
            self._raise()

        return wait()

    def close(self) -> None:
        """Stop computing and close the widget."""
        worker = getattr(self, "_worker", None)  # None if the arguments were refused
        if worker is not None:
            worker.close()
        super().close()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "selection" and isinstance(value, Mapping):
            self.selection.update(**value)
        else:
            super().__setattr__(name, value)

    # What wakes the worker

    @t.validate("text")
    def _check_text(self, proposal: Any) -> str | None:
        if proposal.value is not None and not isinstance(self._source, Text):
            raise t.TraitError("This explorer has no tokenizer: set explorer.inputs.")
        return proposal.value  # type: ignore[no-any-return]

    @t.observe("text")
    def _on_text(self, change: Any) -> None:
        self._rerun()

    @t.observe("kind", "tol", "relative")
    def _on_measure(self, change: Any) -> None:
        if self._worker is not None:
            self._worker.wake()

    @t.observe("selection")
    def _on_new_selection(self, change: Any) -> None:
        if isinstance(change.old, Selection):
            change.old.unobserve(self._on_selection)
            self.selection.observe(self._on_selection)
            self._shown.pop("extent", None)
            self._on_measure(change)

    def _on_selection(self, change: Any) -> None:
        if change.name in ("layer", "head") and self._worker is not None:
            self._worker.wake()
        # Whoever observes the explorer's selection hears of its fields; the browser needs no second message.
        changed = t.Bunch(name="selection", old=None, new=self.selection, owner=self, type="change")
        t.HasTraits.notify_change(self, changed)

    def _on_message(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        if content.get("type") in ("vectors", "detail") and self._worker is not None:
            self._requests[content["type"]] = content
            self._worker.wake()

    def _rerun(self) -> None:
        if self._worker is not None:
            self._wanted += 1
            self._error = None
            self._worker.wake()

    # What the worker does: one short step at a time, the most urgent first

    def _step(self) -> bool:
        if self._done != self._wanted:
            self._run_model()
            return True
        if self._arrived is not None:
            return self._show_arrived(*self._arrived)
        analysis = self._analysis
        if analysis is None:
            return False
        analysis.measure(self.measure)
        if self._requests:
            self._answer(analysis, self._requests.popitem()[1])
            return True
        return self._show_head(analysis) or self._show_layer(analysis) or self._show_grid(analysis)

    def _run_model(self) -> None:
        wanted = self._wanted
        self._done = wanted
        self._arrived = None
        self._say("running", "Running the model")
        self._started = time.perf_counter()

        def superseded() -> bool:
            return self._wanted != wanted or self._worker is None or self._worker.closed

        use_threads(self._threads, self._threads)
        try:
            call = self._source.call(self._model, self.text)
            captured = run(
                self._model,
                call.args,
                call.kwargs,
                layers=self._wanted_layers,
                should_stop=superseded,
                keep_output=False,
            )
            analysis = Analysis(captured, self._sample)
        except Cancelled:
            return
        finally:
            # The matrices to come are small: more threads only wait for each other.
            use_threads(1, self._threads)
        self._arrived = analysis, call.tokens, time.perf_counter() - self._started

    def _show_arrived(self, analysis: Analysis, tokens: dict[str, Any] | None, seconds: float) -> bool:
        """The first paint: the selected head of the new input, then everything changes at once."""
        analysis.measure(self.measure)
        layer, head = self._chosen(analysis)
        if not analysis.advance(layer, head):
            return True
        previous, self._analysis, self._arrived = self._analysis, analysis, None
        self._seconds = seconds
        length = analysis.lengths[layer]
        if previous is None or self._grid is None or previous.heads != analysis.heads:
            self._grid = Grid(analysis.heads)
        else:
            self._grid.expire()
        self.selection._fit(Extent(analysis.layers, analysis.heads, length), layer=layer)
        if self.selection.position is None:
            self.selection.position = length // 2
        self._generation += 1
        self._shown = {}
        self._publish(
            tokens=indexed(length) if tokens is None else tokens,
            layers=analysis.layer_data(),
            grid_data=self._grid.data(self.measure.data()),
            **self._head_traits(analysis, layer, head),
        )
        return True

    def _chosen(self, analysis: Analysis) -> tuple[str, int]:
        layer = self.selection.layer
        if isinstance(layer, int) and 0 <= layer < len(analysis.layers):
            layer = analysis.layers[layer]
        if layer not in analysis.heads:
            layer = analysis.layers[len(analysis.layers) // 2]
        return layer, min(self.selection.head, analysis.heads[layer] - 1)

    def _show_head(self, analysis: Analysis) -> bool:
        layer, head = self._chosen(analysis)
        if self._shown.get("head") == (layer, head):
            return False
        if analysis.advance(layer, head):
            self._publish(**self._head_traits(analysis, layer, head))
        return True

    def _head_traits(self, analysis: Analysis, layer: str, head: int) -> dict[str, Any]:
        self._shown["head"] = layer, head
        spectrum = analysis.spectrum(layer, head)
        assert spectrum is not None
        return {
            "operator_data": operator_data(analysis.operator(layer, head).matrix(), layer, head),
            "spectrum_data": spectrum_data(spectrum, layer, head),
            **self._layer_traits(analysis, layer),
        }

    def _show_layer(self, analysis: Analysis) -> bool:
        layer, _ = self._chosen(analysis)
        for head in range(analysis.heads[layer]):
            if not analysis.knows(layer, head):
                if analysis.advance(layer, head) and self._due("profile", PROFILE_EVERY):
                    self._publish(**self._layer_traits(analysis, layer))
                return True
        if self._shown.get("profile") != (layer, self.measure, True):
            self._publish(**self._layer_traits(analysis, layer))
            return True
        return False

    def _layer_traits(self, analysis: Analysis, layer: str) -> dict[str, Any]:
        ess = analysis.profile(layer)
        self._shown["profile"] = layer, self.measure, not np.isnan(ess).any()
        self._sent_at["profile"] = time.perf_counter()
        return {"profile_data": profile_data(ess, *analysis.limits(layer), layer, self.measure.data())}

    def _show_grid(self, analysis: Analysis) -> bool:
        grid, measure = self._grid, self.measure
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
            for head in range(analysis.heads[layer]):
                known += 1
                if grid.is_fresh(layer, head, stamp):
                    continue
                if layer not in analysis.residuals:
                    analysis.verify(layer)
                    return True
                ess = analysis.ess(layer, head)
                if ess is None:
                    if analysis.advance(layer, head) and self._due("grid", GRID_EVERY):
                        self._publish_grid(analysis, grid, known / total)
                    return True
                state_size, ceiling = (limit[head] for limit in analysis.limits(layer))
                grid.fill(layer, head, stamp, ess, state_size, ceiling)
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
                "ready", f"Up to date: model {self._seconds:.2f} s, {heads} heads in {took:.1f} s"
            )
        else:
            status = _status("computing", f"{int(progress * heads)} of {heads} heads", progress)
        if self._error is not None:
            status = self.status
        self._publish(grid_data=grid.data(self.measure.data()), layers=analysis.layer_data(), status=status)

    def _answer(self, analysis: Analysis, request: Mapping[str, Any]) -> None:
        """What a view asks for beyond the traits; a request that no longer fits the input is dropped."""
        layer, head = request.get("layer"), request.get("head")
        if layer not in analysis.heads or not isinstance(head, int) or not 0 <= head < analysis.heads[layer]:
            return
        message = answer(analysis.operator(layer, head), layer, head, request)
        if message is not None:
            self.send(*message)

    def _due(self, name: str, seconds: float) -> bool:
        return time.perf_counter() - self._sent_at.get(name, 0.0) >= seconds

    def _say(self, phase: str, message: str) -> None:
        self._publish(status=_status(phase, message))

    def _fail(self, error: BaseException) -> None:
        if self._done != self._wanted:
            return  # a newer edit is already waiting
        self._arrived = None
        self._error = error
        text = str(error).strip()
        self._say(
            "error", text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
        )

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _status(phase: str, message: str, progress: float | None = None) -> dict[str, Any]:
    return {"phase": phase, "message": message, "progress": progress}


def _title(model: nn.Module) -> str:
    path = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    return str(path).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or type(model).__name__


def explore(
    model: nn.Module, tokenizer: Any = None, text: str | None = None, *, inputs: Any = None, **options: Any
) -> Explorer:
    """Explore what a model remembers of a text, or a layer of a tensor.

    Parameters
    ----------
    model : torch.nn.Module
        A whole model, or one layer.
    tokenizer : object
        A transformers tokenizer, any object with ``encode`` and ``decode``; or, without a tokenizer,
        the inputs: a tensor, an array, a mapping of keyword arguments or a tuple of arguments.
    text : str, optional
        The text to start with.
    **options
        As in :class:`Explorer`: ``kind``, ``tol``, ``relative``, ``layers``, ``names``, ….

    Returns
    -------
    Explorer
        Displayed at the end of a notebook cell; usable from Python without a browser too.

    Examples
    --------
    >>> attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    >>> x = torch.randn(1, 5, 8)
    >>> causal = torch.ones(5, 5).triu(1).bool()
    >>> explorer = explore(attention, {"query": x, "key": x, "value": x, "attn_mask": causal})
    >>> explorer.wait()
    >>> explorer.selection.position
    2
    >>> explorer.close()
    """
    if inputs is None and isinstance(tokenizer, (Tensor, np.ndarray, Mapping, tuple, list)):
        tokenizer, inputs = None, tokenizer
    return Explorer(model, tokenizer, text, inputs=inputs, **options)
