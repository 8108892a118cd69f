"""The diagnosis as a widget: the row that is chosen moves the explorer below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import traitlets as t
from anywidget import AnyWidget
from ipywidgets import HTML, VBox

from ess_widgets.widgets import Explorer

from .page import STYLE, _sorted, _top, table

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["DiagnosisView", "RowsView"]

_ESM = """
export default {
  render({ model, el }) {
    const show = () => {
      el.className = 'ess-diagnosis';
      el.innerHTML = model.get('html');
      const rows = [...el.querySelectorAll('tr[data-row]')];
      for (const row of rows) row.tabIndex = 0;
      mark();
    };
    const mark = () => {
      for (const row of el.querySelectorAll('tr[data-row]')) row.ariaSelected = Number(row.dataset.row) === model.get('row');
    };
    const choose = (target) => {
      const row = target.closest('tr[data-row]');
      if (!row) return;
      model.set('row', Number(row.dataset.row));
      model.save_changes();
    };
    const click = (event) => choose(event.target);
    const key = (event) => {
      const row = event.target.closest('tr[data-row]');
      if (!row) return;
      if (event.key === 'Enter' || event.key === ' ') { choose(row); event.preventDefault(); }
      const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
      if (next) { next.focus(); event.preventDefault(); }
    };
    el.addEventListener('click', click);
    el.addEventListener('keydown', key);
    model.on('change:html', show);
    model.on('change:row', mark);
    show();
    return () => {
      model.off('change:html', show); model.off('change:row', mark);
      el.removeEventListener('click', click); el.removeEventListener('keydown', key);
    };
  },
};
"""


class RowsView(AnyWidget):
    """The table; ``row`` is the index in ``diagnosis.rows`` of the one that is chosen."""

    _esm = _ESM
    _css = STYLE + ".ess-diagnosis .ess-scroll{max-height:26rem;overflow:auto}"
    html = t.Unicode().tag(sync=True)
    row = t.Int(None, allow_none=True).tag(sync=True)


class DiagnosisView(VBox):  # type: ignore[misc] # ipywidgets has no types
    """What :meth:`Diagnosis.view` returns.

    Attributes
    ----------
    rows : RowsView
        The table; setting ``rows.row`` chooses.
    explorer : Explorer or None
        Made when the first row is chosen that can be drawn.
    """

    def __init__(self, diagnosis: Diagnosis, **options: Any) -> None:
        self._diagnosis, self._options = diagnosis, options
        self.explorer: Explorer | None = None
        self._sample: int | None = None
        found, rest = _sorted(diagnosis)
        self.rows = RowsView(html=_top(diagnosis) + table(diagnosis, [*found, *rest]))
        self._said = HTML()
        super().__init__([self.rows, self._said])
        self.rows.observe(self._on_row, "row")
        first = next((row for row in [*found, *rest] if row.numbers), None)
        if first is not None:
            self.rows.row = diagnosis.rows.index(first)

    def _on_row(self, change: Any) -> None:
        if change.new is None:
            return
        row, sample = self._diagnosis._find(change.new)
        if not row.numbers:
            self._said.value = "There is nothing to draw: this layer has no operator."
            return
        self._said.value = ""
        if self.explorer is None or sample != self._sample:
            old, self._sample = self.explorer, sample
            self.explorer = self._diagnosis.explore(change.new, **self._options)
            self.children = (self.rows, self._said, self.explorer)
            if old is not None:
                old.close()
            return
        heads = [r.head for r in self._diagnosis.rows if r.layer == row.layer]
        self.explorer.selection.update(layer=row.layer, head=heads.index(row.head))

    def close(self) -> None:
        """Close the explorer too."""
        if self.explorer is not None:
            self.explorer.close()
        super().close()
