"""What the explorer knows of one captured input: ESS of all heads, spectra of some, computed piece by piece."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ess_widgets.capture import Capture, residual
from ess_widgets.metrics import ceiling, ess, from_spectrum, spectra
from ess_widgets.operators import Dense, Operator

__all__ = ["MOST_GROUPS", "Analysis", "Measure"]

Head = tuple[str, int]

MOST_GROUPS = 32

# Residuals that rounding explains, by the dtype in which the model computed.
RESIDUAL_LIMIT = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Measure:
    """Which ESS: the arguments of :func:`ess_widgets.ess`."""

    kind: str
    tol: float
    relative: bool

    def data(self) -> dict[str, Any]:
        return {"kind": self.kind, "tol": self.tol, "relative": self.relative}


class Analysis:
    """ESS and spectra of the heads of one sample of a capture; spectra are kept while they fit in ``budget`` bytes.

    Parameters
    ----------
    captured : Capture
        Layers by name.
    sample : int
        Which sample of the batch.
    budget : int
        Bytes of spectra to keep; what falls out is computed again when it is asked for.
    groups : int
        Of a layer with more groups than this, as a state-space model with an operator for each channel has, evenly
        spaced ones are taken as its heads.

    Attributes
    ----------
    groups : dict
        By layer, the operator's group behind each head.
    blocks : dict
        By layer, how many rows of the operator belong to a position.
    """

    def __init__(
        self, captured: Capture, sample: int = 0, budget: int = 1 << 29, groups: int = MOST_GROUPS
    ) -> None:
        self.captured = captured
        self.sample = sample
        self.layers = list(captured)
        self.groups = {name: _spread(int(captured[name].operator.shape[-3]), groups) for name in self.layers}
        self.heads = {name: len(self.groups[name]) for name in self.layers}
        self.lengths = {name: captured[name].operator.length for name in self.layers}
        self.blocks = {name: captured[name].operator.block for name in self.layers}
        self.residuals: dict[str, float] = {}
        self._residual_limits: dict[str, float] = {}
        self._limits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._spectra: OrderedDict[Head, np.ndarray] = OrderedDict()
        self._budget = budget
        self._ess: dict[Head, np.ndarray] = {}
        self._measure: Measure | None = None
        self._matrices: tuple[str, Tensor] | None = None
        self._partial: dict[Head, np.ndarray] = {}

    def layer_data(self) -> list[dict[str, Any]]:
        """Per layer what the views say of it; the residual is None until :meth:`verify` has seen it."""
        return [
            {
                "name": name,
                "family": self.captured[name].family,
                "heads": self.heads[name],
                "group": self.captured[name].group,
                "groups": None if self._all_shown(name) else self.groups[name],
                "of": int(self.captured[name].operator.shape[-3]),
                "residual": self.residuals.get(name),
                "limit": self._residual_limits.get(name, 1e-5),
            }
            for name in self.layers
        ]

    @property
    def noun(self) -> str:
        """What the layers' groups are, in the plural."""
        nouns = {self.captured[name].group for name in self.layers}
        return f"{nouns.pop()}s" if len(nouns) == 1 else "operators"

    def _all_shown(self, layer: str) -> bool:
        return self.heads[layer] == self.captured[layer].operator.shape[-3]

    def verify(self, layer: str) -> float:
        """Worst residual of the layer's heads on this sample."""
        if layer not in self.residuals:
            at, groups, captured = self.sample, self.groups[layer], self.captured[layer]
            outputs = captured.outputs[at : at + 1, groups]
            valid = None if captured.valid is None else captured.valid[at : at + 1]
            inputs = captured.inputs[at : at + 1, groups]
            self.residuals[layer] = float(residual(self._heads(layer)[None], inputs, outputs, valid).max())
            self._residual_limits[layer] = RESIDUAL_LIMIT.get(captured.dtype, 1e-5)
        return self.residuals[layer]

    def _heads(self, layer: str) -> Operator:
        """The operator of the layer's heads, ``(heads, L, L)``."""
        operator = self.captured[layer].operator[self.sample]
        return operator if self._all_shown(layer) else operator[self.groups[layer]]

    def operator(self, layer: str, head: int) -> Dense:
        """One head's operator. The whole layer is materialised at once and kept until the next, if it is not large."""
        operator = self._heads(layer)
        valid, block = operator[head].valid, operator.block
        if operator.shape.numel() * 4 > self._budget // 2:
            return Dense(operator[head].matrix(), valid=valid, block=block)
        if self._matrices is None or self._matrices[0] != layer:
            self._matrices = layer, operator.matrix()
        return Dense(self._matrices[1][head], valid=valid, block=block)

    def limits(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """TSS and ceiling, each ``(heads, L)``."""
        if layer not in self._limits:
            operator = self._heads(layer)
            shape = (self.heads[layer], operator.length)
            both = operator.state_size, ceiling(operator)
            state_size, top = (limit.cpu().double().expand(shape).numpy() for limit in both)
            self._limits[layer] = state_size, top
        return self._limits[layer]

    def advance(self, layer: str, head: int, about: int | None = None) -> bool:
        """Compute a little more of the head's spectrum, nearest to position ``about`` first; True when it is whole."""
        key = layer, head
        if key in self._spectra:
            self._spectra.move_to_end(key)
            return True
        length = self.lengths[layer]
        if key not in self._partial:
            self._partial[key] = np.full((length, max(self.blocks[layer] * (length // 2), 1)), np.nan)
        values = self._partial[key]
        (unknown,) = np.isnan(values[:, 0]).nonzero()
        nearest = unknown[
            np.argsort(np.abs(unknown - (length // 2 if about is None else about)), kind="stable")
        ]
        for positions, sigma in spectra(self.operator(layer, head), nearest):
            values[positions] = 0.0
            values[positions, : sigma.shape[-1]] = sigma.cpu().numpy()
            break
        if np.isnan(values[:, 0]).any():
            return False
        self._keep(key, self._partial.pop(key))
        return True

    def _keep(self, key: Head, values: np.ndarray) -> None:
        self._spectra[key] = values
        while len(self._spectra) > 1 and sum(v.nbytes for v in self._spectra.values()) > self._budget:
            self._spectra.popitem(last=False)

    def spectrum(self, layer: str, head: int) -> tuple[np.ndarray | None, bool]:
        """Singular values of every ``H_i``, ``(L, L // 2)``, NaN where they are not known yet, and whether all are."""
        key = layer, head
        return (self._spectra[key], True) if key in self._spectra else (self._partial.get(key), False)

    def measure(self, measure: Measure) -> None:
        """Say which ESS is wanted; what is known of another one is forgotten."""
        if measure != self._measure:
            self._measure = measure
            self._ess.clear()

    def knows(self, layer: str, head: int) -> bool:
        return self.ess(layer, head) is not None

    def compute(self, layer: str, heads: Sequence[int] | None = None) -> bool:
        """Compute ESS of a few of the layer's heads that are not known yet; False when all are."""
        missing = [
            h for h in (range(self.heads[layer]) if heads is None else heads) if not self.knows(layer, h)
        ]
        if not missing:
            return False
        assert self._measure is not None, "measure() comes first"
        some = missing[: self._at_once(layer)]
        operator = self._heads(layer)[some]
        for head, values in zip(some, ess(operator, **self._measure.data()).cpu().numpy(), strict=True):
            self._ess[layer, head] = values
        return True

    def _at_once(self, layer: str) -> int:
        """Heads that take some tens of milliseconds on a CPU; all of them on a GPU."""
        if self.captured[layer].operator.device.type != "cpu":
            return self.heads[layer]
        return max(1, int(24 * (128 / self.lengths[layer]) ** 2.5))

    def ess(self, layer: str, head: int) -> np.ndarray | None:
        """ESS of the head at every position, ``(L,)``, or None where it has still to be computed."""
        key = layer, head
        if key not in self._ess and key in self._spectra:
            assert self._measure is not None, "measure() comes first"
            values = from_spectrum(torch.from_numpy(self._spectra[key]), **self._measure.data())
            self._ess[key] = values.numpy()
        return self._ess.get(key)

    def profile(self, layer: str) -> np.ndarray:
        """ESS of the layer's heads, ``(heads, L)``; NaN for heads that are not known yet."""
        unknown = np.full(self.lengths[layer], np.nan)
        curves = [self.ess(layer, head) for head in range(self.heads[layer])]
        return np.stack([unknown if curve is None else curve for curve in curves])


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``range(count)``, evenly spaced."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))
