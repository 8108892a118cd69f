"""Where the delimiters of a text are, in tokens, and what stands in for them in the counterfactual text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Occurrence", "Wanted", "find", "replaced", "wanted"]

_SENTENCE_END = re.compile(r"([.!?…。！？])[\"'”’)\]]*\s*$")
_ALPHANUMERIC = re.compile(r"\w")


@dataclass(frozen=True)
class Occurrence:
    """Tokens ``start … stop-1`` delimit; neighbouring delimiters are one. ``kind`` is what they count as."""

    start: int
    stop: int
    kind: str
    label: str

    @property
    def cuts(self) -> range:
        """The positions ``i`` at which ``H_i`` parts what is before the delimiter from what is after it."""
        return range(self.start, self.stop + 1)


@dataclass(frozen=True)
class Wanted:
    """What counts as a delimiter: token ids and texts, each with the kind that it counts as."""

    ids: Mapping[int, str]
    texts: Mapping[str, str]
    sentences: bool  # whether . ! ? count where a sentence ends

    def describe(self) -> str:
        names = [repr(text) for text in self.texts] + [f"token {i}" for i in self.ids]
        if self.sentences:
            names.append("the ends of sentences (. ! ? before a space, a line's end or a special token)")
        return ", ".join(names)


def wanted(tokenizer: Any, delimiters: Any) -> Wanted:
    """Read the argument ``delimiters`` of :func:`~ess_widgets.learn.modulation`."""
    if delimiters is None:
        special = {int(i): str(tokenizer.decode([int(i)])) for i in getattr(tokenizer, "all_special_ids", ())}
        end = getattr(tokenizer, "eos_token_id", None)
        if isinstance(end, int):
            special.setdefault(end, str(getattr(tokenizer, "eos_token", None) or tokenizer.decode([end])))
        return Wanted(special, {}, True)
    ids: dict[int, str] = {}
    texts: dict[str, str] = {}
    for kind, one in _named(delimiters):
        if isinstance(one, bool) or not isinstance(one, (str, int)):
            raise TypeError(
                f"a delimiter is a text or a token id, but {one!r} is of type {type(one).__name__}."
            )
        if isinstance(one, int):
            ids[one] = str(tokenizer.decode([one])) if kind is None else kind
        elif one:
            texts[one] = one if kind is None else kind
        else:
            raise ValueError("a delimiter must not be the empty text.")
    if not ids and not texts:
        raise ValueError(
            "delimiters is empty: give texts or token ids, or None for ends of texts and sentences."
        )
    return Wanted(ids, texts, False)


def _named(delimiters: Any) -> Iterable[tuple[str | None, Any]]:
    if isinstance(delimiters, Mapping):
        for kind, ones in delimiters.items():
            for one in [ones] if isinstance(ones, (str, int)) else ones:
                yield str(kind), one
    elif isinstance(delimiters, (str, int)):
        yield None, delimiters
    elif isinstance(delimiters, Iterable):
        for one in delimiters:
            yield None, one
    else:
        raise TypeError(
            "delimiters must be a text, a token id, several of those, or a mapping from kinds to them, but is of type "
            f"{type(delimiters).__name__}."
        )


def find(ids: Sequence[int], labels: Sequence[str], continued: str, asked: Wanted) -> list[Occurrence]:
    """Every delimiter, in order.

    Parameters
    ----------
    ids, labels
        The tokens; a label ``continued`` marks a token that only completes the character before it.
    asked
        What to look for. A text may span several tokens; a token may hold more than the text, but no letters or digits.
    """
    shown = ["" if label == continued else label for label in labels]
    found = [(at, at + 1, asked.ids[token]) for at, token in enumerate(ids) if token in asked.ids]
    for text, kind in asked.texts.items():
        found += [(start, stop, kind) for start, stop in _spans(shown, text)]
    if asked.sentences:
        found += [(at, at + 1, kind) for at, kind in _sentence_ends(ids, shown, asked)]
    found = [(start, _complete(labels, stop, continued), kind) for start, stop, kind in found]
    special = set(asked.ids.values())
    merged: list[tuple[int, int, str]] = []
    for start, stop, kind in sorted(found):
        if merged and start <= merged[-1][1]:
            first, last, before = merged[-1]
            # An end of text counts for more than the full stop in front of it.
            merged[-1] = (first, max(last, stop), kind if kind in special else before)
        else:
            merged.append((start, stop, kind))
    return [Occurrence(start, stop, kind, "".join(shown[start:stop])) for start, stop, kind in merged]


def _complete(labels: Sequence[str], stop: int, continued: str) -> int:
    while stop < len(labels) and labels[stop] == continued:
        stop += 1
    return stop


def _spans(shown: Sequence[str], text: str) -> Iterable[tuple[int, int]]:
    """Runs of tokens that hold ``text`` and beside it nothing but spaces and punctuation."""
    whole = "".join(shown)
    ends: list[int] = []
    for label in shown:
        ends.append((ends[-1] if ends else 0) + len(label))
    at = whole.find(text)
    while at >= 0:
        start = next(k for k, end in enumerate(ends) if end > at)
        stop = next(k for k, end in enumerate(ends) if end >= at + len(text)) + 1
        first = ends[start] - len(shown[start])
        rest = whole[first:at] + whole[at + len(text) : ends[stop - 1]]
        if not _ALPHANUMERIC.search(rest):
            yield start, stop
        at = whole.find(text, at + len(text))


def _sentence_ends(ids: Sequence[int], shown: Sequence[str], asked: Wanted) -> Iterable[tuple[int, str]]:
    for at, label in enumerate(shown):
        match = _SENTENCE_END.search(label)
        if match is None or ids[at] in asked.ids or _ALPHANUMERIC.search(label):
            continue
        after = next((text for text in shown[at + 1 :] if text), " ")
        last = at + 1 == len(ids)
        if last or label[-1].isspace() or after[0].isspace() or ids[at + 1] in asked.ids:
            yield at, match[1]


def replaced(
    tokenizer: Any, replacement: Any, ids: Sequence[int], occurrences: Sequence[Occurrence]
) -> list[int]:
    """The same tokens with another in the place of each that delimits."""
    out = list(ids)
    tokens = _tokens(tokenizer, replacement)
    for one in occurrences:
        size = one.stop - one.start
        if len(tokens) not in (1, size):
            raise ValueError(
                f"the replacement {replacement!r} is {len(tokens)} tokens, but the delimiter {one.label!r} is {size}: "
                "positions would no longer correspond. Give one token, which is repeated."
            )
        new = tokens * size if len(tokens) == 1 else tokens
        if new == list(ids[one.start : one.stop]):
            raise ValueError(
                f"the delimiter {one.label!r} would be replaced by itself: give another replacement."
            )
        out[one.start : one.stop] = new
    return out


def _tokens(tokenizer: Any, replacement: Any) -> list[int]:
    if isinstance(replacement, int) and not isinstance(replacement, bool):
        return [replacement]
    if not isinstance(replacement, str) or not replacement:
        raise TypeError(f"replacement must be a text or a token id, but is {replacement!r}.")
    vocabulary = tokenizer.get_vocab() if callable(getattr(tokenizer, "get_vocab", None)) else {}
    if replacement in vocabulary:
        return [int(vocabulary[replacement])]
    # What the tokenizer puts around every text (a token for its beginning) is no part of the replacement.
    plain = hasattr(tokenizer, "all_special_ids")
    encoded = tokenizer.encode(replacement, **({"add_special_tokens": False} if plain else {}))
    encoded = getattr(encoded, "ids", encoded)
    tokens = [int(i) for i in (encoded.tolist() if hasattr(encoded, "tolist") else encoded)]
    if not tokens:
        raise ValueError(f"the tokenizer makes no token of the replacement {replacement!r}.")
    return tokens
