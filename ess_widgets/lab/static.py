"""Reading objects without running any code of theirs: no property, no ``__getattr__``, no ``__class__``, no ``==``."""

from __future__ import annotations

import itertools
import threading
import types
import weakref
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "MISSING",
    "attribute",
    "class_dict",
    "descends",
    "identity",
    "instance_dict",
    "is_module",
    "items",
    "kind_name",
    "mapping",
    "module_name",
    "modules",
    "mro",
    "number",
    "part",
    "readable",
    "shown",
    "size",
    "stamp",
    "tensor",
    "word",
]

MISSING: Any = object()
_MOST = 200

# The getters of `type` itself: a metaclass may have put its own in front of them.
_mro = type.__dict__["__mro__"].__get__
_subclass: Any = type.__subclasscheck__  # not issubclass: abstract classes ask around
_name = type.__dict__["__name__"].__get__
_namespace = type.__dict__["__dict__"].__get__
_shape, _dtype, _device, _version = (
    torch._C.TensorBase.__dict__[name].__get__ for name in ("shape", "dtype", "device", "_version")
)
_address = torch._C.TensorBase.__dict__["data_ptr"]


def mro(kind: type) -> tuple[type, ...]:
    """The classes that ``kind`` inherits from, itself first."""
    return _mro(kind)  # type: ignore[no-any-return]


def descends(kind: type, base: type) -> bool:
    """Whether ``kind`` is a subclass of ``base``, without asking either of them."""
    return _subclass(base, kind)  # type: ignore[no-any-return]


def class_dict(kind: type) -> Any:
    """What a class itself defines, read-only."""
    return _namespace(kind)


def shown(text: str) -> str:
    """Text for display: short, and such that it can be sent."""
    return text[:_MOST].encode("utf-8", "replace").decode()


def kind_name(kind: type) -> str:
    """The name of a class."""
    return shown(_name(kind))


def module_name(kind: type) -> str:
    """Where a class says that it was defined."""
    name = _namespace(kind).get("__module__")
    return shown(name) if type(name) is str else "builtins"


def instance_dict(obj: Any) -> dict[str, Any]:
    """The attributes of the object itself; empty where it has none."""
    for kind in _mro(type(obj)):
        found = _namespace(kind).get("__dict__")
        given = type(found)
        defined_in_c = given is types.GetSetDescriptorType or given is types.MemberDescriptorType
        if defined_in_c and found.__name__ == "__dict__":
            try:
                value = found.__get__(obj)
            except (TypeError, AttributeError):
                continue
            return value if type(value) is dict else {}
    return {}


def items(mapping: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """Its items; again where another thread has changed it meanwhile."""
    for _ in range(100):
        try:
            return list(dict.items(mapping))
        except RuntimeError:
            continue
    return []


_count = itertools.count(1)
_lock = threading.RLock()  # a collection in between may come back here
_known: dict[int, tuple[weakref.ref[Any], str]] = {}


def identity(obj: Any) -> str:
    """A word that stands for this object alone: ``id`` is given again to another once it is gone."""

    def forget(_: Any, key: int = id(obj)) -> None:
        with _lock:
            if key in _known and _known[key][0]() is None:
                del _known[key]

    with _lock:
        found = _known.get(id(obj))
        if found is None or found[0]() is not obj:
            _known[id(obj)] = found = weakref.ref(obj, forget), str(next(_count))
        return found[1]


def part(module: Any, name: str) -> list[tuple[str, Any]]:
    """Entries of ``_modules``, ``_parameters`` or ``_buffers`` that are not None."""
    found = dict.get(instance_dict(module), name)
    if not descends(type(found), dict):
        return []
    return [(key, value) for key, value in items(found) if value is not None and type(key) is str]  # type: ignore[arg-type]


def attribute(module: Any, name: str) -> Any:
    """An attribute of a module's own, a parameter, a buffer or a child; ``MISSING`` where there is none."""
    own = instance_dict(module)
    if name in own:
        return dict.get(own, name)
    for place in ("_parameters", "_buffers", "_modules"):
        held = dict.get(own, place)
        if descends(type(held), dict) and dict.get(held, name) is not None:  # type: ignore[arg-type]
            return dict.get(held, name)  # type: ignore[arg-type]
    return MISSING


def _configured(module: Any, names: tuple[str, ...]) -> Iterator[Any]:
    own = instance_dict(module)
    for holder in (own, instance_dict(dict.get(own, "config"))):
        for name in names:
            yield dict.get(holder, name, MISSING)


def number(module: Any, *names: str) -> int | None:
    """The first of these that is an integer, of the module or of its ``config``."""
    return next((value for value in _configured(module, names) if type(value) is int), None)


def word(module: Any, *names: str) -> str | None:
    """The first of these that is a string, of the module or of its ``config``."""
    return next((value for value in _configured(module, names) if type(value) is str), None)


def tensor(obj: Any) -> bool:
    """Whether an object is a tensor."""
    return descends(type(obj), Tensor)


def readable(kind: type) -> bool:
    """Whether the metadata of a class of tensors are torch's own, and not told by code of somebody else."""
    for base in _mro(kind):
        if base is Tensor:
            return True
        if "__torch_dispatch__" in _namespace(base) and module_name(base).split(".")[0] != "torch":
            return False
    return False


def size(obj: Any) -> tuple[tuple[int, ...], str, str] | None:
    """Shape, dtype and device of a tensor; None where they cannot be read in peace."""
    if not readable(type(obj)):
        return None
    with torch._C.DisableTorchFunction():
        try:
            shape, dtype, device = tuple(_shape(obj)), str(_dtype(obj)), str(_device(obj))
        except Exception:  # noqa: BLE001 - torch's own classes raise errors of several kinds
            return None
    if not all(type(length) is int for length in shape):
        return None
    return shape, dtype.removeprefix("torch."), device


def is_module(obj: Any) -> bool:
    """Whether an object is a module."""
    return descends(type(obj), nn.Module)


def modules(model: Any) -> Iterator[Any]:
    """The model and every module in it, each once."""
    seen = {id(model)}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        yield module
        for _, child in part(module, "_modules"):
            if id(child) not in seen and is_module(child):
                seen.add(id(child))
                waiting.append(child)


def stamp(model: Any) -> int:
    """A number that is another one once parameters or buffers were written or replaced.

    Writing through ``.data`` in place is not seen: torch does not count that.
    """
    return hash(
        tuple(
            (id(value), _written(value))
            for module in modules(model)
            for place in ("_parameters", "_buffers")
            for _, value in part(module, place)
        )
    )


def _written(value: Any) -> tuple[int, int] | None:
    if not readable(type(value)):
        return None
    with torch._C.DisableTorchFunction():
        try:
            return _version(value), _address(value)
        except Exception:  # noqa: BLE001 - tensors of inference mode count nothing, some have no memory
            return None


def mapping(obj: Any) -> dict[Any, Any] | None:
    """The dictionary that an object is, or that a ``UserDict`` (a tokenizer's output) holds."""
    if type(obj) is dict:
        return obj
    if descends(type(obj), UserDict):
        held = dict.get(instance_dict(obj), "data")
        return held if type(held) is dict else None
    return None
