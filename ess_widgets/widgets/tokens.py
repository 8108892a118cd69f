"""Text to token ids, and for each token what to show of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

__all__ = ["Encoded", "encode", "indexed"]

PLAIN, DELIMITER, SPECIAL = 0, 1, 2

_sentence_end = re.compile(r"[.!?…。！？][\"'”’)\]]*\s*$|\n")
_special = re.compile(r"<\|?[\w /-]+\|?>|\[[A-Z]+\]")
CONTINUED = "⋯"  # a token that only completes a character begun by the one before


@dataclass(frozen=True)
class Encoded:
    """Token ids with a label and a mark (0 plain, 1 delimiter, 2 special) each."""

    ids: list[int]
    labels: list[str]
    marks: list[int]

    def data(self) -> dict[str, Any]:
        return {"labels": self.labels, "marks": self.marks, "indexed": False}


def indexed(length: int, names: list[str] | None = None) -> dict[str, Any]:
    """Positions without text: labelled by the names given, else by their index."""
    if names is None:
        return {"labels": [str(i) for i in range(length)], "marks": [PLAIN] * length, "indexed": True}
    return {"labels": names, "marks": [_mark(None, name, set()) for name in names], "indexed": False}


def encode(tokenizer: Any, text: str) -> Encoded:
    """Tokenize with a transformers tokenizer, or with any object that has ``encode`` and ``decode``.

    Raises
    ------
    TypeError
        The tokenizer has no ``encode`` or no ``decode``, or ``encode`` returns no integers.
    ValueError
        The text has no tokens.
    """
    for method in ("encode", "decode"):
        if not callable(getattr(tokenizer, method, None)):
            raise TypeError(
                f"{type(tokenizer).__name__} has no {method}(); give a transformers tokenizer "
                "or an object with encode(text) -> ids and decode(ids) -> text."
            )
    offsets = None
    if getattr(tokenizer, "is_fast", False):
        encoding = tokenizer(text, return_offsets_mapping=True)
        ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
    else:
        ids = _integers(tokenizer.encode(text), type(tokenizer).__name__)
    if not ids:
        raise ValueError("The text has no tokens: type something to explore.")
    labels = (
        _labels_by_decoding(tokenizer, ids)
        if offsets is None
        else _labels_by_offsets(tokenizer, text, ids, offsets)
    )
    special = set(getattr(tokenizer, "all_special_ids", ()))
    marks = [_mark(i, label, special) for i, label in zip(ids, labels, strict=True)]
    return Encoded(ids, labels, marks)


def _integers(encoded: Any, name: str) -> list[int]:
    encoded = getattr(encoded, "ids", encoded)
    if hasattr(encoded, "tolist"):
        encoded = encoded.tolist()
    if isinstance(encoded, list) and len(encoded) == 1 and isinstance(encoded[0], list):
        encoded = encoded[0]
    try:
        return [int(i) for i in encoded]
    except (TypeError, ValueError):
        raise TypeError(f"{name}.encode(text) must give a list of integer ids.") from None


def _labels_by_offsets(
    tokenizer: Any, text: str, ids: list[int], offsets: list[tuple[int, int]]
) -> list[str]:
    labels, end = [], 0
    for i, (start, stop) in zip(ids, offsets, strict=True):
        if start == stop:
            labels.append(_decode(tokenizer, [i]))
        elif stop <= end:
            labels.append(CONTINUED)
        else:
            # Some tokenizers leave the space in front of a word out of its offsets.
            gap = text[end:start]
            labels.append(gap + text[start:stop] if gap.isspace() else text[start:stop])
        end = max(end, stop)
    return labels


def _labels_by_decoding(tokenizer: Any, ids: list[int], longest: int = 8) -> list[str]:
    """Decode token by token; bytes that only together make a character are labelled where it begins."""
    labels: list[str] = []
    at = 0
    while at < len(ids):
        for size in range(1, longest + 1):
            label = _decode(tokenizer, ids[at : at + size])
            if "\ufffd" not in label or at + size > len(ids):
                break
        else:
            size, label = 1, _decode(tokenizer, ids[at : at + 1])
        size = min(size, len(ids) - at)
        labels += [label] + [CONTINUED] * (size - 1)
        at += size
    return labels


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


def _mark(token: int | None, label: str, special: set[int]) -> int:
    if token in special or _special.fullmatch(label.strip()):
        return SPECIAL
    return DELIMITER if _sentence_end.search(label) else PLAIN
