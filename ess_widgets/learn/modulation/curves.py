"""ESS and its ceiling along one text, for every head of the layers that are looked at."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ess_widgets.capture import capture
from ess_widgets.metrics import ceiling, ess

__all__ = ["Curves", "Head", "Measure", "curves", "spread"]


@dataclass(frozen=True)
class Measure:
    """Which ESS; its name stands on every number."""

    kind: Literal["entropy", "tolerance"]
    tol: float
    relative: bool

    def __str__(self) -> str:
        if self.kind == "entropy":
            return "entropy"
        return f"tolerance τ={self.tol:g}{'·σ₁' if self.relative else ''}"


@dataclass(frozen=True)
class Head:
    """One row of the curves; ``group`` says what it is: a head, a channel, or the whole layer."""

    layer: str
    family: str
    group: str
    head: int


@dataclass(frozen=True)
class Curves:
    """One run of the model.

    Attributes
    ----------
    heads : list of Head
    ess, ceiling : ndarray, ``(heads, L)``
    residual : dict of str to float
        The worst of each layer's heads: how far the operator is from what the model computed.
    left_out : dict of str to str
        Layers that cannot be laid along the tokens, and why.
    """

    heads: list[Head]
    ess: np.ndarray[Any, Any]
    ceiling: np.ndarray[Any, Any]
    residual: dict[str, float]
    left_out: dict[str, str]


def spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` groups, evenly spaced: those that the explorer shows."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def curves(model: nn.Module, ids: Sequence[int], measure: Measure, layers: Any, most: int) -> Curves:
    """Run the model once and measure all positions."""
    parameter = next(model.parameters(), None)
    inputs = torch.tensor([list(ids)], device="cpu" if parameter is None else parameter.device)
    captured = capture(model, inputs, layers=layers, **_spared(model))
    heads: list[Head] = []
    values, limits = [], []
    residual: dict[str, float] = {}
    left_out = dict(captured.skipped)
    for name, layer in captured.items():
        op = layer.operator
        if op.length != len(ids):
            left_out[name] = f"it mixes {op.length} positions, but the text has {len(ids)} tokens"
            continue
        count = int(op.shape[-3])
        groups = spread(count, most)
        op = op[0] if len(groups) == count else op[0][groups]
        heads += [Head(name, layer.family, layer.group, head) for head in groups]
        values.append(ess(op, measure.kind, measure.tol, measure.relative).double().cpu().numpy())
        limits.append(ceiling(op).double().cpu().numpy())
        residual[name] = float(layer.residual[0, groups].max())
    if not heads:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"no layer can be laid along the tokens: {reasons}.")
    return Curves(heads, np.concatenate(values), np.concatenate(limits), residual, left_out)


def _spared(model: nn.Module) -> dict[str, Any]:
    """What a language model need not do here: logits of every position, a cache for what comes next."""
    try:
        known = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # TorchScript has none
        return {}
    unneeded = {"logits_to_keep": 1, "use_cache": False}
    return {name: value for name, value in unneeded.items() if name in known}
