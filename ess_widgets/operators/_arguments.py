"""Arguments of the constructors of recurrent families: cast up, checked, padding silenced."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators._attention_checks import check_number, floating
from ess_widgets.operators.checks import as_tensor, broadcast_valid

__all__ = [
    "as_gates",
    "broadcast_to",
    "cast_up",
    "check_finite",
    "check_length",
    "check_range",
    "expand_heads",
    "queries_and_keys",
    "real",
    "real_or_complex",
    "score_scale",
    "silence",
]

# How far gates may exceed 1 by rounding in single precision.
_SLACK = 1e-6


def cast_up(x: Tensor) -> Tensor:
    """To the precision in which operators are formed: double, or single where the device has no double."""
    single = x.device.type == "mps"
    if x.is_complex():
        return x.to(torch.complex64 if single else torch.complex128)
    return x.to(torch.float32 if single else torch.float64)


def real(value: Any, name: str) -> Tensor:
    """A real floating-point tensor of any precision, cast up."""
    return cast_up(floating(value, name))


def real_or_complex(value: Any, name: str) -> Tensor:
    """A real or complex floating-point tensor of any precision, cast up."""
    tensor = as_tensor(value, name)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(
            f"{name} must hold real or complex floating-point numbers, but its dtype is {tensor.dtype}."
        )
    return cast_up(tensor)


def check_length(length: Any) -> int:
    """The number of positions of a time-invariant operator."""
    if not isinstance(length, int) or isinstance(length, bool):
        raise TypeError(f"length must be an int, the number of positions L, but is {length!r}.")
    if length < 1:
        raise ValueError(f"length must be at least 1, but is {length}.")
    return length


def broadcast_to(x: Tensor, shape: tuple[int, ...], name: str, layout: str) -> Tensor:
    """Expand without copying, with an error that names the argument and the layout it should have."""
    try:
        expanded: Tensor = x.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} does not broadcast to {layout} = {tuple(shape)}."
        ) from None
    return expanded


def silence(x: Tensor, valid: Tensor | None, value: float = 0.0, inner: int = 1) -> Tensor:
    """Replace whatever padding holds, NaN included; ``inner`` dimensions of ``x`` follow that of positions."""
    if valid is None:
        return x
    # A mask that heads or channels share must not blow up a tensor that they share as well.
    for dim in range(valid.ndim - 1):
        if valid.stride(dim) == 0:
            valid = valid.narrow(dim, 0, 1)
    return torch.where(valid.reshape(*valid.shape, *[1] * inner), x, value)


def check_finite(x: Tensor, name: str) -> None:
    """No NaN or infinity; padding has been silenced before."""
    low, high = _extremes(x)
    if math.isfinite(low) and math.isfinite(high):
        return
    bad = ~torch.isfinite(x)
    where = tuple(bad.nonzero()[0].tolist())
    raise ValueError(
        f"{name} is not finite: {int(bad.sum())} of {bad.numel()} entries are NaN or infinite, the first "
        f"is {name}{list(where)} = {x[where].item()}. If these are padding, say so with valid=."
    )


def check_range(x: Tensor, name: str, low: float, high: float, advice: str) -> None:
    """Every entry lies in ``[low, high]``, infinite ends included; NaN does not."""
    least, most = _extremes(x)
    if least >= low and most <= high:
        return
    where = tuple((~((x >= low) & (x <= high))).nonzero()[0].tolist())
    at = f"{name}{list(where)}" if where else name
    raise ValueError(f"{at} = {x[where].item():.6g} is outside [{low:g}, {high:g}]: {advice}")


def _extremes(x: Tensor) -> tuple[float, float]:
    """Smallest and largest real number in ``x``, NaN where there is one: one pass, no copies."""
    x = x.detach()
    low, high = torch.aminmax(torch.view_as_real(x) if x.is_complex() else x)
    return low.item(), high.item()


def expand_heads(x: Tensor, heads: int, inner: int) -> Tensor:
    """Give each group of heads the tensor of its group: head ``h`` of ``H`` uses group ``h * G // H``.

    ``inner`` dimensions follow that of heads. A tensor for one head, or for all of them, is not copied.
    """
    at = x.ndim - inner - 1
    if at < 0 or x.shape[at] in (1, heads) or heads % x.shape[at]:
        return x
    return x.repeat_interleave(heads // x.shape[at], dim=at)


def queries_and_keys(
    q: Any, k: Any, valid: Any, *, names: tuple[str, str] = ("q", "k")
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries and keys of the same heads, cast up and finite, with zeros in padding; and ``valid`` expanded."""
    q, k = floating(q, names[0]), floating(k, names[1])
    _check_pair(q, k, names)
    if q.ndim > 2:
        k = expand_heads(k, q.shape[-3], inner=2)
    L = q.shape[-2]
    leads = {names[0]: q.shape[:-2], names[1]: k.shape[:-2]}
    if valid is not None:
        valid = as_tensor(valid, "valid")
        leads["valid"] = valid.shape[:-1]
    try:
        lead = np.broadcast_shapes(*leads.values())
    except ValueError:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in leads.items())
        raise ValueError(
            f"leading dimensions do not fit: {found}; they must broadcast, and the number of heads of "
            f"{names[0]} be a multiple of that of {names[1]}."
        ) from None
    valid = broadcast_valid(valid, torch.Size([*lead, L]), q.device)
    q, k = (silence(cast_up(x).expand(*lead, *x.shape[-2:]), valid) for x in (q, k))
    check_finite(q, names[0])
    check_finite(k, names[1])
    return q, k, valid


