"""The explorer: a live model and an input, shown as linked views that follow every edit."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

import numpy as np
import traitlets as t
from torch import Tensor, nn

from ess_widgets.capture import Capture

from .analysis import MOST_GROUPS
from .measured import Measured
from .selection import Selection
from .source import FixedInputs, Text
from .steps import Steps
from .view import View
from .worker import Worker

__all__ = ["Explorer", "explore"]

SAMPLE_TEXT = "The past is what a model keeps of it. Change this text, and see what it remembers."


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
    groups : int
        Of a layer with more groups than this, as a state-space model with an operator for each channel has, evenly
        spaced ones are shown; ``explorer.groups`` tells which.
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
    >>> import torch
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
        groups: int = MOST_GROUPS,
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
        if groups < 1:
            raise ValueError(f"groups must be at least 1, but is {groups}.")
        self._steps = Steps(self, model, layers, sample, groups)
        self._worker: Worker | None = None
        super().__init__(text=text, title=_title(model), **traits)
        self.on_msg(self._on_message)
        self.selection.observe(self._on_selection)
        self._worker = Worker(self._steps.step, self._steps.fail, f"ess_widgets explorer {self.title}")
        self._rerun()

    # What the user asks for

    @property
    def profile(self) -> np.ndarray:
        """ESS of the selected layer's heads at every position, ``(heads, L)``, float64.

        NaN for heads that are still being computed; see :meth:`wait`.
        """
        analysis, layer = self._steps.analysis, self.selection.layer
        if analysis is None or layer not in analysis.heads:
            return np.empty((0, 0))
        return analysis.profile(layer)

    @property
    def groups(self) -> list[int]:
        """The operator's group behind each head of the selected layer: ``selection.head`` counts those shown."""
        analysis, layer = self._steps.analysis, self.selection.layer
        return [] if analysis is None or layer not in analysis.heads else list(analysis.groups[layer])

    @property
    def captured(self) -> Capture | None:
        """The capture that is shown: operators, inputs, outputs and residuals by layer; None before the first."""
        analysis = self._steps.analysis
        return None if analysis is None else analysis.captured

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

    def refresh(self) -> None:
        """Run the model again: after training it further, or after changing it by hand."""
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
            self._steps.raise_error()
            return None

        async def wait() -> None:
            await later
            self._steps.raise_error()

        return wait()

    def close(self) -> None:
        """Stop computing and close the widget."""
        worker = getattr(self, "_worker", None)  # None if the arguments were refused
        if worker is not None:
            self._steps.close()
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
            self._on_measure(change)

    def _on_selection(self, change: Any) -> None:
        if change.name in ("layer", "head", "position") and self._worker is not None:
            self._worker.wake()
        # Whoever observes the explorer's selection hears of its fields; the browser needs no second message.
        changed = t.Bunch(name="selection", old=None, new=self.selection, owner=self, type="change")
        t.HasTraits.notify_change(self, changed)

    def _on_message(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        if content.get("type") in ("vectors", "detail") and self._worker is not None:
            self._steps.requests[content["type"]] = content
            self._worker.wake()

    def _rerun(self) -> None:
        if self._worker is not None:
            self._steps.rerun()
            self._worker.wake()


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
    >>> import torch
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
