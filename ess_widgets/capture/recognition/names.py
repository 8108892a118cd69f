"""Which calls of functions are worth a look, and what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ess_widgets.capture.families import FUNCTIONS, PREFIXES
from ess_widgets.capture.families._expected import fits, wanted
from ess_widgets.capture.reading import Recogniser

__all__ = ["mixes", "recogniser", "sounds_known", "suits", "unknown"]

# How the names of kernels begin.
_KERNELS = ("chunk_", "fused_", "parallel_", "naive_", "recurrent_", "torch_chunk_", "torch_recurrent_")
# Names that other functions are likely to have.
_COMMON = frozenset({"ssd", "selective_scan"})
_QUERIES = ("q", "query", "queries", "matQ", "r")
_KEYS = ("k", "key", "keys", "matK")
_VALUES = ("v", "value", "values", "matV")


def recogniser(name: str) -> Recogniser | None:
    """What reads calls of functions of this name."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    return next((read for prefix, read in PREFIXES.items() if name.startswith(prefix)), None)


def sounds_known(name: str) -> bool:
    """Whether calls of functions of this name are worth a look: those that are read, and other kernels."""
    return recogniser(name) is not None or name.startswith(_KERNELS)


def suits(name: str, arguments: Mapping[str, Any]) -> Recogniser | None:
    """What reads this call, where it has the arguments of the function known by this name; others may bear it too."""
    read = recogniser(name)
    return read if read is not None and fits(read, arguments) else None


def mixes(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a call that nothing reads has the arguments of a function that mixes tokens, or the name of one."""
    if name in FUNCTIONS and name not in _COMMON:
        return any(isinstance(item, Tensor) and item.ndim >= 3 for item in arguments.values())
    return all(
        any(isinstance(item := arguments.get(role), Tensor) and item.ndim >= 3 for role in roles)
        for roles in (_QUERIES, _KEYS, _VALUES)
    )


def unknown(name: str) -> str:
    """Why nothing reads a call of a function of this name."""
    read = recogniser(name)
    if read is None:
        return "it is not known; ew.register teaches it"
    return (
        f"it was not called with the arguments {wanted(read)} of the function that is known by this name; ew.register "
        "teaches it"
    )
