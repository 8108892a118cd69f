"""The tokens as flowing text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets as t

from .selection import Extent, Selection
from .tokens import PLAIN, encode
from .view import View

__all__ = ["TokenView"]


class TokenView(View):
    """A text as its tokens, with the brushed position and span marked.

    Parameters
    ----------
    labels : sequence of str
        What to show of each token; see :meth:`from_text`.
    marks : sequence of int, optional
        Per token 0 plain, 1 delimiter, 2 special.
    selection : Selection, optional
        Shared with other views to link them.

    Examples
    --------
    >>> TokenView(["The", " past", "."], marks=[0, 0, 1]).tokens["labels"]
    ['The', ' past', '.']
    """

    _view = t.Unicode("TokenView").tag(sync=True)
    tokens = t.Dict().tag(sync=True)

    def __init__(
        self,
        labels: Sequence[str],
        marks: Sequence[int] | None = None,
        *,
        selection: Selection | None = None,
        **traits: Any,
    ) -> None:
        if isinstance(labels, str) or len(labels) == 0:
            raise ValueError("labels must be a non-empty sequence of strings, one for each token.")
        marks = [PLAIN] * len(labels) if marks is None else [int(mark) for mark in marks]
        if len(marks) != len(labels):
            raise ValueError(f"{len(marks)} marks for {len(labels)} labels.")
        tokens = {"labels": [str(label) for label in labels], "marks": marks, "indexed": False}
        super().__init__(selection=selection, tokens=tokens, **traits)
        if selection is None:
            self.selection._fit(Extent([""], {"": 1}, len(labels)), layer="")

    @classmethod
    def from_text(cls, tokenizer: Any, text: str, **options: Any) -> TokenView:
        """The tokens of ``text``; ``tokenizer`` as in :func:`ess_widgets.explore`."""
        encoded = encode(tokenizer, text)
        return cls(encoded.labels, encoded.marks, **options)
