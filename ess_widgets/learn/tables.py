"""A training history as tables of pandas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .history import History

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["measurements", "metrics"]


def measurements(history: History, heads: bool) -> DataFrame:
    """A row for each measured step and layer, or for each of its heads; one for each failure."""
    import pandas

    columns = ["step", "layer", *(["head"] if heads else []), "family", "ess", "of_state_size", "of_ceiling"]
    columns += ["residual", "seconds", "failed"]
    logged = {name: f"logged_{name}" if name in columns else name for name in history.metrics}
    at = {step: k for k, step in enumerate(history.steps)}
    rows: list[dict[str, Any]] = []
    for found in history.measurements:
        k = at.get(found.step)
        known = {
            logged[name]: math.nan if k is None else column[k] for name, column in history.metrics.items()
        }
        common = {"seconds": found.seconds, "failed": found.failed, **known}
        for name, layer in found.layers.items():
            own = {"step": found.step, "layer": name, "family": layer.family}
            numbers = {"ess": layer.ess, "of_state_size": layer.of_state_size, "of_ceiling": layer.of_ceiling}
            if heads:
                for h, head in enumerate(layer.groups):
                    each = {what: float(values[h]) for what, values in numbers.items()}
                    rows.append(own | {"head": head} | each | {"residual": layer.residual} | common)
            else:
                means = {what: float(values.mean()) for what, values in numbers.items()}
                rows.append(own | means | {"residual": layer.residual} | common)
        if found.failed is not None:
            rows.append({"step": found.step, "layer": None, **common})
    return pandas.DataFrame(rows, columns=[*columns, *logged.values()])


def metrics(history: History) -> DataFrame:
    """A row for each step."""
    import pandas

    return pandas.DataFrame({"step": list(history.steps), **{n: list(c) for n, c in history.metrics.items()}})
