"""Effective state-size by one singular value decomposition per position: slow, plain and exact.

The faster ways are tested against this one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ess_widgets.metrics._checks import Kind, as_operator, check_kind, check_tol, position_list
from ess_widgets.metrics._svd import one_thread, singular_values, working_dtype
from ess_widgets.operators import Dense, Operator
from ess_widgets.operators.checks import check_finite_causal

__all__ = ["ess", "from_spectrum", "spectra", "spectrum", "vectors"]

# Seconds of work after which ``spectra`` hands out what it has, so that its caller can stop or do something else.
_PAUSE = 0.03


def spectra(op: Any, positions: Any = None, *, chunk: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Singular values of ``H_i = T[i:, :i]``, a few positions at a time.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., L, L)``
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.
    chunk : int, optional
        Positions per step. By default as many as take about 30 ms, at least one.

    Yields
    ------
    positions : int64 Tensor, ``(p,)``, on the CPU
    sigma : Tensor, ``(..., p, K)``
        Descending, padded with zeros, where ``K`` is the largest ``min(i, L - i)`` of all positions asked for.
        float64 (float32 on MPS), on the operator's device.
    """
    op = as_operator(op)
    wanted = position_list(positions, op.shape[-1])
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk must be a positive integer, but is {chunk!r}.")
    return _spectra(_materialise(op), wanted, chunk)


