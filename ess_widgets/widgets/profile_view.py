"""ESS along the sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets as t

from ess_widgets.metrics import ceiling, ess

from .analysis import Measure
from .head_view import HeadView
from .measured import Measured
from .wire import profile_data, spectrum_data

__all__ = ["ProfileView"]


class ProfileView(HeadView, Measured):
    """ESS of every head along the sequence, the selected one bold, under its ceiling.

    Parameters
    ----------
    T : Operator, Tensor, array or LayerCapture
        ``(heads, L, L)`` or ``(L, L)``, causal.
    kind, tol, relative
        Which ESS, as in :func:`ess_widgets.ess`.
    labels, selection
        As in :class:`OperatorView`.

    Attributes
    ----------
    profile : numpy.ndarray
        ``(heads, L)``.

    Examples
    --------
    >>> import torch
    >>> ProfileView(torch.ones(4, 4).tril(), kind="tolerance").profile
    array([[0., 1., 1., 1.]])
    """

    _view = t.Unicode("ProfileView").tag(sync=True)
    profile_data = t.Dict().tag(sync=True)
    spectrum_data = t.Dict().tag(sync=True)

    _known: tuple[Measure, np.ndarray] | None = None  # the measure and what it gives

    @property
    def profile(self) -> np.ndarray:
        measure = self.measure
        if self._known is None or self._known[0] != measure:
            self._known = measure, ess(self._operator, **measure.data()).cpu().numpy()
        values: np.ndarray = self._known[1].copy()
        return values

    def _show_head(self) -> None:
        values = self.profile
        state_size, top = (
            limit.cpu().double().expand(values.shape).numpy()
            for limit in (self._operator.state_size, ceiling(self._operator))
        )
        self._publish(
            profile_data=profile_data(values, state_size, top, self._layer, self.measure.data()),
            spectrum_data=spectrum_data(
                self._spectrum(self._head), self._layer, self._head, self._operator.block
            ),
        )

    @t.observe("kind", "tol", "relative")
    def _on_measure(self, change: Any) -> None:
        if self.profile_data:
            self._show_head()
