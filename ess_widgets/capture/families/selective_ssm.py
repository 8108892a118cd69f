"""Selective state-space models: Mamba's scan per channel, Mamba-2's per head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ess_widgets.capture.reading import Call, Reading, first_tensor, without
from ess_widgets.operators import Operator, selective_ssm

__all__ = ["FUNCTIONS"]


def _selective_scan(call: Call) -> Reading | str:
    """``selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)``, ``u`` ``(batch, channels, L)``."""
    u, delta = call.first("u", "hidden_states"), call.first("delta", "dt")
    A, B, C = (call.first(name) for name in "ABC")
    output = call.output
    if any(t is None for t in (u, delta, A, B, C, output)):
        return "arguments u, delta, A, B and C were expected"
    batch, channels, L = u.shape
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": call.first("D"), "z": call.first("z")}
    tensors |= {"bias": call.first("delta_bias"), "y": output, "arguments": dict(call.arguments)}
    softplus = bool(call.first("delta_softplus", default=False))

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        step = t["delta"].double()
        if t["bias"] is not None:
            step = step + t["bias"].double()[:, None]
        if softplus:
            step = F.softplus(step)
        return selective_ssm(step, t["A"], t["B"].mT, t["C"].mT, valid=valid)

    def outputs(t: Mapping[str, Any]) -> Tensor:
        gate = None if t["z"] is None else F.silu(t["z"])
        skip = None if t["D"] is None else t["u"] * t["D"][:, None]
        if gate is None and skip is None:
            y: Tensor = t["y"]
            return y.unsqueeze(-1)
        bare = first_tensor(call.again(**{**t["arguments"], "D": None, "z": None}))
        assert bare is not None
        return without(t["y"], bare, skip, gate).unsqueeze(-1)

    return Reading(
        "selective SSM", (batch, channels, L), tensors, operator, lambda t: t["u"].unsqueeze(-1), outputs
    )


FUNCTIONS = {"mamba_selective_scan": _selective_scan, "selective_scan_fn": _selective_scan}
