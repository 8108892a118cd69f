"""The catalogue of toy operators, in the order of the menu."""

from __future__ import annotations

from .attention import Documents, RandomDense, Softmax
from .poles import Poles
from .recurrences import Combined, DeltaRule, GatedRecurrence, LinearAttention
from .shifts import Delay, Diagonal, Filter, Sums
from .toy import Toy

__all__ = ["TOYS", "find"]

TOYS: dict[str, Toy] = {
    toy.name: toy
    for toy in (
        Diagonal(),
        Sums(),
        Delay(),
        Filter(),
        Poles(),
        RandomDense(),
        Softmax(),
        LinearAttention(),
        DeltaRule(),
        GatedRecurrence(),
        Documents(),
        Combined(),
    )
}


def find(name: object) -> Toy:
    """The toy of that name.

    Raises
    ------
    ValueError
        There is none; the message lists those there are.
    """
    if not isinstance(name, str) or name not in TOYS:
        raise ValueError(f"There is no toy {name!r}; those known are {', '.join(TOYS)}.")
    return TOYS[name]
