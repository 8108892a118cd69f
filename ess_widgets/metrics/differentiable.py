"""Effective state-size that can be trained for: gradients with respect to the operator.

Both measures are spectral functions ``f(σ)`` of ``H_i = U diag(σ) Vᵀ``. Their gradient is
``U diag(∂f/∂σ) Vᵀ``: no differences of singular values are divided by, so that repeated ones do no harm.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ess_widgets.metrics._checks import as_operator, check_tol, position_list
from ess_widgets.metrics._svd import one_thread, singular_values, working_dtype
from ess_widgets.metrics.factored import Once, Spectral, factors, is_factored, spectral_function
from ess_widgets.operators import Dense, Recurrence
from ess_widgets.operators.checks import check_finite_causal

__all__ = ["entropy_ess", "sample_positions", "tolerance_surrogate"]

# Entries of singular vectors kept from the forward to the backward pass; beyond, they are computed again.
_KEEP = 2**25


def entropy_ess(op: Any, positions: Any = None) -> Tensor:
    """Entropy-ESS, differentiable: the values of ``ess(op, "entropy")``, with gradients.

    The entropy has an infinite slope where a singular value is zero: any perturbation raises it. Singular
    values within rounding of zero get no gradient, which is exact where the rank cannot rise, as in
    ``T = q kᵀ``, and a step that leaves them alone elsewhere.

    Parameters
    ----------
    op : Operator or Tensor, ``(..., L, L)``
        An operator whose ``matrix()`` has a graph, or a tensor that requires gradients. float32 is worked on
        in float64 and gets its gradient in float32.
    positions : sequence of int, optional
        Which ``i``; all by default. One decomposition each: :func:`sample_positions` picks a few for a
        training step.

    Returns
    -------
    Tensor, ``(..., L)`` or ``(..., P)``
        float64 (float32 on MPS). 0 where ``H_i = 0``, with gradient 0.

    Raises
    ------
    ValueError
        If the operator is not square, causal and finite, or a position is out of range.
    RuntimeError
        If differentiated twice.

    Examples
    --------
    >>> import torch
    >>> q, k = torch.randn(2, 16, 4, requires_grad=True).unbind()
    >>> penalty = -entropy_ess((q @ k.mT).tril(), positions=[4, 8, 12]).mean()
    >>> penalty.backward()
    """
    return _spectral_ess(op, positions, _entropy)


def tolerance_surrogate(
    op: Any, tol: float = 1e-3, *, width: float = 0.5, positions: Any = None, relative: bool = False
) -> Tensor:
    """A smooth stand-in for tolerance-ESS: each singular value counts ``sigmoid(log(σ / τ) / width)``.

    At the default width that is ``σ² / (σ² + τ²)``: 1/2 at ``σ = τ``, smooth in the entries of ``T`` even
    where singular values are zero or repeated, and ``tr(H Hᵀ (H Hᵀ + τ² I)⁻¹)`` as a whole, the effective
    number of degrees of freedom of ridge regression. Narrower ones come nearer to the count, and their
    gradient concentrates on the singular values near ``τ``; those far below contribute ``(σ / τ)**(1 / width)``
    each.

    Parameters
    ----------
    op, positions
        As in :func:`entropy_ess`.
    tol : float
        ``τ``.
    width : float
        In units of ``log σ``, above 0 and below 1, from where on the slope at ``σ = 0`` no longer vanishes.
    relative : bool
        Whether ``tol`` is in units of the largest singular value of ``H_i``. Where the two largest are equal
        this is not differentiable; its gradient is then shared between them.

    Returns
    -------
    Tensor, ``(..., L)`` or ``(..., P)``
        float64 (float32 on MPS).

    Raises
    ------
    ValueError, TypeError
        If the operator is not square, causal and finite, or an argument is out of range.
    RuntimeError
        If differentiated twice.

    Examples
    --------
    >>> import torch
    >>> T = torch.ones(6).diag().roll(2, 0).tril().requires_grad_()
    >>> tolerance_surrogate(T, tol=0.1)
    tensor([0.0000, 0.9901, 1.9802, 1.9802, 1.9802, 0.9901], dtype=torch.float64, ...)
    """
    tol = check_tol(tol)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < 1:
        raise ValueError(f"width must be a number above 0 and below 1, but is {width!r}.")
    return _spectral_ess(op, positions, lambda sigma: _smooth_count(sigma, tol, width, relative))


def sample_positions(length: int, count: int, *, generator: torch.Generator) -> list[int]:
    """A few positions for one training step, spread over the sequence.

    ``count`` evenly spaced ones of ``1 .. length - 1`` from a random offset, so that the mean over them is an
    unbiased estimate of the mean over all of these, with less scatter than independent draws.

    Parameters
    ----------
    length : int
        ``L``.
    count : int
        How many, at most ``length - 1``.
    generator : torch.Generator
        On the CPU. One of its own, so that the random numbers of the training stay what they are.

    Returns
    -------
    list of int
        Ascending, all different.

    Examples
    --------
    >>> import torch
    >>> random = torch.Generator().manual_seed(0)
    >>> [len(sample_positions(128, 4, generator=random)) for step in range(3)]
    [4, 4, 4]
    """
    if not 1 <= count <= length - 1:
        raise ValueError(
            f"count must lie between 1 and length - 1 = {length - 1} (position 0 has no past), but is {count}."
        )
    # Steps are at least 1, so that no two coincide.
    step = (length - 1) / count
    offset = torch.rand((), generator=generator, dtype=torch.float64).item()
    return [1 + min(length - 2, math.floor((k + offset) * step)) for k in range(count)]


def _entropy(sigma: Tensor) -> tuple[Tensor, Tensor]:
    largest = sigma[..., :1]
    present = sigma > torch.finfo(sigma.dtype).eps * sigma.shape[-1] * largest
    p = sigma / largest.where(largest > 0, 1.0)
    total = p.sum(dim=-1, keepdim=True)
    p = p / total.where(total > 0, 1.0)
    entropy = torch.special.entr(p).sum(dim=-1, keepdim=True)
    effective = entropy.exp().where(largest > 0, 0.0)
    slope = -effective * (p.where(present, 1.0).log() + entropy) / sigma.sum(dim=-1, keepdim=True)
    return effective.squeeze(-1), slope.where(present, 0.0)


def _smooth_count(sigma: Tensor, tol: float, width: float, relative: bool) -> tuple[Tensor, Tensor]:
    largest = sigma[..., :1]
    threshold = tol * largest if relative else torch.full_like(largest, tol)
    positive = sigma > 0
    x = (sigma.where(positive, 1.0).log() - threshold.where(threshold > 0, 1.0).log()) / width
    share = torch.sigmoid(x).where(positive, 0.0)
    # With respect to log σ; the slope per σ follows.
    steepness = share * torch.sigmoid(-x) / width
    slope = (steepness / sigma).where(positive, 0.0)
    if relative:
        tied = (sigma >= largest * (1 - sigma.shape[-1] * torch.finfo(sigma.dtype).eps)) & positive
        pull = steepness.sum(dim=-1, keepdim=True) / largest
        slope = slope - (pull / tied.sum(dim=-1, keepdim=True)).where(tied, 0.0)
    return share.sum(dim=-1), slope


def _spectral_ess(op: Any, positions: Any, f: Spectral) -> Tensor:
    op = as_operator(op)
    wanted = [op.block * i for i in position_list(positions, op.length)]
    if wanted and isinstance(op, Recurrence) and is_factored(op):
        lead, dtype = op.shape[:-2], working_dtype(op.device)
        values = [
            spectral_function(*factors(op, i), f) if i else torch.zeros(lead, dtype=dtype, device=op.device)
            for i in wanted
        ]
        return torch.stack(values, dim=-1)
    T = op.matrix()
    if not isinstance(op, Dense):
        T = check_finite_causal(T, block=op.block)
    out: Tensor = _SpectralFunction.apply(  # type: ignore[no-untyped-call]
        T.reshape(-1, *T.shape[-2:]), wanted, f
    )
    return out.reshape(*T.shape[:-2], len(wanted))


class _SpectralFunction(torch.autograd.Function):
    """``(B, N, N)`` and ``P`` splits to ``(B, P)``.

    All splits in one node of the graph: a slice of ``T`` for each would cost a gradient of ``T``'s size for each.
    """

    @staticmethod
    def forward(ctx: Any, T: Tensor, splits: list[int], f: Spectral) -> Tensor:
        ctx.splits, ctx.f = splits, f
        out = torch.zeros(T.shape[0], len(splits), dtype=working_dtype(T.device), device=T.device)
        kept: list[Tensor] = []
        room = _KEEP if T.requires_grad else 0
        for n, p in enumerate(splits):
            H = T[:, p:, :p]
            if H.numel() == 0:
                continue
            room -= H.shape[0] * min(H.shape[-2:]) * T.shape[-1]
            if room >= 0:
                kept.extend(_decompose(H))
                sigma = kept[-2]
            else:
                with one_thread(T.device):
                    sigma = singular_values(H)
            out[:, n] = f(sigma)[0]
        ctx.save_for_backward(T, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, None, None]:
        T, *kept = ctx.saved_tensors
        with torch.no_grad():
            gradient = torch.zeros_like(T, dtype=weights.dtype)
            factors = iter(kept)
            left = len(kept) // 3
            for n, p in enumerate(ctx.splits):
                H = T[:, p:, :p]
                if H.numel() == 0:
                    continue
                if left:
                    U, sigma, Vh = next(factors), next(factors), next(factors)
                    left -= 1
                elif not weights[:, n].any():
                    continue
                else:
                    U, sigma, Vh = _decompose(H)
                slope = weights[:, n, None] * ctx.f(sigma)[1]
                gradient[:, p:, :p].baddbmm_(U * slope.unsqueeze(-2), Vh)
        gradient = gradient.to(T.dtype)
        if torch.is_grad_enabled():
            gradient = Once.apply(gradient, T, weights)  # type: ignore[no-untyped-call]
        return gradient, None, None


def _decompose(H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with one_thread(H.device):
        U, sigma, Vh = torch.linalg.svd(H.to(working_dtype(H.device)), full_matrices=False)
    return U, sigma, Vh
