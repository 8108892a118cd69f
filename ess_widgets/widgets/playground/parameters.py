"""What a toy operator can be set to: each parameter checks what it is given and says how it is drawn."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Choice", "Number", "Parameter", "Seed", "Whole"]


@dataclass(frozen=True)
class Parameter(ABC):
    """One parameter of a toy.

    Attributes
    ----------
    name : str
        As a keyword in Python.
    label : str
        What stands beside its slider.
    """

    name: str
    label: str

    @abstractmethod
    def default(self, length: int) -> Any:
        """The value to begin with."""

    @abstractmethod
    def check(self, value: Any, length: int) -> Any:
        """The value in its own type; TypeError or ValueError where it cannot be."""

    @abstractmethod
    def fit(self, value: Any, length: int) -> Any:
        """The nearest value that is allowed at another length."""

    @abstractmethod
    def control(self, length: int) -> dict[str, Any]:
        """How the browser lets it be changed."""

    def to_wire(self, value: Any) -> Any:
        """The value as JSON has it."""
        return value

    def from_wire(self, value: Any) -> Any:
        """The reverse of ``to_wire``."""
        return value

    def _wrong(self, error: type[Exception], expected: str, value: Any) -> Exception:
        return error(f"{self.name} must be {expected}, not {value!r}.")


@dataclass(frozen=True)
class Whole(Parameter):
    """A whole number between bounds that may depend on the length."""

    low: int
    high: Callable[[int], int]
    start: Callable[[int], int]
    limit: str = ""  # what the upper bound is, in words

    def default(self, length: int) -> int:
        return self.fit(self.start(length), length)

    def check(self, value: Any, length: int) -> int:
        bounds = f"a whole number from {self.low} to {self.high(length)}"
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            if not (isinstance(value, float) and value.is_integer()):
                raise self._wrong(TypeError, bounds, value) from None
            number = int(value)
        if not self.low <= number <= self.high(length):
            raise self._wrong(ValueError, f"{bounds}{self.limit} at length {length}", value)
        return number

    def fit(self, value: Any, length: int) -> int:
        return max(self.low, min(int(value), self.high(length)))

    def control(self, length: int) -> dict[str, Any]:
        return {"type": "whole", "low": self.low, "high": self.high(length)}


@dataclass(frozen=True)
class Seed(Parameter):
    """Which random draw."""

    def default(self, length: int) -> int:
        return 0

    def check(self, value: Any, length: int) -> int:
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise self._wrong(TypeError, "a whole number", value) from None
        if not 0 <= number < 2**31:
            raise self._wrong(ValueError, "between 0 and 2147483647", value)
        return number

    def fit(self, value: Any, length: int) -> Any:
        return value

    def control(self, length: int) -> dict[str, Any]:
        return {"type": "seed"}


@dataclass(frozen=True)
class Number(Parameter):
    """A real number; on a logarithmic slider the ends may stand for values beyond it.

    Attributes
    ----------
    low, high : float
        The ends of the slider, and of what is allowed where ``ends`` does not say more.
    ends : tuple of (float or None, float or None)
        Values beyond the slider, at its ends; everything up to them is allowed.
    """

    low: float
    high: float
    start: float
    logarithmic: bool = False
    ends: tuple[float | None, float | None] = (None, None)
    words: tuple[str, str] = ("", "")  # what the ends are called

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that is allowed."""
        least, most = self.ends
        return self.low if least is None else least, self.high if most is None else most

    def default(self, length: int) -> float:
        return self.start

    def check(self, value: Any, length: int) -> float:
        least, most = self.bounds
        expected = f"a number from {least:g} to {'infinity' if math.isinf(most) else f'{most:g}'}"
        try:
            if isinstance(value, (bool, str)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise self._wrong(TypeError, expected, value) from None
        if math.isnan(number) or not least <= number <= most:
            raise self._wrong(ValueError, expected, value)
        return number

    def fit(self, value: Any, length: int) -> Any:
        return value

    def to_wire(self, value: float) -> Any:
        return "inf" if math.isinf(value) else value

    def from_wire(self, value: Any) -> Any:
        return math.inf if value == "inf" else value

    def control(self, length: int) -> dict[str, Any]:
        ends = [None if end is None else self.to_wire(end) for end in self.ends]
        return {
            "type": "number",
            "low": self.low,
            "high": self.high,
            "logarithmic": self.logarithmic,
            "ends": ends,
            "words": list(self.words),
        }


@dataclass(frozen=True)
class Choice(Parameter):
    """One of a few words."""

    options: Mapping[str, str]  # value → what the browser calls it

    def default(self, length: int) -> str:
        return next(iter(self.options))

    def check(self, value: Any, length: int) -> str:
        if not isinstance(value, str) or value not in self.options:
            raise self._wrong(ValueError, " or ".join(map(repr, self.options)), value)
        return value

    def fit(self, value: Any, length: int) -> Any:
        return value

    def control(self, length: int) -> dict[str, Any]:
        return {
            "type": "choice",
            "options": [{"value": key, "label": text} for key, text in self.options.items()],
        }
