"""What fused calls of Mamba and of Mamba-2 have in common: the short convolution in front of the scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.capture.reading import Reading
from ess_widgets.operators import Convolution, Operator, short_convolution

__all__ = ["PACKED", "Kept", "Parts", "activated", "convolved", "short_inside"]

PACKED = "documents are packed into one sequence inside a fused kernel; pass them one by one"
Kept = Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """What a mixer computes on its way.

    Attributes
    ----------
    short : Tensor
        Input of the short convolution, ``(batch, channels, L)``.
    u : Tensor, ``(batch, groups, L, width)``
    step : Tensor, ``(batch, groups, L)``
        Δ.
    B, C : Tensor
        In the layout of :func:`s6` or :func:`ssd_heads`.
    """

    short: Tensor
    u: Tensor
    step: Tensor
    B: Tensor
    C: Tensor


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The causal convolution without its activation, ``x`` ``(batch, channels, L)``, ``weight`` ``(channels, K)``."""
    precision = torch.promote_types(x.dtype, torch.float32)
    weight = weight.reshape(weight.shape[0], 1, -1).to(precision)
    bias = None if bias is None else bias.to(precision)
    reach = weight.shape[-1] - 1
    return F.conv1d(x.to(precision), weight, bias, padding=reach, groups=x.shape[-2])[..., : x.shape[-1]]


def activated(x: Tensor, t: Kept) -> Tensor:
    return F.silu(convolved(x, t["conv_weight"], t["conv_bias"])).to(x.dtype)


def short_inside(kept: dict[str, Any], shape: tuple[int, int, int], x: Callable[[Kept], Tensor]) -> Reading:
    """The convolution inside a fused call, whose result nobody sees: ``y`` is torch's own, of the same weights."""
    batch, _, L = shape

    def operator(t: Kept, valid: Tensor | None) -> Operator:
        kernel = short_convolution(t["conv_weight"], L).kernel
        return Convolution(kernel.expand(batch, -1, -1), length=L, valid=valid)

    def outputs(t: Kept) -> Tensor:
        return convolved(x(t), t["conv_weight"], None).unsqueeze(-1)

    names = ("xz", "projected", "conv_weight", "A", "head_width")
    return Reading(
        "convolution",
        shape,
        {name: kept[name] for name in names if name in kept},
        operator,
        lambda t: x(t).unsqueeze(-1),
        outputs,
        name=".conv1d",
        group="channel",
        computed=lambda t: x(t).unsqueeze(-1),
    )
