"""The real-gated linear recurrent unit of Griffin and RecurrentGemma, recognised by its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.capture.families._scan import interrupted, restarted, wide
from ess_widgets.capture.reading import ModuleCall, ModuleRecogniser, Reading
from ess_widgets.operators import Diagonal, Operator, Recurrence

__all__ = ["MODULES"]

_STATE = "it starts from a state that is not zero; pass the full sequence without a cache"
# Its exponent in Griffin; no implementation makes it a setting.
_C = 8.0


def _read(
    call: ModuleCall, gates: Callable[[ModuleCall, Tensor], tuple[Tensor, Tensor, Tensor]]
) -> Reading | str:
    """A unit called with ``(batch, L, channels)`` and positions ``(batch or 1, L)``, 0 where a document starts."""
    given = [item for item in (*call.args, *call.kwargs.values()) if isinstance(item, Tensor)]
    u = next((item for item in given if item.is_floating_point() and item.ndim == 3), None)
    positions = next((item for item in given if not item.is_floating_point() and item.ndim == 2), None)
    y = call.output
    if u is None or positions is None or y is None or y.shape != u.shape:
        return "an input (batch, L, channels) and its positions (batch, L) were expected"
    batch, L, channels = u.shape
    entering, recurrent, param = gates(call, u)
    kept = {"u": u, "y": y, "entering": entering, "recurrent": recurrent, "param": param}
    kept["starts"] = (positions == 0).expand(batch, L)
    # What the first output holds beyond the first input was there before.
    start = _coefficients({name: t[:, :1] if t.ndim == 3 else t for name, t in kept.items()})
    factor = _reset(*start, kept["starts"][:, :1])[1]
    expected = factor[..., 0].mT * u[:, :1].to(factor.dtype)
    slack = 16 * torch.finfo(u.dtype).eps * expected.abs().amax() + torch.finfo(u.dtype).tiny
    if bool(((y[:, :1] - expected).abs() > slack).any()):
        return _STATE

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        decay, factor = _reset(*_coefficients(t), t["starts"])
        ones = torch.ones_like(factor)
        if not interrupted(valid):
            return Recurrence(Diagonal(decay), factor, ones, valid=valid, name="RG-LRU")
        return restarted(Recurrence(Diagonal(decay), factor, ones, name="RG-LRU"), valid, None)

    return Reading(
        "gated linear recurrence",
        (batch, channels, L),
        kept,
        operator,
        lambda t: t["u"].mT.unsqueeze(-1),
        lambda t: t["y"].mT.unsqueeze(-1),
        group="channel",
    )


def _coefficients(t: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """``a``, ``sqrt(1 - a²)`` and the input gate, ``(batch, L, channels)``, rounded where the model rounds them."""
    log_decay = -_C * t["recurrent"] * F.softplus(t["param"])
    decay = torch.exp(log_decay)
    # 1 - a² loses digits where a is near 1; the model has no others.
    return decay, torch.sqrt(1 - torch.exp(2 * log_decay)), t["entering"]


def _reset(decay: Tensor, multiplier: Tensor, gate: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and factor on the input, ``(batch, channels, L, 1)``, with the state dropped where documents start."""
    at, precise = starts.unsqueeze(-1), wide(decay)
    decay = torch.where(at, 0, decay).to(precise)
    factor = torch.where(at, 1, multiplier.to(gate.dtype)).to(precise) * gate.to(precise)
    return decay.mT.unsqueeze(-1), factor.mT.unsqueeze(-1)


def _transformers(call: ModuleCall, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gates of RecurrentGemma, block-diagonal maps whose weights are ``(heads, block, block)``."""
    module: Any = call.module
    heads, block, _ = module.input_gate_weight.shape
    by_head = u.reshape(-1, heads, block).transpose(0, 1)
    gates = (
        torch.sigmoid(torch.baddbmm(bias[:, None], by_head, weight).transpose(0, 1).reshape(u.shape))
        for weight, bias in (
            (module.input_gate_weight, module.input_gate_bias),
            (module.recurrent_gate_weight, module.recurrent_gate_bias),
        )
    )
    return (*gates, module.recurrent_param)


def _griffin(call: ModuleCall, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gates of Griffin's own code, which are modules of their own."""
    module: Any = call.module
    gates = []
    for name in ("input_gate", "a_gate"):
        child = call.children.get(name)
        made = None if child is None else child.output
        gates.append(torch.sigmoid(getattr(module, name)(u) if made is None else made))
    return gates[0], gates[1], module.a_param


def _has(*names: str) -> Callable[[nn.Module], bool]:
    return lambda module: all(isinstance(getattr(module, name, None), Tensor | nn.Module) for name in names)


MODULES = (
    ModuleRecogniser(
        _has(
            "recurrent_param",
            "input_gate_weight",
            "input_gate_bias",
            "recurrent_gate_weight",
            "recurrent_gate_bias",
        ),
        lambda call: _read(call, _transformers),
        exclusive=True,
    ),
    ModuleRecogniser(
        _has("a_param", "input_gate", "a_gate"), lambda call: _read(call, _griffin), exclusive=True
    ),
)
