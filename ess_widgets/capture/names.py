"""Names of layers: which module a torch call happens in, and which layers a user asks for."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import inspect
import operator
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.errors import UnknownLayerError
from ess_widgets.capture.interception.copier import ATOMIC

__all__ = ["Frame", "PathTracker", "Selector", "closest", "join", "module_paths"]

# How deep into lists, dictionaries and objects modules are looked for.
_DEPTH = 4
# Entries of a module's ``__dict__`` that are torch's own.
_OWN_ENTRIES = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Frame:
    """One module call in progress."""

    path: str
    module: nn.Module
    tensors: tuple[Tensor, ...]


def module_paths(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every path that leads to a module, shared modules under each of their names.

    Modules that torch does not know of, because a plain list, a dictionary or another object holds them, come last:
    ``experts.0``, ``heads.left``, ``options.encoder``.
    """
    known: dict[nn.Module, str] = {}
    for path, module in _registered(root, ""):
        known.setdefault(module, path)
        yield path, module
    seen: set[int] = set()
    queue = list(known.items())
    while queue:
        owner, at = queue.pop(0)
        for name, value in list(vars(owner).items()):
            if name in _OWN_ENTRIES:
                continue
            for path, loose in _held(value, join(at, name), seen, _DEPTH):
                for inner_path, module in _registered(loose, path):
                    if module not in known:
                        known[module] = inner_path
                        queue.append((module, inner_path))
                        yield inner_path, module


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _registered(
    module: nn.Module, path: str, above: tuple[nn.Module, ...] = ()
) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    above = (*above, module)
    for name, child in list(module._modules.items()):
        if child is not None and all(child is not parent for parent in above):
            yield from _registered(child, join(path, name), above)


def _held(value: Any, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, nn.Module]]:
    """Modules inside an attribute that is not a module's own entry."""
    if isinstance(value, nn.Module):
        yield path, value
        return
    if value is None or type(value) in ATOMIC or isinstance(value, Tensor) or not depth or id(value) in seen:
        return
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple | deque):
        items = list(enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(field.name, _stored(value, field.name)) for field in dataclasses.fields(value)]
    elif type(type(value)) is type and not callable(value):
        items = list(getattr(value, "__dict__", {}).items())
    else:
        return
    seen.add(id(value))
    for name, item in items:
        yield from _held(item, f"{path}.{name}", seen, depth - 1)


