"""Which part of a result that is longer than the sequence a model goes on with."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ess_widgets.capture.interception import calls

__all__ = ["Cuts"]

# Calls that compute every position by itself.
_POINTWISE_NAMES = """
    silu silu_ gelu relu relu_ sigmoid tanh softplus elu leaky_relu mish exp to float half bfloat16 double type type_as
    contiguous clone add add_ mul mul_ sub div __add__ __radd__ __iadd__ __mul__ __rmul__ __imul__ __sub__ neg
    masked_fill dropout alias detach
"""
_POINTWISE = frozenset(_POINTWISE_NAMES.split())


@dataclass
class _Part:
    """A longer result, along ``dim`` from ``first`` on, where position 0 is the first of the sequence."""

    reference: weakref.ref[Tensor]
    first: int
    dim: int
    length: int
    decide: Callable[[int], None]


class Cuts:
    """Follows results through views and functions of single positions until they are cut to the sequence's length."""

    def __init__(self) -> None:
        self._parts: dict[int, _Part] = {}

    @property
    def active(self) -> bool:
        return bool(self._parts)

    def add(self, result: Tensor, dim: int, length: int, start: int, decide: Callable[[int], None]) -> None:
        """Call ``decide`` with the first position that is kept, once ``result`` is cut to ``length`` along ``dim``.

        What stands before ``start`` in ``result`` does not depend on the sequence.
        """
        self._set(result, -start, dim % result.ndim, length, lambda first: decide(first + start))

    def forget(self) -> None:
        self._parts.clear()

    def see(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Look at a call that follows."""
        target = args[0] if args else kwargs.get("input")
        part = self._parts.get(id(target))
        if part is None or not isinstance(target, Tensor) or part.reference() is not target:
            return
        if name in ("pad", "constant_pad_nd"):
            self._padded(part, target, args, kwargs, result)
            return
        for item in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(item, Tensor) or item is target or not item.ndim:
                continue
            if calls.storage(item) == calls.storage(target):
                self._view(part, target, item)
            elif item.shape == target.shape and name in _POINTWISE:
                self._set(item, part.first, part.dim, part.length, part.decide)

    def _view(self, part: _Part, target: Tensor, view: Tensor) -> None:
        stride, size = target.stride(part.dim), target.shape[part.dim]
        steps = (view.storage_offset() - target.storage_offset()) // max(stride, 1) % size
        for dim in _along(view, stride):
            if part.length <= view.shape[dim] <= size - steps:
                self._kept(view, part.first + steps, dim, part)
                return

    def _padded(self, part: _Part, target: Tensor, args: Any, kwargs: Any, result: Any) -> None:
        """A negative padding cuts."""
        pads = kwargs.get("pad", args[1] if len(args) > 1 else ())
        at = 2 * (target.ndim - 1 - part.dim)
        if len(pads) > at and pads[at] <= 0 and isinstance(result, Tensor):
            self._kept(result, part.first - pads[at], part.dim, part)

    def _kept(self, item: Tensor, first: int, dim: int, part: _Part) -> None:
        if item.shape[dim] == part.length:
            part.decide(first)
        else:
            self._set(item, first, dim, part.length, part.decide)

    def _set(self, tensor: Tensor, first: int, dim: int, length: int, decide: Callable[[int], None]) -> None:
        key = id(tensor)

        def gone(reference: weakref.ref[Tensor]) -> None:
            part = self._parts.get(key)
            if part is not None and part.reference is reference:
                del self._parts[key]

        reference = weakref.ref(tensor, gone)
        self._parts[key] = _Part(reference, first, dim, length, decide)

    def in_front(self, tensor: Tensor) -> int | None:
        """How many positions of a followed tensor stand before the sequence and do not depend on it."""
        part = self._parts.get(id(tensor))
        return None if part is None or part.reference() is not tensor else -part.first


def _along(view: Tensor, stride: int) -> Iterator[int]:
    return (dim for dim in range(view.ndim) if view.stride(dim) == stride and view.shape[dim] > 1)
