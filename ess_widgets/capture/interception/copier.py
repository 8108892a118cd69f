"""A structural copy of whatever a module holds, sharing weights and everything that cannot be written to."""

from __future__ import annotations

import collections
import copy
import copyreg
import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ATOMIC", "Copier", "tensor", "uncompiled"]

# How deep into helper objects (configurations, caches, trainers) a copy goes; what lies deeper is shared.
_DEPTH = 3


class Copier:
    """Copies values so that they refer to copied modules, each original at most once.

    Parameters
    ----------
    module : callable
        Gives the copy of a module.
    parameter : callable
        Gives the stand-in of a parameter.
    plain : callable, optional
        Copies any other tensor; without its graph by default.
    """

    def __init__(
        self,
        module: Callable[[nn.Module], Any],
        parameter: Callable[[nn.Parameter], Any],
        plain: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._module = module
        self._parameter = parameter
        self._tensor = tensor if plain is None else plain
        self._memo: dict[int, tuple[Any, Any]] = {}  # the original is kept, so that its id stays its own

    def value(self, value: Any, depth: int = 0) -> Any:
        """The copy of any attribute."""
        kind = type(value)
        if value is None or kind in ATOMIC:
            return value
        known = self._memo.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, nn.Parameter):
            return self._parameter(value)
        if isinstance(value, Tensor):
            return self._remember(value, self._tensor(value))
        handler = _HANDLERS.get(kind)
        if handler is not None:
            return handler(self, value, depth)
        if depth >= _DEPTH:
            return value
        if kind is types.SimpleNamespace:
            return self._object(value, depth)
        if isinstance(value, dict | list | set | collections.deque):
            return self._container(value, depth)
        if isinstance(value, collections.UserDict | collections.UserList):
            return self._wrapped(value, depth)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self._remember(value, kind(*(self.value(item, depth) for item in value)))
        if _is_plain_object(kind):
            return self._object(value, depth)
        return value

    def _remember(self, value: Any, copied: Any) -> Any:
        self._memo[id(value)] = (value, copied)
        return copied

    def _list(self, value: list[Any], depth: int) -> list[Any]:
        copied = self._remember(value, [])
        copied.extend(self.value(item, depth) for item in list(value))
        return copied  # type: ignore[no-any-return]

    def _dict(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        copied = self._remember(value, type(value)())
        copied.update({key: self.value(item, depth) for key, item in list(value.items())})
        return copied  # type: ignore[no-any-return]

    def _tuple(self, value: tuple[Any, ...], depth: int) -> tuple[Any, ...]:
        items = [self.value(item, depth) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else tuple(items)

    def _container(self, value: Any, depth: int) -> Any:
        """A subclass of a mutable container, or a set, a deque, a defaultdict."""
        try:
            copied = self._remember(value, copy.copy(value))
            if isinstance(value, dict):
                for key, item in list(value.items()):
                    dict.__setitem__(copied, key, self.value(item, depth + 1))
            elif isinstance(value, list):
                copied[:] = [self.value(item, depth + 1) for item in list(value)]
            elif isinstance(value, set):
                copied.clear()
                copied.update(self.value(item, depth + 1) for item in list(value))
            else:
                copied.clear()
                copied.extend(self.value(item, depth + 1) for item in list(value))
        except Exception:  # noqa: BLE001 - whatever its own rules raise
            return self._remember(value, value)  # a container with rules of its own is shared
        return copied

    def _wrapped(self, value: Any, depth: int) -> Any:
        copied = self._remember(value, copy.copy(value))
        copied.data = self.value(value.data, depth)
        return copied

    def _object(self, value: Any, depth: int) -> Any:
        kind: Any = type(value)
        copied = self._remember(value, kind.__new__(kind))
        for name, item in list(getattr(value, "__dict__", {}).items()):
            copied.__dict__[name] = self.value(item, depth + 1)
        for name in copyreg._slotnames(type(value)):  # type: ignore[attr-defined]
            if hasattr(value, name):
                object.__setattr__(copied, name, self.value(getattr(value, name), depth + 1))
        return copied

    def _method(self, value: types.MethodType, depth: int) -> Any:
        function, owner = uncompiled(value.__func__), self.value(value.__self__, depth)
        if owner is value.__self__ and function is value.__func__:
            return value
        return types.MethodType(self.value(function, depth), owner)

    def _partial(self, value: functools.partial[Any], depth: int) -> Any:
        copied = functools.partial(
            self.value(value.func, depth),
            *(self.value(item, depth) for item in value.args),
            **{key: self.value(item, depth) for key, item in value.keywords.items()},
        )
        copied.__dict__.update({key: self.value(item, depth) for key, item in vars(value).items()})
        return self._remember(value, copied)

    def _function(self, value: types.FunctionType, depth: int) -> Any:
        plain = uncompiled(value)
        if plain is not value:
            return self.value(plain, depth)
        cells = value.__closure__ or ()
        if not (cells or value.__defaults__ or value.__kwdefaults__) or depth > _DEPTH:
            return value
        new_cells = tuple(types.CellType() for _ in cells)
        copied = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, closure=new_cells or None
        )
        copied.__dict__.update(value.__dict__)
        copied.__qualname__, copied.__module__, copied.__doc__ = (
            value.__qualname__,
            value.__module__,
            value.__doc__,
        )
        self._remember(value, copied)  # a closure may hold itself
        copied.__defaults__ = self.value(value.__defaults__, depth + 1)
        copied.__kwdefaults__ = self.value(value.__kwdefaults__, depth + 1)
        changed = copied.__defaults__ is not value.__defaults__ or bool(value.__kwdefaults__)
        for old, new in zip(cells, new_cells, strict=True):
            try:
                content = old.cell_contents
            except ValueError:
                continue
            new.cell_contents = self.value(content, depth + 1)
            changed = changed or new.cell_contents is not content
        return copied if changed else self._remember(value, value)

    def _weakref(self, value: weakref.ref[Any], depth: int) -> Any:
        target = value()
        return weakref.ref(self._module(target)) if isinstance(target, nn.Module) else value

    def _generator(self, value: torch.Generator, depth: int) -> torch.Generator:
        return self._remember(value, value.clone_state())  # type: ignore[no-any-return]

    def _array(self, value: np.ndarray[Any, Any], depth: int) -> Any:
        return self._remember(value, value.copy())


def tensor(value: Tensor) -> Tensor:
    """A copy of a buffer or another tensor that a forward might write to."""
    return value.detach().clone()


def uncompiled(function: Any) -> Any:
    """The function that ``torch.compile`` was given, or the function itself."""
    while True:
        inner = getattr(function, "_torchdynamo_orig_callable", None)
        # torch marks its own disabled functions the same way; these must stay disabled.
        if inner is None or getattr(function, "_torchdynamo_disable", False):
            return function
        function = inner


def _is_plain_object(kind: type) -> bool:
    """Whether instances are made of their ``__dict__`` and slots alone."""
    return (
        all(
            getattr(kind, name) is getattr(object, name)
            for name in ("__new__", "__reduce_ex__", "__reduce__")
        )
        and not hasattr(kind, "__deepcopy__")
        and not hasattr(kind, "__copy__")
        and (kind.__dictoffset__ != 0 or bool(copyreg._slotnames(kind)))  # type: ignore[attr-defined]
        and kind.__module__ not in _SHARED_MODULES
    )


ATOMIC = frozenset(
    {
        int, float, bool, str, bytes, complex, type, range, slice, torch.dtype, torch.device, torch.Size, torch.layout,
        types.BuiltinFunctionType, types.ModuleType, type(Ellipsis), type(NotImplemented),
    }
)  # fmt: skip
_SHARED_MODULES = frozenset(
    {"threading", "_thread", "logging", "asyncio", "multiprocessing", "concurrent.futures"}
)
_HANDLERS: dict[type, Callable[[Copier, Any, int], Any]] = {
    list: Copier._list,
    dict: Copier._dict,
    collections.OrderedDict: Copier._dict,
    tuple: Copier._tuple,
    types.MethodType: Copier._method,
    types.FunctionType: Copier._function,
    functools.partial: Copier._partial,
    weakref.ReferenceType: Copier._weakref,
    torch.Generator: Copier._generator,
    np.ndarray: Copier._array,
}
