"""A structural copy of a model that shares its weights, so that running it leaves the model alone."""

from __future__ import annotations

import collections
import copy
import functools
import types
import weakref
from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.interception.copier import ATOMIC, Copier, tensor, uncompiled
from ess_widgets.capture.names import join

__all__ = ["Replica", "Uncopyable", "has_storage", "replicate", "unwrap"]

_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)
# Hooks that belong to the model's own computation: weight_norm and pruning, and transformers' recorded outputs.
_OWN_HOOKS = ("torch.nn.utils.", "transformers.utils.")


class Uncopyable(Exception):
    """An attribute refuses to be copied."""


class Replica:
    """The copy of a model, and what is needed to notice that it does not stand on its own.

    Attributes
    ----------
    model : nn.Module
        In eval mode, without the user's hooks, its parameters stand-ins that share the original's memory.
    originals : dict
        From the ``id`` of each original parameter to its name.
    """

    def __init__(
        self,
        model: nn.Module,
        private: Container[str] = (),
        *,
        faithful: bool = False,
        differentiable: bool = False,
    ) -> None:
        self._private, self._tensor = private, _linked_copy if differentiable else tensor
        self._stand_in = _linked if differentiable else _as_original if faithful else _frozen
        self._modules: dict[int, tuple[nn.Module, nn.Module]] = {}
        self._parameters: dict[int, tuple[nn.Parameter, Any]] = {}
        self.originals: dict[int, str] = {}
        self._copier = Copier(self._module, self._parameter, self._tensor)
        self.model: nn.Module = self._module(unwrap(model))
        del self._copier

    def storages(self) -> Iterator[tuple[int, str]]:
        """Where the shared weights lie, with their names."""
        for original, alias in self._parameters.values():
            name = self.originals[id(original)]
            if isinstance(alias, Tensor) and name not in self._private and has_storage(alias):
                yield alias.untyped_storage().data_ptr(), name

    def stand_ins(self) -> Iterator[Any]:
        """The parameters of the copy; where no stand-in could be made, the original's own."""
        for _, alias in self._parameters.values():
            yield alias

    def _module(self, module: nn.Module, path: str = "") -> Any:
        module = unwrap(module)
        known = self._modules.get(id(module))
        if known is not None:
            return known[1]
        if isinstance(module, torch.jit.ScriptModule):
            scripted = copy.deepcopy(module).eval()
            self._modules[id(module)] = (module, scripted)
            return scripted
        copied = object.__new__(type(module))
        self._modules[id(module)] = (module, copied)
        state = dict(vars(module))
        new = copied.__dict__
        new.update(state)
        new.pop("_compiled_call_impl", None)
        for key, value in state.items():
            if value is None or type(value) in ATOMIC:
                continue
            try:
                self._attribute(new, key, value, path)
            except (Uncopyable, CaptureError, RecursionError):
                raise
            except Exception as error:
                where = f"{path} ({type(module).__name__})" if path else type(module).__name__
                raise Uncopyable(f"attribute {key!r} of {where} cannot be copied: {error}") from error
        new["training"] = False
        new.setdefault("_compiled_call_impl", None)
        self._keep_own_hooks(state, new)
        for name, function in _compiled_methods(type(module)):
            new.setdefault(name, types.MethodType(function, copied))
        return copied

    def _attribute(self, new: dict[str, Any], key: str, value: Any, path: str) -> None:
        """Copy one entry of a module's ``__dict__``."""
        if key == "_parameters":
            new[key] = {
                n: None if p is None else self._parameter(p, join(path, n)) for n, p in list(value.items())
            }
        elif key == "_buffers":
            new[key] = {n: None if b is None else self._copier.value(b) for n, b in list(value.items())}
        elif key == "_modules":
            new[key] = {
                n: None if m is None else self._module(m, join(path, n)) for n, m in list(value.items())
            }
        elif key in _HOOKS:
            new[key] = collections.OrderedDict()
        elif key != "_compiled_call_impl":
            new[key] = self._copier.value(value)

    def _keep_own_hooks(self, state: dict[str, Any], new: dict[str, Any]) -> None:
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            for key, hook in list(state.get(kind, {}).items()):
                if _origin(hook).startswith(_OWN_HOOKS):
                    new[kind][key] = self._copier.value(hook)
                    for flag in ("_with_kwargs", "_always_called"):
                        if key in state.get(kind + flag, {}):
                            new[kind + flag][key] = True

    def _parameter(self, parameter: nn.Parameter, name: str = "") -> Any:
        known = self._parameters.get(id(parameter))
        if known is not None:
            return known[1]
        if is_lazy(parameter):
            raise CaptureError(
                f"the parameter {name!r} has no shape yet: call the lazy model once before it is captured."
            )
        name = name or f"parameter of shape {tuple(parameter.shape)}"
        alias: Any = parameter
        if name in self._private:
            alias = self._stand_in(parameter, self._tensor(parameter))
        elif type(parameter) is nn.Parameter:
            alias = self._stand_in(parameter, parameter.detach())
        if alias is not parameter:
            alias.__dict__.update(vars(parameter))
        self._parameters[id(parameter)] = (parameter, alias)
        self.originals[id(parameter)] = name
        return alias

    def is_original(self, value: object) -> bool:
        """Whether a tensor is one of the model's own parameters where the copy should have used its stand-in."""
        known = self._parameters.get(id(value))
        return known is not None and known[1] is not value


