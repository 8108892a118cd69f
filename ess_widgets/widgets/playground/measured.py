"""A toy at certain parameters, with all that is shown of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ess_widgets.metrics import ceiling, from_spectrum, reference
from ess_widgets.operators import Operator

from ..analysis import Measure
from ..wire import operator_data, pack, profile_data, spectrum_data
from .toy import Toy
from .toys import TOYS

__all__ = ["LAYER", "Setup", "menu"]

LAYER = "playground"


def menu() -> list[dict[str, str]]:
    """What the browser offers to choose from."""
    return [{"name": toy.name, "title": toy.title} for toy in TOYS.values()]


@dataclass(frozen=True)
class Setup:
    """A toy, a length and checked parameters; what follows from them is computed once, when it is asked for."""

    toy: Toy
    length: int
    values: Mapping[str, Any]
    stamp: int = 0  # the browser's wish that this answers

    @cached_property
    def operator(self) -> Operator:
        return self.toy.operator(self.length, self.values)

    @cached_property
    def closed_form(self) -> np.ndarray:
        return self.toy.closed_form(self.length, self.values)

    @cached_property
    def spectrum(self) -> np.ndarray:
        """By plain singular value decompositions, so that rounding error is the same for all toys, ``(L, K)``."""
        values: np.ndarray = reference.spectrum(self.operator.matrix()).double().cpu().numpy()
        return values

    def ess(self, measure: Measure) -> np.ndarray:
        values: np.ndarray = from_spectrum(torch.from_numpy(self.spectrum), **measure.data()).numpy()
        return values

    def profile(self, measure: Measure) -> dict[str, Any]:
        """The profile as the browser has it."""
        size, top = (
            limit.expand(self.length).double().cpu().numpy()[None]
            for limit in (self.operator.state_size, ceiling(self.operator))
        )
        return profile_data(self.ess(measure)[None], size, top, LAYER, measure.data())

    def traits(self, measure: Measure) -> dict[str, Any]:
        """Everything that changes with the parameters."""
        toy, values = self.toy, self.values
        controls = []
        for parameter in toy.parameters:
            controls.append(
                {
                    "name": parameter.name,
                    "label": parameter.label,
                    "value": parameter.to_wire(values[parameter.name]),
                    **parameter.control(self.length),
                }
            )
        handle = None
        if toy.handle is not None:
            handle = {
                "parameter": toy.handle.parameter,
                "offset": toy.handle.offset,
                "corner": toy.handle.corner,
            }
        layer = {"name": LAYER, "family": toy.caption(values), "heads": 1, "group": "operator"}
        return {
            "toy_data": {
                "toy": toy.name,
                "length": self.length,
                "stamp": self.stamp,
                "see": toy.see,
                "differs": toy.differs,
                "formula": toy.formula(self.length, values),
                "warnings": toy.warnings(self.length, values),
                "controls": controls,
                "handle": handle,
                "closed_form": pack(self.closed_form),
            },
            "layers": [{**layer, "residual": None, "limit": 1e-5}],
            "operator_data": operator_data(self.operator, LAYER, 0),
            "spectrum_data": spectrum_data(self.spectrum, LAYER, 0, 1),
            "profile_data": self.profile(measure),
        }
