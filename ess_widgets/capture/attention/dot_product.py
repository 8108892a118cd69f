"""Attention from queries, keys and a mask: ``scaled_dot_product_attention`` and what can be written as it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ess_widgets.capture.attention.layout import Layout
from ess_widgets.capture.interception.tape import Leaf, Leaves
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.operators import Operator, softmax_attention

__all__ = ["DotProduct", "arguments"]

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_BLOCKED = -1e4


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``scaled_dot_product_attention``, by name."""
    return {**dict(zip(_NAMES, args, strict=False)), **kwargs}


class DotProduct(Mixer):
    """``softmax(scale q kᵀ + mask) v``, keeping references to ``q``, ``k``, ``v``, the mask and the result."""

    def __init__(
        self,
        leaves: Leaves,
        layout: Layout,
        *,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        sinks: Tensor | None = None,
    ) -> None:
        self._layout = layout
        self._q, self._k, self._v, self._y = (leaves.keep(t) for t in (query, key, value, output))
        self._mask: Leaf | None = None if mask is None else leaves.keep(mask)
        self._is_causal = is_causal
        self._scale = scale
        self._sinks = sinks

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self._layout.shape, self._q.tensor.shape[-2])

    def inputs(self) -> Tensor:
        return self._layout.apply(self._shared(self._v.tensor), 2)

    def outputs(self) -> Tensor:
        return self.arranged(self._y.tensor)

    # What is asked where this is a chunk of the queries, or one of two maps.

    @property
    def rows(self) -> tuple[int, int, int]:
        return self.shape

    def arranged(self, result: Tensor) -> Tensor:
        return self._layout.apply(result, 2)

    def value(self) -> Tensor:
        return self._v.tensor

    def key_axis(self) -> int:
        return self._v.tensor.ndim - 2

    def weights(self) -> Tensor:
        q, k = self._layout.apply(self._q.tensor, 2), self._layout.apply(self._shared(self._k.tensor), 2)
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.float32)
        scale = 1 / math.sqrt(q.shape[-1]) if self._scale is None else self._scale
        with torch.autocast(q.device.type, enabled=False):
            scores = (q.to(dtype) * scale) @ k.to(dtype).mT
            mask = self.mask()
            if mask is not None and mask.dtype is not torch.bool:
                scores = scores + mask.to(dtype)
            scores = scores.masked_fill(~self.readable(), -math.inf)
            closed = (scores == -math.inf).all(-1, keepdim=True)
            return scores.masked_fill(closed, 0.0).softmax(-1).masked_fill(closed, 0.0)

    def readable(self) -> Tensor:
        allowed = self.allowed()
        if allowed is None:  # causal: torch lets the first query read the first key, whatever their numbers
            return torch.ones(self._square(), dtype=torch.bool, device=self._q.tensor.device).tril()
        return allowed

    def _square(self) -> tuple[int, int]:
        return self._q.tensor.shape[-2], self._k.tensor.shape[-2]

    def mask(self) -> Tensor | None:
        """The mask as given, ``(batch or 1, groups or 1, L, L)``."""
        if self._mask is None:
            return None
        mask, lead, square = self._mask.tensor, self._layout.lead, self._square()
        if all(size == 1 for size in mask.shape[:-2]):
            return mask.expand(*mask.shape[:-2], *square).reshape(1, 1, *square)
        if self._layout.plain and mask.ndim <= 4:
            mask = mask.expand(*mask.shape[:-2], *square)
            return mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
        return self._layout.apply(mask.expand(*lead, *square), 2)

    def allowed(self) -> Tensor | None:
        mask = self.mask()
        if mask is None:
            if self._is_causal:
                return None
            return torch.ones(1, 1, *self._square(), dtype=torch.bool, device=self._q.tensor.device)
        allowed = mask if mask.dtype is torch.bool else mask > _BLOCKED
        return allowed.tril() if self._is_causal else allowed

    def reads_beyond(self, valid: Tensor) -> bool:
        allowed = self.allowed()
        if allowed is None:  # causal: padding that comes before own tokens is read
            return bool((valid & ((~valid).cumsum(-1) > 0)).any())
        return bool((allowed.any(1).tril() & valid.unsqueeze(-1) & ~valid.unsqueeze(-2)).any())

    def future(self, valid: Tensor | None) -> Future | None:
        allowed = self.allowed()
        if allowed is None:
            return None
        above = allowed.triu(1)
        if valid is not None:
            above = above & valid[:, None, :, None] & valid[:, None, None, :]
        if not bool(above.any()):
            return None
        return Future(tuple(int(i) for i in above.nonzero()[0]), None)

    def operator(self, valid: Tensor | None) -> Operator:
        q, k = self._q.tensor, self._k.tensor
        if self._layout.plain and q.ndim == 4 and k.shape[0] == q.shape[0] and q.shape[1] % k.shape[1] == 0:
            pass  # (batch, heads, L, d) already, with the keys' own number of heads
        else:
            q, k = self._layout.apply(q, 2), self._layout.apply(self._shared(k), 2)
        # At the own tokens the mask was found causal; padding rows of it may be open to the future.
        return softmax_attention(
            q,
            k,
            scale=self._scale,
            mask=self.mask(),
            is_causal=True,
            valid=None if valid is None else valid.unsqueeze(1),
            sinks=self._sinks,
        )

    def settle(self) -> None:
        """Nothing but references is kept anyway."""

    def _shared(self, tensor: Tensor) -> Tensor:
        """Keys or values with as many heads as there are queries'."""
        lead = self._layout.lead
        if lead and tensor.ndim >= 3 and tensor.shape[-3] not in (1, lead[-1]):
            repeats = lead[-1] // tensor.shape[-3]
            tensor = (
                tensor.unsqueeze(-3).expand(*tensor.shape[:-2], repeats, *tensor.shape[-2:]).flatten(-4, -3)
            )
        return tensor.expand(*lead, *tensor.shape[-2:])