def _check_pair(q: Tensor, k: Tensor, names: tuple[str, str]) -> None:
    both = f"{names[0]} and {names[1]}"
    shapes = f"{names[0]} has shape {tuple(q.shape)} and {names[1]} {tuple(k.shape)}"
    if q.device != k.device:
        raise ValueError(
            f"{names[0]} is on {q.device} and {names[1]} on {k.device}; move them to one device."
        )
    if q.ndim < 2 or k.ndim < 2:
        raise ValueError(f"{both} must be (..., heads, L, d_k) or (L, d_k), but {shapes}.")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"{both} must not be empty, but {shapes}.")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{both} must have the same number of features (last dimension), but {shapes}.")
    if q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"{both} must cover the same positions, but {shapes}. Effective state-size needs the square "
            "operator: run the full sequence in one forward pass, without a cached state."
        )


def as_gates(
    g: Any, gates: Any, shape: tuple[int, ...], layout: str, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gates, and one minus them without cancellation, from exactly one of ``g`` and ``gates``.

    Both are ``(..., L, n)`` with dimensions of size 1 where the argument has them. Padding holds gates of 1.
    """
    if (g is None) == (gates is None):
        raise TypeError("pass exactly one of g (log of the gates, at most 0) and gates (in [0, 1]).")
    name = "gates" if g is None else "g"
    value = real(gates if g is None else g, name)
    if len(shape) > 2:
        value = expand_heads(value, shape[-3], inner=2)
    broadcast_to(value, shape, name, layout)
    if value.ndim < 2:
        raise ValueError(f"{name} must be {layout}, but its shape is {tuple(value.shape)}.")
    if valid is not None:
        full = (*shape[:-1], value.shape[-1])
        value = silence(value.expand(full), valid, 0.0 if g is not None else 1.0)
    if g is None:
        check_range(value, name, 0.0, 1.0 + _SLACK, "gates lie in [0, 1]; pass their logarithms as g=.")
        return value, 1.0 - value
    check_range(value, name, -torch.inf, _SLACK, "log gates are at most 0; pass gates themselves as gates=.")
    return value.exp(), -torch.expm1(value)


def score_scale(scale: Any, q: Tensor) -> float:
    """The factor on ``q·k``: that of softmax attention unless given."""
    return float(q.shape[-1] ** -0.5) if scale is None else check_number(scale, "scale")
