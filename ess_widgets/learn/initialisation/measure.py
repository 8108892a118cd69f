"""ESS in the middle of sequences of Gaussian input, of whatever makes operators."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ess_widgets.capture import run
from ess_widgets.learn.initialisation.featurizers import FEATURIZERS, gaussian
from ess_widgets.metrics import ceiling, ess
from ess_widgets.operators import Dense, Operator

__all__ = ["Measured", "Setting", "label_of"]


@dataclass(frozen=True)
class Measured:
    """ESS and what limits it, at one position of several operators: a number for each."""

    ess: Tensor
    state_size: Tensor
    ceiling: Tensor
    length: int
    position: int

    @property
    def mean(self) -> float:
        """The mean ESS."""
        return float(self.ess.double().mean())


@dataclass(frozen=True)
class Setting:
    """Under what ESS is measured; the same seed gives the same input and weights."""

    length: int
    width: int | None
    batch: int
    position: int | None
    kind: Literal["entropy", "tolerance"]
    tol: float
    relative: bool
    seed: int
    layers: Any = None
    inputs: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("length", "batch", *([] if self.width is None else ["width"])):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or value < (2 if name == "length" else 1)
            ):
                raise ValueError(
                    f"{name} must be an integer of at least {2 if name == 'length' else 1}, but is {value!r}."
                )

    def of(self, featurizer: Any, n: int) -> Measured:
        """Measure a featurizer at a state-size."""
        if isinstance(featurizer, str):
            return self._of_operator(self._named(featurizer, n))
        if takes_input(featurizer):
            u = gaussian(self.batch, self.length, self.width or n, self._generator())
            op = featurizer(u, n, **self.options)
            return self._of_operator(op if isinstance(op, Operator) else Dense(op))
        module = self.seeded(lambda: featurizer(n, **self.options))
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"a featurizer of one argument must return a torch.nn.Module, but {label_of(featurizer)} returned "
                f"{type(module).__name__}. For an operator write a function of (u, n)."
            )
        return self.of_module(module)

    def of_module(self, module: nn.Module) -> Measured:
        """Measure the captured layers of a module."""
        cap = run(module, self._arguments(module), {}, layers=self.layers, keep_output=False)
        parts = [self._of_operator(layer.operator) for layer in cap.values()]
        return Measured(
            torch.cat([part.ess for part in parts]),
            torch.cat([part.state_size for part in parts]),
            torch.cat([part.ceiling for part in parts]),
            parts[0].length,
            parts[0].position,
        )

    def seeded(self, build: Any) -> Any:
        """Build something from torch's own random numbers, which are put back afterwards."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return build()

    def _named(self, name: str, n: int) -> Operator:
        if name not in FEATURIZERS:
            raise ValueError(f"a featurizer's name is one of {', '.join(FEATURIZERS)}, but was {name!r}.")
        make = FEATURIZERS[name]
        known = [key for key in inspect.signature(make).parameters if key not in ("u", "n", "generator")]
        unknown = [key for key in self.options if key not in known]
        if unknown:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise TypeError(f"{name} {has}, but was given {', '.join(unknown)}.")
        generator = self._generator()
        u = gaussian(self.batch, self.length, self.width or n, generator)
        op: Operator = make(u, n, generator, **self.options)
        return op

    def _arguments(self, module: nn.Module) -> tuple[Any, ...]:
        if self.inputs is not None:
            return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        if self.width is None:
            raise ValueError(
                "say with width= how wide the module's input is, or pass inputs=, token ids for example."
            )
        first = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
        u = gaussian(self.batch, self.length, self.width, self._generator())
        return (u.to(first.device, first.dtype),)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _of_operator(self, op: Operator) -> Measured:
        i = op.length // 2 if self.position is None else self.position
        if not 1 <= i < op.length:
            raise ValueError(f"position must lie between 1 and {op.length - 1}, but is {i}.")
        value = ess(op, kind=self.kind, tol=self.tol, relative=self.relative, positions=[i])[..., 0]
        size, top = (
            limit[..., i].to(value).expand(value.shape).reshape(-1).cpu()
            for limit in (op.state_size, ceiling(op))
        )
        return Measured(value.reshape(-1).cpu(), size, top, op.length, i)


def takes_input(featurizer: Any) -> bool:
    """Whether a featurizer is a function of ``(u, n)``, and not of ``n`` alone."""
    if not callable(featurizer) or isinstance(featurizer, nn.Module):
        raise TypeError(
            f"a featurizer is a name ({', '.join(FEATURIZERS)}), a function (u, n) -> operator, or a factory "
            f"n -> torch.nn.Module, but was {type(featurizer).__name__}."
        )
    required = [
        p
        for p in inspect.signature(featurizer).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) not in (1, 2):
        raise TypeError(
            f"{label_of(featurizer)} takes {len(required)} arguments that have no default, but a featurizer takes (u, n), or "
            "n alone where it returns a module."
        )
    return len(required) == 2


def label_of(featurizer: Any) -> str:
    """A name for tables and figures."""
    if isinstance(featurizer, str):
        return featurizer
    found = getattr(featurizer, "__name__", None) or type(featurizer).__name__
    return "featurizer" if found == "<lambda>" else str(found)
