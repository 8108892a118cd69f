"""Watches modules that are recognised by their attributes: what they and the modules inside them are given and return."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.interception.tape import Leaf, map_tree
from ess_widgets.capture.reading import ChildCall, ModuleCall, ModuleRecogniser

__all__ = ["ModuleWatcher"]


@dataclass
class _Running:
    module: nn.Module
    recogniser: ModuleRecogniser
    paths: dict[int, str]
    arguments: Any
    token: Any
    children: dict[str, tuple[Any, Any]] = field(default_factory=dict)


class ModuleWatcher:
    """Hooks on the modules of the copy that some recogniser fits, and on what is inside them.

    Parameters
    ----------
    modules : iterable of nn.Module
        Those of the model that is run.
    recogniser : callable
        The recogniser that fits a module, or None.
    keep : callable
        Makes a safe reference to a tensor.
    begin, end : callable
        Called with the recogniser when a module begins, and with that, what ``begin`` returned and the
        :class:`ModuleCall` when it ends; with None for the call where the module raised.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        recogniser: Callable[[nn.Module], ModuleRecogniser | None],
        keep: Callable[[Tensor], Leaf],
        begin: Callable[[ModuleRecogniser], Any],
        end: Callable[[ModuleRecogniser, Any, ModuleCall | None], None],
    ) -> None:
        self._keep, self._begin, self._end = keep, begin, end
        self._thread = threading.get_ident()
        self._running: list[_Running] = []
        self._handles: list[Any] = []
        self._fits = {m: found for m in modules if (found := recogniser(m)) is not None}

    def __enter__(self) -> None:
        inside: dict[nn.Module, None] = {}
        for module in self._fits:
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
            inside.update(dict.fromkeys(child for child in module.modules() if child is not module))
        for child in inside:
            self._handles.append(child.register_forward_hook(self._see, with_kwargs=True))

    def __exit__(self, *exc: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._running.clear()

    def begin(self, root: nn.Module, args: Any, kwargs: Any) -> None:
        """The call of the model itself, where that began before the hooks were there."""
        if root in self._fits:
            self._enter(root, args, kwargs)

    def end(self, root: nn.Module, args: Any, result: Any) -> None:
        """The end of that call, where the hooks are gone before it is over."""
        if root in self._fits:
            self._leave(root, args, result)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        with torch._C.DisableTorchFunction():
            recogniser = self._fits[module]
            paths = {id(child): path for path, child in module.named_modules() if path}
            token = self._begin(recogniser)
            self._running.append(_Running(module, recogniser, paths, self._kept((args, kwargs)), token))

    def _see(self, child: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if threading.get_ident() != self._thread or not self._running:
            return
        with torch._C.DisableTorchFunction():
            for running in self._running:
                path = running.paths.get(id(child))
                if path is not None:
                    running.children[path] = (self._kept((args, kwargs)), self._kept(result))

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        with torch._C.DisableTorchFunction():
            while self._running:
                running = self._running.pop()
                if running.module is not module:
                    self._end(
                        running.recogniser, running.token, None
                    )  # it raised, and somebody swallowed that
                    continue
                call = None if result is None else self._call(running, result)
                self._end(running.recogniser, running.token, call)
                return

    def _call(self, running: _Running, result: Any) -> ModuleCall:
        args, kwargs = _loaded(running.arguments)
        children = {}
        for path, (given, returned) in running.children.items():
            given_args, given_kwargs = _loaded(given)
            children[path] = ChildCall(given_args, given_kwargs, _loaded(returned))
        return ModuleCall(running.module, args, kwargs, result, children)

    def _kept(self, tree: Any) -> Any:
        return map_tree(tree, lambda item: self._keep(item) if isinstance(item, Tensor) else item)


def _loaded(tree: Any) -> Any:
    return map_tree(tree, lambda item: item.tensor if isinstance(item, Leaf) else item)
