"""What the explorer runs the model on: a text through a tokenizer, or inputs as they are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .tokens import encode, indexed

__all__ = ["FixedInputs", "Source", "Text"]


@dataclass(frozen=True)
class Call:
    """Arguments for the model, and what to show of the positions (None: their indices)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tokens: dict[str, Any] | None


def _device(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _spared(model: nn.Module) -> dict[str, Any]:
    """What a language model need not do for the views: logits of every position, a cache for what comes next."""
    try:
        known = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # TorchScript has none
        return {}
    unneeded = {"logits_to_keep": 1, "use_cache": False}
    return {name: value for name, value in unneeded.items() if name in known}


class Text:
    """Text through a tokenizer, at most as long as the model and ``max_tokens`` allow."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def call(self, model: nn.Module, text: str | None) -> Call:
        if not text:
            raise ValueError("The text is empty: type something to explore.")
        encoded = encode(self.tokenizer, text)
        length = len(encoded.ids)
        allowed = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if isinstance(allowed, int) and length > allowed:
            raise ValueError(
                f"The text has {length:,} tokens; this model takes at most {allowed:,}. Shorten it."
            )
        if length > self.max_tokens:
            raise ValueError(
                f"The text has {length:,} tokens; the explorer's limit is {self.max_tokens:,}. "
                "Shorten it, or pass a larger max_tokens."
            )
        ids = torch.tensor([encoded.ids], device=_device(model))
        return Call((ids,), _spared(model), encoded.data())


class FixedInputs:
    """Inputs as the user gave them: a tensor, an array, a tuple of arguments or a mapping of keywords."""

    def __init__(self, inputs: Any, names: list[str] | None) -> None:
        self.inputs = inputs
        self.names = names

    def call(self, model: nn.Module, text: str | None) -> Call:
        device = _device(model)

        def place(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(value)
            return value.to(device) if isinstance(value, Tensor) else value

        inputs = self.inputs
        tokens = None if self.names is None else indexed(len(self.names), self.names)
        if isinstance(inputs, Mapping):
            return Call((), {key: place(value) for key, value in inputs.items()}, tokens)
        if isinstance(inputs, (tuple, list)):
            return Call(tuple(place(value) for value in inputs), {}, tokens)
        return Call((place(inputs),), {}, tokens)


Source = Text | FixedInputs
