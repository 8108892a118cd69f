"""Recognisers of mixers that are not attention, one file for each family.

Each file offers ``FUNCTIONS``, recognisers of calls by the function's name, ``MODULES``, recognisers of modules by
their attributes, or both.
"""

from __future__ import annotations

from ess_widgets.capture.families import selective_ssm
from ess_widgets.capture.reading import ModuleRecogniser, Recogniser

__all__ = ["FUNCTIONS", "MODULES"]

_FAMILIES = (selective_ssm,)

FUNCTIONS: dict[str, Recogniser] = {
    name: read for family in _FAMILIES for name, read in getattr(family, "FUNCTIONS", {}).items()
}
MODULES: tuple[ModuleRecogniser, ...] = tuple(
    recogniser for family in _FAMILIES for recogniser in getattr(family, "MODULES", ())
)
