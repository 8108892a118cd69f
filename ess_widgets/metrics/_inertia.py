"""Batched factorisations of symmetric indefinite matrices: solutions, and how many eigenvalues are negative."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["eliminate", "negatives"]

# Pivots this small, relative to the matrix, may owe their sign to rounding.
_UNSURE = 1e3 * torch.finfo(torch.float64).eps


def eliminate(pivot: Tensor, coupling: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``pivot @ solved = coupling`` and count the negative eigenvalues of ``pivot``.

    Parameters
    ----------
    pivot : Tensor, ``(n, h, h)``
        Symmetric.
    coupling : Tensor, ``(n, h, k)``

    Returns
    -------
    solved : Tensor, ``(n, h, k)``
        Zero where the pivot is singular, or so nearly that rounding decides on a sign.
    negative : int64 Tensor, ``(n,)``
    magnitude : Tensor, ``(n,)``
        A bound on the norm of what is added up in ``couplingᵀ @ solved`` and in the factorisation: rounding is
        a small multiple of eps times this. Infinite where the pivot is singular or leaves the range of float64.
    """
    if _has_ldl(pivot.device):
        negative, smallest = _bunch_kaufman(pivot)
        solved, info = torch.linalg.solve_ex(pivot, coupling)
        # Two factorisations, each rounded in its own way: a pivot that is rounding alone may have either sign in each.
        singular = ~(smallest > _UNSURE * torch.linalg.vector_norm(pivot, dim=(-2, -1))) | (info != 0)
    else:
        finite = torch.isfinite(pivot).flatten(1).all(dim=1)
        values, Q = torch.linalg.eigh(torch.where(finite[:, None, None], pivot, 0.0))
        negative, singular = (values < 0).sum(dim=-1), (values == 0).any(dim=-1) | ~finite
        solved = Q @ ((Q.mT @ coupling) / values[..., None])
    # Rounding in the factors is an error in the pivot itself, the same for all columns: it is not amplified. That in the
    # solutions and products is relative to what they add up.
    norms = [torch.linalg.vector_norm(part, dim=(-2, -1)) for part in (pivot, coupling, solved)]
    magnitude = norms[0] + norms[1] * norms[2]
    singular = singular | ~torch.isfinite(magnitude)
    if bool(singular.any()):
        solved = torch.where(singular[:, None, None], 0.0, solved)
        magnitude = torch.where(singular, torch.inf, magnitude)
    return solved, negative, magnitude


def negatives(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Count the negative eigenvalues of symmetric matrices ``(n, m, m)``, with the magnitude as in :func:`eliminate`."""
    if _has_ldl(matrices.device):
        negative, smallest = _bunch_kaufman(matrices)
        singular = ~(smallest > 0)
    else:
        finite = torch.isfinite(matrices).flatten(1).all(dim=1)
        values = torch.linalg.eigvalsh(torch.where(finite[:, None, None], matrices, 0.0))
        negative, singular = (values < 0).sum(dim=-1), (values == 0).any(dim=-1) | ~finite
    magnitude = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    return negative, torch.where(singular | ~torch.isfinite(magnitude), torch.inf, magnitude)


def _has_ldl(device: torch.device) -> bool:
    """GPUs have no batched Bunch-Kaufman factorisation; eigenvalues cost more and say the same."""
    return device.type == "cpu"


def _bunch_kaufman(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Negative eigenvalues of each matrix, and the size of its smallest pivot."""
    factors, order, _ = torch.linalg.ldl_factor_ex(matrices)
    pivots = factors.diagonal(dim1=-2, dim2=-1)
    # A negative entry marks half of a 2 x 2 pivot, whose determinant is negative: one eigenvalue of each sign.
    single = order > 0
    negative = (single & (pivots < 0)).sum(dim=-1) + (~single).sum(dim=-1) // 2
    # Such a pivot is about as large as the entry beside the diagonal, which is in the column of its first half.
    beside = torch.nn.functional.pad(factors.diagonal(-1, dim1=-2, dim2=-1), (0, 1))
    second = ~single & ((~single).cumsum(dim=-1) % 2 == 0)
    smallest = torch.where(single, pivots, beside).abs().masked_fill(second, torch.inf).amin(dim=-1)
    return negative, smallest
