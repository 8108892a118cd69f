"""Lightning attention as MiniMax writes it: blocks inline in a module, seen through the modules inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ess_widgets.capture.reading import ModuleCall, ModuleRecogniser, Reading
from ess_widgets.operators import Operator, lightning_attention

__all__ = ["MODULES"]

_TENSORS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
_SIZES = ("num_attention_heads", "head_dim")


def _fits(module: nn.Module) -> bool:
    return (
        all(isinstance(getattr(module, name, None), Tensor) for name in _TENSORS)
        and all(isinstance(getattr(module, name, None), int) for name in _SIZES)
        and hasattr(module, "act_fn")
        and isinstance(getattr(module, "norm", None), nn.Module)
    )


def _read(call: ModuleCall) -> Reading | str:
    module: Any = call.module
    heads, width = module.num_attention_heads, module.head_dim
    activated, normed = call.children.get("act_fn"), call.children.get("norm")
    qkv = None if activated is None else activated.output
    mixed = None if normed is None else normed.input
    if qkv is None or mixed is None or qkv.ndim != 3 or qkv.shape[-1] != 3 * heads * width:
        return "its act_fn and norm were expected to be given (batch, L, channels)"
    batch, L, _ = qkv.shape
    mask = call.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == (batch, L) and batch > 1:
        qkv = qkv * mask.unsqueeze(-1).to(qkv.dtype)  # a batch of one is left as it is there
    q, k, v = qkv.view(batch, L, heads, 3 * width).transpose(1, 2).chunk(3, dim=-1)
    y = mixed.view(batch, L, heads, width).transpose(1, 2)
    if _continues(q, k, v, y):
        return "it goes on from an earlier state; run the full sequence in one call"
    tensors = {"q": q, "k": k, "v": v, "y": y, "slope": module.slope_rate}

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        return lightning_attention(t["q"], t["k"], t["slope"].reshape(-1), scale=1.0, valid=valid)

    return Reading(
        "linear attention", (batch, heads, L), tensors, operator, lambda t: t["v"], lambda t: t["y"]
    )


def _continues(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> bool:
    """Whether the first output reads anything but the first input; the cache that says so is overwritten by now."""
    q, k, v, y = (x[:, :, 0].double() for x in (q, k, v, y))
    size = (q.abs() * k.abs()).sum(-1, keepdim=True) * v.abs()
    difference = (y - (q * k).sum(-1, keepdim=True) * v).abs()
    return bool((difference > 1e-2 * size + 1e-6 * size.max()).any())


MODULES = (ModuleRecogniser(_fits, _read, exclusive=True),)
