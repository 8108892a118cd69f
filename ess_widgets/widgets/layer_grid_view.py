"""One number for every head of every layer."""

from __future__ import annotations

from typing import Any

import traitlets as t

from ess_widgets.capture import Capture

from .analysis import Analysis
from .grid import Grid
from .measured import Measured
from .selection import Extent, Selection
from .view import View

__all__ = ["LayerGridView"]


class LayerGridView(View, Measured):
    """Layers × heads, coloured by mean ESS or utilisation; clicking a cell selects the head.

    Parameters
    ----------
    captured : Capture
        What :func:`ess_widgets.capture` returned; all its heads are computed here, one layer after another.
    kind, tol, relative
        Which ESS, as in :func:`ess_widgets.ess`.
    against : {"ceiling", "state_size"}
        What utilisation is taken against.
    sample : int
        Which sample of the batch.
    selection : Selection, optional
        Shared with other views to link them.

    Examples
    --------
    >>> import torch
    >>> from ess_widgets import capture
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> mask = torch.nn.Transformer.generate_square_subsequent_mask(6)
    >>> LayerGridView(capture(layer, torch.randn(1, 6, 8), src_mask=mask)).grid_data["columns"]
    2
    """

    _view = t.Unicode("LayerGridView").tag(sync=True)
    layers = t.List(t.Dict()).tag(sync=True)
    grid_data = t.Dict().tag(sync=True)

    def __init__(
        self, captured: Capture, *, sample: int = 0, selection: Selection | None = None, **traits: Any
    ) -> None:
        self._analysis = Analysis(captured, sample)
        super().__init__(selection=selection, **traits)
        self._show()
        first = self._analysis.layers[0]
        if selection is None:
            extent = Extent(self._analysis.layers, self._analysis.heads, max(self._analysis.lengths.values()))
            self.selection._fit(extent, layer=first)
        elif self.selection.layer is None:
            self.selection.layer = first

    def _show(self) -> None:
        analysis = self._analysis
        analysis.measure(self.measure)
        grid = Grid(analysis.heads)
        for layer in analysis.layers:
            analysis.verify(layer)
            state_size, ceiling = analysis.limits(layer)
            while analysis.compute(layer):
                pass
            for head, ess in enumerate(analysis.profile(layer)):
                grid.fill(layer, head, None, ess, state_size[head], ceiling[head])
        self._publish(grid_data=grid.data(self.measure.data()), layers=analysis.layer_data())

    @t.observe("kind", "tol", "relative")
    def _on_measure(self, change: Any) -> None:
        if self.grid_data:
            self._show()
