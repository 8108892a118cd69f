"""Running a module's copy again in float64, without dropout and without anybody's random numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ess_widgets.capture.attention import dot_product, multihead
from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.guard import Guard
from ess_widgets.capture.interception.randomness import PrivateRandom
from ess_widgets.capture.interception.replica import Replica
from ess_widgets.capture.interception.tape import map_tree

__all__ = ["Rerun", "cast", "widen"]

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
_LARGEST = torch.finfo(torch.float32).max
# Methods that name a type, and what they are in float64.
_CASTS = {
    "float": torch.float64,
    "half": torch.float64,
    "bfloat16": torch.float64,
    "cfloat": torch.complex128,
}
_DROPOUTS = frozenset(
    f"{kind}dropout{suffix}"
    for kind in ("", "alpha_", "feature_", "feature_alpha_")
    for suffix in ("", "_", "1d", "2d", "3d")
)


class Rerun(TorchFunctionMode):
    """Interception of one forward pass that is to be differentiated.

    Parameters
    ----------
    wide : bool
        Whether to keep everything in float64: a module's own casts to narrower types are not followed.
    guard : Guard, optional
        Refuses writing to weights, and weights of the original.

    Attributes
    ----------
    largest : int
        Number of entries of the largest tensor that a call returned.
    """

    def __init__(self, wide: bool, guard: Guard | None = None) -> None:
        super().__init__()
        self.largest = 0
        self._wide, self._guard = wide, guard
        self._random = PrivateRandom()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        if self._guard is not None:
            self._guard.check(args, kwargs)
            if calls.writes(name, kwargs) or name in ("embedding", "embedding_bag"):
                self._guard.before_write(name, args, kwargs)
        if name in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if self._wide:
            if name in _CASTS:
                return args[0].to(_CASTS[name])
            args, kwargs = _wide_types(args), _wide_types(kwargs)
        if name in calls.RANDOM:
            result = self._random(func, name, args, kwargs)
        elif name == "scaled_dot_product_attention":
            result = _attention(dot_product.arguments(args, kwargs))
        elif name == "multi_head_attention_forward":
            result = _heads(func, multihead.arguments(args, kwargs))
        else:
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
            # A constant that the module made in the default type.
            if self._wide and result.dtype in _WIDE and name not in ("view", "detach"):
                result = result.to(_WIDE[result.dtype])
        return result


def widen(replica: Replica) -> None:
    """Turn a copy's parameters, buffers and other tensors to float64; the original keeps its own.

    Raises
    ------
    TypeError
        Where a parameter is of a kind of its own (quantised, sharded), so that the copy shares it.
    """
    for parameter in replica.stand_ins():
        if parameter.dtype in _WIDE and not parameter.is_complex():
            if type(parameter) is not nn.Parameter or parameter.is_meta:
                raise TypeError(f"a parameter of type {type(parameter).__name__} cannot be cast")
            parameter.data = parameter.detach().to(torch.float64)
    for module in replica.model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = cast(buffer)
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                module.__dict__[name] = cast(value)


def cast(tree: Any) -> Any:
    """Arguments with float64 in place of narrower floats."""
    return map_tree(
        tree,
        lambda item: item.to(_WIDE[item.dtype]) if isinstance(item, Tensor) and item.dtype in _WIDE else item,
    )


def _wide_types(tree: Any) -> Any:
    if isinstance(tree, torch.dtype):
        return _WIDE.get(tree, tree)
    if type(tree) is float and _LARGEST < abs(tree) < math.inf:
        # finfo(dtype).min of a mask: two of them must not add up to an infinity that the model does not have.
        return math.copysign(_LARGEST, tree)
    if type(tree) in (tuple, list):
        return type(tree)(_wide_types(item) for item in tree)
    if type(tree) is dict:
        return {key: _wide_types(item) for key, item in tree.items()}
    return tree


def _attention(call: dict[str, Any]) -> Tensor:
    """Attention in plain products: its derivatives need no kernel of their own."""
    q, k, v, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    if k.ndim > 2 and q.ndim > 2 and k.shape[-3] != q.shape[-3]:  # shared keys and values
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
    scale = call.get("scale")
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if call.get("is_causal"):
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~causal, -math.inf)
    if mask is None:
        plain: Tensor = scores.softmax(-1) @ v
        return plain
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    # torch returns zeros for a query that may read nothing.
    empty = scores.eq(-math.inf).all(-1, keepdim=True)
    mixed: Tensor = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0) @ v
    return mixed


def _heads(func: Any, call: dict[str, Any]) -> Any:
    """The same from the branch that returns weights, which is made of plain products."""
    output, weights = func(**{**call, "need_weights": True, "training": False})
    if not call["need_weights"]:
        weights = None
        if bool(output.isnan().any()):  # a query that may read nothing; the other branch returns zeros
            return func(**{**call, "training": False})
    return output, weights
