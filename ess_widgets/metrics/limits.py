"""What a profile is measured against: the ceiling that shapes set, and utilisation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ess_widgets.metrics._checks import as_operator
from ess_widgets.operators import Operator
from ess_widgets.operators.checks import as_tensor

__all__ = ["ceiling", "utilisation"]


def ceiling(op: Any) -> Tensor:
    """The largest effective state-size that the shape of ``H_i`` and the architecture allow.

    ``min(TSS_i, i, L - i)``: towards the end ``H_i`` loses rows, so every profile falls there, whatever the
    model does. Under padding, positions count among a sample's own tokens: ``i`` becomes the number of own
    tokens before ``i``, and ``L - i`` that of those from ``i`` on. Where ``d`` rows of ``T`` belong to one
    position (``op.block``), it is ``min(TSS_i, d * i, d * (L - i))``.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., d*L, d*L)``

    Returns
    -------
    Tensor, ``(..., L)``
        int64, on the operator's device.

    Examples
    --------
    >>> import torch
    >>> ceiling(torch.ones(6, 6).tril())
    tensor([0, 1, 2, 3, 2, 1])
    """
    op = as_operator(op)
    own = torch.ones(op.length, dtype=torch.bool, device=op.device) if op.valid is None else op.valid
    past = own.long().cumsum(-1) - own.long()
    future = own.sum(-1, keepdim=True) - past
    limit = torch.minimum(op.block * torch.minimum(past, future), op.state_size.to(op.device))
    return limit.expand(_positions(op)).contiguous()


def utilisation(op: Any, profile: Any, *, against: Literal["state_size", "ceiling"] = "state_size") -> Tensor:
    """How much of what could be carried is carried: ``Σ ESS_i / Σ TSS_i`` over ``i >= 1``, a ratio of sums.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., d*L, d*L)``
    profile : Tensor or ndarray, ``(..., L)``
        Its effective state-size at all positions, as :func:`ess` returns it.
    against : {"state_size", "ceiling"}
        TSS, as the paper has it, or the ceiling. By its shape alone, full attention cannot go far beyond 0.5
        against TSS.

    Returns
    -------
    Tensor, ``(...)``
        One ratio per leading entry, 0 where nothing could be carried.

    Examples
    --------
    >>> import torch
    >>> op = torch.eye(6).roll(2, 0).tril()
    >>> from ess_widgets.metrics import ess
    >>> utilisation(op, ess(op, "tolerance"), against="ceiling")
    tensor(0.8889, dtype=torch.float64)
    """
    op = as_operator(op)
    if against not in ("state_size", "ceiling"):
        raise ValueError(f"against must be 'state_size' or 'ceiling', but is {against!r}.")
    profile = as_tensor(profile, "profile").to(op.device)
    if profile.shape != _positions(op):
        raise ValueError(
            f"profile must hold all positions, (..., L) = {tuple(_positions(op))}, but its shape is "
            f"{tuple(profile.shape)}."
        )
    limit = ceiling(op) if against == "ceiling" else op.state_size.expand(_positions(op))
    possible = limit[..., 1:].sum(dim=-1).to(profile)
    used: Tensor = profile[..., 1:].sum(dim=-1)
    return used / possible.where(possible > 0, 1.0)


def _positions(op: Operator) -> torch.Size:
    """``(..., L)``."""
    return torch.Size([*op.shape[:-2], op.length])
