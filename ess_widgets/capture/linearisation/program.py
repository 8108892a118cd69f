"""A module's call as a function of one of the tensors it was given, everything else held constant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.interception.replica import replicate
from ess_widgets.capture.linearisation.precise import Rerun

__all__ = ["LAYOUTS", "Place", "Program", "embedded", "locate", "without_caches"]

# Axes of batch, position and channel in what the module takes and returns.
LAYOUTS = {"bld": (0, 1, 2), "lbd": (1, 0, 2), "bdl": (0, 2, 1)}
# Arguments in which a model stores what it has read; a run without them computes the same.
_CACHES = frozenset({"past_key_values", "past_key_value", "layer_past", "cache_params"})

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Place:
    """Where ``u`` stands among the arguments ``(args, kwargs)``: all places that hold the same tensor.

    ``ids`` are token ids instead: ``u`` is then what the first lookup of them in a table returns.
    """

    paths: tuple[Path, ...] = ()
    ids: Tensor | None = None


def locate(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], which: Any
) -> tuple[Tensor, Place]:
    """Find the tensor that a call is to be differentiated by.

    Parameters
    ----------
    which : None, int, str
        The first floating tensor ``(batch, L, d)`` by default, else the first token ids ``(batch, L)``; an int for
        an argument's position, a str for its name.
    """
    leaves = list(_walk((args, dict(kwargs)), ()))
    if which is not None:
        chosen = _named(module, args, kwargs, which)
    else:
        floats = [t for _, t in leaves if t.is_floating_point() and t.ndim in (2, 3)]
        ids = [t for _, t in leaves if t.dtype in (torch.int64, torch.int32) and t.ndim == 2]
        ranked = [t for t in floats if t.ndim == 3] or ids or floats
        if not ranked:
            raise CaptureError(
                f"{type(module).__name__} was given no floating tensor (batch, L, d) and no token ids (batch, L) to take "
                "the derivative by; name the argument with inputs=."
            )
        chosen = ranked[0]
    if not chosen.is_floating_point():
        return chosen, Place(ids=chosen)
    return chosen, Place(tuple(path for path, item in leaves if _same(item, chosen)))


def without_caches(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call without what the model stores its keys and states in, which holds this very call by now."""
    try:
        names = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        names = []
    names += [""] * len(args)
    return (
        tuple(None if _is_cache(name, value) else value for name, value in zip(names, args, strict=False)),
        {name: None if _is_cache(name, value) else value for name, value in kwargs.items()},
    )


def _is_cache(name: str, value: Any) -> bool:
    # transformers 5.24 calls it just that; so may others call anything.
    return name in _CACHES or (name == "cache" and hasattr(value, "get_seq_length"))


