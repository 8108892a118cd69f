"""Mamba and Mamba-2 as fused calls or inline: the short convolution and the scan recomputed from their weights.

A fused call returns what follows the output projection. The scan is computed again, and the result, led back through
projection, norm, gate and skip, says by how much that differs from what the model computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.capture.families._fused import PACKED
from ess_widgets.capture.families._mamba_inner import inner, s6_readings
from ess_widgets.capture.families._mamba_split import split_scan, ssd_readings
from ess_widgets.capture.families.selective_ssm import STATE
from ess_widgets.capture.reading import ModuleCall, ModuleRecogniser, Reading, Recogniser

__all__ = ["FUNCTIONS", "MODULES"]


def _mamba(call: ModuleCall) -> Reading | tuple[Reading, ...] | str:
    """A ``Mamba`` of mamba_ssm whose scan runs inline or in a kernel that is not known by its name."""
    module: Any = call.module
    found = _projected(call)
    if isinstance(found, str):
        return found
    small, u = call.children.get("x_proj"), None
    batch, L, _ = found.shape
    channels = module.conv1d.weight.shape[0]
    if small is not None and small.input is not None and small.input.numel() == batch * L * channels:
        u = small.input.reshape(batch, L, channels).mT
    made = None if small is None or u is None or small.output is None else small.output.reshape(batch, L, -1)
    kept = {
        "xz": found.mT,
        "A": -torch.exp(module.A_log.float()),
        "D": module.D,
        "conv_weight": module.conv1d.weight,
        "conv_bias": module.conv1d.bias,
        "x_weight": module.x_proj.weight,
        "dt_weight": module.dt_proj.weight,
        "dt_bias": module.dt_proj.bias,
        "softplus": True,
        "u": u,
        "small": made,
        "eps": 1e-6,
        **dict.fromkeys(("B", "C", "B_bias", "C_bias", "dt_norm", "b_norm", "c_norm")),
        **_ended(call, batch, L),
    }
    return s6_readings(kept)


def _mamba2(call: ModuleCall) -> Reading | tuple[Reading, ...] | str:
    """A ``Mamba2`` of mamba_ssm whose scan runs inline or in a kernel that is not known by its name."""
    module: Any = call.module
    found = _projected(call)
    if isinstance(found, str):
        return found
    batch, L, _ = found.shape
    norm = getattr(module, "norm", None) if getattr(module, "rmsnorm", True) else None
    width = module.A_log.shape[0] * module.headdim
    eps, size = getattr(norm, "eps", 1e-5), getattr(norm, "group_size", None)
    kept = {
        "projected": found,
        "A": -torch.exp(module.A_log.float()),
        "D": module.D,
        "conv_weight": module.conv1d.weight,
        "conv_bias": module.conv1d.bias,
        "dt_bias": module.dt_bias,
        "limits": tuple(getattr(module, "dt_limit", (0.0, float("inf")))),
        "head_width": module.headdim,
        "groups": module.ngroups,
        "norm_weight": None if norm is None else norm.weight,
        "norm_first": bool(getattr(norm, "norm_before_gate", getattr(module, "norm_before_gate", False))),
        "norm_groups": 1 if not size else width // size,
        "eps": eps,
        **_ended(call, batch, L),
    }
    return ssd_readings(kept)


def _projected(call: ModuleCall) -> Tensor | str:
    """What the input projection made of the mixer's input, ``(batch, L, channels)``."""
    module: Any = call.module
    x = next(
        (i for i in (*call.args, *call.kwargs.values()) if isinstance(i, Tensor) and i.is_floating_point()),
        None,
    )
    if x is None or x.ndim != 3 or call.output is None or call.output.shape[:2] != x.shape[:2]:
        return "an input (batch, L, channels) was expected"
    if getattr(module, "activation", "silu") not in ("silu", "swish"):
        return f"its activation {module.activation!r} is not known"
    if any(call.kwargs.get(name) is not None for name in ("seq_idx", "cu_seqlens")):
        return PACKED
    if any(getattr(i, "seqlen_offset", 0) for i in (*call.args, *call.kwargs.values())):
        return STATE
    made = call.children.get("in_proj")
    if made is not None and made.output is not None and made.output.shape[:2] == x.shape[:2]:
        return made.output
    bias = module.in_proj.bias
    weight = module.in_proj.weight
    return F.linear(x.to(weight.dtype), weight, bias)


def _ended(call: ModuleCall, batch: int, length: int) -> dict[str, Any]:
    """The input of the output projection where that was called, else its weights and the module's result."""
    module: Any = call.module
    taken = call.children.get("out_proj")
    if taken is not None and taken.input is not None and taken.input.shape[:2] == (batch, length):
        width = module.A_log.shape[0] * getattr(module, "headdim", 1)
        return {"known": taken.input[..., -width:], "out_weight": None, "out_bias": None}
    return {"known": call.output, "out_weight": module.out_proj.weight, "out_bias": module.out_proj.bias}


def _has(*names: str) -> Callable[[nn.Module], bool]:
    # Bidirectional variants have a second set of parameters for the way back.
    return lambda module: (
        all(getattr(module, name, None) is not None for name in names)
        and isinstance(module.conv1d, nn.Conv1d)
        and not hasattr(module, "A_b_log")
    )


FUNCTIONS: dict[str, Recogniser] = {
    **dict.fromkeys(("mamba_inner_fn", "mamba_inner_ref", "mamba_inner_fn_no_out_proj"), inner),
    **dict.fromkeys(
        (
            "mamba_split_conv1d_scan_combined",
            "mamba2_split_conv1d_scan_combined",
            "mamba_split_conv1d_scan_ref",
        ),
        split_scan,
    ),
}
MODULES = (
    ModuleRecogniser(
        _has(
            "in_proj",
            "conv1d",
            "x_proj",
            "dt_proj",
            "A_log",
            "D",
            "out_proj",
            "d_state",
            "dt_rank",
            "d_inner",
        ),
        _mamba,
    ),
    ModuleRecogniser(
        _has("in_proj", "conv1d", "dt_bias", "A_log", "D", "out_proj", "d_state", "headdim", "ngroups"),
        _mamba2,
    ),
)
