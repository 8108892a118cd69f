"""``modulation(model, tokenizer, texts)``: the dips of ESS at delimiters, measured and tested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ess_widgets.learn.modulation.curves import Curves, Measure, curves
from ess_widgets.learn.modulation.delimiters import Occurrence, Wanted, find, replaced, wanted
from ess_widgets.learn.modulation.dips import measure, placebos, shoulders
from ess_widgets.learn.modulation.result import Modulation, Reading
from ess_widgets.metrics import ess

__all__ = ["modulation"]

MOST_GROUPS = 32


def modulation(
    model: nn.Module,
    tokenizer: Any,
    text: str | Iterable[str],
    delimiters: Any = None,
    replacement: str | int | None = None,
    *,
    kind: Literal["entropy", "tolerance"] = "entropy",
    tol: float = 1e-3,
    relative: bool = False,
    layers: Any = None,
    window: int | None = None,
    groups: int = MOST_GROUPS,
    seed: int = 0,
) -> Modulation:
    """How deep and wide effective state-size dips at the delimiters of a text, and whether they are why.

    For every delimiter, layer and head, ESS where the delimiter parts the text is compared with the straight line between
    its surroundings on both sides, the ceiling's bends allowed for; with the same measure at all positions without a
    delimiter (placebo); and with the same text in which another token stands in each delimiter's place. Over several
    texts, both differences are tested with the text as the unit.

    Parameters
    ----------
    model : torch.nn.Module
        Called with token ids, ``(1, L)``; left as it was.
    tokenizer : object
        A transformers tokenizer, or any object with ``encode(text)`` and ``decode(ids)``.
    text : str or iterable of str
        One text gives depths; a test takes several, and so that something can be significant at 5 % at least six.
    delimiters : str, int, iterable of those, or mapping from kinds to those, optional
        Texts, found also where they are several tokens, or token ids. By default the tokenizer's special tokens
        and ``. ! ?`` where a sentence ends. Delimiters in a row are one; an end of text counts more than a full stop
        before it.
    replacement : str or int, optional
        One token, or as many as the delimiter has, in place of every delimiter at once. By default a comma.
    kind, tol, relative
        Which ESS, as in :func:`ess_widgets.ess`.
    layers : optional
        Which layers, as in :func:`ess_widgets.capture`.
    window : int, optional
        How many positions on each side make the surroundings; the nearest quarter of them is left out, where a dip
        already falls. Delimiters with less room to an end are left out. By default half the usual distance between
        delimiters, 4 to 32.
    groups : int
        Of a layer with more heads or channels than this, evenly spaced ones are measured.
    seed : int
        Of the bootstrap, and of the sign flips of more than 13 texts.

    Returns
    -------
    Modulation

    Raises
    ------
    ValueError
        If no delimiter is found with room around it, one that was named occurs in no text, a text has fewer than two
        tokens or more than the model takes, or the replacement does not fit.
    TypeError
        If something is of the wrong type.

    Notes
    -----
    ``H_i`` belongs to the past of ``i``: if a document ends with token ``d``, a model that forgets it has ESS 0 at
    ``i = d + 1``; if the next document begins with ``d``, at ``i = d``. Both are looked at (for a delimiter of several
    tokens every position from its first to the one after its last) and the lower one counts, at placebos as well.

    Examples
    --------
    >>> from ess_widgets import demo
    >>> model, tokenizer = demo.load("small")
    >>> found = modulation(model, tokenizer, "To be, or not to be. That is the question. What is it?", window=5)
    >>> found.layers[["depth", "width"]].shape
    (4, 2)
    >>> found.testable
    False
    """
    asked = Measure(kind, float(tol), bool(relative))
    ess(torch.zeros(2, 2), kind, tol, relative)  # refuses what makes no sense before the model runs
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
    _whole(groups, "groups", 1)
    if window is not None:
        _whole(window, "window", 3)
    texts = _texts(text)
    sought = wanted(tokenizer, delimiters)
    found = [_read(tokenizer, k, one, sought, _longest(model)) for k, one in enumerate(texts)]
    _check_found(found, sought, delimiters is None)
    window = _window(found) if window is None else int(window)
    gap = window // 4
    skipped: list[str] = []
    readings, parts = [], []
    for k, (ids, labels, occurrences) in enumerate(found):
        room = _with_room(k, len(ids), occurrences, window, gap, skipped)
        if not room:
            continue
        substitute = _replacement(tokenizer, ids, occurrences) if replacement is None else replacement
        other = replaced(tokenizer, substitute, ids, occurrences)
        here = curves(model, ids, asked, layers, groups)
        there = curves(model, other, asked, layers, groups)
        if here.heads != there.heads:
            raise ValueError(
                f"text {k}: the model mixes differently after the replacement, so that layers do not pair."
            )
        skipped += [
            f"layer {name}: {why}"
            for name, why in here.left_out.items()
            if not any(name in s for s in skipped)
        ]
        readings.append(Reading(k, texts[k], ids, other, labels, occurrences, str(substitute), here, there))
        parts.append(_rows(k, occurrences, room, here, there, window, gap))
    if not readings:
        raise ValueError(
            f"no delimiter has {window} positions on both sides: {'; '.join(skipped[:4])}. Give longer texts, or a "
            "smaller window (3 at least)."
        )
    return Modulation(model, tokenizer, asked, readings, _table(parts, asked), window, skipped, groups, seed)


def _whole(value: Any, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, but is {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, but is {value}.")


def _texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, Iterable) else None
    if texts is None or not all(isinstance(one, str) for one in texts):
        raise TypeError("text must be a text or several texts.")
    if not texts:
        raise ValueError("there is no text.")
    return texts


def _longest(model: nn.Module) -> int | None:
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return longest if isinstance(longest, int) else None


_Found = tuple[list[int], list[str], list[Occurrence]]


def _read(tokenizer: Any, k: int, text: str, sought: Wanted, longest: int | None) -> _Found:
    from ess_widgets.widgets.tokens import CONTINUED, encode

    if not text:
        raise ValueError(f"text {k} is empty.")
    encoded = encode(tokenizer, text)
    length = len(encoded.ids)
    if length < 2:
        raise ValueError(f"text {k} is a single token: there is no past and future to part.")
    if longest is not None and length > longest:
        raise ValueError(f"text {k} has {length:,} tokens; this model takes at most {longest:,}. Shorten it.")
    return encoded.ids, encoded.labels, find(encoded.ids, encoded.labels, CONTINUED, sought)


def _check_found(found: list[_Found], sought: Wanted, default: bool) -> None:
    kinds = {one.kind for _, _, occurrences in found for one in occurrences}
    if not kinds:
        raise ValueError(
            f"no delimiter is in the text: looked for {sought.describe()}, in tokens that hold no other letters or "
            "digits. Give delimiters= as texts or token ids."
        )
    if default:
        return
    for text, kind in sought.texts.items():
        if not any(text in "".join(labels) for _, labels, _ in found):
            raise ValueError(f"the delimiter {text!r} is in none of the texts.")
        if not any(text in one.label for _, _, occurrences in found for one in occurrences):
            raise ValueError(
                f"the delimiter {text!r} (kind {kind!r}) is in the texts only inside tokens that hold other letters or "
                "digits, so that it cannot be replaced alone."
            )
    for token in sought.ids:
        if not any(token in ids for ids, _, _ in found):
            raise ValueError(f"the delimiter token {token} is in none of the texts.")


def _window(found: list[_Found]) -> int:
    between: list[int] = []
    for ids, _, occurrences in found:
        edges = [0, *(at for one in occurrences for at in (one.start, one.stop)), len(ids)]
        if occurrences:
            between += [
                stop - start for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop > start
            ]
    return int(np.clip(np.median(between) // 2, 4, 32))


def _with_room(
    k: int, length: int, occurrences: list[Occurrence], window: int, gap: int, skipped: list[str]
) -> list[tuple[Occurrence, Any]]:
    taken = [at for one in occurrences for at in one.cuts]
    room = []
    for one in occurrences:
        sides = shoulders(one.cuts, taken, length, window, gap)
        if isinstance(sides, str):
            skipped.append(f"text {k}, {one.label!r} at {one.start}: {sides}")
        else:
            room.append((one, sides))
    if not occurrences:
        skipped.append(f"text {k}: no delimiter")
    return room


def _replacement(tokenizer: Any, ids: list[int], occurrences: list[Occurrence]) -> str:
    """A comma, or what comes next to it where the comma is itself what delimits."""
    for candidate in (",", ";", " and"):
        if candidate.strip() in {one.label.strip() for one in occurrences}:
            continue
        try:
            replaced(tokenizer, candidate, ids, occurrences)
        except ValueError:
            continue
        return candidate
    raise ValueError("none of ',', ';' and ' and' is a single token of this tokenizer: give a replacement.")


def _rows(
    k: int, occurrences: list[Occurrence], room: list[tuple[Occurrence, Any]], here: Curves, there: Curves,
    window: int, gap: int,
) -> list[dict[str, Any]]:  # fmt: skip
    taken = [at for one in occurrences for at in one.cuts]
    length = here.ess.shape[1]
    elsewhere = {}
    for size in {len(one.cuts) for one, _ in room}:
        spots = placebos(size, taken, length, window, gap)
        dips = [measure(here.ess, here.ceiling, cuts, sides, widths=False) for cuts, sides in spots]
        blank = np.full(len(here.heads), np.nan)
        elsewhere[size] = (
            len(spots),
            np.mean([dip.lost for dip in dips], axis=0) if dips else blank,
            np.mean([dip.expected for dip in dips], axis=0) if dips else blank,
        )
    rows = []
    for number, (one, sides) in enumerate(room):
        dip = measure(here.ess, here.ceiling, one.cuts, sides)
        swap = measure(there.ess, there.ceiling, one.cuts, sides, widths=False)
        count, placebo_lost, placebo_expected = elsewhere[len(one.cuts)]
        rows.append(
            {
                "text": k,
                "number": number,
                "kind": one.kind,
                "delimiter": one.label,
                "start": one.start,
                "stop": one.stop,
                "layer": [head.layer for head in here.heads],
                "family": [head.family for head in here.heads],
                "group": [head.group for head in here.heads],
                "head": [head.head for head in here.heads],
                "position": dip.position,
                "ess": dip.ess,
                "ceiling": dip.ceiling,
                "line": dip.line,
                "expected": dip.expected,
                "lost": dip.lost,
                "depth": dip.depth,
                "depth_raw": dip.depth_raw,
                "width": dip.width,
                "placebos": count,
                "placebo_lost": placebo_lost,
                "placebo_expected": placebo_expected,
                "replaced_position": swap.position,
                "replaced_ess": swap.ess,
                "replaced_expected": swap.expected,
                "replaced_lost": swap.lost,
                "replaced_depth": swap.depth,
                "paired": dip.depth - swap.depth,
            }
        )
    return rows


def _table(parts: list[list[dict[str, Any]]], asked: Measure) -> Any:
    import pandas as pd

    table = pd.concat([pd.DataFrame(row) for rows in parts for row in rows], ignore_index=True)
    table["measure"] = str(asked)
    table.attrs["measure"] = str(asked)
    return table
