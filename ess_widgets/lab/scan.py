"""One capture, in numbers: what each layer is, how much it can hold, and whether its operator is the true one."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ess_widgets.capture import Cancelled, CaptureError, LayerCapture, run
from ess_widgets.learn.diagnosis.thresholds import Thresholds

from . import static
from .families import AHEAD
from .mixers import causal_part, guess
from .tasks import Task

__all__ = ["scan"]


def scan(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], task: Task | None = None
) -> dict[str, Any]:
    """Run ``model`` once and tell of every layer that mixes tokens.

    Parameters
    ----------
    model : torch.nn.Module
        It is left as it is.
    args, kwargs
        What it is called with.
    task : Task, optional
        Hears how many layers are verified, and may cancel.

    Returns
    -------
    dict
        ``layers``, each with ``path``, ``family``, ``group``, ``count``, ``state``, ``grows``, ``residual``, ``limit``
        and ``verified``; and ``skipped``, reasons by path.

    Raises
    ------
    Cancelled
        If the task was cancelled.
    """
    task = task or Task()
    guesses = guess(model)
    part = causal_part(guesses)
    captured = run(model, args, kwargs, layers=part, should_stop=task.cancelled, keep_output=False)
    windowed = {row["path"] for row in guesses if row["family"] == "softmax attention" and not row["grows"]}
    ahead = [row["path"] for row in guesses if row["family"] == AHEAD] if part else []
    layers: list[dict[str, Any]] = []
    for layer in captured.values():
        task.progress(len(layers), len(captured))
        if task.cancelled():
            raise Cancelled
        layers.append(_layer(layer, windowed))
    return {
        "layers": layers,
        "skipped": {
            **{
                static.shown(path): "reads ahead: only a causal layer has an effective state-size"
                for path in ahead
            },
            **{static.shown(path): str(reason) for path, reason in captured.skipped.items()},
        },
    }


def _layer(layer: LayerCapture, windowed: set[str]) -> dict[str, Any]:
    state: int | None = None
    residual = math.nan
    try:
        state = int(layer.operator.state_size.max())
        residual = float(layer.residual.max())
    except CaptureError:
        pass  # it was found and cannot be read: there is no number, and nothing is verified
    limit = Thresholds().residual_limit(layer.dtype)
    full = state is None or state >= layer.outputs.shape[2] - 1
    return {
        "path": layer.name,
        "family": layer.family,
        "group": layer.group,
        "count": int(layer.outputs.shape[1]),
        "state": state,
        "grows": layer.family == "softmax attention" and full and layer.name not in windowed,
        "residual": residual if math.isfinite(residual) else None,
        "limit": limit,
        "verified": residual <= limit,
    }
