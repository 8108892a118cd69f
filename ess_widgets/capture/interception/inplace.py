"""Running on the model itself, where it cannot be copied, and putting everything back."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.names import module_paths

__all__ = ["ALONE", "Loan"]

# Held while a model is lent.
ALONE = threading.RLock()


class Loan:
    """The model itself, in eval mode; training flags, hooks and buffers are put back.

    Raises
    ------
    CaptureError
        Where this is not safe: in another thread than the main one, a training loop could be using a model that is
        in training mode.
    """

    def __init__(self, model: nn.Module, why: str) -> None:
        modules = list(dict.fromkeys(module for _, module in module_paths(model)))
        if threading.current_thread() is not threading.main_thread():
            _refuse_if_shared(modules, why)
        self._modules = modules
        self._training = [module for module in modules if module.training]
        self._compiled = [
            (module, function) for module in modules if (function := _compiled(module)) is not None
        ]
        buffers = {id(b): b for module in modules for b in module._buffers.values() if b is not None}
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers.values()]

    def take(self) -> None:
        for module in self._training:
            module.training = False
        for module, _ in self._compiled:
            module._compiled_call_impl = None

    def give_back(self) -> None:
        """Put everything back; may be called again where it was interrupted."""
        for module in self._modules:
            for kind in ("_forward_pre_hooks", "_forward_hooks"):
                hooks = module.__dict__[kind]
                for key in [key for key, hook in list(hooks.items()) if _is_ours(hook)]:
                    for name in (kind, f"{kind}_with_kwargs", f"{kind}_always_called"):
                        module.__dict__.get(name, {}).pop(key, None)
        for module in self._training:
            module.training = True
        for module, function in self._compiled:
            module._compiled_call_impl = function
        with torch.no_grad():
            for buffer, before in self._buffers:
                if not _same(buffer, before):
                    buffer.copy_(before)


def _refuse_if_shared(modules: list[nn.Module], why: str) -> None:
    if any(module.training for module in modules):
        raise CaptureError(
            f"this model cannot be run on a copy: {why}. It is in training mode and this is not the main thread, so "
            "it is not run in place either. Call model.eval() first, or call capture() from a notebook cell."
        )
    if any(_compiled(module) is not None for module in modules):
        raise CaptureError(
            f"this model cannot be run on a copy: {why}. Parts of it are compiled and this is not the main thread, so it "
            "is not run in place either. Call capture() from a notebook cell."
        )


def _compiled(module: nn.Module) -> Any:
    """What ``module.compile()`` has set."""
    return module.__dict__.get("_compiled_call_impl")


def _is_ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("ess_widgets.")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))
