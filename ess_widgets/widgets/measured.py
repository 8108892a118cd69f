"""Traits that say which ESS is shown, the same on every view that shows one."""

from __future__ import annotations

import math
from typing import Any

import traitlets as t

from .analysis import Measure

__all__ = ["Measured"]


class Measured(t.HasTraits):
    """``kind``, ``tol`` and ``relative``, as in :func:`ess_widgets.ess`; ``against`` is for utilisation."""

    kind = t.Enum(["entropy", "tolerance"], "entropy").tag(sync=True, echo_update=False)
    tol = t.Float(1e-3).tag(sync=True, echo_update=False)
    relative = t.Bool(False).tag(sync=True, echo_update=False)
    against = t.Enum(["ceiling", "state_size"], "ceiling").tag(sync=True, echo_update=False)

    @t.validate("tol")
    def _check_tol(self, proposal: Any) -> float:
        tol = float(proposal.value)
        if not (math.isfinite(tol) and tol > 0):
            raise t.TraitError(f"tol must be a finite number above 0, not {tol}.")
        return tol

    @property
    def measure(self) -> Measure:
        return Measure(self.kind, self.tol, self.relative)
