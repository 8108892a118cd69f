"""A training history as the browser gets it: so many points as a screen can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .wire import pack

__all__ = ["buckets", "failures", "training_data"]

# Points along the step axis.
MOST = 600


def training_data(history: Any, measure: Mapping[str, Any], most: int = MOST) -> dict[str, Any]:
    """Lines of every layer and metric, ``(layers, columns)`` and ``(metrics, points)``.

    Measurements are thinned evenly, with the first and the last among them; of metrics there is the mean, the smallest
    and the largest value of neighbouring steps.
    """
    found = history.good
    chosen = [found[k] for k in evenly(len(found), most)]
    names = list(dict.fromkeys(name for m in found[-1:] + chosen for name in m.layers))
    lines = np.full((3, len(names), len(chosen)), np.nan)
    for column, measurement in enumerate(chosen):
        for row, name in enumerate(names):
            layer = measurement.layers.get(name)
            if layer is not None:
                lines[:, row, column] = [
                    part.mean() for part in (layer.ess, layer.of_state_size, layer.of_ceiling)
                ]
    metrics = list(history.metrics)
    steps = np.array(history.steps, dtype=np.int64)
    values = np.array([history.metrics[name] for name in metrics], dtype=float).reshape(
        len(metrics), len(steps)
    )
    at, mean, low, high = buckets(steps, values, most)
    return {
        **measure,
        "names": names,
        "columns": len(chosen),
        "steps": pack([m.step for m in chosen]),
        "ess": pack(lines[0]),
        "state_size": pack(lines[1]),
        "ceiling": pack(lines[2]),
        "metrics": metrics,
        "points": len(at),
        "metric_steps": pack(at),
        "metric_mean": pack(mean),
        "metric_low": pack(low),
        "metric_high": pack(high),
        "failed": failures(history.measurements),
        "last": int(history.last or 0),
    }


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``range(count)``, evenly spaced, both ends included."""
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]


def buckets(
    steps: np.ndarray, values: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Neighbouring steps together, so that there are at most ``most``: where, and mean, minimum, maximum.

    Parameters
    ----------
    steps : ndarray, ``(n,)``
    values : ndarray, ``(metrics, n)``
        NaN where a step has no value; what is not finite otherwise shows in the extremes.
    most : int

    Returns
    -------
    tuple of ndarray, ``(m,)`` and three ``(metrics, m)``
        The last step of each bucket.

    Examples
    --------
    >>> buckets(np.arange(4), np.array([[1.0, 3.0, np.nan, 2.0]]), 2)
    (array([1, 3]), array([[2., 2.]]), array([[1., 2.]]), array([[3., 2.]]))
    """
    count = len(steps)
    if count <= most:
        return steps, values, values, values
    edges = np.linspace(0, count, most + 1).round().astype(int)
    starts = edges[:-1]
    known = ~np.isnan(values)
    totals = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
    number = np.add.reduceat(known, starts, axis=1, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = totals / number
    low = np.fmin.reduceat(values, starts, axis=1)
    high = np.fmax.reduceat(values, starts, axis=1)
    return steps[edges[1:] - 1], mean, low, high


def failures(measurements: Sequence[Any], most: int = 50) -> list[dict[str, Any]]:
    """The last failed measurements, with their reasons."""
    failed = [m for m in measurements if m.failed is not None]
    return [{"step": m.step, "reason": m.failed[:300]} for m in failed[-most:]]
