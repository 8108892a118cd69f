"""Captures of the user's own forward passes, in training mode too, with the graphs that they record."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from torch import nn

from ess_widgets.capture.core import Capture, gather
from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.interception.quiet import quietly
from ess_widgets.capture.interception.replica import unwrap
from ess_widgets.capture.interception.session import Outcome, Watched
from ess_widgets.capture.names import Selector, module_paths

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Live"]

# Threads and models whose pass is being watched: torch ends hooks in the order in which they began, modes in the other.
_watched_now: set[tuple[int, int]] = set()


class Live:
    """Watches the forward passes that the user makes of a model inside a ``with`` block.

    The model runs as it is, with its dropout, its random numbers and the user's gradient mode; the hooks that look at
    it are gone when each pass is over. The operators are those without dropout.

    Parameters
    ----------
    model : nn.Module
        Not compiled: compiled code cannot be looked at.
    layers
        As in :func:`ess_widgets.capture`.

    Attributes
    ----------
    captures : list of Capture
        One for each pass through the whole model since the block began, complete when the block is over.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    >>> with Live(layer) as live:
    ...     y = layer(torch.randn(1, 5, 8), src_mask=mask, is_causal=True)
    >>> live.captures[0]["self_attn"].operator.matrix().requires_grad
    True
    """

    def __init__(self, model: nn.Module, layers: Any = None) -> None:
        self.model, self.selector = unwrap(model), Selector(layers)
        self.captures: list[Capture] = []
        self._given = model
        self._outcomes: list[Outcome] = []
        self._watched: Watched | None = None
        self._handles: list[Any] = []
        self._thread = self._depth = 0  # (a model may call itself)

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError("this block has been entered already: blocks of one watcher cannot be nested.")
        _refuse_compiled(self._given, self.model)
        self.captures, self._outcomes = [], []
        self._thread, self._depth = threading.get_ident(), 0
        self._handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self._watched is not None:  # an interrupt, which hooks are not told of
            _watched_now.discard((self._thread, id(self.model)))
            self._watched.abandon()
            self._watched = None
        outcomes, self._outcomes = self._outcomes, []
        if kind is None:
            for outcome in outcomes:
                kept = quietly(lambda _, o=outcome: gather(self.model, o, self.selector, True))  # type: ignore[misc]
                self.captures.append(Capture(kept[0], None, kept[1]))

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != self._thread:
            return
        self._depth += 1
        if self._depth == 1:
            if (self._thread, id(module)) in _watched_now:
                raise CaptureError(
                    "this pass through the model is being watched already. Watch it once; a second regulariser can run the "
                    "model by itself: loss + first.penalty + second(inputs)."
                )
            _watched_now.add((self._thread, id(module)))
            self._watched = Watched(module, args, kwargs, self.selector)
            # Last of all hooks: where the forward raises, torch is still going through them while these are removed.
            self._handles.pop().remove()
            self._handles.append(module.register_forward_hook(self._end, always_call=True))

    def _end(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self._depth -= 1
        if self._depth or self._watched is None:
            return
        watched, self._watched = self._watched, None
        _watched_now.discard((self._thread, id(module)))
        if result is None:  # it raised
            watched.abandon()
        else:
            self._outcomes.append(watched.end(args, result))


def _refuse_compiled(given: nn.Module, model: nn.Module) -> None:
    compiled = hasattr(given, "_orig_mod") or any(
        module.__dict__.get("_compiled_call_impl") is not None for _, module in module_paths(model)
    )
    if compiled:
        raise CaptureError(
            "the model is compiled, and what compiled code computes inside cannot be watched. Watch the model that was "
            "compiled, or capture it with ess_widgets.capture(model, inputs, differentiable=True), which runs it once more "
            "as it was written."
        )
