"""A search for the scale of a featurizer that gives a wanted ESS at initialisation."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ess_widgets.learn.initialisation.measure import Setting, label_of

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["OutOfReachError", "Scale", "find_scale"]

_MOST = 60


class OutOfReachError(ValueError):
    """No scale gives the wanted ESS.

    Attributes
    ----------
    attainable : (float, float)
        The smallest and the largest ESS at the ends of the search.
    """

    def __init__(self, message: str, attainable: tuple[float, float]) -> None:
        super().__init__(message)
        self.attainable = attainable


@dataclass(frozen=True)
class Scale:
    """What :func:`find_scale` found.

    Attributes
    ----------
    parameter : str
    value : float
        The scale.
    ess : float
        What it gives, on the same input and weights as everything that was tried.
    target : float
    attainable : (float, float)
        The smallest and the largest ESS that was met, the ends of the search included.
    tried : dict
        From scale to ESS.
    """

    parameter: str
    value: float
    ess: float
    target: float
    attainable: tuple[float, float]
    tried: Mapping[float, float]

    def frame(self) -> DataFrame:
        """All that was tried, as a table of ``parameter`` and ``ess``, by the size of the parameter."""
        import pandas

        rows = sorted(self.tried.items())
        return pandas.DataFrame({self.parameter: [v for v, _ in rows], "ess": [e for _, e in rows]})

    def __repr__(self) -> str:
        low, high = self.attainable
        return (
            f"Scale({self.parameter}={self.value:.6g}, ESS {self.ess:.4g} for {self.target:.4g}, attainable "
            f"{low:.4g} to {high:.4g})"
        )


def find_scale(
    featurizer: Any,
    target_ess: float,
    state: int | None = None,
    parameter: str = "alpha",
    *,
    low: float = 1e-2,
    high: float = 1e8,
    rtol: float = 0.01,
    length: int = 512,
    width: int | None = None,
    batch: int = 4,
    kind: Literal["entropy", "tolerance"] = "entropy",
    tol: float = 1e-3,
    relative: bool = False,
    position: int | None = None,
    seed: int = 0,
    layers: Any = None,
    inputs: Any = None,
    **options: Any,
) -> Scale:
    """The scale of a featurizer, or of a module, with which ESS at initialisation is what is wanted.

    ESS is taken to grow or to fall with the scale; bisection on its logarithm, on the same input and weights each
    time.

    Parameters
    ----------
    featurizer : str, callable or nn.Module
        As in :func:`init_profile`: a name, a function ``(u, n, alpha=...)`` or a factory ``(n, alpha=...)``. Or a module as it
        is, whose attribute is the scale: it is set while the search goes on and put back afterwards.
    target_ess : float
        The mean over samples, heads and layers at one position.
    state : int, optional
        ``n``; not for a module.
    parameter : str
        The name of the scale among the featurizer's options; for a module the path of an attribute that is a
        number, ``"layers.1.mixer.alpha"``, or a pattern for several, ``"layers.*.mixer.alpha"``.
    low, high : float
        Where to search, above 0.
    rtol : float
        How near to the target is enough, relative. Counts (``kind="tolerance"``) jump: the nearest one that was tried is
        returned then, see ``Scale.ess``.
    length, width, batch, kind, tol, relative, position, seed, inputs, **options
        As in :func:`init_profile`.
    layers : optional
        Which layers of a module are measured; by default those whose attribute it is, if there are such, else all.

    Returns
    -------
    Scale
        ``value``, ``ess`` as reached, ``attainable``.

    Raises
    ------
    OutOfReachError
        With the range that is attainable; a ``ValueError``.
    TypeError, ValueError
        As in :func:`init_profile`.

    Examples
    --------
    >>> found = find_scale("GLA-S6", 12, state=16, length=64)
    >>> abs(found.ess - 12) < 0.12
    True
    >>> find_scale("GLA-S6", 20, state=16, length=64)
    Traceback (most recent call last):
    ess_widgets.learn.initialisation.scale.OutOfReachError: an ESS of 20 is out of reach: ...
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"0 < low < high must hold, but they are {low!r} and {high!r}.")
    if (
        isinstance(target_ess, bool)
        or not isinstance(target_ess, int | float)
        or not 0 < target_ess < math.inf
    ):
        raise ValueError(f"target_ess must be a finite number above 0, but is {target_ess!r}.")
    if not isinstance(rtol, int | float) or not rtol > 0:
        raise ValueError(f"rtol must be a number above 0, but is {rtol!r}.")
    if not isinstance(parameter, str) or parameter in options:
        raise ValueError(f"{parameter!r} is what is looked for: it cannot be an option as well.")

    def setting(extra: Mapping[str, Any], layers: Any) -> Setting:
        given = {**options, **extra}
        return Setting(length, width, batch, position, kind, tol, relative, seed, layers, inputs, given)

    if isinstance(featurizer, nn.Module):
        if state is not None or options:
            raise ValueError("a module has its state-size already: leave state and options out.")
        holders = _holders(featurizer, parameter)
        where = setting({}, _layers(featurizer, holders) if layers is None else layers)
        before = [getattr(module, name) for module, name in holders]

        def measure(value: float) -> float:
            for module, name in holders:
                setattr(module, name, value)
            return where.of_module(featurizer).mean

        try:
            return _search(measure, parameter, target_ess, low, high, rtol, type(featurizer).__name__)
        finally:
            for (module, name), value in zip(holders, before, strict=True):
                setattr(module, name, value)
    if isinstance(state, bool) or not isinstance(state, int) or state < 1:
        raise ValueError(f"state must be a positive integer, the state-size n, but is {state!r}.")
    return _search(
        lambda value: setting({parameter: value}, layers).of(featurizer, state).mean,
        parameter,
        target_ess,
        low,
        high,
        rtol,
        f"{label_of(featurizer)} with a state of {state}",
    )


