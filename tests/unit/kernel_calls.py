"""Functions with the names and signatures of flash-linear-attention's kernels, computed by its references.

The kernels themselves need a GPU.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ess_widgets.capture import Capture, capture


def fla(module: str, name: str) -> Callable[..., Any]:
    """A function of ``fla.ops``; the package is there on Linux only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no GPU
        pytest.importorskip("fla", exc_type=ImportError)
        return getattr(importlib.import_module(f"fla.ops.{module}"), name)  # type: ignore[no-any-return]


def kernel(module: str, name: str, compute: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """A function of this name with the parameters of ``fla.ops.<module>.<name>``; ``compute`` gets the arguments."""
    parameters = inspect.signature(fla(module, name)).parameters.values()
    text = str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters]))
    space: dict[str, Any] = {"compute": lambda given: compute({**given, **given.pop("kwargs", {})})}
    exec(f"def {name}{text}:\n    return compute(locals())", space)  # noqa: S102
    return space[name]  # type: ignore[no-any-return]


class Calls(nn.Module):
    """A module that calls a function with what it is given."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, tensors: Mapping[str, Any]) -> Any:
        result = self.function(**tensors, **self.options)
        return result[0] if isinstance(result, tuple) else result


class Net(nn.Module):
    """A layer with a name, inside a model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


def called(function: Callable[..., Any], tensors: Mapping[str, Any], **options: Any) -> Capture:
    """Capture a model that calls the function with these arguments."""
    return capture(Net(Calls(function, **options)), tensors)


class Draw:
    """Random arguments in the layout of flash-linear-attention, ``(batch, L, heads, features)``."""

    def __init__(self, seed: int = 0, *, batch: int = 2, length: int = 21, heads: int = 3) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.lead = (batch, length, heads)

    def normal(self, *features: int) -> Tensor:
        return torch.randn(*self.lead, *features, generator=self.generator)

    def log_gate(self, *features: int) -> Tensor:
        return torch.nn.functional.logsigmoid(self.normal(*features) + 1)

    def unit(self, *features: int) -> Tensor:
        return torch.nn.functional.normalize(self.normal(*features), dim=-1)

    def gate(self, *features: int) -> Tensor:
        return self.normal(*features).sigmoid()
