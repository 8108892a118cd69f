"""Poles in the complex plane: time-invariant recurrences, and the size of the smallest one that does the same."""

from __future__ import annotations

import cmath
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ess_widgets.operators import DenseTransition, Operator, Recurrence

from .parameters import Parameter
from .toy import Toy, Values, limited

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Pole", "PoleList", "Poles", "minimal_order"]

# Entries of T beyond this leave the range in which the browser draws (float32).
LARGEST = 1e30
# Distance below which two different poles are called nearly equal.
NEAR = 0.03


class Pole(complex):
    """A pole: a complex number with an order; with a non-zero imaginary part it stands for a conjugate pair.

    Parameters
    ----------
    value : complex
        The pole.
    order : int
        Size of its Jordan block: 1 for ``pⁿ``, 2 for a Jordan pair, ``n pⁿ⁻¹``, and so on.

    Examples
    --------
    >>> Pole(0.5, order=2)
    Pole(0.5, order=2)
    >>> Pole(0.6 + 0.3j)
    Pole(0.6+0.3j)
    """

    order: int

    def __new__(cls, value: complex, order: int = 1) -> Self:
        self = super().__new__(cls, value)
        self.order = order
        return self

    @property
    def size(self) -> int:
        """State it takes, in real numbers: twice the order for a conjugate pair."""
        return self.order * (1 if self.imag == 0 else 2)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Pole) and other.order != self.order:
            return False
        return bool(complex(self) == other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(complex(self))

    def __getnewargs__(self) -> tuple[complex, int]:
        return complex(self), self.order

    def __repr__(self) -> str:
        number = f"{self.real!r}" if self.imag == 0 else f"{self.real!r}{self.imag:+}j"
        return f"Pole({number}{'' if self.order == 1 else f', order={self.order}'})"


def minimal_order(poles: Iterable[Pole]) -> int:
    """State of the smallest recurrence with the same operator off the diagonal.

    Equal poles share one mode, the largest Jordan block counts. A pole at zero forgets at once; a Jordan block of order
    ``m`` there is a delay by up to ``m - 1``.

    Examples
    --------
    >>> minimal_order([Pole(0.9), Pole(0.9), Pole(0.5, order=2), Pole(0.0), Pole(0.1 + 0.2j)])
    5
    """
    largest: dict[complex, int] = {}
    for pole in poles:
        key = complex(pole)
        size = pole.order - 1 if pole == 0 else pole.size
        largest[key] = max(largest.get(key, 0), size)
    return sum(largest.values())


def _one(value: Any) -> Pole:
    order = getattr(value, "order", 1)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        value, order = value
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number, order = complex(value), operator.index(order)
    except (TypeError, ValueError):
        raise TypeError(
            f"poles must hold complex numbers, or pairs (number, order) for Jordan blocks, not {value!r}."
        ) from None
    if not cmath.isfinite(number):
        raise ValueError(f"poles must be finite, but one is {number}.")
    if order < 1:
        raise ValueError(f"the order of a pole must be at least 1, but is {order}.")
    # + 0.0 turns -0.0 into 0.0; conjugates are stood for by the upper one.
    return Pole(complex(number.real + 0.0, number.imag + 0.0), order)


def _upper(poles: Sequence[Pole]) -> list[Pole]:
    """Conjugate pairs once each, by their pole above the real axis."""
    mirrored = [Pole(pole.conjugate(), pole.order) for pole in poles if pole.imag < 0]
    kept = []
    for pole in poles:
        # The lower pole of a pair stands where its upper one is given too: that one is left out.
        if pole.imag > 0 and pole in mirrored:
            mirrored.remove(pole)
        else:
            kept.append(pole if pole.imag >= 0 else Pole(pole.conjugate(), pole.order))
    return kept


@dataclass(frozen=True)
class PoleList(Parameter):
    """The poles of a recurrence, each real one or conjugate pair once."""

    def default(self, length: int) -> list[Pole]:
        return self.fit([Pole(0.9), Pole(0.65 + 0.55j), Pole(-0.6)], length)

    def check(self, value: Any, length: int) -> list[Pole]:
        if isinstance(value, (complex, float, int)) and not isinstance(value, bool):
            value = [value]
        try:
            items = list(value)
        except TypeError:
            raise self._wrong(TypeError, "a list of complex numbers", value) from None
        poles = _upper([_one(item) for item in items])
        size = sum(pole.size for pole in poles)
        if size > length // 2:
            raise ValueError(
                f"poles take a state of {size} (conjugate pairs count twice), but a sequence of {length} shows "
                f"at most {length // 2}: remove some, or make length at least {2 * size}."
            )
        for pole in poles:
            if abs(pole) > 1 and _growth(pole, length) > math.log(LARGEST):
                raise ValueError(
                    f"the pole {complex(pole):.4g} grows beyond {LARGEST:g} over {length} positions; "
                    f"keep |pole| at most {_largest_modulus(pole.order, length):.3g}."
                )
        return poles

    def fit(self, value: Any, length: int) -> list[Pole]:
        kept: list[Pole] = []
        for pole in value:
            if sum(other.size for other in kept) + pole.size > length // 2:
                continue
            modulus = abs(pole)
            if modulus > 1 and _growth(pole, length) > math.log(LARGEST):
                pole = Pole(complex(pole) * (_largest_modulus(pole.order, length) / modulus), pole.order)
            kept.append(pole)
        return kept

    def control(self, length: int) -> dict[str, Any]:
        return {"type": "poles", "most": length // 2, "largest": _largest_modulus(1, length)}

    def to_wire(self, value: Any) -> list[list[float]]:
        return [[pole.real, pole.imag, pole.order] for pole in value]

    def from_wire(self, value: Any) -> Any:
        return [Pole(complex(real, imaginary), order) for real, imaginary, order in value]


def _growth(pole: Pole, length: int) -> float:
    """Logarithm of a bound on the entries of ``T``."""
    return length * math.log(abs(pole)) + (pole.order - 1) * math.log(length)


def _largest_modulus(order: int, length: int) -> float:
    # A hair below, so that a pole put exactly there is allowed.
    return math.exp((math.log(LARGEST) - (order - 1) * math.log(length)) / length) * (1 - 1e-9)


class Poles(Toy):
    """A time-invariant recurrence with the given poles, all reached and read with weight 1."""

    name = "poles"
    title = "poles"
    see = (
        "Each pole is a mode that decays (towards the centre) or rings (off the real axis). The profile is as high as "
        "there are different modes: put two poles on one spot and one is lost, make one a Jordan pair and it counts twice."
    )
    differs = (
        "Nearly equal poles are two in exact arithmetic, but their second singular value is as small as their distance; "
        "modes near the centre fade within a step or two. Both fall below τ, and in the end below rounding error."
    )
    parameters = (PoleList("poles", "poles"),)

    def operator(self, length: int, values: Values) -> Operator:
        poles: list[Pole] = values["poles"]
        n = sum(pole.size for pole in poles)
        if n == 0:
            return Recurrence(*(torch.zeros(length, 1, dtype=torch.float64) for _ in range(3)))
        A, B, C = np.zeros((n, n)), np.zeros(n), np.zeros(n)
        at = 0
        for pole in poles:
            cell = (
                np.array([[pole.real]])
                if pole.imag == 0
                else np.array([[pole.real, -pole.imag], [pole.imag, pole.real]])
            )
            width, size = len(cell), pole.size
            block = np.kron(np.eye(pole.order), cell) + np.kron(np.eye(pole.order, k=1), np.eye(width))
            A[at : at + size, at : at + size] = block
            # Written at the end of the Jordan chain and read at its beginning: all of the chain is used.
            B[at + size - width] = C[at] = 1.0
            at += size
        parts = (torch.from_numpy(part)[None] for part in (A, B, C))
        transition, write, read = parts
        return Recurrence(
            DenseTransition(transition), write.expand(length, n).clone(), read.expand(length, n).clone()
        )

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        return limited(minimal_order(values["poles"]), length)

    def formula(self, length: int, values: Values) -> str:
        n = minimal_order(values["poles"])
        size = sum(pole.size for pole in values["poles"])
        spare = f" of the state of {size}" if size != n else ""
        return f"ESSᵢ = min(n, i, L − i) with n = {n} different modes{spare}"

    def caption(self, values: Values) -> str:
        count = sum(pole.size for pole in values["poles"])
        return f"{count} pole{'' if count == 1 else 's'}"

    def warnings(self, length: int, values: Values) -> list[str]:
        poles: list[Pole] = values["poles"]
        found = []
        outside = [pole for pole in poles if abs(pole) > 1]
        if outside:
            largest = max(abs(pole) for pole in outside)
            found.append(
                f"A pole outside the unit circle (|p| = {largest:.3g}): the operator grows without bound along the sequence."
            )
        whole = [complex(pole) for pole in poles]
        whole += [number.conjugate() for number in whole if number.imag != 0]
        gaps = [abs(a - b) for k, a in enumerate(whole) for b in whole[:k] if a != b]
        if gaps and min(gaps) < NEAR:
            found.append(
                f"Two poles lie {min(gaps):.2g} apart: the closed form counts both, but a singular value "
                "is about that much smaller, and τ or rounding may hide it."
            )
        small = [abs(number) for number in whole if 0 < abs(number) < NEAR]
        if small:
            found.append(
                f"A pole at |p| = {min(small):.2g} is forgotten within a step; only at 0 does it not count at all."
            )
        if any(pole == 0 and pole.order == 1 for pole in poles):
            found.append("A pole at zero passes nothing on: it does not count.")
        if any(pole == 0 and pole.order > 1 for pole in poles):
            found.append("A Jordan block of order m at zero is a delay by m − 1: it counts m − 1.")
        if len({complex(pole) for pole in poles}) < len(poles):
            found.append(
                "Equal poles share one mode: they count once (the longest Jordan chain where they differ)."
            )
        return found
