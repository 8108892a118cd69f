"""Batched factorisations of symmetric indefinite matrices: solutions, and how many eigenvalues are negative."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["eliminate", "negatives"]

# Triangular factors are rounded in another way than what is counted, and differently for each column. Where a pivot is
# nearly singular that is amplified: beyond this, in units of eps, and where its bound, so many times what is ever seen,
# exceeds the other errors, eigenvalues are worth their price.
_HARMLESS = 1e9
_POOR = 16.0


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
        Zero where the pivot is singular.
    negative : int64 Tensor, ``(n,)``
    magnitude : Tensor, ``(n,)``
        A bound on the norm of what is added up in ``couplingᵀ @ solved`` and in the factorisation: rounding is
        a small multiple of eps times this. Infinite where the pivot is singular or leaves the range of float64.
    """
    if not _has_ldl(pivot.device):
        solved, negative, singular = _by_eigenvalues(pivot, coupling)
        magnitude = _magnitude(pivot, coupling, solved)
    else:
        negative, singular = _bunch_kaufman(pivot)
        solved, info = torch.linalg.solve_ex(pivot, coupling)
        singular = singular | (info != 0)
        magnitude = _magnitude(pivot, coupling, solved)
        rows = torch.linalg.vector_norm(solved, dim=-1, keepdim=True)
        amplified = (rows.mT @ (pivot.abs() @ rows)).flatten()
        poor = ~(amplified <= (_POOR * magnitude).clamp(min=_HARMLESS)) & ~singular
        magnitude = torch.maximum(magnitude, amplified / _POOR)
        if bool(poor.any()):
            pivot, coupling = pivot[poor], coupling[poor]
            solved[poor], negative[poor], singular[poor] = _by_eigenvalues(pivot, coupling)
            magnitude[poor] = _magnitude(pivot, coupling, solved[poor])
    singular = singular | ~torch.isfinite(magnitude)
    if bool(singular.any()):
        solved = torch.where(singular[:, None, None], 0.0, solved)
        magnitude = torch.where(singular, torch.inf, magnitude)
    return solved, negative, magnitude


def _by_eigenvalues(pivot: Tensor, coupling: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solutions, negative eigenvalues, and whether one vanishes.

    Rounding in the factors is an error in the pivot itself, the same for the count and for all columns: it is not
    amplified. That in the solutions is relative to what they add up.
    """
    finite = torch.isfinite(pivot).flatten(1).all(dim=1)
    values, Q = torch.linalg.eigh(torch.where(finite[:, None, None], pivot, 0.0))
    solved = Q @ ((Q.mT @ coupling) / values[..., None])
    return solved, (values < 0).sum(dim=-1), (values == 0).any(dim=-1) | ~finite


def _magnitude(pivot: Tensor, coupling: Tensor, solved: Tensor) -> Tensor:
    size, coupled, taken = (
        torch.linalg.vector_norm(part, dim=(-2, -1)) for part in (pivot, coupling, solved)
    )
    magnitude: Tensor = size + coupled * taken
    return magnitude


def negatives(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Count the negative eigenvalues of symmetric matrices ``(n, m, m)``, with the magnitude as in :func:`eliminate`."""
    if _has_ldl(matrices.device):
        negative, singular = _bunch_kaufman(matrices)
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
    """Negative eigenvalues of each matrix, and whether a pivot is exactly zero."""
    factors, order, _ = torch.linalg.ldl_factor_ex(matrices)
    pivots = factors.diagonal(dim1=-2, dim2=-1)
    # A negative entry marks half of a 2 x 2 pivot, whose determinant is negative: one eigenvalue of each sign.
    single = order > 0
    negative = (single & (pivots < 0)).sum(dim=-1) + (~single).sum(dim=-1) // 2
    singular = (single & ~(pivots.abs() > 0)).any(dim=-1)
    return negative, singular