def _stored(value: Any, name: str) -> Any:
    """An attribute as it is stored; no property or ``__getattribute__`` of the user's class runs."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        found = {}
    if name in found:
        return found[name]
    slot = getattr(type(value), name, None)
    return slot.__get__(value) if inspect.ismemberdescriptor(slot) else None


class PathTracker:
    """Follows, by hooks, which module is being run in the thread that made the tracker.

    Attributes
    ----------
    modules : dict
        All modules of the model, in order, as keys.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root_name = type(root).__name__
        self.frames: list[Frame] = []
        self._thread = threading.get_ident()
        self._paths: dict[int, list[str]] = {}
        self._modules: list[nn.Module] = []
        self._calls: Counter[tuple[str, int]] = Counter()
        self._handles: list[Any] = []
        self.modules: dict[nn.Module, None] = {}
        for path, module in module_paths(root):
            self.modules[module] = None
            if id(module) not in self._paths and not _is_plain_leaf(module) and not _is_scripted(module):
                self._modules.append(module)
            self._paths.setdefault(id(module), []).append(path)

    def __enter__(self) -> None:
        for module in self._modules:
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def __exit__(self, *exc: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    @property
    def path(self) -> str:
        """The path of the innermost module; the class name where that is the model itself."""
        return (self.frames[-1].path if self.frames else "") or self.root_name

    def path_of(self, module: nn.Module, otherwise: str) -> str:
        """The path of a module that is running, where it is followed."""
        frame = next((frame for frame in reversed(self.frames) if frame.module is module), None)
        return otherwise if frame is None else frame.path or self.root_name

    def begin(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The call of the model itself, where that began before the hooks were there."""
        self._enter(root, args, kwargs)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != self._thread:
            return
        tensors = tuple(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self.frames.append(Frame(self._resolve(module), module, tensors))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        # An exception that the model swallowed may have left deeper frames behind.
        while self.frames and self.frames.pop().module is not module:
            pass

    def _resolve(self, module: nn.Module) -> str:
        paths = self._paths.get(id(module), [""])
        if len(paths) == 1:
            return paths[0]
        above = self.frames[-1].path if self.frames else ""
        inside = [path for path in paths if not above or path.startswith(above + ".")] or paths
        # A module registered under several names is called once for each, in order.
        call = self._calls[above, id(module)]
        self._calls[above, id(module)] += 1
        return inside[call % len(inside)]


class Selector:
    """The ``layers=`` argument: names, globs, indices, a predicate, or an iterable of those.

    A name or glob that fits no layer but a module selects the layers inside it.
    """

    def __init__(self, layers: Any = None) -> None:
        self.everything = layers is None
        self._wanted: list[str | int | _Predicate] = []
        if layers is not None:
            single = isinstance(layers, str) or callable(layers) or _is_index(layers)
            items = [layers] if single else layers
            if not isinstance(items, Iterable) or isinstance(items, Tensor | bytes):
                raise TypeError(_wrong_selector(layers))
            self._wanted = [_item(item) for item in items]
            if not self._wanted:
                raise ValueError(
                    "layers is empty: leave it out to capture all of them, or name at least one."
                )
        # A negative index is known only when the run is over.
        self._from_end = any(isinstance(item, int) and item < 0 for item in self._wanted)

    def keep(self, name: str, index: int) -> bool:
        """Whether a layer must be kept while the run goes on."""
        return (
            self.everything
            or self._from_end
            or any(_fits(item, name, index, None) or _holds(item, name) for item in self._wanted)
        )

    def select(self, names: Sequence[str]) -> list[str]:
        """The requested ones among all layers of a run, in the model's order; complain where nothing fits."""
        if self.everything:
            return list(names)
        chosen = set()
        for item in self._wanted:
            hits = [name for i, name in enumerate(names) if _fits(item, name, i, len(names))]
            hits = hits or [name for name in names if _holds(item, name)]
            if not hits:
                raise UnknownLayerError(_unknown(item, names))
            chosen.update(hits)
        return [name for name in names if name in chosen]


class _Predicate:
    """A function of the name, asked once for each: it may answer differently the next time."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        if isinstance(function, type | nn.Module):
            raise TypeError(
                f"layers= got {_described(function)}, which would be called with a layer's name: pass the name, or a "
                "function of the name."
            )
        try:
            inspect.signature(function).bind("name")
        except TypeError as error:
            raise TypeError(
                f"the predicate in layers= is called with one argument, a layer's name: {error}."
            ) from None
        except ValueError:
            pass  # a builtin does not tell
        self._function = function
        self._answers: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        if name not in self._answers:
            self._answers[name] = bool(self._function(name))
        return self._answers[name]


def closest(name: str, names: Sequence[str], limit: int = 12) -> str:
    """A readable list of what exists, the names most like ``name`` first."""
    prefix = [known for known in names if known.startswith(name + ".") or name.startswith(known + ".")]
    similar = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    ordered = list(dict.fromkeys([*prefix, *similar, *names]))
    shown = ", ".join(repr(known) for known in ordered[:limit])
    return shown + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")


def _item(item: Any) -> str | int | _Predicate:
    if isinstance(item, str):
        return item
    if _is_index(item):
        return operator.index(item)
    if callable(item):
        return _Predicate(item)
    raise TypeError(_wrong_selector(item))


def _fits(item: str | int | _Predicate, name: str, index: int, total: int | None) -> bool:
    if isinstance(item, str):
        return item == name or (_is_glob(item) and fnmatch.fnmatchcase(name, item))
    if isinstance(item, int):
        return index == (item + total if item < 0 and total is not None else item)
    return item(name)


def _holds(item: str | int | _Predicate, name: str) -> bool:
    """Whether a layer lies inside the module that a name or glob means."""
    if not isinstance(item, str):
        return False
    return name.startswith(f"{item}.") or (_is_glob(item) and fnmatch.fnmatchcase(name, f"{item}.*"))


def _is_glob(item: str) -> bool:
    return any(c in item for c in "*?[")


def _is_plain_leaf(module: nn.Module) -> bool:
    """Torch's own linear maps, norms and activations: nothing happens in them that needs a name."""
    if isinstance(module, nn.RNNBase | nn.Conv1d):
        return False
    return not module._modules and type(module).__module__.startswith("torch.nn.modules.")


def _is_scripted(module: nn.Module) -> bool:
    """TorchScript refuses hooks, and what it runs cannot be seen."""
    return isinstance(module, torch.jit.ScriptModule)


def _is_index(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


def _unknown(item: str | int | _Predicate, names: Sequence[str]) -> str:
    if isinstance(item, str):
        return (
            f"no layer is called {item!r}, and none lies inside a module of that name. This model's layers are, closest "
            f"first: {closest(item, names)}."
        )
    if isinstance(item, int):
        return f"layer index {item} is out of range: this run has {len(names)} layers, {closest('', names)}."
    return f"the predicate in layers= accepts none of the layers: {closest('', names)}."


def _described(item: Any) -> str:
    return f"the class {item.__name__}" if isinstance(item, type) else f"a module, {type(item).__name__}"


def _wrong_selector(value: Any) -> str:
    return (
        "layers must be names, patterns like 'model.layers.*', indices, a function of the name, or an iterable of "
        f"those, but holds {value!r}."
    )
