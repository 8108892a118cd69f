"""Softmax attention: by the projections that it has and the name of its class."""

from __future__ import annotations

from typing import Any

from . import static
from .families import AHEAD, Guess, Place

__all__ = ["softmax"]

_PROJECTIONS = (
    {"q_proj", "k_proj", "v_proj"},
    {"query", "key", "value"},
    {"q", "k", "v"},
    {"wq", "wk", "wv"},
    {"to_q", "to_k", "to_v"},
    {"q_lin", "k_lin", "v_lin"},
    {"c_attn"},
    {"qkv"},
    {"wqkv"},
    {"query_key_value"},
    {"qkv_proj"},
    {"kv_b_proj"},
)


def softmax(place: Place) -> Guess | None:
    """A module that projects to queries, keys and values, or is called attention."""
    names = {name.lower() for name in place.children}
    projects = any(wanted <= names for wanted in _PROJECTIONS)
    called = "attention" in place.kind or place.kind.endswith("attn")
    weighty = any(len(place.shape(name) or ()) == 2 for name in place.children)
    if not projects and not (called and weighty and place.heads):
        return None
    if place.crosses:
        return Guess("")
    if _looks_ahead(place):
        return Guess(AHEAD, "head", _heads(place))
    window = _window(place)
    return Guess(
        "softmax attention",
        "head",
        _heads(place),
        None if window is None else max(window - 1, 0),
        grows=window is None,
    )


def _looks_ahead(place: Place) -> bool:
    """An encoder's: the module itself says that it is not causal, or not a decoder's."""
    own = static.instance_dict(place.module)
    causal = dict.get(own, "is_causal", dict.get(own, "is_decoder"))
    return causal is False


def _heads(place: Place) -> int | None:
    width = place.number("head_dim", "head_size")
    for name in ("q_proj", "query", "wq", "q"):
        shape = place.shape(name)
        if shape and width and shape[0] % width == 0 and place.heads is None:
            return shape[0] // width
    return place.heads


def _window(place: Place) -> int | None:
    """How many tokens are read at most; None where all of them are."""
    own = static.instance_dict(place.module)
    if "sliding_window" in own:
        return _whole(dict.get(own, "sliding_window"))
    config: Any = static.instance_dict(dict.get(own, "config"))
    if type(dict.get(own, "attention_type")) is str:
        return _whole(dict.get(config, "window_size")) if own["attention_type"] == "local" else None
    kinds, index = dict.get(config, "layer_types"), dict.get(own, "layer_idx")
    window = _whole(dict.get(config, "sliding_window"))
    if type(kinds) is list and type(index) is int and index < len(kinds):
        kind = kinds[index]
        if type(kind) is not str:
            return None
        if kind == "chunked_attention":
            return _whole(dict.get(config, "attention_chunk_size"))
        return window if "sliding" in kind or "local" in kind else None
    return window


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
