"""Convolutions along the sequence that read nothing of the future."""

from __future__ import annotations

from typing import Any

from torch import nn

from . import static
from .families import Guess, Place

__all__ = ["convolution", "gated_convolution"]


def convolution(place: Place) -> Guess | None:
    """``nn.Conv1d``; no mixer of one where its kernel is one step wide or reads the future."""
    if not static.descends(type(place.module), nn.Conv1d):
        return None
    own = static.instance_dict(place.module)
    kernel, padding, dilation, stride = (
        _first(dict.get(own, name)) for name in ("kernel_size", "padding", "dilation", "stride")
    )
    if kernel is None or kernel < 2 or stride != 1:
        return Guess("")
    reach = (kernel - 1) * (dilation or 1)
    named = "causal" in place.kind or (place.parent is not None and "causal" in place.parent.kind)
    if padding != reach and not (named and padding == 0):
        return Guess("")
    channels, groups = place.number("out_channels"), place.number("groups")
    depthwise = groups == channels == place.number("in_channels")
    return Guess("convolution", "channel" if depthwise else "layer", channels if depthwise else 1, reach if depthwise else None)  # fmt: skip


def gated_convolution(place: Place) -> Guess | None:
    """LFM2's: a depthwise convolution between two gates, one mixer."""
    if place.children != {"conv", "in_proj", "out_proj"}:
        return None
    conv = static.attribute(place.module, "conv")
    found = convolution(Place(conv, f"{place.path}.conv", place))
    into, channels = place.shape("in_proj"), static.number(conv, "in_channels")
    fits = found is not None and found.group == "channel" and into and channels and into[0] == 3 * channels
    return found if fits else None


def _first(value: Any) -> int | None:
    if type(value) is tuple and len(value) == 1:
        value = value[0]
    return value if type(value) is int else None
