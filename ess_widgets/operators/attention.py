"""Softmax attention from its queries, keys and mask, formed only when the matrix is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators.checks import as_tensor, broadcast_valid, leading_index
from ess_widgets.operators._shared import Shared
from ess_widgets.operators._state_size import (
    causal_last_reader,
    count_from_last_reader,
    mask_last_reader,
)
from ess_widgets.operators.base import Operator

__all__ = ["SoftmaxAttention", "softmax_attention"]

# An additive mask at or below this means "may not read": -inf, finfo(...).min of any dtype, and the -1e4 and -1e9
# written by hand. exp(-1e4) is 0 in float64 too, so nothing is lost but rows that may read nothing at all.
_BLOCKED = -1e4


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
    """Softmax attention, ``T = softmax(scale * q kᵀ + mask)``, with the meaning of ``F.scaled_dot_product_attention``.

    Parameters
    ----------
    q : Tensor or ndarray, ``(..., Hq, L, d)`` or ``(L, d)``
        Queries, as they enter the scores (after rotary embedding, normalisation, ...).
    k : Tensor or ndarray, ``(..., Hkv, L, d)`` or ``(L, d)``
        Keys. ``Hq`` may be a multiple of ``Hkv``: key head ``h`` then serves the query heads
        ``h * Hq // Hkv`` and following, as with ``enable_gqa=True``.
    scale : float, optional
        Factor on the scores; ``1 / sqrt(d)`` by default.
    mask : Tensor or ndarray, broadcastable to ``(..., Hq, L, L)``, optional
        Boolean (True: may read) or additive. Additive entries of ``-1e4`` and less count as "may not read".
    is_causal : bool, optional
        Also forbid the future. By default True without a mask, and False with one, which then must be causal itself.
    valid : bool Tensor, broadcastable to ``(..., Hq, L)``, optional
        A sample's own tokens; padding outside neither reads nor is read.
    softcap : float, optional
        ``softcap * tanh(scores / softcap)`` before the mask (Gemma 2).
    sinks : Tensor, broadcastable to ``(..., Hq)``, optional
        One more logit per head that takes its share of each row's softmax and is then dropped (gpt-oss).

    Returns
    -------
    SoftmaxAttention
        Leading dimensions are those of ``q``. Holds references to ``q``, ``k`` and ``mask``; ``matrix()`` computes
        in float64 where ``q`` or ``k`` are, else in float32: half-precision ``q`` and ``k`` are cast up first. A row
        that may read nothing is zero. TSS counts what the mask lets later outputs read.

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
    q, k = _floating(q, "q"), _floating(k, "k")
    _check_shapes(q, k)
    if scale is None:
        scale = 1.0 / math.sqrt(q.shape[-1])
    elif not math.isfinite(scale):
        raise ValueError(f"scale must be finite, but is {scale}.")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap must be positive and finite, but is {softcap}.")
    lead, L = q.shape[:-2], q.shape[-2]
    valid = broadcast_valid(valid, q.shape[:-1], q.device)
    keys = _grouped(k, lead)
    _check_finite(q, keys, valid)

    shared_mask = None
    if mask is not None:
        mask = _checked_mask(mask, torch.Size([*lead, L, L]), q.device)
        shared_mask = Shared.broadcast(mask, lead, inner=2)
    if is_causal is None:
        is_causal = mask is None
    if not is_causal:
        _check_mask_causal(shared_mask, L)

    if sinks is not None:
        sinks = _floating(sinks, "sinks").to(q.device)
        try:
            sinks = sinks.expand(lead)
        except RuntimeError:
            raise ValueError(
                f"sinks of shape {tuple(sinks.shape)} do not broadcast to one per head, {tuple(lead)}."
            ) from None
        if not bool(torch.isfinite(sinks).all()):
            raise ValueError("sinks are not finite.")
    return SoftmaxAttention(_Parts(q, keys, shared_mask, sinks, valid, bool(is_causal), float(scale), softcap))


@dataclass(frozen=True)
class _Parts:
    """What a softmax attention is made from, all indexed by the leading dimensions of ``q``."""

    q: Tensor
    k: Shared
    mask: Shared | None
    sinks: Tensor | None
    valid: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None


