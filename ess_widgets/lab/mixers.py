"""Sequence mixers of a model, guessed from the classes and shapes of its modules; nothing is run."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from torch import nn

from ess_widgets.capture import registry

from . import static
from .convolutions import convolution, gated_convolution
from .families import AHEAD, FAMILIES, Guess, Place
from .softmax import softmax

__all__ = ["causal_part", "guess"]

_DEEPEST = 200
_SIMPLE = "torch.nn.modules."
_LAYERS = (nn.Conv1d, nn.RNNBase, nn.MultiheadAttention)


def guess(model: Any) -> list[dict[str, Any]]:
    """The mixers that a model seems to have, by the names that :func:`ess_widgets.capture` gives them.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    list of dict
        ``path``, ``kind`` (the class), ``family``, ``group``, ``count`` (heads or channels), ``state`` (None where it
        grows with the input, or is not known) and ``grows``.

    Examples
    --------
    >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
    >>> [(row["path"], row["family"], row["count"]) for row in guess(layer)]
    [('self_attn', 'softmax attention', 2)]
    """
    rows: list[dict[str, Any]] = []
    _walk(Place(model, "", None), rows, {id(model)}, 0)
    return rows


def causal_part(rows: list[dict[str, Any]]) -> str | None:
    """The module that holds all causal mixers and no other: an encoder's have no effective state-size.

    Parameters
    ----------
    rows : list of dict
        From :func:`guess`.

    Returns
    -------
    str or None
        A path for ``layers=``; None where all mixers are alike, or are not told apart by where they are.

    Examples
    --------
    >>> causal_part([{"path": "encoder.0.attn", "family": AHEAD}, {"path": "decoder.0.attn", "family": "convolution"}])
    'decoder.0'
    """
    ahead = [f"{row['path']}." for row in rows if row["family"] == AHEAD]
    causal = [row["path"].split(".")[:-1] for row in rows if row["family"] != AHEAD]
    if not ahead or not causal:
        return None
    shared = ".".join(
        names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*causal, strict=False))
    )
    return None if not shared or any(path.startswith(f"{shared}.") for path in ahead) else shared


def _walk(place: Place, rows: list[dict[str, Any]], seen: set[int], depth: int) -> None:
    module, kind = place.module, type(place.module)
    own = dict.get(static.instance_dict(module), "_modules")
    if (
        not own
        and not registry._known
        and static.module_name(kind).startswith(_SIMPLE)
        and not any(static.descends(kind, base) for base in _LAYERS)
    ):
        return  # most modules of a model: linear layers, norms, activations
    for exact in (_registered, _own, gated_convolution, convolution):
        found = exact(place)
        if found is not None:
            if found.family:
                rows.append(_row(place, found))
            return
    before = len(rows)
    if depth < _DEEPEST:
        for name, child in static.part(module, "_modules"):
            if id(child) not in seen and static.is_module(child):
                seen.add(id(child))
                path = f"{place.path}.{name}" if place.path else name
                _walk(Place(child, path, place), rows, seen, depth + 1)
    if any(row["family"] != "convolution" for row in rows[before:]):
        return  # what is inside is more specific
    for read in (*FAMILIES, softmax):
        found = read(place)
        if found is not None:
            if found.family:
                rows.append(_row(place, found))
            return


def _row(place: Place, found: Guess) -> dict[str, Any]:
    kind = static.kind_name(type(place.module))
    return {
        # Where the model itself is the mixer, capture calls it by its class.
        "path": place.path or kind,
        "kind": kind,
        "family": found.family,
        "group": found.group,
        "count": found.count,
        "state": None if found.grows else found.state,
        "grows": found.grows,
    }


def _registered(place: Place) -> Guess | None:
    kinds = static.mro(type(place.module))
    for entry in registry._known:
        wanted = entry._kind
        if any(kind is wanted for kind in kinds):
            return Guess(entry._family)
        if type(wanted) is str and wanted in [
            name
            for kind in kinds
            for name in (static.kind_name(kind), f"{static.module_name(kind)}.{static.kind_name(kind)}")
        ]:
            return Guess(entry._family)
    return None


def _own(place: Place) -> Guess | None:
    """torch's own layers."""
    module, kind = place.module, type(place.module)
    if static.descends(kind, nn.MultiheadAttention):
        return (
            Guess("")
            if place.crosses
            else Guess("softmax attention", "head", place.number("num_heads"), grows=True)
        )
    if static.descends(kind, nn.RNNBase):
        if dict.get(static.instance_dict(module), "bidirectional") is True:
            return Guess("")
        sizes = [place.number(name) or 0 for name in ("hidden_size", "num_layers")]
        cells = 2 if static.descends(kind, nn.LSTM) else 1
        return Guess("jacobian", "layer", 1, sizes[0] * sizes[1] * cells or None)
    return None
