"""Gradients of spectral functions of ``H = O Rᵀ`` from its factors, for recurrences with diagonal transitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ess_widgets.metrics._svd import one_thread, working_dtype
from ess_widgets.operators import Diagonal, Operator, Recurrence

__all__ = ["Once", "Spectral", "factors", "is_factored", "spectral_function"]

# Values ``(b,)`` of a spectral function and its derivatives ``(b, K)``, of singular values ``(b, K)``.
Spectral = Callable[[Tensor], tuple[Tensor, Tensor]]


def is_factored(op: Operator) -> bool:
    """Whether factors are at hand and much smaller than the matrix."""
    return (
        isinstance(op, Recurrence)
        and isinstance(op.A, Diagonal)
        and op.block == 1
        and not op.is_complex
        and 2 * op.order <= op.length
    )


def factors(op: Recurrence, i: int) -> tuple[Tensor, Tensor]:
    """What outputs ``i:`` read of the state at ``i``, and what inputs ``:i`` left in it, with their graph.

    Returns
    -------
    O, R : Tensor
        ``(..., L - i, n)`` and ``(..., i, n)``, with ``H_i = O Rᵀ``.
    """
    dtype = working_dtype(op.device)
    a, B, C = (part.to(dtype) for part in (op.A.parts[0], op.B, op.C))
    a = a.expand(*a.shape[:-2], op.length, a.shape[-1])
    one = torch.ones_like(a[..., :1, :])
    first, last = (i, op.length) if op.read == "after" else (i, op.length - 1)
    through = a[..., first:last, :] if op.read == "after" else torch.cat([one, a[..., first:last, :]], dim=-2)
    since = torch.cat([one, a[..., 1:i, :].flip(-2)], dim=-2)
    return C[..., i:, :] * through.cumprod(-2), B[..., :i, :] * since.cumprod(-2).flip(-2)


def spectral_function(O: Tensor, R: Tensor, f: Spectral) -> Tensor:
    """``f`` of the singular values of ``O Rᵀ``, ``(..., m, n)`` and ``(..., k, n)`` to ``(...)``."""
    lead = O.shape[:-2]
    out: Tensor = _Factored.apply(  # type: ignore[no-untyped-call]
        O.reshape(-1, *O.shape[-2:]), R.reshape(-1, *R.shape[-2:]), f
    )
    return out.reshape(lead)


class _Factored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, O: Tensor, R: Tensor, f: Spectral) -> Tensor:
        # Features that are written strongly and read weakly would cost digits.
        written, read = R.norm(dim=-2, keepdim=True), O.norm(dim=-2, keepdim=True)
        balance = torch.where((written > 0) & (read > 0), written / read, 1.0).sqrt()
        with one_thread(O.device):
            (Q, left), (P, right) = torch.linalg.qr(O * balance), torch.linalg.qr(R / balance)
            U, sigma, Vh = torch.linalg.svd(left @ right.mT, full_matrices=False)
        ctx.f = f
        ctx.save_for_backward(O, R, Q @ U, sigma, P @ Vh.mT)
        return f(sigma)[0]

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        O, R, X, sigma, Y = ctx.saved_tensors
        with torch.no_grad():
            slope = (weights[:, None] * ctx.f(sigma)[1]).unsqueeze(-1)
            of_O, of_R = X @ (slope * (Y.mT @ R)), Y @ (slope * (X.mT @ O))
        if torch.is_grad_enabled():
            of_O, of_R = (Once.apply(part, O, R, weights) for part in (of_O, of_R))  # type: ignore[no-untyped-call]
        return of_O, of_R, None


class Once(torch.autograd.Function):
    """The gradient itself; says clearly that it has none."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *origins: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "entropy_ess and tolerance_surrogate can be differentiated once, not twice: leave them out of "
            "what is differentiated with create_graph=True."
        )
