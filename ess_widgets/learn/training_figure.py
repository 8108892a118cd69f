"""The picture of a training in matplotlib: for papers, and for places without JavaScript."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .monitor import Monitor

__all__ = ["training"]

_NAMES = {"ess": "ESS", "ceiling": "utilisation of the ceiling", "state_size": "utilisation of TSS"}


def training(monitor: Monitor, of: str, log: bool) -> Figure:
    """Draw the lines of every layer above the metrics, on one axis of steps.

    Raises
    ------
    ValueError
        If ``of`` is unknown.
    """
    if of not in _NAMES:
        raise ValueError(f"of must be 'ess', 'ceiling' or 'state_size', but is {of!r}.")
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter

    from ess_widgets.figures import Figure

    history = monitor.history
    metrics = sorted(history.metrics, key=lambda name: not _is_loss(name))
    figure = Figure(figsize=(7.2, 2.6 + 1.3 * len(metrics)), layout="constrained")
    axes: Any = figure.subplots(
        1 + len(metrics), 1, sharex=True, squeeze=False, height_ratios=[2.2] + [1.0] * len(metrics)
    )[:, 0]
    found = history.good
    layers = list(dict.fromkeys(name for m in found for name in m.layers))
    many = len(layers) > 8
    for k, name in enumerate(layers):
        points = [(m.step, _value(m.layers[name], of)) for m in found if name in m.layers]
        colour = colormaps["viridis"](k / (len(layers) - 1)) if many else f"C{k}"
        steps, values = zip(*points, strict=True)
        axes[0].plot(steps, values, color=colour, linewidth=1.5, marker=".", markersize=4, label=name)
    options = monitor.measure_options
    how = "entropy" if options["kind"] == "entropy" else f"σ > {options['tol']:g}"
    axes[0].set_ylabel(f"{_NAMES[of]}\n({how}, layer average)")
    axes[0].set_ylim(bottom=0)
    if layers:
        axes[0].legend(fontsize=7, ncols=2 if many else 1, frameon=False)
    for failed in monitor.failures:
        axes[0].plot(failed, 0, "x", color="#c8441b", clip_on=False)
    steps_ = np.array(history.steps)
    for axis, name in zip(axes[1:], metrics, strict=True):
        values_ = np.array(history.metrics[name])
        known = ~np.isnan(values_)
        axis.plot(steps_[known], values_[known], color="#333333", linewidth=0.9)
        axis.set_ylabel(name)
        if log and _is_loss(name) and known.any() and (values_[known] > 0).all():
            axis.set_yscale("log")
            axis.yaxis.set_minor_formatter(NullFormatter())  # such a low panel has no room for them
    axes[-1].set_xlabel("step")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _is_loss(name: str) -> bool:
    return "loss" in name.lower() or "perplexity" in name.lower()


def _value(layer: Any, of: str) -> float:
    return float(
        {"ess": layer.ess, "ceiling": layer.of_ceiling, "state_size": layer.of_state_size}[of].mean()
    )
