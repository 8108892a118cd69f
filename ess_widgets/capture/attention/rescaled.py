"""Rows of attention's result that are multiplied or divided afterwards by something made from the same weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.tape import Leaves, Tape
from ess_widgets.capture.mixer import Mixer

__all__ = ["RowWatcher"]

_MULTIPLIES = frozenset({"mul", "multiply", "__mul__", "__rmul__", "mul_", "__imul__", "multiply_"})
_DIVIDES = frozenset(
    {"div", "divide", "true_divide", "__truediv__", "__div__", "div_", "__itruediv__", "divide_"}
)
_SAME = calls.CASTS | {"contiguous", "clone"}


class RowWatcher:
    """Watches the results of captured attention for a normaliser: ``exp(s) v / sum(exp(s))``, or a sink's share."""

    def __init__(self, tape: Tape, leaves: Leaves) -> None:
        self._tape, self._leaves = tape, leaves
        self._results: Any = WeakTensorKeyDictionary()
        self.active = False

    def add(self, result: Tensor, mixer: Mixer) -> None:
        self._results[result] = mixer
        self.active = True

    def forget(self) -> None:
        self._results.clear()

    def see(self, name: str, args: Any, result: Any) -> None:
        """Look at a call that follows."""
        if not args or not isinstance(result, Tensor):
            return
        if name in _SAME:
            mixer = self._results.get(args[0]) if isinstance(args[0], Tensor) else None
            if mixer is not None and result is not args[0]:
                self._results[result] = mixer
        elif len(args) == 2 and (name in _MULTIPLIES or name in _DIVIDES):
            pairs = [(args[0], args[1])] if name in _DIVIDES else [(args[0], args[1]), (args[1], args[0])]
            for target, factor in pairs:
                if isinstance(target, Tensor) and isinstance(factor, Tensor):
                    self._scaled(target, factor, name in _DIVIDES, result)

    def _scaled(self, target: Tensor, factor: Tensor, divides: bool, result: Tensor) -> None:
        mixer, ref = self._results.get(target), self._tape.ref(factor)
        if mixer is None or ref is None or factor.shape[-1] != 1:
            return
        if mixer.rescale(ref, divides, factor, result, self._leaves):
            self._tape.drop(result)
            self._results[result] = mixer
