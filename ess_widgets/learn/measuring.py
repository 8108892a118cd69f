"""One measurement: a model on its probe inputs, in numbers, and in operators to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ess_widgets.capture import LayerCapture, capture, residual
from ess_widgets.metrics import ceiling, ess, spectrum

from .history import LayerMeasurement
from .snapshots import LayerSnapshot, Snapshots

__all__ = ["Measure", "Probe", "measure"]

# Singular values that are kept of each position.
_VALUES = 32
_LIMITS = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Measure:
    """What is measured: see :class:`ess_widgets.learn.Monitor`."""

    kind: str
    tol: float
    relative: bool
    positions: tuple[int, ...] | None
    spectra: tuple[int, ...] | None
    groups: int


class Probe:
    """What the model is called with, kept as it is now, and moved to wherever the model is."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = _each(inputs, lambda tensor: tensor.detach().clone())

    def call(self, model: nn.Module, layers: Any) -> Any:
        """Capture ``model`` on it."""
        while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        places = {parameter.device for parameter in model.parameters()}
        inputs = self.inputs
        if len(places) == 1:
            (place,) = places
            if place.type != "meta":
                inputs = _each(inputs, lambda tensor: tensor.to(place))
        kind = next(iter(places)).type if places else "cpu"
        with torch.autocast(kind if kind != "meta" else "cpu", enabled=False):
            if isinstance(inputs, Mapping):
                return capture(model, layers=layers, **inputs)
            args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
            return capture(model, *args, layers=layers)


def measure(
    model: nn.Module, probe: Probe, layers: Any, how: Measure, snapshots: Snapshots
) -> tuple[dict[str, LayerMeasurement], dict[str, LayerSnapshot]]:
    """Numbers of each layer, and its operators as far as they are to be kept."""
    with torch.no_grad():
        captured = capture_of(probe.call(model, layers))
        groups = {
            name: _spread(int(layer.operator.shape[-3]), how.groups) for name, layer in captured.items()
        }
        sizes = {name: 4 * int(np.prod(layer.operator.shape[-2:])) for name, layer in captured.items()}
        kept = snapshots.share(sizes, {name: len(found) for name, found in groups.items()})
        measured, pictures = {}, {}
        for name, layer in captured.items():
            measured[name], picture = _layer(layer, groups[name], kept[name], how)
            if picture is not None:
                pictures[name] = picture
    return measured, pictures


def capture_of(captured: Any) -> dict[str, LayerCapture]:
    """The layers alone; what the model returned is let go."""
    return dict(captured.items())


def _layer(
    layer: LayerCapture, groups: list[int], kept: list[int], how: Measure
) -> tuple[LayerMeasurement, LayerSnapshot | None]:
    operator = layer.operator
    whole = len(groups) == operator.shape[-3]
    if not whole:
        operator = operator[:, groups]
    length = operator.length
    chosen = None if how.positions is None else [_checked(i, length, layer.name) for i in how.positions]
    at = torch.arange(length) if chosen is None else torch.tensor(chosen)
    values = ess(operator, how.kind, how.tol, how.relative, chosen).double().cpu()  # type: ignore[arg-type]
    shape = (*operator.shape[:-2], length)
    size = operator.state_size.cpu().double().expand(shape)
    top = ceiling(operator).cpu().double().expand(shape)
    own = torch.ones(shape) if operator.valid is None else operator.valid.cpu().double().expand(shape)
    some = slice(None) if whole else groups
    wrong = (
        layer.residual
        if whole
        else residual(operator, layer.inputs[:, some], layer.outputs[:, some], layer.valid)
    )
    where = (
        _quarters(length)
        if how.spectra is None
        else tuple(_checked(i, length, layer.name) for i in how.spectra)
    )
    sigma = np.zeros((len(groups), 0, 0), dtype=np.float32)
    if where:
        sigma = spectrum(operator[0], positions=list(where))[..., :_VALUES].float().cpu().numpy()
    numbers = LayerMeasurement(
        layer.family,
        layer.group,
        tuple(groups),
        int(layer.operator.shape[-3]),
        _average(values, own[..., at]),
        _ratio(values, size[..., at], at),
        _ratio(values, top[..., at], at),
        float(wrong.max()),
        _LIMITS.get(layer.dtype, 1e-5),
        where,
        sigma,
    )
    if not kept:
        return numbers, None
    curves = torch.full((len(groups), length), torch.nan, dtype=torch.float64)
    curves[:, at] = values[0]
    matrix = operator[0][kept].matrix().detach().float().cpu()
    picture = LayerSnapshot(
        tuple(kept),
        matrix,
        None if operator.valid is None else operator[0][0].valid,
        operator.block,
        *(part[kept].float().numpy() for part in (curves, size[0], top[0])),
    )
    return numbers, picture


def _average(values: Tensor, own: Tensor) -> np.ndarray:
    """Mean over samples and own positions of ``(batch, heads, P)``, as ``(heads,)``."""
    return ((values * own).sum((0, 2)) / own.sum((0, 2))).numpy()


def _ratio(values: Tensor, limit: Tensor, at: Tensor) -> np.ndarray:
    """``Σ ESS / Σ limit`` over positions from 1 on, mean over samples, ``(heads,)``; 0 where nothing could be carried."""
    past = at >= 1
    possible = limit[..., past].sum(-1)
    return (values[..., past].sum(-1) / possible.where(possible > 0, 1.0)).mean(0).numpy()


def _quarters(length: int) -> tuple[int, ...]:
    return tuple(sorted({length // 4, length // 2, 3 * length // 4} - {0}) or (0,))


def _checked(position: int, length: int, layer: str) -> int:
    if position >= length:
        raise PositionError(
            f"position {position} does not exist: in layer {layer!r} the probe inputs have {length} positions, from 0."
        )
    return position


class PositionError(ValueError):
    """A position that was asked for is outside the probe inputs."""


def _spread(count: int, most: int) -> list[int]:
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def _each(inputs: Any, change: Any) -> Any:
    """The same structure with every tensor changed; arrays become tensors."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, np.ndarray):
        return change(torch.from_numpy(inputs))
    if isinstance(inputs, Mapping):
        return {str(name): _each(value, change) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_each(value, change) for value in inputs)
    return inputs


def tensors_of(inputs: Any) -> Sequence[tuple[str, Tensor]]:
    """Every tensor of the inputs with its place among them."""
    if isinstance(inputs, Tensor):
        return [("", inputs)]
    if isinstance(inputs, Mapping):
        pairs: Any = inputs.items()
    elif isinstance(inputs, (tuple, list)):
        pairs = enumerate(inputs)
    else:
        return [(repr(inputs), torch.empty(0))]
    return [(f"{name}/{path}", tensor) for name, value in pairs for path, tensor in tensors_of(value)]
