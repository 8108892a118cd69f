"""The numbers of one layer on one sample, all heads at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ess_widgets.capture import LayerCapture
from ess_widgets.metrics import ceiling, ess
from ess_widgets.operators import Convolution, Dense, Operator, Recurrence, contribution_weights
from ess_widgets.operators.transitions import Diagonal

from .projections import Written
from .shape import growth, similarity, weight_shape, weights
from .thresholds import Thresholds

__all__ = ["Measured", "Question", "measure"]

# Entries of T in memory at once, and the corner of T that is compared between samples.
_ENTRIES = 2**24
_CORNER = 48


@dataclass(frozen=True)
class Question:
    """Which ESS, and what the numbers will be held against."""

    kind: Any
    tol: float
    relative: bool
    limits: Thresholds

    @property
    def name(self) -> str:
        """The measure in words, on every number that depends on it."""
        if self.kind == "entropy":
            return "entropy-ESS"
        return f"tolerance-ESS, τ = {self.tol:g}{' σ₁' if self.relative else ''}"


@dataclass
class Measured:
    """One layer on one sample.

    Attributes
    ----------
    tokens : int
        The sample's own tokens, ``n``.
    numbers : dict of str to Tensor, ``(groups,)``
        float64; NaN where something cannot be told.
    profile, ceiling, state_size : Tensor, ``(groups, n)``
        ESS and what limits it, at own positions.
    corner, inputs : Tensor
        The beginnings of ``T`` and ``u``, to be compared with other samples'.
    twins : Tensor, ``(groups, groups)``
        The smaller of the cosines between two heads' operators and between their outputs.
    """

    tokens: int
    numbers: dict[str, Tensor] = field(default_factory=dict)
    profile: Tensor = field(default_factory=lambda: torch.empty(0))
    ceiling: Tensor = field(default_factory=lambda: torch.empty(0))
    state_size: Tensor = field(default_factory=lambda: torch.empty(0))
    corner: Tensor = field(default_factory=lambda: torch.empty(0))
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    twins: Tensor = field(default_factory=lambda: torch.empty(0))


@torch.no_grad()
def measure(
    layer: LayerCapture, sample: int, groups: list[int], written: Written | None, asked: Question
) -> Measured:
    """Measure some groups of a layer on one sample."""
    operator = layer.operator
    block, L = operator.block, operator.length
    valid = None if layer.valid is None else layer.valid[sample].cpu()
    own = torch.ones(L, dtype=torch.bool) if valid is None else valid
    rows = own.repeat_interleave(block).to(operator.device)
    n = int(own.sum())
    u, y = (tensor[sample, groups][:, rows].double() for tensor in (layer.inputs, layer.outputs))
    attention = layer.family == "softmax attention"
    parts: dict[str, list[Tensor]] = {}
    curves: list[Tensor] = []
    corners: list[Tensor] = []
    flat: list[Tensor] = []
    contributions = _Contributions(layer, sample, groups, written)
    start = 0
    for op, matrix in _pieces(operator[sample], groups):
        some = slice(start, start + len(matrix))
        start += len(matrix)
        T = matrix[:, rows][:, :, rows]
        finite = torch.isfinite(T).flatten(1).all(-1)
        T = torch.where(finite[:, None, None], T, 0.0)
        W = weights(T, block)
        found = weight_shape(W, asked.limits, attention=attention and bool((T >= 0).all()))
        found["residual"] = _residual(T, u[some], y[some])
        found["growth"] = growth(W) if _has_state(layer) else torch.full_like(found["local"], torch.nan)
        found["finite"] = finite.double()
        found.update(contributions.of(op, matrix, some, rows, asked.limits))
        if bool(finite.all()):
            curve = ess(op, asked.kind, asked.tol, asked.relative).double()[:, own.to(op.device)]
        else:
            curve = torch.full((len(matrix), n), torch.nan, dtype=torch.float64, device=T.device)
        curves.append(curve)
        corners.append(W[:, :_CORNER, :_CORNER])
        flat.append(T)
        for name, value in found.items():
            parts.setdefault(name, []).append(value.double().cpu())
    numbers = {name: torch.cat(values) for name, values in parts.items()}
    mixed, given = (torch.linalg.vector_norm(tensor.flatten(1), dim=-1).cpu() for tensor in (u, y))
    numbers["gain"] = torch.where(given == 0, 0.0, given / mixed)
    numbers["output_share"] = _against_typical(given)
    numbers["written"] = _written(written, sample, groups, own)
    numbers["forgets"] = _forgetting(operator, sample, groups, own)
    state = operator.state_size.expand(*operator.shape[:-2], L)[sample][groups][:, own].cpu()
    top = ceiling(operator[sample]).expand(operator.shape[1], L)[groups][:, own].cpu()
    profile = torch.cat(curves).cpu()
    numbers.update(_used(profile, state.double(), top.double(), block, asked.limits.room))
    twins = (
        torch.minimum(similarity(torch.cat(flat)), similarity(y)).cpu()
        if len(groups) > 1
        else torch.zeros(1, 1)
    )
    corner = slice(0, _CORNER * block)
    return Measured(n, numbers, profile, top, state, torch.cat(corners).cpu(), u[:, corner].cpu(), twins)


def _pieces(op: Operator, groups: list[int]) -> Iterator[tuple[Operator, Tensor]]:
    """Operators of a few groups with their matrices; of recurrences and convolutions the operators themselves."""
    everything = groups == list(range(op.shape[0]))
    some = op if everything else op[groups]
    if not some.splittable:
        matrix = some.matrix()
        yield _known(some, matrix), matrix
        return
    step = max(1, _ENTRIES // (op.shape[-1] ** 2))
    for start in range(0, len(groups), step):
        piece = some[start : start + step]
        matrix = piece.matrix()
        yield _known(piece, matrix), matrix


def _known(op: Operator, matrix: Tensor) -> Operator:
    """An operator whose matrix need not be computed again, where there is nothing better than a matrix."""
    if isinstance(op, Recurrence | Convolution):
        return op
    matrix = torch.where(torch.isfinite(matrix), matrix, 0.0)
    return Dense(matrix, valid=op.valid, block=op.block, state_size=op.state_size)


def _residual(T: Tensor, u: Tensor, y: Tensor) -> Tensor:
    error = torch.linalg.vector_norm((T.double() @ u - y).flatten(1), dim=-1)
    size = torch.linalg.vector_norm(y.flatten(1), dim=-1)
    return torch.where(error == 0, error, error / size)


def _has_state(layer: LayerCapture) -> bool:
    """Whether something is carried step by step, and can grow: not in a softmax or in a kernel of its own length."""
    return layer.family not in ("softmax attention", "convolution")


def _against_typical(size: Tensor) -> Tensor:
    """In units of the layer's median, which one huge head does not move; 0 where all is 0."""
    typical = size.median()
    if typical == 0:  # half of them are dead
        typical = size.square().mean().sqrt()
    return size / typical if typical > 0 else torch.zeros_like(size)


