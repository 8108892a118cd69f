"""What a model is called with: unpacked, by name, and such that a run changes nothing of the user's."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from types import GeneratorType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.interception.copier import Copier

__all__ = ["Arguments", "by_name", "forward_signature", "unpack"]

# What can be gone through once only.
_ONCE: tuple[type, ...] = (
    GeneratorType,
    map,
    zip,
    filter,
    enumerate,
    reversed,
    *(type(iter(c())) for c in (list, tuple, dict, set)),
)
_TEE: type = type(itertools.tee(())[0])
_DEPTH = 4


class Arguments:
    """The arguments of one call.

    Parameters
    ----------
    model : nn.Module
        Where its forward knows the names in a single mapping, this is unpacked into keyword arguments.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.signature = forward_signature(model)
        args, kwargs = unpack(args, kwargs, self.signature)
        _refuse_filled_cache(kwargs)
        self._args, self._kwargs = _walk(args, _repeatable), _walk(kwargs, _repeatable)
        for tensor in self.tensors():
            _refuse_without_values(tensor)

    @property
    def accepts(self) -> Mapping[str, Any]:
        """The names that the forward knows."""
        return {} if self.signature is None else self.signature.parameters

    def by_name(self) -> dict[str, Any]:
        return by_name(self._args, self._kwargs, self.signature)

    def tensors(self) -> list[Tensor]:
        return list(_tensors((self._args, self._kwargs)))

    def own(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For one run: copies of objects that a forward may change, a cache for example; tensors are shared."""
        copier = Copier(lambda module: module, lambda parameter: parameter)
        return _walk(self._args, lambda v: _own(copier, v)), _walk(self._kwargs, lambda v: _own(copier, v))


def _own(copier: Copier, value: Any) -> Any:
    if value is None or isinstance(value, Tensor | nn.Module):
        return value
    if isinstance(value, _TEE):
        return copy.copy(value)
    try:
        return copier.value(value)
    except Exception:  # noqa: BLE001 - whatever an object raises that refuses to be copied
        return value


def _repeatable(value: Any) -> Any:
    once: Any = value
    return itertools.tee(once, 1)[0] if isinstance(value, _ONCE) else value


def _walk(tree: Any, change: Callable[[Any], Any]) -> Any:
    if type(tree) is dict:
        return {key: _walk(item, change) for key, item in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_walk(item, change) for item in tree)
    return change(tree)


def forward_signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def unpack(
    args: tuple[Any, ...], kwargs: dict[str, Any], signature: inspect.Signature | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn a single mapping into keyword arguments, where the forward knows these names."""
    if len(args) != 1 or not isinstance(args[0], Mapping) or signature is None:
        return args, kwargs
    batch = {str(key): value for key, value in args[0].items()}
    known = signature.parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    taken = {key: value for key, value in batch.items() if key in known or open_ended}
    if not any(key in known for key in batch):
        return args, kwargs  # the model takes the mapping itself
    return (), {**taken, **kwargs}


def by_name(
    args: tuple[Any, ...], kwargs: dict[str, Any], signature: inspect.Signature | None
) -> dict[str, Any]:
    """The arguments by the names that the forward gives them."""
    if signature is None:
        return kwargs
    try:
        return {**signature.bind_partial(*args).arguments, **kwargs}
    except TypeError:
        return kwargs  # the model's own call will complain


def _refuse_filled_cache(kwargs: dict[str, Any]) -> None:
    for name in ("past_key_values", "past_key_value", "layer_past", "cache"):
        cache = kwargs.get(name)
        length = getattr(cache, "get_seq_length", None)
        if cache is None or (name == "cache" and length is None):  # that name may stand for anything
            continue
        filled = (
            bool(length()) if callable(length) else bool(len(cache)) if hasattr(cache, "__len__") else True
        )
        if filled:
            raise CaptureError(
                f"{name} holds earlier tokens: their outputs are not computed again, so the operator would not be "
                "square. Pass the full sequence without a cache."
            )


def _refuse_without_values(tensor: Tensor) -> None:
    if tensor.is_nested:
        raise CaptureError(
            "an argument is a nested tensor, whose samples differ in length: pad them to one length and pass "
            "attention_mask, so that every sample has an operator of the same shape."
        )
    if tensor.is_meta:
        raise CaptureError(
            "an argument is on the meta device and has no values: pass it, and load the model, on a real device."
        )


def _tensors(tree: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, PackedSequence):
        yield tree.data  # its other tensors are lengths and orders
    elif isinstance(tree, Mapping) and depth < _DEPTH:
        for item in tree.values():
            yield from _tensors(item, depth + 1)
    elif isinstance(tree, tuple | list) and depth < _DEPTH:
        for item in tree:
            yield from _tensors(item, depth + 1)
