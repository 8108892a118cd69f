"""Follows Fourier transforms of real signals: spectra, their products, and the transform back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ess_widgets.capture.attention.layout import contraction
from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.tape import Leaf

__all__ = ["FORWARD", "INVERSE", "Factor", "Product", "Spectra", "transform"]

FORWARD = frozenset({"fft_rfft", "fft_fft"})
INVERSE = frozenset({"fft_irfft", "fft_ifft"})

_PRODUCTS = frozenset({"mul", "__mul__", "__rmul__", "__imul__", "multiply", "mul_"})
_QUOTIENTS = frozenset({"div", "true_divide", "divide", "__truediv__", "div_", "__itruediv__"})
# What changes the arrangement of a spectrum and not its values.
_VIEW_NAMES = """
    unsqueeze squeeze transpose permute movedim moveaxis swapaxes swapdims expand expand_as broadcast_to __getitem__
    clone contiguous detach alias flatten unflatten reshape view to
"""
_VIEWS = frozenset(_VIEW_NAMES.split())


@dataclass(frozen=True)
class Factor:
    """One factor of a product of spectra.

    Attributes
    ----------
    source : Leaf or None
        What was transformed, arranged like the spectrum, positions in place of frequencies. None where that is not
        known.
    length : int or None
        How many positions it had; None for a spectrum that was not seen being made.
    points : int or None
        How many points were transformed.
    scale : float
        The spectrum is that of ``source`` times this number.
    conjugate : bool
        Whether time runs backwards.
    spectrum : Leaf or None
        The values, where ``source`` is not known.
    rank : int
        How many dimensions it came with.
    """

    source: Leaf | None = None
    length: int | None = None
    points: int | None = None
    scale: float = 1.0
    conjugate: bool = False
    spectrum: Leaf | None = None
    rank: int = 0


@dataclass(frozen=True)
class Product:
    """A product of two spectra that are arranged alike, with a number in front."""

    left: Factor
    right: Factor
    scale: float = 1.0


@dataclass
class _Entry:
    reference: weakref.ref[Tensor]
    version: int
    value: Factor | Product


class Spectra:
    """What spectra came from. Entries die with the tensors they describe.

    Parameters
    ----------
    keep : callable
        Makes a safe reference to a tensor.
    found : callable
        Called with a product, the name and arguments of the transform back, and its result.
    """

    def __init__(
        self,
        keep: Callable[[Tensor], Leaf],
        found: Callable[[Product, str, dict[str, Any], Tensor], None],
    ) -> None:
        self._keep, self._found = keep, found
        self._entries: dict[int, _Entry] = {}

    @property
    def active(self) -> bool:
        return bool(self._entries)

    def forget(self) -> None:
        self._entries.clear()

    def see(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Look at a call."""
        if not isinstance(result, Tensor):
            return
        if name in FORWARD:
            self._forward(args, kwargs, result)
            return
        if name in INVERSE:
            call = transform(args, kwargs)
            product = self._value(call["input"])
            if isinstance(product, Product):
                self._found(product, name, call, result)
            return
        known = [self._value(item, written=item is result) for item in args]
        if all(value is None for value in known):
            return
        if name in _PRODUCTS and len(args) == 2:
            self._times(args, known, result)
        elif name in _QUOTIENTS and known[0] is not None and (divisor := _number(args[1])):
            self._set(result, replace(known[0], scale=known[0].scale / divisor))
        elif name == "einsum":
            self._einsum(args, result)
        elif isinstance(known[0], Factor):
            if name in ("conj", "conj_physical"):
                self._set(result, replace(known[0], conjugate=not known[0].conjugate))
            elif name == "resolve_conj":
                self._set(result, known[0])
            elif name in _VIEWS and result.is_complex():
                self._set(result, self._arranged(func, args, kwargs, known[0], result))

    def _forward(self, args: Any, kwargs: Any, result: Tensor) -> None:
        call = transform(args, kwargs)
        x = call["input"]
        if x.is_complex():
            return
        length = x.shape[call["dim"]]
        points = call["n"] or length
        scale = {"ortho": points**-0.5, "forward": 1 / points}.get(call["norm"], 1.0)
        self._set(result, Factor(self._keep(x), length, points, scale, rank=x.ndim))

    def _times(self, args: Any, known: list[Factor | Product | None], result: Tensor) -> None:
        for value, other in ((known[0], args[1]), (known[1], args[0])):
            if value is not None and (number := _number(other)) is not None:
                self._set(result, replace(value, scale=value.scale * number))
                return
        factors = [self._factor(item, value) for item, value in zip(args, known, strict=True)]
        if any(
            item is result and f is not None and f.source is None
            for item, f in zip(args, factors, strict=True)
        ):
            return  # its values are gone
        self._multiplied(factors, result)

    def _einsum(self, args: Any, result: Tensor) -> None:
        """A product entry by entry, written as a contraction that sums nothing."""
        read = contraction("einsum", args, {})
        if read is None:
            return
        left, right, axes = read
        if set(axes.left) | set(axes.right) == set(axes.out):
            factors = [self._factor(item, self._value(item)) for item in (left, right)]
            self._multiplied(
                [
                    f and self._spread(f, a, axes.out)
                    for f, a in zip(factors, (axes.left, axes.right), strict=True)
                ],
                result,
            )

    def _multiplied(self, factors: list[Factor | None], result: Tensor) -> None:
        left, right = factors
        if left is not None and right is not None:
            self._set(result, Product(left, right))

    def _factor(self, item: Any, value: Factor | Product | None) -> Factor | None:
        """An operand of a product; None for what is a product itself."""
        if isinstance(value, Product) or not isinstance(item, Tensor):
            return None
        value = value or Factor(rank=item.ndim)
        return value if value.source is not None else replace(value, spectrum=self._keep(item))

    def _arranged(self, func: Any, args: Any, kwargs: Any, value: Factor, result: Tensor) -> Factor:
        """Arrange what was transformed as its spectrum is; where that does not work, the spectrum alone is known."""
        source: Tensor | None = None
        if value.source is not None:
            try:
                source = func(value.source.tensor, *args[1:], **kwargs)
            except (RuntimeError, IndexError, TypeError, ValueError):
                source = None
        if source is not None and not _fits(value, source, result):
            source = None
        return replace(value, source=None if source is None else self._keep(source))

    def _spread(self, value: Factor, labels: tuple[int, ...], out: tuple[int, ...]) -> Factor:
        def arrange(leaf: Leaf | None) -> Leaf | None:
            if leaf is None:
                return None
            tensor = leaf.tensor.permute(*(labels.index(a) for a in out if a in labels))
            for at, label in enumerate(out):
                tensor = tensor if label in labels else tensor.unsqueeze(at)
            return self._keep(tensor)

        return replace(value, source=arrange(value.source), spectrum=arrange(value.spectrum))

    def _value(self, tensor: Any, written: bool = False) -> Any:
        """What is known of a tensor, or, where a call has just written to it, was known before."""
        entry = self._entries.get(id(tensor))
        if entry is None or not isinstance(tensor, Tensor) or entry.reference() is not tensor:
            return None
        return entry.value if entry.version + written == calls.version(tensor) else None

    def _set(self, tensor: Tensor, value: Factor | Product) -> None:
        key = id(tensor)

        def gone(reference: weakref.ref[Tensor]) -> None:
            entry = self._entries.get(key)
            if entry is not None and entry.reference is reference:
                del self._entries[key]

        self._entries[key] = _Entry(weakref.ref(tensor, gone), calls.version(tensor), value)


def transform(args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a transform by name."""
    names = ("input", "n", "dim", "norm")
    return {"n": None, "dim": -1, "norm": None, **dict(zip(names, args, strict=False)), **kwargs}


def _fits(value: Factor, source: Tensor, spectrum: Tensor) -> bool:
    """Whether both are arranged alike, with positions in place of frequencies."""
    if source.ndim != spectrum.ndim or value.points is None:
        return False
    changed = [(a, b) for a, b in zip(source.shape, spectrum.shape, strict=True) if a != b]
    return (
        all(a == value.length and b in (value.points, value.points // 2 + 1) for a, b in changed[:1])
        and len(changed) < 2
    )


def _number(item: Any) -> float | None:
    if isinstance(item, Tensor):
        return float(item) if item.ndim == 0 and not item.is_complex() else None
    return float(item) if isinstance(item, int | float) else None
