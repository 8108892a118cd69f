"""One row for each head: its numbers over all samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .measures import Measured
from .thresholds import Thresholds

__all__ = ["Broken", "Row", "combine"]

# Judged by their worst sample; of the others the mean counts.
_LARGEST = ("residual", "growth", "gain", "output_share", "written")
_SMALLEST = ("finite",)
# What a few tokens cannot tell.
_TAKES_LENGTH = ("local", "diagonal", "sink", "selectivity", "full", "ess_with_room", "utilisation_with_room")


@dataclass(frozen=True)
class Broken:
    """Values that are not finite: in what a head gave out, or in an operator."""

    what: str
    sample: int
    position: int | None
    count: int


@dataclass
class Row:
    """A head, or a channel where channels differ.

    Attributes
    ----------
    layer, head, family, group
        As in a capture; ``head`` counts the operator's groups.
    state : str
        "bounded" where a state of fixed size is carried, "growing" where it grows with the input, "fixed" for kernels.
    numbers : dict of str to float
        NaN where something cannot be told.
    profile, ceiling : list of float
        Mean over samples, at own positions.
    twin : int or None
        The earlier head that it is most like.
    broken : Broken or None
    refused : str
        Why its operator cannot be built; empty where it can.
    worst : int
        The sample with the largest residual.
    """

    layer: str
    head: int
    family: str
    group: str
    state: str = "growing"
    numbers: dict[str, float] = field(default_factory=dict)
    profile: list[float] = field(default_factory=list)
    ceiling: list[float] = field(default_factory=list)
    twin: int | None = None
    broken: Broken | None = None
    refused: str = ""
    worst: int = 0
    residual_limit: float = 1e-5
    signs: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> float:
        return self.numbers.get(name, math.nan)


def combine(measured: list[Measured], groups: list[int], limits: Thresholds, **about: Any) -> list[Row]:
    """Rows of a layer from what was measured of it on each sample."""
    long = [m.tokens >= limits.min_length for m in measured]
    tokens = torch.tensor([float(m.tokens) for m in measured])
    numbers: dict[str, Tensor] = {}
    for name in measured[0].numbers:
        values = torch.stack([m.numbers[name] for m in measured])
        if name in _TAKES_LENGTH:
            values[~torch.tensor(long)] = torch.nan
        numbers[name] = _over_samples(values, name)
    residuals = torch.stack([m.numbers["residual"] for m in measured])
    worst = residuals.nan_to_num(torch.inf, posinf=torch.inf).argmax(dim=0)
    numbers["varies"] = _variation(measured)
    twins = torch.stack([m.twins for m in measured]).amin(dim=0).tril(-1)
    profile, top = (
        _mean_curve([getattr(m, name).double() for m in measured]) for name in ("profile", "ceiling")
    )
    rows = []
    for at, head in enumerate(groups):
        own = {name: float(values[at]) for name, values in numbers.items()}
        like = float(twins[at].max())
        own["copy"] = like if len(groups) > 1 else math.nan
        own["tokens"] = float(tokens.mean())
        rows.append(
            Row(
                head=head,
                numbers=own,
                profile=profile[at].tolist(),
                ceiling=top[at].tolist(),
                twin=groups[int(twins[at].argmax())] if at else None,
                worst=int(worst[at]),
                state=_state(about["family"], own, float(tokens.max())),
                **about,
            )
        )
        if not own["finite"]:
            sample = next(s for s, m in enumerate(measured) if not m.numbers["finite"][at])
            rows[-1].broken = Broken("the operator", sample, None, 1)
    return rows


def _state(family: str, numbers: dict[str, float], tokens: float) -> str:
    if family == "convolution":
        return "fixed"
    return "bounded" if numbers["state_size"] < tokens - 1 and family != "softmax attention" else "growing"


def _over_samples(values: Tensor, name: str) -> Tensor:
    """``(samples, groups)`` to ``(groups,)``, NaN ignored where another sample knows."""
    if name in _LARGEST:
        known = values.isnan().all(dim=0)
        return torch.where(known, torch.nan, values.nan_to_num(-torch.inf, posinf=torch.inf).amax(dim=0))
    if name in _SMALLEST:
        return values.amin(dim=0)
    return values.nanmean(dim=0)


def _variation(measured: list[Measured]) -> Tensor:
    """How much operators differ between samples from where their inputs do; NaN where no two can be compared."""
    first = measured[0]
    most = torch.full((first.corner.shape[0],), torch.nan, dtype=torch.float64)
    for other in measured[1:]:
        n = min(first.corner.shape[-1], other.corner.shape[-1])
        block = first.inputs.shape[-2] // max(1, first.corner.shape[-1])
        a, b = (m.inputs[:, : n * block].reshape(-1, n, block * m.inputs.shape[-1]) for m in (first, other))
        differs = ((a - b).norm(dim=-1) > 1e-6 * (a.norm(dim=-1) + b.norm(dim=-1))).any(dim=0)
        start = int(differs.long().argmax())
        if not bool(differs.any()) or n - start < 8:
            continue
        A, B = (m.corner[:, start:n, :n].flatten(1) for m in (first, other))
        size = A.norm(dim=-1)
        change = torch.where(size > 0, (A - B).norm(dim=-1) / size.where(size > 0, 1.0), torch.nan)
        most = torch.fmax(most, change)
    return most


def _mean_curve(curves: list[Tensor]) -> Tensor:
    """Mean over samples at each position, over those that are as long."""
    longest = max(curve.shape[-1] for curve in curves)
    total = torch.zeros(curves[0].shape[0], longest, dtype=torch.float64)
    count = torch.zeros(longest, dtype=torch.float64)
    for curve in curves:
        total[:, : curve.shape[-1]] += curve
        count[: curve.shape[-1]] += 1
    return total / count
