"""Interception: sees every torch call that a model makes in this thread, and shows it to those who look for mixers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ess_widgets.capture.attention.watch import FORMS, OUTER, AttentionWatch
from ess_widgets.capture.convolution.watch import ConvolutionWatch
from ess_widgets.capture.errors import Cancelled
from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.guard import Guard
from ess_widgets.capture.interception.randomness import PrivateRandom
from ess_widgets.capture.interception.tape import Leaves
from ess_widgets.capture.names import PathTracker, Selector
from ess_widgets.capture.recognition.watch import Recognition
from ess_widgets.capture.record import Record

__all__ = ["CaptureMode"]


class CaptureMode(TorchFunctionMode):
    """Shows each torch call of one run to those who look for layers.

    Parameters
    ----------
    tracker : PathTracker
        Knows the module in which a call happens.
    selector : Selector
        Which layers to keep.
    inputs : list of Tensor
        What the model was given; tells the batch size.
    stated : list of Tensor
        Padding masks that the model was given, ``(batch, L)``, True for own tokens.
    weights : dict
        Memory of the model's weights, to their names.
    foreign : dict
        Other memory that outlives the run and may be written to later.
    chosen : mapping
        Modules that are captured by their Jacobians.
    differentiable : bool
        Whether tensors are kept with their graph.
    live : bool
        Whether the run is the user's own: dropout and random numbers are left alone then.
    is_original : callable
        Whether a parameter belongs to the original model although a copy is running.
    """

    def __init__(
        self,
        tracker: PathTracker,
        selector: Selector,
        *,
        inputs: list[Tensor],
        stated: list[Tensor],
        weights: dict[int, str],
        foreign: dict[int, str],
        chosen: Mapping[nn.Module, Any],
        differentiable: bool = False,
        live: bool = False,
        is_original: Callable[[object], bool] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_layer: Callable[[str, int], None] | None = None,
    ) -> None:
        super().__init__()
        leaves = Leaves({**foreign, **weights}, differentiable)
        self.record = Record(tracker, selector, leaves, inputs, stated, on_layer)
        self._should_stop = should_stop
        self._guard = Guard(weights, leaves, is_original, writable=live)
        self._random = None if live else PrivateRandom()
        self._attention = AttentionWatch(self.record, self._guard.is_weight, live=live)
        self._convolutions = ConvolutionWatch(self.record, inputs, self._guard.is_weight)
        self.recognition = Recognition(self.record, self._convolutions.owner, chosen)
        self._functions = self.recognition.functions

    def __exit__(self, *exc: object) -> None:
        # An interrupt may have come while torch had this mode off its stack; what is on top is another one then.
        top = torch._C._len_torch_function_stack() - 1
        if top >= 0 and torch._C._get_function_stack_at(top) is self:
            super().__exit__(*exc)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._functions.pause()
        try:
            if self._should_stop is not None and self._should_stop():
                raise Cancelled("a newer request took over")
            if not kwargs and self._passes(func, args):
                return func(*args)
            return self._intercept(func, args, kwargs or {})
        finally:
            self._functions.resume()

    def _passes(self, func: Any, args: Any) -> bool:
        """Whether a call is of no interest; most are, and a model that runs step by step makes very many."""
        kind = kind_of(func)
        if kind is Kind.OTHER or nn.Parameter in map(type, args):
            return False
        if self._functions.inside or self.recognition.exclusive:
            return True
        if kind is Kind.SCORES:
            return False
        if kind is Kind.OUTER and not _same_shape(args):
            return False
        attention, convolutions = self._attention, self._convolutions
        return not (attention.active or convolutions.active or attention.knows(args, {}))

    def _intercept(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = name_of(func)
        if name == "__get__":
            result = func(*args)
            self._attention.see_attribute(func, args, result)
            return result
        if name == "__set__":
            self._attention.drop(args[0])
        self._guard.check(args, kwargs)
        if name in self._attention.forms:
            self.recognition.reveal()
        if name in self._attention.forms and not self.recognition.active:
            return self._attention.forms[name](func, args, kwargs)
        if name in _DROPOUTS:
            return self._drop_out(func, name, args, kwargs)
        if name in calls.RANDOM and self._random is not None:
            self._guard.before_write(name, args, kwargs)
            return self._random(func, name, args, kwargs)
        return self._ordinary(func, name, args, kwargs)

    def _drop_out(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Operators are those without dropout; where it takes place, it is looked through."""
        source = args[0] if args else kwargs["input"]
        if self._random is not None:
            return source
        self._guard.before_write(name, args, kwargs)
        return self._attention.looked_through(source, lambda: func(*args, **kwargs))

    def _ordinary(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        known = self._attention.knows(args, kwargs)
        if calls.writes(name, kwargs) or name in ("embedding", "embedding_bag"):
            self._guard.before_write(name, args, kwargs)
        result = func(*args, **kwargs)
        if self.recognition.active:
            return result
        if name in _CELLS:
            self.record.cell(name)
        self._attention.see(func, name, args, kwargs, result, known)
        self._convolutions.see(func, name, args, kwargs, result)
        self._attention.see_use(func, name, args, kwargs, result, known)
        return result

    def finish(self) -> None:
        """Let go of what only the run needed."""
        self._attention.forget()
        self._convolutions.forget()
        for found in self.record.found:
            if found.mixer is not None:
                found.mixer.settle()


class Kind(Enum):
    """What kind of function torch calls."""

    OTHER = 0  # may write, draw random numbers, or is captured by itself
    SCORES = 1  # may begin scores, or continue them
    OUTER = 2  # may begin scores where it makes more of less
    PLAIN = 3


@functools.lru_cache(maxsize=4096)
def kind_of(func: Any) -> Kind:
    name = name_of(func)
    if calls.writes(name, {}) or name in calls.RANDOM or name in _OTHERS or name.startswith("fft_"):
        return Kind.OTHER
    if name in calls.PRODUCTS or name in calls.EXPONENTIALS:
        return Kind.SCORES
    return Kind.OUTER if name in OUTER else Kind.PLAIN


@functools.lru_cache(maxsize=4096)
def name_of(func: Any) -> str:
    return str(getattr(func, "__name__", "")).partition(".")[0]


def _same_shape(args: Any) -> bool:
    """Whether two operands have one shape, or one is a number."""
    if len(args) != 2:
        return False
    a, b = args
    return not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape == b.shape


_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})
_DROPOUTS = frozenset(
    f"{kind}dropout{suffix}"
    for kind in ("", "alpha_", "feature_", "feature_alpha_")
    for suffix in ("", "_", "1d", "2d", "3d")
)
_OTHERS = _CELLS | _DROPOUTS | FORMS | {"embedding", "embedding_bag", "conv1d", "__set__"}
