"""Where the delimiters of a text are, in tokens, and what stands in for them in the counterfactual text."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral
from typing import Any

__all__ = ["Occurrence", "Wanted", "find", "replaced", "wanted"]

# What ends a sentence, with the quotes and brackets that it closes; a dot inside a number or an address does not.
_SENTENCE_END = re.compile(r"[.!?…]*(?:([.!?…])[\"'”’»)\]]*(?=\s|$)|([。！？])[」』”’）]*)")
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
        if isinstance(one, Integral) and not isinstance(one, bool):
            label = _shown(tokenizer, int(one))
            ids[int(one)] = label if kind is None else kind
        elif not isinstance(one, str):
            raise TypeError(
                f"a delimiter is a text or a token id, but {one!r} is of type {type(one).__name__}."
            )
        elif not one:
            raise ValueError("a delimiter must not be the empty text.")
        else:
            texts[one] = one if kind is None else kind
    if not ids and not texts:
        raise ValueError(
            "delimiters is empty: give texts or token ids, or None for ends of texts and sentences."
        )
    return Wanted(ids, texts, False)


def _named(delimiters: Any) -> Iterable[tuple[str | None, Any]]:
    if isinstance(delimiters, Mapping):
        for kind, ones in delimiters.items():
            for one in [ones] if isinstance(ones, (str, Integral)) else ones:
                yield str(kind), one
    elif isinstance(delimiters, (str, Integral)):
        yield None, delimiters
    elif isinstance(delimiters, Iterable):
        for one in delimiters:
            yield None, one
    else:
        raise TypeError(
            "delimiters must be a text, a token id, several of those, or a mapping from kinds to them, but is of type "
            f"{type(delimiters).__name__}."
        )


def _shown(tokenizer: Any, token: int) -> str:
    try:
        shown = tokenizer.decode([token]) if token >= 0 else None
    except Exception:  # noqa: BLE001 (tokenizers raise all kinds of errors)
        shown = None
    if shown is None:
        raise ValueError(f"{token} is no token of this tokenizer.")
    return str(shown)


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
        for match in re.finditer(re.escape(text), "".join(shown)):
            found += [(start, stop, kind) for start, stop in _tokens_of(shown, *match.span())]
    if asked.sentences:
        # A special token ends what is before it, as a space would.
        spaced = [
            "\n" * len(label) if token in asked.ids else label
            for token, label in zip(ids, shown, strict=True)
        ]
        for match in _SENTENCE_END.finditer("".join(spaced)):
            found += [(start, stop, match[1] or match[2]) for start, stop in _tokens_of(shown, *match.span())]
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


def _tokens_of(shown: Sequence[str], at: int, end: int) -> Iterable[tuple[int, int]]:
    """The run of tokens that holds these characters, if it holds beside them only spaces and punctuation."""
    ends = list(accumulate(map(len, shown)))
    start, stop = bisect_right(ends, at), bisect_left(ends, end) + 1
    rest = shown[start][: at - (ends[start] - len(shown[start]))] + "".join(shown)[end : ends[stop - 1]]
    if not _ALPHANUMERIC.search(rest):
        yield start, stop


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
    if isinstance(replacement, Integral) and not isinstance(replacement, bool):
        _shown(tokenizer, int(replacement))
        return [int(replacement)]
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
