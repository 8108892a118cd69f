"""Models of transformers with their plain PyTorch functions, whatever kernels are installed.

With flash-linear-attention installed they call its kernels, which need a GPU.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_KERNELS = ("fla", "causal_conv1d", "mamba_ssm")
_loaded: dict[str, ModuleType] = {}


def plain(model: str) -> ModuleType:
    """``transformers.models.<model>.modeling_<model>``, loaded as if no kernels were installed."""
    if model in _loaded:
        return _loaded[model]
    name = f"transformers.models.{model}.modeling_{model}"
    importlib.import_module("transformers")
    kept = {known: sys.modules.pop(known) for known in list(sys.modules) if known.split(".")[0] in _KERNELS}
    sys.modules.update(dict.fromkeys(_KERNELS))  # type: ignore[arg-type]
    sys.modules.pop(name, None)
    try:
        _loaded[model] = importlib.import_module(name)
    finally:
        for known in _KERNELS:
            del sys.modules[known]
        sys.modules.update(kept)
    return _loaded[model]
