"""Running on the model itself, where it cannot be copied, and putting everything back."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ess_widgets.capture.errors import CaptureError

__all__ = ["borrowed", "python_randomness"]


@contextlib.contextmanager
def borrowed(model: nn.Module, why: str) -> Iterator[None]:
    """Lend the model itself, in eval mode; training flags and buffers are put back, whatever happens.

    Raises
    ------
    CaptureError
        Where this is not safe: in another thread than the main one, a training loop could be using a model that is
        in training mode.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    if training and threading.current_thread() is not threading.main_thread():
        raise CaptureError(
            f"this model cannot be run on a copy: {why}. It is in training mode and this is not the main thread, so "
            "it is not run in place either. Call model.eval() first, or call capture() from a notebook cell."
        )
    if threading.current_thread() is not threading.main_thread() and any(map(_compiled, modules)):
        raise CaptureError(
            f"this model cannot be run on a copy: {why}. Parts of it are compiled and this is not the main thread, so it "
            "is not run in place either. Call capture() from a notebook cell."
        )
    compiled = {module: _compiled(module) for module in modules}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        for module in training:
            module.training = False
        for module, function in compiled.items():
            if function is not None:
                module._compiled_call_impl = None
        yield
    finally:
        for module in training:
            module.training = True
        for module, function in compiled.items():
            if function is not None:
                module._compiled_call_impl = function
        with torch.no_grad():
            for buffer, before in buffers:
                if not _same(buffer, before):
                    buffer.copy_(before)


@contextlib.contextmanager
def python_randomness() -> Iterator[None]:
    """In the main thread, put Python's and numpy's random streams back; torch's is never touched."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        if random.getstate() != python_state:
            random.setstate(python_state)
        if not all(map(np.array_equal, np.random.get_state(), numpy_state)):
            np.random.set_state(numpy_state)


def _compiled(module: nn.Module) -> Any:
    """What ``module.compile()`` has set."""
    return module.__dict__.get("_compiled_call_impl")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))
