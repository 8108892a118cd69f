"""ESS at initialisation as a function of state-size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ess_widgets.learn.initialisation.measure import Measured, Setting, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["InitProfile", "init_profile"]


@dataclass(frozen=True)
class InitProfile:
    """ESS against state-size; made by :func:`init_profile`.

    Attributes
    ----------
    featurizer : str
        Its name.
    options : dict
        What it was given.
    states : tuple of int
    measured : tuple
        For each state-size ``ess``, ``state_size`` and ``ceiling`` of every operator, 1-d tensors, with the
        ``position`` in sequences of ``length``.
    kind : str
    """

    featurizer: str
    options: Mapping[str, Any]
    states: tuple[int, ...]
    measured: tuple[Measured, ...]
    kind: str

    @property
    def ess(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Mean over operators (samples, heads, layers), one number for each state-size."""
        return np.array([found.mean for found in self.measured])

    @property
    def slope(self) -> float:
        """The growth exponent: ``d log ESS / d log n`` by least squares. 1 where ESS grows with the state, 0 where
        more of it changes nothing; NaN for a single state-size, or where ESS is 0."""
        ess = self.ess
        if len(set(self.states)) < 2 or not (ess > 0).all():
            return float("nan")
        x, y = np.log(np.array(self.states, dtype=np.float64)), np.log(ess)
        x, y = x - x.mean(), y - y.mean()
        return float((x * y).sum() / (x * x).sum())

    def frame(self) -> DataFrame:
        """A row for each state-size.

        Returns
        -------
        pandas.DataFrame
            ``featurizer``, its options, ``state``, ``ess`` (mean), ``deviation`` (standard, between operators),
            ``operators`` (how many), ``state_size`` and ``ceiling`` at the position, ``of_ceiling``, ``length``,
            ``position``, ``kind``.
        """
        import pandas

        rows = []
        for n, ess, found in zip(self.states, self.ess, self.measured, strict=True):
            top = found.ceiling.double().mean().item()
            rows.append(
                {
                    "featurizer": self.featurizer,
                    **self.options,
                    "state": n,
                    "ess": float(ess),
                    "deviation": found.ess.double().std(correction=0).item(),
                    "operators": found.ess.numel(),
                    "state_size": found.state_size.double().mean().item(),
                    "ceiling": top,
                    "of_ceiling": float(ess) / top if top else float("nan"),
                    "length": found.length,
                    "position": found.position,
                    "kind": self.kind,
                }
            )
        return pandas.DataFrame(rows)

    def figure(self, axes: Axes | None = None) -> Figure:
        """ESS against state-size on logarithmic axes, with the ceiling.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Where to draw it, beside others.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from matplotlib import figure as matplotlib_figure

        from ess_widgets.figures import Figure

        if axes is None:
            axes = Figure(figsize=(4.8, 3.6), layout="constrained").add_subplot()
            axes.set(xscale="log", yscale="log", xlabel="state-size n", ylabel=f"ESS at start ({self.kind})")
            axes.spines[["top", "right"]].set_visible(False)
            top = [m.ceiling.double().mean().item() for m in self.measured]
            axes.plot(self.states, top, color="#9aa1ab", linestyle="--", linewidth=1, label="ceiling")
            axes.set_xticks(self.states, [str(n) for n in self.states])
            axes.minorticks_off()
        told = ", ".join(f"{name}={value:g}" for name, value in self.options.items() if _is_number(value))
        label = f"{self.featurizer} ({told})" if told else self.featurizer
        axes.plot(self.states, self.ess, marker="o", markersize=4, label=f"{label}: n^{self.slope:.2f}")
        axes.legend(fontsize=8, frameon=False)
        figure = axes.get_figure()
        assert isinstance(figure, matplotlib_figure.Figure)
        return figure

    def __repr__(self) -> str:
        told = ", ".join(f"{n}: {e:.3g}" for n, e in zip(self.states, self.ess, strict=True))
        return f"InitProfile({self.featurizer}, ESS by state {{{told}}}, slope {self.slope:.2f})"


def init_profile(
    featurizer: Any,
    states: Sequence[int] = (16, 32, 64, 128, 256),
    *,
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
) -> InitProfile:
    """ESS before any training, on Gaussian input, as a function of state-size.

    More state is of use only where ESS grows with it. For S6, whose decays are ``exp(-[1 … n] Δ)``, it does not: all
    but the first few features forget at once, however many there are. Divided by ``alpha``, as in GLA-S6, they remember.

    Parameters
    ----------
    featurizer : str or callable
        * "LA" (``A = I``), "WLA" and "GLA" (``A = sigmoid(x)^(1/beta)``, ``beta=16``), "GLA-S6" and "S6"
          (``A = exp(-[1 … n] / alpha * softplus(x))``, ``alpha=1``), "GDN" (``sigmoid(x)^(1/beta)`` and the delta rule with
          ``β = sigmoid(x)``), "SA" (``temperature=1``). Queries and keys are semi-orthogonal projections of the input, so
          Gaussian again. ``spread`` is the standard deviation of ``x``, 0 by default: then ``Δ = ln 2`` and
          ``A = 2^(-1/beta)`` everywhere, as at zero weights.
        * a function ``(u, n) -> operator`` of ``u``, ``(batch, length, width)`` in float64; or
        * a factory ``n -> torch.nn.Module``, whose layers are captured. It is called under ``seed``; torch's random
          numbers are put back.
    states : sequence of int
        ``n``.
    length : int
        ``L``, at least twice the largest state: ESS can be no more than ``L / 2``.
    width : int, optional
        Of the input; by default as wide as the state. A module needs it, or ``inputs``.
    batch : int
        Samples, each with weights of its own where the featurizer is a name.
    kind, tol, relative
        As in :func:`ess_widgets.ess`.
    position : int, optional
        The ``i`` of ESS; by default the middle, where the ceiling is highest.
    seed : int
    layers : optional
        Which layers of a module, as in :func:`ess_widgets.capture`; the mean over all of them by default.
    inputs : Tensor or tuple, optional
        What the module is called with instead of Gaussian input.
    **options
        For the featurizer: ``alpha``, ``beta``, ``spread``, ...

    Returns
    -------
    InitProfile
        With ``ess``, ``slope``, ``frame()`` and ``figure()``.

    Raises
    ------
    TypeError, ValueError
        Where a featurizer or an option is unknown, or sizes do not fit.

    References
    ----------
    Parnichkun et al., Quantifying Memory Utilization with Effective State-Size, 2025 (arXiv 2504.19561).

    Examples
    --------
    >>> for alpha in (1, 1024):
    ...     found = init_profile("GLA-S6", states=(8, 16, 32), length=64, alpha=alpha)
    ...     print(alpha, [round(value, 1) for value in found.ess.tolist()])
    1 [1.5, 1.3, 1.4]
    1024 [7.4, 13.5, 20.5]
    """
    sizes = _states(states)
    setting = Setting(
        length, width, batch, position, kind, tol, relative, seed, layers, inputs, dict(options)
    )
    measured = tuple(setting.of(featurizer, n) for n in sizes)
    return InitProfile(label_of(featurizer), dict(options), sizes, measured, kind)


def _states(states: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(states)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"states must be positive integers, at least one, but are {sizes}.")
    return sizes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
