"""Which arguments a call of a known name must have to be a call of the function that is known by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["Needs", "fits", "needs", "takes", "wanted"]

# Names of one argument, and how many dimensions it may have; any number where none is said.
Needs = tuple[tuple[tuple[str, ...], frozenset[int]], ...]
F = TypeVar("F", bound=Callable[..., Any])


def needs(*arguments: str) -> Needs:
    """Tensors that must be there: ``"u hidden_states: 3"``, other names of the same argument, then its dimensions."""
    split = (argument.partition(":") for argument in arguments)
    return tuple((tuple(names.split()), frozenset(map(int, dims.split()))) for names, _, dims in split)


def takes(*arguments: str) -> Callable[[F], F]:
    """Say of a recogniser what the calls that it reads are given."""

    def tell(read: F) -> F:
        read.needs = needs(*arguments)  # type: ignore[attr-defined]
        return read

    return tell


def fits(read: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call has the arguments of the function that ``read`` reads."""
    return all(_has(arguments, names, dims) for names, dims in getattr(read, "needs", ()))


def wanted(read: Any) -> str:
    """Those arguments in words."""
    *first, last = (names[0] for names, _ in read.needs)
    return f"{', '.join(first)} and {last}"


def _has(arguments: Mapping[str, Any], names: Iterable[str], dims: frozenset[int]) -> bool:
    item = next((found for name in names if (found := arguments.get(name)) is not None), None)
    return isinstance(item, Tensor) and (not dims or item.ndim in dims)