class Program:
    """``y = f(u)`` by a call of a module, ``u`` and ``y`` as ``(batch, L, width)``.

    Parameters
    ----------
    args, kwargs
        What the module was called with.
    place : Place
        Where ``u`` stands in them.
    layout : str
        One of ``LAYOUTS``.
    outputs : None, int, str or callable
        Which of the returned tensors is ``y``; by default the first floating one with as many samples and positions
        as ``u``.
    batched : bool
        Whether ``u`` has an axis for samples.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        place: Place,
        *,
        layout: str = "bld",
        outputs: Any = None,
        batched: bool = True,
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self._place, self._outputs = place, outputs
        self._axes, self.batched = LAYOUTS[layout], batched

    def plain(self, u: Tensor) -> Tensor:
        """From the module's layout to ``(batch, L, width)``."""
        return u.permute(self._axes) if self.batched else u.unsqueeze(0)

    def __call__(
        self, module: nn.Module, u: Tensor, convert: Callable[[Any], Any] = lambda tree: tree
    ) -> Tensor:
        """Run the module at ``u``; ``convert`` prepares the other arguments."""
        inverse = sorted(range(3), key=self._axes.__getitem__)
        # (A copy: the module may write to what it is given.)
        own = (u.permute(inverse) if self.batched else u.squeeze(0)).clone()
        args, kwargs = convert(self.args), convert(self.kwargs)
        if self._place.ids is not None:
            with _Lookup(self._place.ids, own):
                result = module(*args, **kwargs)
        else:
            for path in self._place.paths:
                args, kwargs = _replaced((args, kwargs), path, own)
            result = module(*args, **kwargs)
        return self.plain(self.output(result, own.shape))

    def output(self, result: Any, like: torch.Size) -> Tensor:
        """The tensor ``y`` in what the module returned, in the module's own layout."""
        chosen = self._choose(result, like)
        ndim = 3 if self.batched else 2
        if chosen is None or chosen.ndim != ndim or not self._fits(chosen, like):
            what = "nothing" if chosen is None else f"a tensor of shape {tuple(chosen.shape)}"
            raise CaptureError(
                f"expected one output vector for each of the {self._shape(like)[1]} positions of the "
                f"{self._shape(like)[0]} samples, but found {what}. If the module keeps another order of axes, say so "
                "with layout='lbd' or 'bdl'; if it returns several tensors, choose one with outputs=."
            )
        return chosen

    def _choose(self, result: Any, like: torch.Size) -> Tensor | None:
        which = self._outputs
        if callable(which):
            found = which(result)
        elif isinstance(which, str):
            found = result[which] if isinstance(result, Mapping) else getattr(result, which)
        elif which is not None:
            found = result[which]
        else:
            floats = [t for _, t in _walk(result, ()) if t.is_floating_point()]
            found = next((t for t in floats if t.ndim == len(like) and self._fits(t, like)), None)
            found = floats[0] if found is None and floats else found
        return found if isinstance(found, Tensor) else None

    def _fits(self, tensor: Tensor, like: torch.Size) -> bool:
        return self._shape(tensor.shape) == self._shape(like)

    def _shape(self, shape: torch.Size) -> tuple[int, int]:
        """Samples and positions of a shape in the module's own layout."""
        return (shape[self._axes[0]], shape[self._axes[1]]) if self.batched else (1, shape[0])


class _Lookup(TorchFunctionMode):
    """Returns ``u`` from the first lookup of the token ids in a table."""

    def __init__(self, ids: Tensor, u: Tensor | None) -> None:
        super().__init__()
        self._ids = ids
        self.u = u
        self.seen: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.seen is None and getattr(func, "__name__", "") == "embedding":
            ids = args[0] if args else kwargs["input"]
            if ids.shape == self._ids.shape and bool(torch.equal(ids, self._ids.to(ids.device))):
                self.seen = func(*args, **kwargs) if self.u is None else self.u
                return self.seen
        return func(*args, **kwargs)


def embedded(module: nn.Module, program: Program, ids: Tensor) -> Tensor:
    """What the first lookup of token ids returns."""
    lookup = _Lookup(ids, None)
    with Rerun(False), lookup:
        replicate(module).model(*program.args, **program.kwargs)
    if lookup.seen is None:
        raise CaptureError(
            f"{type(module).__name__} looks up its token ids in no table (torch's embedding). Pass the embedded tokens, "
            "(batch, L, d), or choose another argument with inputs=."
        )
    return lookup.seen


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], which: Any) -> Tensor:
    found: Any = None
    if isinstance(which, int) and not isinstance(which, bool):
        found = args[which] if -len(args) <= which < len(args) else None
    elif isinstance(which, str):
        found = kwargs.get(which)
        if found is None:
            try:
                found = inspect.signature(module.forward).bind_partial(*args).arguments.get(which)
            except (TypeError, ValueError):
                found = None
    else:
        raise TypeError(f"inputs= takes the name or the position of an argument, not {which!r}.")
    if not isinstance(found, Tensor):
        raise CaptureError(
            f"inputs={which!r} is no tensor among the arguments of {type(module).__name__}: it was called with "
            f"{len(args)} by position and {', '.join(kwargs) or 'none'} by name."
        )
    return found


def _walk(tree: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from _walk(item, (*path, key))
    elif isinstance(tree, tuple | list):
        for n, item in enumerate(tree):
            yield from _walk(item, (*path, n))


def _replaced(tree: Any, path: Path, value: Tensor) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(tree, Mapping):
        return {**tree, key: _replaced(tree[key], rest, value)}
    items = list(tree)
    items[key] = _replaced(items[key], rest, value)
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of the same values."""
    return a is b or (
        a.dtype is b.dtype
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.device == b.device
        and a.numel() > 0
        and a.data_ptr() == b.data_ptr()
    )
