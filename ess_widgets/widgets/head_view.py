"""Views of an operator with heads: what they share besides :class:`View`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import traitlets as t
from numpy.typing import ArrayLike
from torch import Tensor

from ess_widgets.capture import LayerCapture
from ess_widgets.metrics import spectrum
from ess_widgets.operators import Dense, Operator

from .requests import answer
from .selection import Extent, Selection
from .tokens import indexed
from .view import View

__all__ = ["HeadView"]


def as_heads(T: Operator | Tensor | ArrayLike | LayerCapture) -> Operator:
    """An operator of shape ``(heads, L, L)``; of a captured layer, its first sample."""
    if isinstance(T, LayerCapture):
        return T.operator[0]
    operator = T if isinstance(T, Operator) else Dense(T)
    if len(operator.shape) == 2:
        return operator[None]
    if len(operator.shape) != 3:
        raise ValueError(
            f"The operator has shape {tuple(operator.shape)}; a view shows (heads, L, L) or (L, L): "
            "choose a sample, as in T[0]."
        )
    return operator


class HeadView(View):
    """A view of the selected head of an operator ``(heads, L, L)``; follows ``selection.head``."""

    tokens = t.Dict().tag(sync=True)

    def __init__(
        self,
        T: Operator | Tensor | ArrayLike | LayerCapture,
        *,
        labels: Sequence[str] | None = None,
        selection: Selection | None = None,
        **traits: Any,
    ) -> None:
        self._operator = as_heads(T)
        self._layer = T.name if isinstance(T, LayerCapture) else None
        heads, length = self._operator.shape[0], self._operator.length
        if labels is not None and len(labels) != length:
            raise ValueError(f"{len(labels)} labels for {length} positions.")
        self._spectra: dict[int, np.ndarray] = {}
        names = None if labels is None else [str(label) for label in labels]
        super().__init__(selection=selection, tokens=indexed(length, names), **traits)
        if self._layer is not None and self.selection.layer is None:
            self.selection.layer = self._layer
        if self.selection.position is None:
            self.selection.position = length // 2
        if selection is None:
            name = self._layer or ""
            self.selection._fit(Extent([name], {name: heads}, length), layer=name)
            self._layer = name
        self._show_head()
        self.selection.observe(lambda change: self._show_head(), "head")
        self.on_msg(self._on_message)

    @property
    def _head(self) -> int:
        return min(int(self.selection.head), self._operator.shape[0] - 1)

    def _show_head(self) -> None:
        """Send what belongs to the selected head."""

    def _spectrum(self, head: int) -> np.ndarray:
        if head not in self._spectra:
            self._spectra[head] = spectrum(self._operator[head]).double().cpu().numpy()
        return self._spectra[head]

    def _on_message(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        message = answer(self._operator[self._head], self._layer, self._head, content)
        if message is not None:
            self.send(*message)
