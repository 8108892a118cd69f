"""The singular values of ``H_i`` at the brushed position."""

from __future__ import annotations

import traitlets as t

from .head_view import HeadView
from .measured import Measured
from .wire import spectrum_data

__all__ = ["SpectrumView"]


class SpectrumView(HeadView, Measured):
    """Singular values of ``H_i = T[i:, :i]`` of one head at the brushed position, with a τ that can be dragged.

    Parameters
    ----------
    T : Operator, Tensor, array or LayerCapture
        ``(heads, L, L)`` or ``(L, L)``, causal.
    kind, tol, relative
        Which ESS is marked, as in :func:`ess_widgets.ess`.
    labels, selection
        As in :class:`OperatorView`.

    Examples
    --------
    >>> import torch
    >>> SpectrumView(torch.rand(6, 6).tril(), kind="tolerance", tol=0.1).spectrum_data["rank"]
    3
    """

    _view = t.Unicode("SpectrumView").tag(sync=True)
    spectrum_data = t.Dict().tag(sync=True)

    def _show_head(self) -> None:
        self._publish(
            spectrum_data=spectrum_data(
                self._spectrum(self._head), self._layer, self._head, self._operator.block
            )
        )
