"""Mixers with a state of fixed size, told by their attributes first and by the names of their classes then."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from . import static

__all__ = ["AHEAD", "FAMILIES", "HEADS", "Guess", "Place"]

AHEAD = "bidirectional attention"

HEADS = (
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "n_head",
    "heads",
    "nheads",
    "num_v_heads",
    "n_heads_q",
)


@dataclass(frozen=True)
class Guess:
    """What a module seems to be; no family: certainly no mixer of one sequence."""

    family: str
    group: str = "head"
    count: int | None = None
    state: int | None = None
    grows: bool = False


@dataclass(frozen=True)
class Place:
    """A module, its path and the one that holds it."""

    module: Any
    path: str
    parent: Place | None

    @property
    def kind(self) -> str:
        """The name of the class, in lower case."""
        return static.kind_name(type(self.module)).lower()

    @property
    def crosses(self) -> bool:
        """Whether its queries read another sequence."""
        name = self.path.rpartition(".")[2].lower()
        return (
            any(word in text for text in (name, self.kind) for word in ("cross", "encdec"))
            or name in ("encoder_attn", "encoder_attention", "multihead_attn")
            or dict.get(static.instance_dict(self.module), "is_cross_attention") is True
        )

    def number(self, *names: str) -> int | None:
        """An integer of the module or of its config."""
        return static.number(self.module, *names)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or of the weight of a child."""
        value = static.attribute(self.module, name)
        if static.is_module(value):
            value = static.attribute(value, "weight")
        size = static.size(value) if static.tensor(value) else None
        return None if size is None else size[0]

    def has(self, *names: str) -> bool:
        """Whether all of these are there."""
        found = [static.attribute(self.module, name) for name in names]
        return all(value is not None and value is not static.MISSING for value in found)

    @property
    def children(self) -> set[str]:
        """The names of what is inside."""
        return {name for name, _ in static.part(self.module, "_modules")}

    @property
    def heads(self) -> int | None:
        """How many heads it says to have."""
        return self.number(*HEADS)


def _keys(place: Place) -> int | None:
    """Features of a key: what a state of a head holds for each channel."""
    found = place.number(
        "head_k_dim", "head_qk_dim", "key_head_dim", "state", "d_state", "d_k", "head_dim", "head_size"
    )
    if found is None and place.heads:
        for name in ("k_proj", "k"):
            shape = place.shape(name)
            if shape:
                return shape[0] // place.heads
    return found


def _ssm(place: Place) -> Guess | None:
    shape = place.shape("A_log")
    if (
        shape is None
        or "delta" in place.kind
        or not (place.has("in_proj") or place.has("x_proj") or place.has("D"))
    ):
        return None
    if len(shape) > 1:  # each channel by itself; Zamba keeps channels by heads
        channels = 1
        for length in shape[:-1]:
            channels *= length
        return Guess("selective SSM", "channel", channels, shape[-1])
    if not place.has("conv1d") and not place.has("D"):
        return None
    state = place.number("ssm_state_size", "d_state", "state_size", "mamba_d_state")
    return Guess("selective SSM", "head", shape[0] if shape else None, state)


def _own_ssm(place: Place) -> Guess | None:
    kind = place.kind
    if kind != "s6" and "selectivessm" not in kind:
        return None
    shape = place.shape("u")
    return Guess("selective SSM", "channel", shape[0] if shape else None, place.number("state", "d_state"))


def _rg_lru(place: Place) -> Guess | None:
    shape = place.shape("recurrent_param")
    if shape is None or not place.has("input_gate_weight", "recurrent_gate_weight"):
        shape = place.shape("a_param") if place.has("input_gate", "a_gate") else None
    return None if shape is None else Guess("gated linear recurrence", "channel", shape[-1], 1)


def _rwkv(place: Place) -> Guess | None:
    shape = place.shape("time_decay")
    if shape is not None and len(shape) == 1 and place.has("time_first"):
        return Guess("RWKV", "channel", shape[0], 1)
    if re.search(r"rwkv\d?_?(attention|timemix|tmix|selfattention)", place.kind):
        return Guess("RWKV", "head", place.heads, _keys(place))
    return None


def _mlstm(place: Place) -> Guess | None:
    kind = place.kind
    if "xlstmbackend" not in kind and not re.search(r"mlstm(cell|backend|layer|$)", kind):
        return None
    heads, state = place.number(*HEADS), None
    holder = place if place.shape("q") else place.parent
    keys = holder.shape("q") if holder else None
    if keys and heads:
        state = keys[0] // heads
    return Guess("mLSTM", "head", heads, state)


def _lightning(place: Place) -> Guess | None:
    if not place.has("slope_rate", "qkv_proj"):
        return None
    return Guess("linear attention", "head", place.heads, place.number("head_dim"))


# By the words in the names of classes, those that contain others first.
_WORDS = (
    (re.compile(r"delta(net|rule|attention|product)?"), "delta rule"),
    (re.compile(r"gatedlinearattention|gatedslotattention|^wla$|^gla(s6)?$|^gla(attention|layer|mixer)"), "gated linear attention"),
    (re.compile(r"hgrn"), "gated linear recurrence"),
    (re.compile(r"linear_?attention|linearattn|retention|lightningattention|^retnet"), "linear attention"),
)  # fmt: skip


def _named(place: Place) -> Guess | None:
    kind = place.kind
    if place.has("kv_b_proj"):  # latent attention, whatever the model is called
        return None
    if "layer" in kind or "block" in kind or "model" in kind or not _projects(place):
        return None
    for words, family in _WORDS:
        if words.search(kind):
            return Guess(family, "head", place.number("num_v_heads") or place.heads, _keys(place))
    return None


def _projects(place: Place) -> bool:
    return any(static.descends(type(child), nn.Linear) for _, child in static.part(place.module, "_modules"))


FAMILIES: tuple[Callable[[Place], Guess | None], ...] = (
    _mlstm,
    _rwkv,
    _rg_lru,
    _ssm,
    _own_ssm,
    _lightning,
    _named,
)
