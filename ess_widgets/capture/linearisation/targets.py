"""Modules that are captured by their Jacobian because the user asked for it: ``capture(..., jacobian=...)``."""

from __future__ import annotations

import fnmatch
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.errors import CaptureError, UnknownLayerError
from ess_widgets.capture.interception.tape import Leaf, map_tree
from ess_widgets.capture.linearisation.linearise import Options, linearise
from ess_widgets.capture.linearisation.linearised import Linearised
from ess_widgets.capture.names import PathTracker, closest, module_paths

__all__ = ["Targets", "Watch"]


class Targets:
    """The ``jacobian=`` argument: paths, patterns, classes or predicates of modules, each with its options."""

    def __init__(self, selection: Any = None) -> None:
        self._wanted: list[tuple[Any, Options]] = []
        if selection is None:
            return
        if isinstance(selection, Mapping):
            items = [(key, _options(value)) for key, value in selection.items()]
        else:
            single = isinstance(selection, str) or callable(selection)
            if not single and not isinstance(selection, Iterable):
                raise TypeError(_wrong(selection))
            items = [(key, Options()) for key in ([selection] if single else selection)]
        for key, options in items:
            if not isinstance(key, str) and not callable(key):
                raise TypeError(_wrong(key))
            self._wanted.append((key, options))
        if not self._wanted:
            raise ValueError("jacobian is empty: leave it out, or name at least one module.")

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def choose(self, root: nn.Module) -> dict[nn.Module, tuple[str, Options]]:
        """The chosen modules with their first paths; complain where nothing fits."""
        if not self._wanted:
            return {}
        paths: dict[nn.Module, list[str]] = {}
        for path, module in module_paths(root):
            paths.setdefault(module, []).append(path or type(root).__name__)
        chosen: dict[nn.Module, tuple[str, Options]] = {}
        for key, options in self._wanted:
            hits = [m for m, names in paths.items() if any(_fits(key, name, m) for name in names)]
            if not hits:
                names = [names[0] for names in paths.values()]
                told = repr(key) if isinstance(key, str) else getattr(key, "__name__", repr(key))
                raise UnknownLayerError(
                    f"jacobian={told} fits no module. This model's modules are, closest first: "
                    f"{closest(key if isinstance(key, str) else '', names)}."
                )
            for module in hits:
                chosen.setdefault(module, (paths[module][0], options))
        return chosen


@dataclass
class _Running:
    module: nn.Module
    arguments: Any = field(repr=False)


class Watch:
    """Hooks on the chosen modules of a copy.

    Parameters
    ----------
    chosen : dict
        From :meth:`Targets.choose`.
    keep : callable
        Makes a safe reference to a tensor.
    add, skip : callable
        Called with a layer's path and its linearisation, or the reason why there is none.
    """

    def __init__(
        self,
        chosen: dict[nn.Module, tuple[str, Options]],
        tracker: PathTracker,
        keep: Callable[[Tensor], Leaf],
        add: Callable[[str, Linearised], None],
        skip: Callable[[str, str], None],
    ) -> None:
        self._chosen, self._tracker = chosen, tracker
        self._keep, self._add, self._skip = keep, add, skip
        self._running: list[_Running] = []
        self._handles: list[Any] = []
        self._thread = threading.get_ident()

    def __enter__(self) -> None:
        for module in self._chosen:
            self._handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._end, always_call=True))

    def __exit__(self, *exc: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._running.clear()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        with torch._C.DisableTorchFunction():
            kept = map_tree((args, kwargs), lambda t: self._keep(t) if isinstance(t, Tensor) else t)
            self._running.append(_Running(module, kept))

    def _end(self, module: nn.Module, _: Any, result: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        with torch._C.DisableTorchFunction():
            while self._running:
                running = self._running.pop()
                if running.module is module:
                    break
            else:
                return
            if result is None:
                return  # it raised
            path, options = self._chosen[module]
            path = self._tracker.path_of(module, path)
            args, kwargs = map_tree(running.arguments, lambda t: t.tensor if isinstance(t, Leaf) else t)
            try:
                mixer = linearise(module, args, kwargs, result, options, path)
            except CaptureError as error:
                self._skip(path, str(error))
                return
            self._add(path, mixer)


def _options(value: Any) -> Options:
    if isinstance(value, Mapping):
        try:
            return Options(**value)
        except TypeError:
            known = ", ".join(inspect.signature(Options).parameters)
            raise TypeError(f"jacobian's options are {known}, but {dict(value)} was given.") from None
    return Options(channels=value)


def _fits(key: Any, path: str, module: nn.Module) -> bool:
    if isinstance(key, str):
        return key == path or (any(c in key for c in "*?[") and _matches(key.split("."), path.split(".")))
    if isinstance(key, type):
        return isinstance(module, key)
    try:
        takes = len(inspect.signature(key).parameters)
    except (TypeError, ValueError):
        takes = 1
    return bool(key(path, module) if takes >= 2 else key(path))


def _matches(pattern: list[str], path: list[str]) -> bool:
    """Part by part: ``*`` stands for one name, so that ``blocks.*`` means the blocks and not what is inside them."""
    return len(pattern) == len(path) and all(map(fnmatch.fnmatchcase, path, pattern))


def _wrong(value: Any) -> str:
    return (
        "jacobian must be paths of modules, patterns like 'model.layers.*', classes, functions of the path (or of the "
        f"path and the module), an iterable of those, or a dictionary from those to options, but holds {value!r}."
    )