class SoftmaxAttention(Operator):
    """Softmax attention that keeps queries, keys and mask until ``matrix()`` is called.

    Made by :func:`softmax_attention`, which checks its arguments.
    """

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self.valid = parts.valid

    def matrix(self) -> Tensor:
        """``T``, ``(..., L, L)``, in float64 where queries or keys are, else float32."""
        parts = self._parts
        with torch.autocast(self.device.type, enabled=False):
            scores = self._scores()
        L = scores.shape[-1]
        if parts.softcap is not None:
            scores = parts.softcap * torch.tanh(scores / parts.softcap)
        if parts.mask is not None:
            mask = parts.mask.gather()
            if mask.dtype is torch.bool:
                scores = scores.masked_fill(~mask, -math.inf)
            else:
                scores = (scores + mask).masked_fill(mask <= _BLOCKED, -math.inf)
        if parts.is_causal:
            future = torch.ones(L, L, dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        if parts.valid is not None:
            scores = scores.masked_fill(~(parts.valid.unsqueeze(-1) & parts.valid.unsqueeze(-2)), -math.inf)
        return _softmax(scores, parts.sinks)

    def _scores(self) -> Tensor:
        parts, dtype = self._parts, self.dtype
        q, k = parts.q, parts.k.gather()
        if parts.valid is not None:
            # Whatever padding holds, NaN included, must not reach the product.
            own = parts.valid.unsqueeze(-1)
            q, k = q.masked_fill(~own, 0.0), k.masked_fill(~own, 0.0)
        # A user may have set float32 products to TF32 or bf16; the scores must not feel it.
        exact = dtype is torch.float64 or torch.get_float32_matmul_precision() == "highest"
        work = dtype if exact or q.device.type == "mps" else torch.float64
        return ((q.to(work) * parts.scale) @ k.to(work).mT).to(dtype)

    @property
    def shape(self) -> torch.Size:
        q = self._parts.q
        return torch.Size([*q.shape[:-1], q.shape[-2]])

    @property
    def state_size(self) -> Tensor:
        """TSS from the mask: ``(L,)``, or ``(..., L)`` where masks or padding differ."""
        parts = self._parts
        lead, L = parts.q.shape[:-2], parts.q.shape[-2]
        if parts.mask is None:
            if parts.valid is None:
                return torch.arange(L, device=self.device)
            return count_from_last_reader(causal_last_reader(parts.valid))
        if parts.valid is None:
            size = parts.mask.map(lambda mask: _size(mask, parts.is_causal, None)).gather()
            return size if size.ndim == 1 else size.expand(*lead, L)
        valid = Shared.broadcast(parts.valid, lead, inner=1)
        return Shared.map_pairs(parts.mask, valid, lambda m, v: _size(m, parts.is_causal, v)).expand(*lead, L)

    @property
    def dtype(self) -> torch.dtype:
        wide = torch.float64 in (self._parts.q.dtype, self._parts.k.items.dtype)
        return torch.float64 if wide else torch.float32

    @property
    def device(self) -> torch.device:
        return self._parts.q.device

    def to(self, device: torch.device | str) -> SoftmaxAttention:
        parts = self._parts
        return SoftmaxAttention(
            _Parts(
                parts.q.to(device),
                parts.k.to(device),
                None if parts.mask is None else parts.mask.to(device),
                None if parts.sinks is None else parts.sinks.to(device),
                None if parts.valid is None else parts.valid.to(device),
                parts.is_causal,
                parts.scale,
                parts.softcap,
            )
        )

    def __getitem__(self, index: Any) -> SoftmaxAttention:
        parts = self._parts
        where = leading_index(index, parts.q.ndim - 2)
        return SoftmaxAttention(
            _Parts(
                parts.q[where],
                parts.k[where],
                None if parts.mask is None else parts.mask[where],
                None if parts.sinks is None else parts.sinks[where],
                None if parts.valid is None else parts.valid[where],
                parts.is_causal,
                parts.scale,
                parts.softcap,
            )
        )


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


def _allowed(mask: Tensor, is_causal: bool) -> Tensor:
    allowed = mask if mask.dtype is torch.bool else mask > _BLOCKED
    return allowed.tril() if is_causal else allowed


def _size(mask: Tensor, is_causal: bool, valid: Tensor | None) -> Tensor:
    allowed = _allowed(mask, is_causal)
    if valid is not None:
        allowed = allowed & valid.unsqueeze(-1) & valid.unsqueeze(-2)
    return count_from_last_reader(mask_last_reader(allowed))


def _floating(value: Any, name: str) -> Tensor:
    value = as_tensor(value, name)
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold real floating-point numbers, but its dtype is {value.dtype}.")
    return value


def _check_shapes(q: Tensor, k: Tensor) -> None:
    if q.device != k.device:
        raise ValueError(f"q is on {q.device} and k on {k.device}; move them to one device.")
    if q.ndim < 2 or q.ndim != k.ndim:
        raise ValueError(
            f"q and k must both be (..., heads, L, d) or (L, d), but their shapes are {tuple(q.shape)} and {tuple(k.shape)}."
        )
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"q or k is empty: their shapes are {tuple(q.shape)} and {tuple(k.shape)}.")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q has {q.shape[-1]} features and k has {k.shape[-1]}; both need the same number.")
    if q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"q has {q.shape[-2]} positions and k has {k.shape[-2]}. Effective state-size needs the square operator: "
            "run the full sequence in one forward pass, without a key-value cache (use_cache=False), and without "
            "cross-attention."
        )
    if q.ndim > 2 and (q.shape[:-3] != k.shape[:-3] or q.shape[-3] % k.shape[-3]):
        raise ValueError(
            f"the heads of q {tuple(q.shape)} and k {tuple(k.shape)} do not fit: leading dimensions must agree, and the "
            "number of query heads must be a multiple of the number of key heads."
        )


