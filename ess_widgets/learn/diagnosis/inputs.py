"""What the model is called with: one call for each text, batch or set of arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Sample", "samples"]


@dataclass(frozen=True)
class Sample:
    """One call of the model; ``text`` where it was made from one."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    text: str | None = None


def samples(model: nn.Module, inputs: Any, tokenizer: Any = None) -> list[Sample]:
    """The calls that ``inputs`` stand for; a list holds several."""
    if not isinstance(inputs, list):
        return [_one(model, inputs, tokenizer, "inputs")]
    if not inputs:
        raise ValueError("inputs is an empty list: give at least one text, tensor or set of arguments.")
    if all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in inputs):
        return [_one(model, torch.tensor([inputs]), tokenizer, "inputs")]
    return [_one(model, item, tokenizer, f"inputs[{n}]") for n, item in enumerate(inputs)]


def _one(model: nn.Module, item: Any, tokenizer: Any, name: str) -> Sample:
    if isinstance(item, list):
        try:
            item = torch.tensor(item if item and isinstance(item[0], list) else [item])
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} is a list that is no list of token ids; arguments go into a tuple or a dict."
            ) from None
    if isinstance(item, str):
        return _text(model, item, tokenizer, name)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def place(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(item, Mapping):
        return Sample((), {key: place(value) for key, value in item.items()})
    if isinstance(item, tuple):
        return Sample(tuple(place(value) for value in item), {})
    if not isinstance(item, Tensor | np.ndarray):
        raise TypeError(
            f"{name} must be a text, token ids, a tensor, a tuple or dict of arguments, or a list of those, "
            f"but is {type(item).__name__}."
        )
    return Sample((place(item),), {})


def _text(model: nn.Module, text: str, tokenizer: Any, name: str) -> Sample:
    if tokenizer is None:
        raise TypeError(f"{name} is a text: give its tokenizer too, diagnose(model, inputs, tokenizer).")
    if not text.strip():
        raise ValueError(f"{name} is an empty text: there is nothing to remember.")
    from ess_widgets.widgets.source import Text

    call = Text(tokenizer, max_tokens=1 << 30).call(model, text)
    return Sample(call.args, call.kwargs, text)
