"""Flex attention: scores that a user's function changes and masks, kept as functions until the operator is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.attention.replay import BLOCKED, replay
from ess_widgets.capture.interception.copier import Copier
from ess_widgets.capture.interception.replica import Uncopyable, replicate
from ess_widgets.capture.interception.tape import Leaf, Leaves, Ref
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.operators import Operator
from ess_widgets.operators._state_size import count_from_last_reader, mask_last_reader
from ess_widgets.operators.checks import leading_index

__all__ = ["Flex", "Mods", "arguments"]

_NAMES = (
    "query",
    "key",
    "value",
    "score_mod",
    "block_mask",
    "scale",
    "kernel_options",
    "score_mod_other_buffers",
    "mask_mod_other_buffers",
)


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of torch's operator behind ``flex_attention``, by name."""
    return {**dict(zip(_NAMES, args, strict=False)), **kwargs}


# Entries of masks that are in memory at once.
_CHUNK = 2**25


class _Everything:
    def __contains__(self, name: object) -> bool:
        return True


class _Keeper(Copier):
    """Copies a function with what it closes over; its tensors are noted as leaves, and shared."""

    def __init__(self, leaves: Leaves) -> None:
        super().__init__(_frozen, lambda parameter: parameter)
        self._leaves = leaves
        self.kept: dict[int, tuple[Tensor, Leaf]] = {}

    def value(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self.kept:
                self.kept[id(value)] = (value, self._leaves.keep(value))
            return value
        return super().value(value, depth)


class _Filler(Copier):
    """Copies such a function once more, with the tensors' values at the time of the call."""

    def __init__(self, kept: dict[int, tuple[Tensor, Leaf]]) -> None:
        super().__init__(lambda module: module, lambda parameter: parameter)
        self._kept = kept

    def value(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, Tensor):
            known = self._kept.get(id(value))
            return value if known is None else known[1].tensor
        return super().value(value, depth)


def _frozen(module: nn.Module) -> nn.Module:
    """A module that a function refers to, with weights of its own, which training does not change later."""
    try:
        return replicate(module, _Everything()).model
    except (Uncopyable, RecursionError):
        return module


class Mods:
    """The functions of one call, as they were at the time of the call.

    Parameters
    ----------
    leaves : Leaves
        Of the run.
    """

    def __init__(self, leaves: Leaves) -> None:
        self._leaves = leaves
        self._known: dict[tuple[int, ...], tuple[Any, _Mod]] = {}

    def keep(self, function: Any, buffers: tuple[Any, ...]) -> _Mod:
        """The same object for the same function, which layers share."""
        key = (id(function), *map(id, buffers))
        if key not in self._known:
            self._known[key] = ((function, buffers), _Mod(function, buffers, self._leaves))
        return self._known[key][1]

    def forget(self) -> None:
        for _, mod in self._known.values():
            mod.grids.clear()
        self._known.clear()


class _Mod:
    """A function of ``(batch, head, query, key)`` indices, with a score in front of them or without."""

    def __init__(self, function: Any, buffers: tuple[Any, ...], leaves: Leaves) -> None:
        keeper = _Keeper(leaves)
        self._function, self._buffers = keeper.value((function, buffers))
        self._kept = keeper.kept
        self.grids: dict[tuple[int, ...], Tensor] = {}  # while the model runs

    def over(self, b: Tensor, h: Tensor, L: int, scores: Tensor | None = None) -> Tensor:
        """Values at heads ``(n,)`` and all positions: ``(n, L, L)``; ``scores`` alike, or one for all of them."""
        function, buffers = _Filler(self._kept).value((self._function, self._buffers))
        alike = scores is not None and not scores.ndim
        args = (() if scores is None else (scores,)) + (b, h, *_positions(L, b.device))
        first = 0 if scores is None else 1
        score = (None if alike else 0,) * first
        rest = (None,) * len(buffers)
        for dims in ((None, None, None, 0), (None, None, 0, None), (0, 0, None, None)):
            function = torch.vmap(function, in_dims=score + dims + rest)
        with _getitem_of_tensors():
            result: Tensor = function(*args, *buffers)
        return result

    def allowed(self, B: int, H: int, L: int, device: torch.device, scored: bool) -> Tensor:
        """Where reading is allowed, ``(B, H, L, L)``, or ``(1, 1, L, L)`` where that is the same for all of them."""
        key = (B, H, L)
        if key not in self.grids:
            self.grids[key] = self._look(B, H, L, device, scored)
        return self.grids[key]

    def _look(self, B: int, H: int, L: int, device: torch.device, scored: bool) -> Tensor:
        b, h = (t.reshape(-1) for t in torch.meshgrid(torch.arange(B), torch.arange(H), indexing="ij"))
        blank = torch.zeros((), device=device) if scored else None
        first: Tensor | None = None
        everything: list[Tensor] = []
        step = max(1, _CHUNK // (L * L))
        for at in range(0, B * H, step):
            values = self.over(b[at : at + step].to(device), h[at : at + step].to(device), L, blank)
            alike = (
                values.stride(0) == 0
            )  # indices that make no difference: the result is expanded along them
            for dim in range(3):
                values = values.narrow(dim, 0, 1) if values.stride(dim) == 0 else values
            grid = (values > BLOCKED if values.is_floating_point() else values.bool()).expand(-1, L, L)
            first = grid[:1] if first is None else first
            if alike:
                break
            if everything or bool((grid != first).any()):
                everything = everything or [first.expand(at, L, L)]
                everything.append(grid)
        assert first is not None
        return torch.cat(everything).view(B, H, L, L) if everything else first.unsqueeze(0)


def _positions(L: int, device: torch.device) -> tuple[Tensor, Tensor]:
    position = torch.arange(L, device=device)
    return position, position


def _getitem_of_tensors() -> Any:
    """Lets ``bias[h, q - k]`` be written with indices that are tensors under ``vmap``; torch's own flex uses it."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


@dataclass(frozen=True)
class _Parts:
    """What scores are made from; ``b`` and ``h`` say which batch entries and heads are meant."""

    query: Leaf
    key: Leaf
    scale: float
    score_mod: _Mod
    mask_mod: _Mod
    b: Tensor
    h: Tensor

    def scores(self, dtype: torch.dtype) -> Tensor:
        """``(..., L, L)``, forbidden entries -inf."""
        q, k = self.query.tensor, self.key.tensor
        L, device = q.shape[-2], q.device
        b, h = self.b.reshape(-1).to(device), self.h.reshape(-1).to(device)
        at = b if k.shape[0] == q.shape[0] else torch.zeros_like(b)
        exact = dtype is torch.float64 or torch.get_float32_matmul_precision() == "highest"
        work = dtype if exact or device.type == "mps" else torch.float64
        with torch.autocast(device.type, enabled=False):
            keys = k[at, h * k.shape[1] // q.shape[1]]
            raw = ((q[b, h].to(work) * self.scale) @ keys.to(work).mT).to(dtype)
            scores = self.score_mod.over(b, h, L, raw).to(dtype)
            scores = scores.masked_fill(~self.mask_mod.over(b, h, L).bool(), -math.inf)
        return scores.reshape(*self.b.shape, L, L)


class Flex(Mixer):
    """``softmax(score_mod(scale q kᵀ), where mask_mod allows) v``, from torch's ``flex_attention``."""

    def __init__(self, leaves: Leaves, mods: Mods, call: dict[str, Any], output: Tensor) -> None:
        query, key, value = call["query"], call["key"], call["value"]
        self._v, self._y = leaves.keep(value), leaves.keep(output)
        B, H, L, _ = query.shape
        b, h = torch.meshgrid(torch.arange(B), torch.arange(H), indexing="ij")
        score_mod = mods.keep(call["score_mod"], tuple(call.get("score_mod_other_buffers", ())))
        mask_mod = mods.keep(call["block_mask"][-1], tuple(call.get("mask_mod_other_buffers", ())))
        self._parts = _Parts(
            leaves.keep(query), leaves.keep(key), float(call["scale"]), score_mod, mask_mod, b, h
        )
        self._size = (B, H, L)
        # The mask's own numbers of samples and heads: 1 where they make no difference.
        blocks = next((item for item in call["block_mask"] if isinstance(item, Tensor)), None)
        self._masks = (B, H) if blocks is None else (int(blocks.shape[0]), int(blocks.shape[1]))
        self._rows: tuple[Ref, bool] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._size

    def logsumexp(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The second result of the call, as torch's operator returns it (to the base 2), from queries and keys."""
        parts = self._parts

        def again(query: Tensor, key: Tensor) -> Tensor:
            dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
            return torch.logsumexp(parts.scores(dtype), -1) / math.log(2)

        return again

    def rescale(self, ref: Ref, divides: bool, factor: Tensor, output: Tensor, leaves: Leaves) -> bool:
        if self._rows is not None or factor.ndim != 4 or factor.shape[-2:] != (self._size[-1], 1):
            return False
        self._rows, self._y = (ref, divides), leaves.keep(output)
        return True

    def inputs(self) -> Tensor:
        value, (B, H, _) = self._v.tensor, self._size
        return value.repeat_interleave(H // value.shape[1], 1).expand(B, -1, -1, -1)

    def outputs(self) -> Tensor:
        return self._y.tensor

    @property
    def rows(self) -> tuple[int, int, int]:
        return self._size

    def arranged(self, result: Tensor) -> Tensor:
        return result

    def allowed(self) -> Tensor | None:
        B, H, L = self._size
        device = self._v.tensor.device
        mask = self._parts.mask_mod.allowed(self._masks[0], self._masks[1], L, device, scored=False)
        allowed: Tensor = mask & self._parts.score_mod.allowed(B, H, L, device, scored=True)
        return allowed

    def reads_beyond(self, valid: Tensor) -> bool:
        allowed = self.allowed()
        assert allowed is not None
        return bool((allowed.any(1).tril() & valid.unsqueeze(-1) & ~valid.unsqueeze(-2)).any())

    def future(self, valid: Tensor | None) -> Future | None:
        allowed = self.allowed()
        assert allowed is not None
        above = allowed.triu(1)
        if valid is not None:
            above = above & valid[:, None, :, None] & valid[:, None, None, :]
        if not bool(above.any()):
            return None
        return Future(tuple(int(i) for i in above.nonzero()[0]), None)

    def operator(self, valid: Tensor | None) -> Operator:
        q, k = self._parts.query.tensor, self._parts.key.tensor
        wide = torch.float64 in (q.dtype, k.dtype)
        own = None if valid is None else valid.unsqueeze(1)
        return FlexAttention(
            self._parts, torch.float64 if wide else torch.float32, q.device, own, self._state_size, self._rows
        )

    def settle(self) -> None:
        self._parts.mask_mod.grids.clear()
        self._parts.score_mod.grids.clear()

    def _state_size(self, valid: Tensor | None) -> Tensor:
        allowed = self.allowed()
        self.settle()
        assert allowed is not None
        allowed = allowed.tril()
        if valid is not None:
            allowed = allowed & valid.unsqueeze(-1) & valid.unsqueeze(-2)
        size = count_from_last_reader(mask_last_reader(allowed))
        first = size[:1, :1]
        return first[0, 0] if bool((size == first).all()) else size


class FlexAttention(Operator):
    """The operator of one call; leading dimensions are indexed before anything is computed."""

    splittable = True

    def __init__(
        self,
        parts: _Parts,
        dtype: torch.dtype,
        device: torch.device,
        valid: Tensor | None,
        state_size: Callable[[Tensor | None], Tensor],
        rows: tuple[Ref, bool] | None,
        indices: tuple[Any, ...] = (),
    ) -> None:
        self._parts, self._dtype, self._device = parts, dtype, device
        self._full_valid, self._size_of, self._rows, self._indices = valid, state_size, rows, indices
        self.valid = None if valid is None else self._indexed(valid.expand(*self._heads(), valid.shape[-1]))

    def matrix(self) -> Tensor:
        scores = self._parts.scores(self._dtype)
        if self.valid is not None:
            own = self.valid.to(scores.device)
            scores = scores.masked_fill(~(own.unsqueeze(-1) & own.unsqueeze(-2)), -math.inf)
        closed = (scores == -math.inf).all(-1, keepdim=True)
        T = torch.softmax(scores.masked_fill(closed, 0.0), -1).masked_fill(closed, 0.0)
        if self._rows is not None:
            ref, divides = self._rows
            factor = replay(ref, self._dtype)
            factor = self._indexed(factor.expand(*self._heads(), *factor.shape[-2:]))
            factor = factor.masked_fill(closed, 1.0)
            T = T / factor if divides else T * factor
        return T.to(self._device)

    @property
    def shape(self) -> torch.Size:
        L = self._parts.query.tensor.shape[-2]
        return torch.Size([*self._parts.b.shape, L, L])

    @property
    def state_size(self) -> Tensor:
        size = self._size_of(self._full_valid)
        if size.ndim == 1:
            return size.to(self._device)
        return self._indexed(size.expand(*self._heads(), size.shape[-1])).to(self._device)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: torch.device | str) -> FlexAttention:
        where = torch.device(device)
        return FlexAttention(
            self._parts, self._dtype, where, self._full_valid, self._size_of, self._rows, self._indices
        )

    def __getitem__(self, index: Any) -> FlexAttention:
        where = leading_index(index, self._parts.b.ndim)
        parts = replace(self._parts, b=self._parts.b[where], h=self._parts.h[where])
        indices = (*self._indices, where)
        return FlexAttention(
            parts, self._dtype, self._device, self._full_valid, self._size_of, self._rows, indices
        )

    def _heads(self) -> tuple[int, int]:
        q = self._parts.query.tensor
        return q.shape[0], q.shape[1]

    def _indexed(self, value: Tensor) -> Tensor:
        for where in self._indices:
            value = value[where]
        return value
