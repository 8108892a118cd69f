"""What a history is of: enough to notice that a file belongs to another run."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from .measuring import Measure, tensors_of

__all__ = ["described"]

# What wrappers put in front of parameters' names.
_WRAPPERS = ("module.", "_orig_mod.")


def described(model: nn.Module, inputs: Any, how: Measure) -> dict[str, str]:
    """Of the model the names and shapes of its parameters, of the inputs their values, and the measure."""
    names = hashlib.sha256()
    tensors = numbers = 0
    for name, parameter in model.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        names.update(f"{name} {tuple(parameter.shape)};".encode())
        tensors += 1
        numbers += parameter.numel()
    probe = hashlib.sha256()
    shapes = []
    for path, tensor in tensors_of(inputs):
        probe.update(f"{path} {tuple(tensor.shape)} {tensor.dtype};".encode())
        values = tensor.detach().cpu().contiguous()
        if values.is_floating_point() or values.is_complex():
            values = (
                torch.view_as_real(values.to(torch.complex128)) if values.is_complex() else values.double()
            )
        probe.update(values.numpy().tobytes())
        shapes.append("×".join(map(str, tensor.shape)))
    where = "all positions" if how.positions is None else f"positions {list(how.positions)}"
    threshold = "" if how.kind == "entropy" else f" > {how.tol:g}{'·σ₁' if how.relative else ''}"
    return {
        "model": f"{tensors} parameters, {numbers:,} numbers, {names.hexdigest()[:8]}",
        "probe_inputs": f"{', '.join(shapes)}, {probe.hexdigest()[:8]}",
        "measure": f"{how.kind}{threshold}, {where}",
    }
