"""Checks and preparation that the constructors of the delta-rule family share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators._arguments import cast_up, check_finite, check_range, expand_heads, silence
from ess_widgets.operators._attention_checks import check_number, floating
from ess_widgets.operators.checks import as_tensor, broadcast_valid

__all__ = ["Inputs", "default_scale", "unit"]

_LOG_DECAY = (
    "it is the logarithm of a decay, at most 0; pass decay.log() for decays between 0 and 1, "
    "and mind the order of the arguments."
)


class Inputs:
    """Queries, keys and gates of one operator: checked against each other, cast up, padding silenced.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., L, d_k)`` and ``(..., steps * L, d_k)``
        They fix ``L`` and ``d_k``.
    gates : iterable of (value, int)
        The other arguments, and how many of their dimensions follow that of heads: where they have more
        heads than ``q`` and ``k``, each of those serves a group of heads.
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
    steps : int
        Keys per position.
    names : tuple of str
        What the caller calls ``q`` and ``k``.
    """

    def __init__(
        self,
        q: Any,
        k: Any,
        *gates: tuple[Any, int],
        valid: Any = None,
        steps: int = 1,
        names: tuple[str, str] = ("q", "k"),
    ) -> None:
        q, k = floating(q, names[0]), floating(k, names[1])
        shapes = f"{names[0]} has shape {tuple(q.shape)} and {names[1]} {tuple(k.shape)}"
        if q.ndim < 2 or k.ndim < 2:
            raise ValueError(f"{names[0]} and {names[1]} must be (..., L, d_k), but {shapes}.")
        if 0 in q.shape or 0 in k.shape:
            raise ValueError(f"{names[0]} and {names[1]} must not be empty, but {shapes}.")
        self.L, self.d, self.device = int(q.shape[-2]), int(q.shape[-1]), q.device
        self._fits = f"to fit {names[0]}, whose shape is {tuple(q.shape)}"
        self._heads = max(_heads(value, inner) for value, inner in ((q, 2), (k, 2), *gates))
        self._lead: tuple[int, ...] = ()
        self.valid: Tensor | None = None
        if valid is not None:
            valid = as_tensor(valid, "valid").to(self.device)
            broadcast_valid(valid, torch.Size([*valid.shape[:-1], self.L]), self.device)
            self._widen(valid.shape[:-1], "valid")
            self.valid = valid.expand(*valid.shape[:-1], self.L)
        self.q = self._finite(q, names[0], self.L, self.d)
        self.k = self._finite(k, names[1], self.L * steps, self.d)

    def per_feature(self, value: Any, name: str) -> Tensor:
        """One number per position and feature, ``(..., L, d_k)``."""
        return self._finite(value, name, self.L, self.d)

    def per_position(self, value: Any, name: str, *, steps: int = 1) -> Tensor:
        """One number per position, ``(..., L)`` (``(..., steps * L)`` with several keys each)."""
        return self._finite(value, name, self.L * steps)

    def per_head(self, value: Any, name: str) -> Tensor:
        """A number, or one per head, as a tensor that broadcasts against ``(..., L, d_k)``."""
        if isinstance(value, int | float):
            return self.q.new_tensor(check_number(value, name))
        return self._finite(value, name)[..., None, None]

    def decay(self, g: Any, name: str, *, features: bool = False) -> Tensor:
        """``exp(g)``, ``(..., L, d_k)`` or ``(..., L, 1)``; a log-decay of ``-inf`` is a full reset."""
        value = self._take(g, name, self.L, self.d) if features else self._take(g, name, self.L)
        check_range(value, name, -torch.inf, 0.0, _LOG_DECAY)
        return value.exp() if features else value.exp()[..., None]

    def _finite(self, value: Any, name: str, *sizes: int) -> Tensor:
        tensor = self._take(value, name, *sizes)
        check_finite(tensor, name)
        return tensor

    def _take(self, value: Any, name: str, *sizes: int) -> Tensor:
        """Check the shape ``(..., *sizes)``, share among heads, cast up, silence padding."""
        x = floating(value, name)
        if x.device != self.device:
            raise ValueError(f"{name} is on {x.device} and the rest on {self.device}; use one device.")
        inner = len(sizes)
        if tuple(x.shape[max(0, x.ndim - inner) :]) != sizes:
            wanted = ", ".join(["...", *map(str, sizes)])
            raise ValueError(
                f"{name} must have the shape ({wanted}) {self._fits}, but its shape is {tuple(x.shape)}."
            )
        x = expand_heads(x, self._heads, inner)
        self._widen(x.shape[: x.ndim - inner], name)
        x = cast_up(x)
        if self.valid is None or not inner:
            return x
        steps = sizes[0] // self.L
        own = self.valid if steps == 1 else self.valid.repeat_interleave(steps, dim=-1)
        return silence(x, own, inner=inner - 1)

    def _widen(self, lead: torch.Size, name: str) -> None:
        try:
            self._lead = np.broadcast_shapes(self._lead, lead)
        except ValueError:
            raise ValueError(
                f"the leading dimensions {tuple(lead)} of {name} do not broadcast with those of the other "
                f"arguments, {self._lead}: they are (batch, heads) for all, or 1 where shared."
            ) from None


def default_scale(scale: Any, d: int) -> float:
    """The factor on the queries: ``1 / sqrt(d_k)`` unless given."""
    return float(d**-0.5) if scale is None else check_number(scale, "scale")


def unit(x: Tensor, eps: Any) -> Tensor:
    """``x / sqrt(|x|² + eps)`` over features, the way layers of this family normalise in their kernels."""
    eps = check_number(eps, "norm_eps")
    if eps < 0:
        raise ValueError(f"norm_eps must not be negative, but is {eps}.")
    length = (x.square().sum(dim=-1, keepdim=True) + eps).sqrt()
    # A zero vector stays zero where eps is 0 too.
    normalised: Tensor = x / length.where(length > 0, 1.0)
    return normalised


def _heads(value: Any, inner: int) -> int:
    shape = getattr(value, "shape", ())
    return int(shape[-inner - 1]) if len(shape) > inner else 1