def _frozen(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _as_original(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A parameter of these values that requires gradients where the original does.

    torch's products are rounded otherwise where a weight requires none, with gradients switched off too. And autocast
    caches the casts of leaves that require gradients, for all threads: the training would then meet a cast without
    a graph. Views are never cached; views of views require gradients where the first of them does.
    """
    if not parameter.requires_grad or parameter.is_inference():
        return _frozen(parameter, values)
    values.requires_grad_()
    alias = values.view_as(values).as_subclass(nn.Parameter)
    alias.requires_grad_()
    return alias


def _linked(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A view of a parameter, or of its copy, through which gradients reach the original."""
    if not parameter.requires_grad or parameter.is_inference():
        return _frozen(parameter, values)
    with torch.enable_grad():
        source = values if values.requires_grad else parameter
        return source.view_as(source).as_subclass(nn.Parameter)


def _linked_copy(value: Tensor) -> Tensor:
    """A copy through which gradients reach the original."""
    with torch.enable_grad():
        return value.clone()


def replicate(
    model: nn.Module,
    private: Container[str] = (),
    *,
    faithful: bool = False,
    differentiable: bool = False,
) -> Replica:
    """Copy a model's structure.

    Parameters
    ----------
    model : nn.Module
    private : container of str
        Parameters that are copied too, because a forward writes to them.
    faithful : bool
        Whether parameters require gradients where the originals do, so that the copy computes the same to the last bit.
    differentiable : bool
        Whether gradients of what the copy computes reach the original parameters.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return replicate(model, private, faithful=faithful, differentiable=differentiable)
    # (Where it changes nothing it is not entered: what an interrupt leaves of it changes the thread once it is freed.)
    with torch.no_grad():
        return Replica(model, private, faithful=faithful, differentiable=differentiable)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` and data-parallel wrappers."""
    while True:
        children = module.__dict__.get("_modules")
        inner = children.get("_orig_mod") if isinstance(children, dict) else None
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def has_storage(value: Tensor) -> bool:
    """Whether a tensor is an ordinary one, with memory that others may share."""
    return value.layout is torch.strided and not value.is_meta


def _origin(hook: Any) -> str:
    """The module in which a hook was defined, with a trailing dot."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", None) or type(hook).__module__) + "."


_COMPILED: weakref.WeakKeyDictionary[type, list[tuple[str, Any]]] = weakref.WeakKeyDictionary()


def _compiled_methods(kind: type) -> list[tuple[str, Any]]:
    """Methods decorated with ``torch.compile`` in the class itself, as they were before."""
    if kind in _COMPILED:
        return _COMPILED[kind]
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base in (nn.Module, object):
            continue
        for name, value in vars(base).items():
            if isinstance(value, types.FunctionType):
                plain = uncompiled(value)
                found[name] = plain if plain is not value else None
    _COMPILED[kind] = [(name, plain) for name, plain in found.items() if plain is not None]
    return _COMPILED[kind]