def _grouped(k: Tensor, lead: torch.Size) -> Shared:
    """Keys with an index that says which of them each query head uses."""
    if k.ndim == 2:
        return Shared(k, ())
    group = lead[-1] // k.shape[-3]
    index = torch.meshgrid(*(torch.arange(n, device=k.device) for n in lead), indexing="ij")
    return Shared(k, (*index[:-1], index[-1] // group))


def _check_finite(q: Tensor, k: Shared, valid: Tensor | None) -> None:
    bad_k = k.map(lambda x: ~torch.isfinite(x).all(dim=-1)).gather()
    for name, bad in (("q", ~torch.isfinite(q).all(dim=-1)), ("k", bad_k)):
        if valid is not None:
            bad = bad & valid
        if bool(bad.any()):
            where = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"{name} is not finite: {int(bad.sum())} of {bad.numel()} head positions hold NaN or infinity, the first "
                f"at {where}. If that is padding, say so with valid=."
            )


def _checked_mask(mask: Any, shape: torch.Size, device: torch.device) -> Tensor:
    mask = as_tensor(mask, "mask")
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"mask must be boolean (True: may read) or additive floating point, but its dtype is {mask.dtype}; "
            "for a 0/1 mask use mask.bool()."
        )
    try:
        mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not broadcast to (..., L, L) = {tuple(shape)}."
        ) from None
    mask = mask.to(device).expand(*mask.shape[:-2], *shape[-2:]) if mask.ndim >= 2 else mask.to(device).expand(shape[-2:])
    if mask.is_floating_point() and bool((torch.isnan(mask) | (mask == math.inf)).any()):
        raise ValueError("mask holds NaN or +inf; additive masks may hold finite numbers and -inf only.")
    return mask


def _check_mask_causal(mask: Shared | None, L: int) -> None:
    if mask is None:
        if L > 1:
            raise ValueError(
                "is_causal=False without a mask lets every output read the future; effective state-size needs a causal "
                "operator: leave is_causal out, or pass the causal mask."
            )
        return
    future = _allowed(mask.items, False).triu(1)
    if not bool(future.any()):
        return
    where = tuple(future.nonzero()[0].tolist())
    value = mask.items[where].item()
    raise ValueError(
        f"mask is not causal: mask{list(where)} = {value} lets output {where[-2]} read the later input {where[-1]}. "
        "If the model is causal, pass is_causal=True beside the mask; an encoder has no effective state-size."
    )
