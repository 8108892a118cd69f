"""What readings of diagonal recurrences share: steps as the model forms them, resets, holes, a plain scan."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.operators import Diagonal, Operator, Recurrence

__all__ = ["document_starts", "filled", "interrupted", "restarted", "scan", "starts_of", "steps", "wide"]


def wide(tensor: Tensor) -> torch.dtype:
    """The widest real type of the device."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def steps(
    dt: Tensor,
    bias: Tensor | None,
    softplus: bool,
    limits: tuple[float, float] = (0.0, float("inf")),
    *,
    narrow: bool,
) -> Tensor:
    """Step sizes Δ of ``dt`` ``(..., channels)``, rounded where the model rounds them.

    Parameters
    ----------
    narrow : bool
        Whether bias and softplus are computed in the type of ``dt``, as transformers' functions do; the kernels of
        mamba_ssm compute them in float32.
    """
    step = dt if narrow else dt.to(torch.promote_types(dt.dtype, torch.float32))
    if bias is not None:
        step = step + bias.to(step.dtype)
    if softplus:
        step = F.softplus(step)
    return step.clamp(*limits)


def filled(state: Any) -> bool:
    """Whether a recurrence starts from a state that is not zero."""
    return isinstance(state, Tensor) and bool(state.any())


def starts_of(documents: Tensor) -> Tensor:
    """Where a number ``(batch, L)`` differs from the one before: documents start there."""
    starts = torch.zeros_like(documents, dtype=torch.bool)
    starts[..., 1:] = documents[..., 1:] != documents[..., :-1]
    return starts


def document_starts(cu_seqlens: Tensor, length: int) -> Tensor:
    """Starts of documents ``(1, L)`` from cumulative lengths, the first one left out."""
    starts = torch.zeros(1, length, dtype=torch.bool, device=cu_seqlens.device)
    starts[:, cu_seqlens[1:-1].long().clamp(max=length - 1)] = True
    return starts


def restarted(op: Recurrence, valid: Tensor | None, starts: Tensor | None) -> Operator:
    """A diagonal recurrence with its state dropped at ``starts`` ``(batch, L)``, and with holes.

    Parameters
    ----------
    op : Recurrence
        Without ``valid``, ``(batch, groups)``.
    valid : bool Tensor ``(batch, 1, L)``, optional
        Padding between own tokens adds nothing to the state, but the state decays there as it does in the model.
    """
    if valid is None and starts is None:
        return op
    (decay,) = op.A.parts
    if starts is not None:
        decay = torch.where(starts[:, None, :, None], 0.0, decay)
    if valid is not None and interrupted(valid):
        decay = _carried(decay, valid)
    return Recurrence(Diagonal(decay), op.B, op.C, op.D, read=op.read, valid=valid, name=op.name)


def interrupted(valid: Tensor | None) -> bool:
    """Whether there is padding between own tokens of ``valid`` ``(batch, 1, L)``."""
    return valid is not None and bool(_holes(valid).any())


def scan(decay: Tensor, entering: Tensor, read: Tensor, u: Tensor) -> Tensor:
    """``Re(C_t s_t)`` for ``s_t = a_t ⊙ s_{t-1} + b_t u_tᵀ``, step by step.

    Parameters
    ----------
    decay, entering, read : Tensor, ``(..., L, n)``
        ``a``, ``b`` and ``C``.
    u : Tensor, ``(..., L, width)``

    Returns
    -------
    Tensor, ``(..., L, width)``
    """
    state: Any = 0
    outputs = []
    for t in range(u.shape[-2]):
        state = decay[..., t, :, None] * state + entering[..., t, :, None] * u[..., t, None, :]
        outputs.append((read[..., t, :, None] * state).sum(-2))
    y = torch.stack(outputs, -2)
    return y.real if y.is_complex() else y


def _carried(decay: Tensor, valid: Tensor) -> Tensor:
    """Move the decay during padding between own tokens to the next own token."""
    own, holes = valid[..., None], _holes(valid)[..., None]
    decay = decay.expand(valid.shape[0], *decay.shape[1:]).clone()
    carry = torch.ones_like(decay[..., 0, :])
    for t in range(decay.shape[-2]):
        here = carry * decay[..., t, :]
        decay[..., t, :] = torch.where(own[..., t, :], here, decay[..., t, :])
        carry = torch.where(holes[..., t, :], here, torch.ones_like(carry))
    return decay


def _holes(valid: Tensor) -> Tensor:
    before = valid.cumsum(-1) > 0
    after = valid.flip(-1).cumsum(-1).flip(-1) > 0
    return ~valid & before & after
