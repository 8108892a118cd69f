"""What there is in a namespace, each with the name that the panel shows and the way to it."""

from __future__ import annotations

import keyword
import sys
import types
from collections import UserDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from . import static
from .errors import LabError

__all__ = ["Entry", "entries", "find"]

_MOST_ITEMS = 64
_PLAIN = (str, bytes, bytearray, type, types.ModuleType, int, float)


@dataclass(frozen=True)
class Entry:
    """An object of the namespace: ``sort`` is "model", "tokenizer" or "inputs"."""

    sort: str
    name: str
    key: str
    step: str
    value: Any

    @property
    def expression(self) -> str:
        """Python that gives the object."""
        plain = self.key.isidentifier() and not keyword.iskeyword(self.key)
        return (self.key if plain else f"globals()[{self.key!r}]") + self.step


def entries(namespace: dict[Any, Any], hidden: Collection[str] = ()) -> Iterator[Entry]:
    """Models, tokenizers and inputs: variables first, then what is one step inside of others.

    Parameters
    ----------
    namespace : dict
        Read, never written.
    hidden : collection of str, or dict
        Names that are left out; of a dict, as long as they stand for the same objects.
    """
    sorts: dict[int, str] = {}
    inside = []
    for key, value in static.items(namespace):
        if type(key) is not str or key.startswith("_") or _hidden(hidden, key, value):
            continue
        kind = type(value)
        sort = sorts.get(id(kind))  # by identity: a metaclass may have a hash of its own
        if sort is None:
            sort = sorts[id(kind)] = _sort(kind)
        if sort in ("model", "tokenizer") or (sort == "tensor" and _is_input(value)):
            yield Entry("inputs" if sort == "tensor" else sort, static.shown(key), key, "", value)
        elif sort == "mapping" and _is_inputs(value):
            yield Entry("inputs", static.shown(key), key, "", value)
        if sort in ("mapping", "sequence", "holder", "tokenizer"):
            inside.append((key, value, sort))
    for key, value, sort in inside:
        for step, model in _steps(value, sort):
            yield Entry("model", static.shown(key + step), key, step, model)


def find(namespace: dict[Any, Any], name: str, sort: str) -> Entry:
    """The object that is listed under ``name``.

    Raises
    ------
    LabError
        Where there is none, or none of this sort.
    """
    for entry in entries(namespace):
        if entry.name == name and entry.sort == sort:
            return entry
    raise LabError(f"`{name}` is no longer in the kernel's namespace; refresh.")


def _hidden(hidden: Collection[str], key: str, value: Any) -> bool:
    if isinstance(hidden, dict):
        return dict.get(hidden, key, static.MISSING) is value
    return key in hidden


def _sort(kind: type) -> str:
    if static.descends(kind, nn.Module):
        return "model"
    if static.descends(kind, Tensor):
        return "" if static.descends(kind, nn.Parameter) else "tensor"
    if kind is dict:
        return "mapping"
    if kind is list or kind is tuple:
        return "sequence"
    if any(static.descends(kind, plain) for plain in _PLAIN):
        return ""
    if static.descends(kind, UserDict):
        return "mapping"
    return "tokenizer" if _encodes(kind) else "holder"


def _encodes(kind: type) -> bool:
    root = static.module_name(kind).split(".")[0]
    if root in ("numpy", "pandas") or (root in sys.stdlib_module_names and root != "__main__"):
        return False
    defined = [static.class_dict(base) for base in static.mro(kind)]
    return all(any(name in names for names in defined) for name in ("encode", "decode"))


def _is_input(value: Any) -> bool:
    size = static.size(value)
    return size is not None and len(size[0]) > 0


def _is_inputs(value: Any) -> bool:
    held = static.mapping(value)
    if not held or len(held) > _MOST_ITEMS:
        return False
    pairs = static.items(held)
    return all(type(key) is str for key, _ in pairs) and any(static.tensor(item) for _, item in pairs)


def _steps(value: Any, sort: str) -> Iterator[tuple[str, Any]]:
    """How models one step inside are reached."""
    if sort in ("holder", "tokenizer"):
        model = dict.get(static.instance_dict(value), "model")
        if static.is_module(model):
            yield ".model", model
    elif sort == "mapping" and type(value) is dict and len(value) <= _MOST_ITEMS:
        for key, item in static.items(value):
            if (type(key) is str or type(key) is int) and static.is_module(item):
                yield f"[{key!r}]", item
    elif sort == "sequence" and len(value) <= _MOST_ITEMS:
        for index, item in enumerate(list(value)):
            if static.is_module(item):
                yield f"[{index}]", item
