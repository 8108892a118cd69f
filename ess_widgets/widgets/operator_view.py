"""The operator as a heat map."""

from __future__ import annotations

from typing import Any

import traitlets as t

from .head_view import HeadView
from .wire import operator_data

__all__ = ["OperatorView"]


class OperatorView(HeadView):
    """The operator ``T`` of one head as a heat map, with ``H_i`` framed at the brushed position.

    Parameters
    ----------
    T : Operator, Tensor, array or LayerCapture
        ``(heads, L, L)`` or ``(L, L)``, causal.
    labels : sequence of str, optional
        A label for each position.
    scale : {"log", "linear"}
        Colour scale of ``|T|``.
    selection : Selection, optional
        Shared with other views to link them.

    Examples
    --------
    >>> import torch
    >>> from ess_widgets import Selection
    >>> selection = Selection()
    >>> T = torch.rand(2, 6, 6).tril()
    >>> OperatorView(T, selection=selection).operator_data["length"]
    6
    """

    _view = t.Unicode("OperatorView").tag(sync=True)
    scale = t.Enum(["log", "linear"], "log").tag(sync=True, echo_update=False)
    operator_data = t.Dict().tag(sync=True)

    def _show_head(self) -> None:
        data: dict[str, Any] = operator_data(self._operator[self._head], self._layer, self._head)
        self._publish(operator_data=data)
