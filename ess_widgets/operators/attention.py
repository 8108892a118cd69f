"""Softmax attention from its queries, keys and mask, formed only when the matrix is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._attention_checks import (
    BLOCKED,
    check_finite,
    check_mask,
    check_mask_causal,
    check_number,
    check_shapes,
    check_sinks,
    floating,
)
from ess_widgets.operators._shared import Shared
from ess_widgets.operators._state_size import causal_last_reader, count_from_last_reader, mask_last_reader
from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import broadcast_valid, leading_index

__all__ = ["SoftmaxAttention", "softmax_attention"]


def softmax_attention(
    q: Any,
    k: Any,
    *,
    scale: float | None = None,
    mask: Any = None,
    is_causal: bool | None = None,
    valid: Any = None,
    softcap: float | None = None,
    sinks: Any = None,
) -> SoftmaxAttention:
    """Softmax attention, ``T = softmax(scale * q kᵀ + mask)``, as in ``F.scaled_dot_product_attention``.

    Parameters
    ----------
    q : Tensor or ndarray, ``(..., Hq, L, d)`` or ``(L, d)``
        Queries, as they enter the scores (after rotary embedding, normalisation, ...).
    k : Tensor or ndarray, ``(..., Hkv, L, d)`` or ``(L, d)``
        Keys. ``Hq`` may be a multiple of ``Hkv``: query head ``h`` then uses key head ``h * Hkv // Hq``, as
        with ``enable_gqa=True``.
    scale : float, optional
        Factor on the scores; ``1 / sqrt(d)`` by default.
    mask : Tensor or ndarray, broadcastable to ``(..., Hq, L, L)``, optional
        Boolean (True: may read) or additive. Additive entries of ``-1e4`` and less count as "may not read".
    is_causal : bool, optional
        Also forbid the future. By default True without a mask, and False with one, which must then be causal.
    valid : bool Tensor, broadcastable to ``(..., Hq, L)``, optional
        A sample's own tokens; padding outside neither reads nor is read.
    softcap : float, optional
        ``softcap * tanh(scores / softcap)`` before the mask (Gemma 2).
    sinks : Tensor, broadcastable to ``(..., Hq)``, optional
        One more logit per head that takes its share of each row's softmax and is then dropped (gpt-oss).

    Returns
    -------
    SoftmaxAttention
        Leading dimensions are those of ``q``. It refers to ``q``, ``k`` and ``mask`` and forms nothing larger
        before ``matrix()``, which computes in float64 where ``q`` or ``k`` are, else in float32: ``q`` and
        ``k`` in half precision are cast up first. A row that may read nothing is zero. TSS counts the past
        inputs that an output at or after the position may read.

    Raises
    ------
    TypeError
        If ``q``, ``k`` or ``mask`` are not tensors of a fitting kind.
    ValueError
        If shapes do not fit, values are not finite, or the mask lets an output read a later input.

    Examples
    --------
    >>> import torch
    >>> op = softmax_attention(torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8))
    >>> op
    SoftmaxAttention(shape=(1, 4, 3, 3), dtype=float32, device=cpu)
    >>> op[0, 0].matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]])
    """
    q, k = floating(q, "q"), floating(k, "k")
    check_shapes(q, k)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else check_number(scale, "scale")
    if softcap is not None:
        softcap = check_number(softcap, "softcap", positive=True)
    lead, L = q.shape[:-2], q.shape[-2]
    valid = broadcast_valid(valid, q.shape[:-1], q.device)
    keys = _grouped(k, lead)
    check_finite(q, keys, valid)
    if is_causal is None:
        is_causal = mask is None
    shared = None
    if mask is not None:
        shared = Shared.broadcast(check_mask(mask, torch.Size([*lead, L, L]), q.device), lead, inner=2)
    if not is_causal:
        check_mask_causal(shared, L)
    if sinks is not None:
        sinks = check_sinks(sinks, lead, q.device)
    return SoftmaxAttention(_Parts(q, keys, shared, sinks, valid, bool(is_causal), scale, softcap))


@dataclass(frozen=True)
class _Parts:
    """What a softmax attention is made from; tensors are indexed by the leading dimensions of ``q``."""

    q: Tensor
    k: Shared
    mask: Shared | None
    sinks: Tensor | None
    valid: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None

    def each(self, f: Callable[[Any], Any]) -> _Parts:
        """Apply ``f`` to whatever holds values."""
        names = ("q", "k", "mask", "sinks", "valid")
        return replace(self, **{name: f(part) for name in names if (part := getattr(self, name)) is not None})


class SoftmaxAttention(Operator):
    """Softmax attention that keeps queries, keys and mask until ``matrix()`` is called.

    Made by :func:`softmax_attention`, which checks its arguments.
    """

    splittable = True

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self.valid = parts.valid

    def matrix(self) -> Tensor:
        """``T``, ``(..., L, L)``, in float64 where queries or keys are, else in float32."""
        parts = self._parts
        scores = self._scores()
        if parts.softcap is not None:
            scores = parts.softcap * torch.tanh(scores / parts.softcap)
        if parts.mask is not None:
            mask = parts.mask.gather()
            if mask.dtype is torch.bool:
                scores = scores.masked_fill(~mask, -math.inf)
            else:
                scores = (scores + mask.to(scores.dtype)).masked_fill(mask <= BLOCKED, -math.inf)
        if parts.is_causal:
            square = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(square.triu(1), -math.inf)
        if parts.valid is not None:
            own = parts.valid.unsqueeze(-1) & parts.valid.unsqueeze(-2)
            scores = scores.masked_fill(~own, -math.inf)
        return _softmax(scores, parts.sinks)

    def _scores(self) -> Tensor:
        parts, dtype = self._parts, self.dtype
        q, k = parts.q, parts.k.gather()
        if parts.valid is not None:
            # Whatever padding holds, NaN included, must not reach the product.
            own = parts.valid.unsqueeze(-1)
            q, k = q.masked_fill(~own, 0.0), k.masked_fill(~own, 0.0)
        # Autocast, or float32 products set to TF32 or bf16, would cost the digits that this is about.
        exact = dtype is torch.float64 or torch.get_float32_matmul_precision() == "highest"
        work = dtype if exact or q.device.type == "mps" else torch.float64
        with torch.autocast(q.device.type, enabled=False):
            scores: Tensor = (q.to(work) * parts.scale) @ k.to(work).mT
        return scores.to(dtype)

    @property
    def shape(self) -> torch.Size:
        q = self._parts.q
        return torch.Size([*q.shape[:-1], q.shape[-2]])

    @property
    def state_size(self) -> Tensor:
        """TSS from the mask: ``(L,)``, or ``(..., L)`` where masks or padding differ."""
        parts = self._parts
        lead, L = parts.q.shape[:-2], parts.q.shape[-2]
        if parts.mask is None and parts.valid is None:
            return torch.arange(L, device=self.device)
        if parts.mask is None:
            assert parts.valid is not None
            return count_from_last_reader(causal_last_reader(parts.valid))
        if parts.valid is None:
            size = parts.mask.map(_state_size).gather()
            return size if size.ndim == 1 else size.expand(*lead, L)
        valid = Shared.broadcast(parts.valid, lead, inner=1)
        return Shared.map_pairs(parts.mask, valid, _state_size).expand(*lead, L)

    @property
    def dtype(self) -> torch.dtype:
        wide = torch.float64 in (self._parts.q.dtype, self._parts.k.items.dtype)
        return torch.float64 if wide else torch.float32

    @property
    def device(self) -> torch.device:
        return self._parts.q.device

    def to(self, device: torch.device | str) -> SoftmaxAttention:
        return SoftmaxAttention(self._parts.each(lambda part: part.to(device)))

    def __getitem__(self, index: Any) -> SoftmaxAttention:
        where = leading_index(index, self._parts.q.ndim - 2)
        return SoftmaxAttention(self._parts.each(lambda part: part[where]))


def _grouped(k: Tensor, lead: torch.Size) -> Shared:
    """Keys with an index that says which of them each query head uses."""
    if not lead:
        return Shared(k, ())
    *outer, head = torch.meshgrid(*(torch.arange(n, device=k.device) for n in lead), indexing="ij")
    return Shared(k, (*outer, head // (lead[-1] // k.shape[-3])))


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over inputs, with zero rows where nothing may be read and an optional share for the sink."""
    top = scores.amax(dim=-1, keepdim=True)
    if sinks is not None:
        sink = sinks.to(scores.dtype)[..., None, None]
        top = torch.maximum(top, sink)
    top = top.masked_fill(top == -math.inf, 0.0)
    weights = torch.exp(scores - top)
    total = weights.sum(dim=-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sink - top)
    return weights / total.masked_fill(total == 0, 1.0)


def _state_size(mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """TSS under a mask; entries above the diagonal make no difference to it."""
    allowed = mask if mask.dtype is torch.bool else mask > BLOCKED
    if valid is not None:
        allowed = allowed & valid.unsqueeze(-1) & valid.unsqueeze(-2)
    return count_from_last_reader(mask_last_reader(allowed))
