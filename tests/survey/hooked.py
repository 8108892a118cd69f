"""Whether what capture calls a mixer's output is a tensor that plain hooks see in the model's own forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Seen", "watching"]


class Seen:
    """What the modules inside the mixers were given and returned."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def add(self, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (3, 4):
            self._tensors.append(value.detach().clone())
        elif isinstance(value, tuple | list):
            for item in value:
                self.add(item)

    def holds(self, outputs: Tensor) -> bool:
        """Whether ``(batch, groups, L, width)`` is among them, groups and widths joined, in any usual layout."""
        batch, groups, length, width = outputs.shape
        by_token = outputs.transpose(1, 2).reshape(batch, length, groups * width)
        forms = [by_token, by_token.mT, outputs, outputs.transpose(1, 2)]
        return any(_same(form, tensor) for form in forms for tensor in self._tensors)


def _same(form: Tensor, tensor: Tensor) -> bool:
    if form.ndim == 3 and tensor.ndim == 3 and tensor.shape[1:2] == form.shape[1:2]:
        tensor = tensor[..., : form.shape[2]]  # a causal convolution that was padded at both ends
    return form.shape == tensor.shape and torch.allclose(form.to(tensor.dtype), tensor, atol=1e-6, rtol=1e-5)


@contextmanager
def watching(mixers: Iterable[nn.Module]) -> Iterator[Seen]:
    """Hooks on every module below the mixers and on themselves."""
    seen = Seen()

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen.add(args)
        seen.add(output)

    parts = {id(part): part for mixer in mixers for part in mixer.modules()}
    handles = [part.register_forward_hook(hook) for part in parts.values()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
