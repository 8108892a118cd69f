"""Random numbers for a run, so that nobody else's stream moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["PrivateRandom"]

_LIKE: dict[str, Any] = {"rand_like": torch.rand, "randn_like": torch.randn, "randint_like": torch.randint}


class PrivateRandom:
    """Calls torch's random functions with generators of its own, one per device, always seeded alike."""

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)  # a replica's own generators are copies already
        if name == "gumbel_softmax":
            return self._gumbel_softmax(*args, **kwargs)
        if name in ("rrelu", "rrelu_"):
            return func(*args, **{**kwargs, "training": False})
        tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        device = kwargs.get("device") or (tensor.device if tensor is not None else torch.get_default_device())
        generator = self.generator(torch.device(device))
        if name in _LIKE and tensor is not None:
            options = {"dtype": tensor.dtype, "layout": tensor.layout, "device": device, **kwargs}
            options.pop("input", None)
            options.pop("memory_format", None)
            bounds = list(args if "input" in kwargs else args[1:])
            bounds = [options.pop(key) for key in ("low",) if key in options] + bounds
            bounds += [options.pop(key) for key in ("high",) if key in options]
            return _LIKE[name](*bounds, tuple(tensor.shape), generator=generator, **options)
        return func(*args, **{**kwargs, "generator": generator})

    def generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device=device).manual_seed(0)
        return self._generators[device]

    def _gumbel_softmax(
        self, logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
    ) -> Tensor:
        noise = -torch.empty_like(logits).exponential_(generator=self.generator(logits.device)).log()
        soft = ((logits + noise) / tau).softmax(dim)
        if not hard:
            return soft
        return torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