def _written(written: Written | None, sample: int, groups: list[int], own: Tensor) -> Tensor:
    if written is None:
        return torch.full((len(groups),), torch.nan, dtype=torch.float64)
    return _against_typical(written.sizes(sample, own.to(written.given.device)).cpu())[groups]


def _forgetting(op: Operator, sample: int, groups: list[int], own: Tensor) -> Tensor:
    """Mean of ``1 - |A|`` per step, ``(groups,)``; NaN where there are no diagonal transitions."""
    if not (isinstance(op, Recurrence) and isinstance(op.A, Diagonal)):
        return torch.full((len(groups),), torch.nan, dtype=torch.float64)
    a = op.A.expand(op.shape[:-2]).parts[0][sample, groups].abs().double().cpu()
    a = a.expand(a.shape[0], len(own), a.shape[-1])[:, own]
    return (1 - a[:, 1:]).mean(dim=(1, 2))


def _used(profile: Tensor, state: Tensor, top: Tensor, block: int, room: int) -> dict[str, Tensor]:
    """ESS against what the architecture and the shape allow; sums over positions before any ratio."""

    def ratio(where: Tensor, limit: Tensor) -> Tensor:
        return (profile * where).sum(-1) / (limit * where).sum(-1)

    n = profile.shape[-1]
    i = torch.arange(n)
    shape = block * torch.minimum(i, n - i)
    past, ample, bound = i >= 1, top >= room, (state < shape) & (state >= 2)
    nan = torch.full(profile.shape[:1], torch.nan, dtype=torch.float64)
    return {
        "ess": profile[:, 1:].mean(-1) if n > 1 else nan,
        "ess_peak": profile.amax(-1),
        "state_size": state.amax(-1),
        "ceiling_peak": top.amax(-1),
        "utilisation_of_state": ratio(past, state),
        "utilisation_of_ceiling": ratio(past, top),
        "full": torch.where(bound.sum(-1) >= 4, ratio(bound, state), nan),
        "ess_with_room": torch.where(ample.sum(-1) >= 4, ratio(ample, torch.ones_like(top)), nan),
        "utilisation_with_room": torch.where(ample.sum(-1) >= 4, ratio(ample, top), nan),
    }


class _Contributions:
    """Shares of the layer's output that come from each head, and from the first tokens through it."""

    def __init__(self, layer: LayerCapture, sample: int, groups: list[int], written: Written | None) -> None:
        self._known = written is not None and written.bare and layer.operator.block == 1
        if not self._known:
            return
        assert written is not None
        self._values = layer.inputs[sample, groups].double()
        self._weight = written.weight.permute(1, 0, 2).double()[groups]
        self._outputs = torch.einsum("dgw,lgw->ld", written.weight.double(), written.given[sample].double())

    def of(self, op: Operator, T: Tensor, some: slice, rows: Tensor, limits: Thresholds) -> dict[str, Tensor]:
        """``contribution`` and ``sink_contribution``, ``(groups,)``."""
        if not self._known:
            nan = torch.full((len(T),), torch.nan, dtype=torch.float64)
            return {"contribution": nan, "sink_contribution": nan}
        c = contribution_weights(
            Dense(torch.where(torch.isfinite(T), T, 0.0).double(), valid=op.valid),
            self._values[some],
            self._outputs,
            projection=self._weight[some],
        )[:, rows][:, :, rows]
        k = limits.sink_tokens
        return {
            "contribution": c.sum(-1).mean(-1),
            "sink_contribution": c[:, 4 * k - 1 :, :k].sum(-1).mean(-1),
        }
