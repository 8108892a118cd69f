"""Which modules mix tokens, found without names: change one token of a module's input, see which outputs change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.survey.expected import Expected, kind_of_class

__all__ = ["mixing_modules", "unlisted"]

_TOKEN = 7


def unlisted(model: nn.Module, call: dict[str, Any], length: int, expected: list[Expected]) -> list[str]:
    """Innermost modules that mix tokens and lie in none of the expected mixers, nor around one, nor in cross-attention."""
    known = {id(part) for mixer in expected for part in mixer.module.modules()}
    wanted = {id(mixer.module) for mixer in expected}
    found = []
    for path, module in mixing_modules(model, call, length).items():
        around = any(id(part) in wanted for part in module.modules())
        crosses = any(kind_of_class(type(part).__name__) == "cross-attention" for part in module.modules())
        if id(module) not in known and not around and not crosses:
            found.append(f"{path} ({type(module).__name__})")
    return found


def mixing_modules(model: nn.Module, call: dict[str, Any], length: int) -> dict[str, nn.Module]:
    """The innermost modules whose outputs at later positions depend on token 7 of their own input."""
    mixing: dict[str, nn.Module] = {}
    busy = False

    def look(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal busy
        if busy or path in mixing:
            return
        if any(inner.startswith(path + ".") for inner in mixing) or not path:
            return
        busy = True
        try:
            if _mixes(module, args, kwargs, output, length):
                mixing[path] = module
        finally:
            busy = False

    def hook(path: str) -> Any:
        return lambda module, args, kwargs, output: look(path, module, args, kwargs, output)

    handles = [
        module.register_forward_hook(hook(path), with_kwargs=True) for path, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(**call)
    finally:
        for handle in handles:
            handle.remove()
    return mixing


def _mixes(module: nn.Module, args: Any, kwargs: Any, output: Any, length: int) -> bool:
    before = [t for t in _tensors(output) if t.is_floating_point() and length in t.shape]
    if not before:
        return False
    args, kwargs = _private(args), _private(kwargs)
    source = next((t for t in _tensors((args, kwargs)) if _is_sequence(t, length)), None)
    if source is None:
        return False
    again = _run(module, args, kwargs)
    axis = list(source.shape).index(length)
    source.select(axis, _TOKEN).add_(torch.randn_like(source.select(axis, _TOKEN)))
    changed = _run(module, _private(args), _private(kwargs))
    return any(_later(a, b, length) for a, b in zip(again, changed, strict=True))


def _run(module: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    torch.manual_seed(3)
    return [t.clone() for t in _tensors(module(*_private(args), **_private(kwargs)))]


def _later(before: Tensor, after: Tensor, length: int) -> bool:
    """Whether positions behind the changed token differ."""
    if not before.is_floating_point() or before.shape != after.shape or length not in before.shape:
        return False
    axis = list(before.shape).index(length)
    a, b = (t.narrow(axis, _TOKEN + 1, length - _TOKEN - 1) for t in (before, after))
    return not torch.equal(a, b)


def _is_sequence(tensor: Tensor, length: int) -> bool:
    """Features of every token: not a mask, which has the length twice, nor positions."""
    return tensor.is_floating_point() and tensor.ndim >= 3 and list(tensor.shape).count(length) == 1


def _private(value: Any) -> Any:
    """Copies of the tensors and no caches, so that a module can be run again."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(_private(item) for item in value)
    if type(value) is dict:
        return {key: _private(item) for key, item in value.items()}
    if type(value).__name__.endswith("Cache"):
        return None  # it is filled by now
    return value if isinstance(value, nn.Module | type) or callable(value) else copy.deepcopy(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
