"""Recognisers of mixers that are not attention, one file for each family.

Each file offers ``FUNCTIONS``, recognisers of calls by the function's name, ``PREFIXES``, recognisers by the beginning
of the name, and ``MODULES``, recognisers of modules by their attributes, or some of these. ``OPEN`` names functions whose
insides are looked at first.
"""

from __future__ import annotations

from ess_widgets.capture.families import (
    convolution,
    delta_rule,
    fft_convolution,
    lightning,
    linear_attention,
    mamba_ssm,
    mlstm,
    recurrent,
    rg_lru,
    rwkv,
    selective_ssm,
)
from ess_widgets.capture.reading import ModuleRecogniser, Recogniser

__all__ = ["FUNCTIONS", "MODULES", "OPEN", "PREFIXES"]

_FAMILIES = (
    convolution,
    fft_convolution,
    selective_ssm,
    recurrent,
    linear_attention,
    delta_rule,
    rwkv,
    mlstm,
    lightning,
    rg_lru,
    mamba_ssm,
)

FUNCTIONS: dict[str, Recogniser] = {
    name: read for family in _FAMILIES for name, read in getattr(family, "FUNCTIONS", {}).items()
}
OPEN: frozenset[str] = frozenset().union(*(getattr(family, "OPEN", ()) for family in _FAMILIES))
MODULES: tuple[ModuleRecogniser, ...] = tuple(
    recogniser for family in _FAMILIES for recogniser in getattr(family, "MODULES", ())
)
PREFIXES: dict[str, Recogniser] = {
    prefix: read for family in _FAMILIES for prefix, read in getattr(family, "PREFIXES", {}).items()
}