def _spectra(T: Tensor, wanted: list[int], chunk: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    lead, L = T.shape[:-2], T.shape[-1]
    K = max((min(i, L - i) for i in wanted), default=0)
    flat = T.reshape(-1, L, L)
    start = 0
    while start < len(wanted):
        began, rows, at = time.monotonic(), [], start
        with one_thread(T.device):
            while at < len(wanted):
                rows.append(_spectrum_at(flat, wanted[at], K))
                at += 1
                if at - start == chunk if chunk is not None else time.monotonic() - began > _PAUSE:
                    break
        yield torch.tensor(wanted[start:at]), torch.stack(rows, dim=1).reshape(*lead, at - start, K)
        start = at


def _spectrum_at(T: Tensor, i: int, K: int) -> Tensor:
    H = T[:, i:, :i].to(working_dtype(T.device))
    sigma = singular_values(H)
    return torch.nn.functional.pad(sigma, (0, K - sigma.shape[-1]))


def spectrum(op: Any, positions: Any = None) -> Tensor:
    """Singular values of ``H_i = T[i:, :i]``, strictly past inputs to present-and-future outputs.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., L, L)``
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.

    Returns
    -------
    Tensor, ``(..., P, K)``
        Descending, padded with zeros to ``K``, the largest ``min(i, L - i)`` of the positions asked for (``L // 2``
        for all). float64 (float32 on MPS), on the operator's device.

    Raises
    ------
    ValueError
        If the operator is not square, causal and finite, or a position is out of range.
    TypeError
        If positions are not integers.

    Examples
    --------
    The all-ones operator has rank 1 everywhere, with ``sqrt(i * (L - i))`` as its only singular value.

    >>> import torch
    >>> spectrum(torch.ones(4, 4).tril(), positions=[1, 2])[:, 0]
    tensor([1.7321, 2.0000], dtype=torch.float64)
    """
    return torch.cat([sigma for _, sigma in spectra(op, positions)], dim=-2)


def ess(
    op: Any, kind: Kind = "entropy", tol: float = 1e-3, relative: bool = False, positions: Any = None
) -> Tensor:
    """Effective state-size at every position: how much of the past the operator carries into the future.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., L, L)``
    kind : {"entropy", "tolerance"}
        ``"tolerance"`` counts the singular values of ``H_i = T[i:, :i]`` above ``tol``; ``"entropy"`` is
        ``exp(-Σ p log p)`` with ``p = σ / Σσ``, which is blind to scale (Roy & Vetterli 2007).
    tol : float
        The tolerance; does not enter the entropy.
    relative : bool
        Whether ``tol`` is in units of the largest singular value of ``H_i``; does not enter the entropy.
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.

    Returns
    -------
    Tensor, ``(..., L)`` or ``(..., P)``
        float64 (float32 on MPS) for both kinds, on the operator's device. Entry 0, and any ``H_i = 0``, is 0.

    Raises
    ------
    ValueError
        If the operator is not square, causal and finite, or an argument is out of range.
    TypeError
        If ``tol`` or ``positions`` are of the wrong type.

    References
    ----------
    Parnichkun et al., *Quantifying Memory Utilization with Effective State-Size*, ICML 2025, arXiv:2504.19561.

    Examples
    --------
    A delay by two steps keeps two numbers.

    >>> import torch
    >>> ess(torch.ones(6).diag().roll(2, 0).tril(), kind="tolerance")
    tensor([0., 1., 2., 2., 2., 1.], dtype=torch.float64)
    """
    check_kind(kind)
    tol = check_tol(tol)
    parts = [from_spectrum(sigma, kind, tol, relative) for _, sigma in spectra(op, positions)]
    return torch.cat(parts, dim=-1)


def from_spectrum(sigma: Tensor, kind: Kind = "entropy", tol: float = 1e-3, relative: bool = False) -> Tensor:
    """Effective state-size from singular values that are known already.

    Parameters
    ----------
    sigma : Tensor, ``(..., K)``
        Descending, zero-padded, as :func:`spectrum` returns them.
    kind, tol, relative
        As in :func:`ess`.

    Returns
    -------
    Tensor, ``(...)``
        In the dtype of ``sigma``.

    Examples
    --------
    >>> import torch
    >>> sigma = torch.tensor([2.0, 2.0, 1e-4])
    >>> from_spectrum(sigma, "tolerance", tol=1e-3)
    tensor(2.)
    """
    check_kind(kind)
    tol = check_tol(tol)
    if sigma.shape[-1] == 0:
        return sigma.new_zeros(sigma.shape[:-1])
    largest = sigma[..., :1]
    if kind == "tolerance":
        return (sigma > (tol * largest if relative else tol)).sum(dim=-1).to(sigma.dtype)
    # In units of the largest, so that neither huge nor tiny values overflow on the way.
    p = sigma / largest.where(largest > 0, 1.0)
    p = p / p.sum(dim=-1, keepdim=True).clamp_min(1.0)
    return torch.special.entr(p).sum(dim=-1).exp().where(largest[..., 0] > 0, 0.0)


def vectors(op: Any, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of ``H_i`` at one position: what is carried, not only how much.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., L, L)``
    position : int
        ``i``, in ``0 .. L-1``.

    Returns
    -------
    U : Tensor, ``(..., L - i, K)``
        Left singular vectors: column ``k`` says on which outputs, from ``i`` on, direction ``k`` shows.
    sigma : Tensor, ``(..., K)``
        Singular values, descending, ``K = min(i, L - i)``.
    Vh : Tensor, ``(..., K, i)``
        Right singular vectors: row ``k`` says which past inputs, weighted how, it is made of. Signs are chosen so
        that its largest weight is positive.

    Examples
    --------
    >>> import torch
    >>> U, sigma, Vh = vectors(torch.ones(4, 4).tril(), 2)
    >>> Vh[0]
    tensor([0.7071, 0.7071], dtype=torch.float64)
    """
    op = as_operator(op)
    (i,) = position_list([position], op.shape[-1])
    H = _materialise(op)[..., i:, :i]
    H = H.to(working_dtype(H.device))
    with one_thread(H.device), torch.no_grad():
        U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
    if sigma.shape[-1]:
        peak = Vh.gather(-1, Vh.abs().argmax(dim=-1, keepdim=True))
        sign = torch.where(peak < 0, -1.0, 1.0).to(Vh.dtype)
        U, Vh = U * sign.mT, Vh * sign
    return U, sigma, Vh


def _materialise(op: Operator) -> Tensor:
    T = op.matrix().detach()
    return T if isinstance(op, Dense) else check_finite_causal(T)