def _search(
    measure: Callable[[float], float],
    parameter: str,
    target: float,
    low: float,
    high: float,
    rtol: float,
    what: str,
) -> Scale:
    tried = {value: measure(value) for value in (low, high)}
    rising = tried[high] >= tried[low]
    ends = min(tried.values()), max(tried.values())
    slack = rtol * target
    if not ends[0] - slack <= target <= ends[1] + slack:
        raise OutOfReachError(
            f"an ESS of {target:g} is out of reach: {what} gives {ends[0]:.4g} to {ends[1]:.4g} for {parameter} from "
            f"{low:g} to {high:g}. Want less or more, or change the state, the length, or low and high.",
            ends,
        )
    a, b = math.log(low), math.log(high)
    for _ in range(_MOST):
        if min(abs(value - target) for value in tried.values()) <= slack or b - a < 1e-9:
            break
        middle = (a + b) / 2
        value = math.exp(middle)
        tried[value] = measure(value)
        if (tried[value] < target) == rising:
            a = middle
        else:
            b = middle
    best = min(tried, key=lambda value: abs(tried[value] - target))
    ends = min(tried.values()), max(tried.values())
    return Scale(parameter, best, tried[best], float(target), ends, tried)


def _holders(root: nn.Module, pattern: str) -> list[tuple[nn.Module, str]]:
    """The modules that have the attribute, and its name."""
    path, _, name = pattern.rpartition(".")
    found = [
        module
        for at, module in root.named_modules()
        if (at == path or fnmatch.fnmatchcase(at, path)) and hasattr(module, name)
    ]
    if not found:
        raise ValueError(f"no module of {type(root).__name__} has an attribute at {pattern!r}.")
    for module in found:
        value = getattr(module, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"{pattern!r} is {type(value).__name__} in {type(module).__name__}, but the scale must be a number. Where it "
                "is something else, pass a factory (n, alpha=...) instead of the module."
            )
    return [(module, name) for module in found]


def _layers(root: nn.Module, holders: list[tuple[nn.Module, str]]) -> list[str] | None:
    paths = {id(module): at for at, module in root.named_modules()}
    names = [paths[id(module)] for module, _ in holders]
    return names if all(names) else None
