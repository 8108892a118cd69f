"""What every toy operator has: parameters, an operator, and its effective state-size in closed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators import Operator

from .parameters import Parameter

__all__ = ["Handle", "Toy", "draw", "limited", "shape_limit", "uninterrupted"]

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Handle:
    """A parameter that can be dragged on the picture: position = value + offset."""

    parameter: str
    offset: int = 0
    corner: bool = False  # a boundary between rows as well as between columns


class Toy(ABC):
    """An operator whose effective state-size is known in closed form.

    Attributes
    ----------
    name, title : str
        In Python and in the menu.
    see : str
        One sentence: what to look at.
    differs : str
        Why what is measured may be another number than the closed form.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    see: ClassVar[str]
    differs: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]]
    handle: ClassVar[Handle | None] = None

    @abstractmethod
    def operator(self, length: int, values: Values) -> Operator:
        """``T``, ``(length, length)``."""

    @abstractmethod
    def closed_form(self, length: int, values: Values) -> np.ndarray:
        """``rank(H_i)`` at every position in exact arithmetic, ``(length,)``, int64."""

    @abstractmethod
    def formula(self, length: int, values: Values) -> str:
        """The closed form in plain mathematics, for these values."""

    @abstractmethod
    def caption(self, values: Values) -> str:
        """What the operator is, in a few words."""

    def warnings(self, length: int, values: Values) -> list[str]:
        """What is unusual about these values."""
        return []

    def check(self, values: Values, length: int) -> dict[str, Any]:
        """All parameters in their own types, those not given at their defaults.

        Raises
        ------
        TypeError
            There is no such parameter, or a value has the wrong type.
        ValueError
            A value is out of range.
        """
        names = [parameter.name for parameter in self.parameters]
        unknown = [name for name in values if name not in names]
        if unknown:
            have = f"it has {', '.join(names)}" if names else "it has none"
            raise TypeError(f"The toy {self.name!r} has no parameter {unknown[0]!r}; {have}.")
        return {
            parameter.name: parameter.check(values[parameter.name], length)
            if parameter.name in values
            else parameter.default(length)
            for parameter in self.parameters
        }

    def fit(self, values: Values, length: int) -> dict[str, Any]:
        """The nearest values that are allowed at another length."""
        return {
            parameter.name: parameter.fit(values.get(parameter.name, parameter.default(length)), length)
            for parameter in self.parameters
        }


def draw(seed: int, salt: int, *shape: int) -> Tensor:
    """Standard normal numbers, float64, the same for the same seed and salt; the global streams stay."""
    return torch.from_numpy(np.random.default_rng([seed, salt]).standard_normal(shape))


def shape_limit(length: int) -> np.ndarray:
    """``min(i, L - i)``: what the shape of ``H_i`` allows."""
    at = np.arange(length)
    limit: np.ndarray = np.minimum(at, length - at)
    return limit


def limited(order: int, length: int) -> np.ndarray:
    """``min(n, i, L - i)``: what the shape of ``H_i`` leaves of a state of ``n``."""
    limit: np.ndarray = np.minimum(order, shape_limit(length))
    return limit


def uninterrupted(gates: np.ndarray, state: int) -> np.ndarray:
    """``min(n, i - start, end - i)`` between the zeros of a gate, and 0 at each of them.

    ``gates[i]`` is what the state is multiplied with on the way from ``i - 1`` to ``i``; ``start`` is the last zero
    at or before ``i`` (else 0), ``end`` the first one after ``i`` (else ``L``).
    """
    length = len(gates)
    zeros = [p for p in range(1, length) if gates[p] == 0]
    edges = np.array([0, *zeros, length])
    at = np.arange(length)
    part = np.searchsorted(edges, at, side="right")
    room: np.ndarray = np.minimum(at - edges[part - 1], edges[part] - at)
    return room.clip(max=state)
