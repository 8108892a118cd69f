"""Effective state-size by one singular value decomposition per position: slow, plain and exact.

The faster ways are tested against this one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ess_widgets.metrics._checks import Kind, as_operator, check_chunk, check_kind, check_tol, position_list
from ess_widgets.metrics._svd import materialise, one_thread, singular_values, working_dtype
from ess_widgets.operators import Dense, Operator
from ess_widgets.operators.checks import as_tensor, check_finite_causal, require_float

__all__ = [
    "OVERFLOW",
    "checked_matrix",
    "ess",
    "from_spectrum",
    "parts",
    "spectra",
    "spectrum",
    "vectors",
    "width",
]

OVERFLOW = "singular values overflowed or are NaN: T has entries too large to decompose, scale it down."
# Seconds of work after which ``spectra`` hands out what it has, so that its caller can stop.
_PAUSE = 0.03
# Entries of T that ``spectrum`` and ``ess`` materialise at once where they can: 256 MB in float32.
_ENTRIES = 2**26


def spectra(op: Any, positions: Any = None, *, chunk: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Singular values of ``H_i = T[i:, :i]``, a few positions at a time, so that a caller can stop early.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., L, L)``
        Materialised as a whole. A step covers all of its leading dimensions: index it for shorter steps.
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.
    chunk : int, optional
        Positions per step. By default as many as take about 30 ms, at least one.

    Yields
    ------
    positions : int64 Tensor, ``(p,)``, on the CPU
    sigma : Tensor, ``(..., p, K)``
        Descending, padded with zeros to ``K``, the largest ``d * min(i, L - i)`` of all positions asked for, with
        ``d`` rows per position (``op.block``). float64 (float32 on MPS), on the operator's device.

    Raises
    ------
    ValueError, TypeError
        As :func:`spectrum` does, when it is called, not at the first step.

    Examples
    --------
    >>> import torch
    >>> for at, sigma in spectra(torch.ones(5, 5).tril(), positions=[1, 2, 3], chunk=2):
    ...     print(at.tolist(), tuple(sigma.shape))
    [1, 2] (2, 2)
    [3] (1, 2)
    """
    op = as_operator(op)
    wanted = position_list(positions, op.length)
    check_chunk(chunk)
    return _steps(checked_matrix(op), wanted, chunk, op)


def _steps(T: Tensor, wanted: list[int], chunk: int | None, op: Operator) -> Iterator[tuple[Tensor, Tensor]]:
    lead, d, device = T.shape[:-2], op.block, op.device
    K = width(wanted, op)
    flat = T.reshape(-1, *T.shape[-2:])
    start = 0
    while start < len(wanted):
        rows: list[Tensor] = []
        began = time.monotonic()
        with one_thread(T.device):
            for i in wanted[start : start + chunk if chunk else None]:
                sigma = singular_values(flat[:, d * i :, : d * i])
                rows.append(torch.nn.functional.pad(sigma, (0, K - sigma.shape[-1])))
                if chunk is None and time.monotonic() - began > _PAUSE:
                    break
        stop = start + len(rows)
        sigmas = torch.stack(rows, dim=1).reshape(*lead, len(rows), K)
        yield torch.tensor(wanted[start:stop]), sigmas.to(device)
        start = stop


def width(wanted: list[int], op: Operator) -> int:
    """The most singular values that the shape of any of these ``H_i`` allows."""
    return op.block * max((min(i, op.length - i) for i in wanted), default=0)


def checked_matrix(op: Operator) -> Tensor:
    """``op.matrix()``, detached; refused where it is not finite or not causal."""
    T = materialise(op)
    # Dense has been checked when it was made.
    return T if isinstance(op, Dense) else check_finite_causal(T, block=op.block)


def parts(op: Operator, entries: int | None = None) -> Iterator[tuple[slice, Operator]]:
    """Parts of at most so many entries of ``T`` where it can be split, with the flattened leading entries they cover."""
    lead = op.shape[:-2]
    count = lead.numel()
    size = max(1, (entries or _ENTRIES) // op.shape[-1] ** 2)
    if not op.splittable or count <= size:
        yield slice(0, count), op
        return
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield slice(start, stop), op[torch.unravel_index(torch.arange(start, stop, device=op.device), lead)]


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
        Descending, padded with zeros to ``K``, the largest ``d * min(i, L - i)`` of the positions asked for
        (``d * (L // 2)`` for all). float64 (float32 on MPS), on the operator's device.

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
    op = as_operator(op)
    wanted = position_list(positions, op.length)
    lead, K = op.shape[:-2], width(wanted, op)
    out = torch.empty(lead.numel(), len(wanted), K, dtype=working_dtype(op.device), device=op.device)
    for rows, part in parts(op):
        done = 0
        for at, sigma in spectra(part, wanted):
            out[rows, done : done + len(at)] = sigma.reshape(rows.stop - rows.start, len(at), K)
            done += len(at)
    return out.reshape(*lead, len(wanted), K)


def ess(
    op: Any, kind: Kind = "entropy", tol: float = 1e-3, relative: bool = False, positions: Any = None
) -> Tensor:
    """Effective state-size at every position: how much of the past the operator carries into the future.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., L, L)``
    kind : {"entropy", "tolerance"}
        ``"tolerance"`` counts the singular values of ``H_i = T[i:, :i]`` above ``tol``; ``"entropy"`` is
        ``exp(-Σ p log p)`` with ``p = σ / Σσ``, Roy and Vetterli's effective rank, which is blind to scale.
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
    Parnichkun et al., "Quantifying Memory Utilization with Effective State-Size", ICML 2025,
    arXiv:2504.19561.

    Examples
    --------
    A delay by two steps keeps two numbers.

    >>> import torch
    >>> ess(torch.ones(6).diag().roll(2, 0).tril(), kind="tolerance")
    tensor([0., 1., 2., 2., 2., 1.], dtype=torch.float64)
    """
    check_kind(kind)
    tol = check_tol(tol)
    op = as_operator(op)
    wanted = position_list(positions, op.length)
    lead = op.shape[:-2]
    out = torch.empty(lead.numel(), len(wanted), dtype=working_dtype(op.device), device=op.device)
    for rows, part in parts(op):
        done = 0
        for at, sigma in spectra(part, wanted):
            out[rows, done : done + len(at)] = from_spectrum(sigma, kind, tol, relative).reshape(-1, len(at))
            done += len(at)
    return out.reshape(*lead, len(wanted))


def from_spectrum(sigma: Any, kind: Kind = "entropy", tol: float = 1e-3, relative: bool = False) -> Tensor:
    """Effective state-size from singular values that are known already.

    Parameters
    ----------
    sigma : Tensor or ndarray, ``(..., K)``
        Singular values, zero-padded, as :func:`spectrum` returns them.
    kind, tol, relative
        As in :func:`ess`.

    Returns
    -------
    Tensor, ``(...)``
        In the dtype of ``sigma``: float32 or float64.

    Examples
    --------
    >>> import torch
    >>> sigma = torch.tensor([2.0, 2.0, 1e-4])
    >>> from_spectrum(sigma, "tolerance", tol=1e-3)
    tensor(2.)
    """
    check_kind(kind)
    tol = check_tol(tol)
    sigma = require_float(as_tensor(sigma, "sigma"), "sigma")
    if sigma.shape[-1] == 0:
        return torch.zeros(sigma.shape[:-1], dtype=sigma.dtype, device=sigma.device)
    if not bool(torch.isfinite(sigma).all()):
        raise ValueError(OVERFLOW)
    largest = sigma.amax(dim=-1, keepdim=True)
    if kind == "tolerance":
        count: Tensor = (sigma > (tol * largest if relative else tol)).sum(dim=-1)
        return count.to(sigma.dtype)
    # In units of the largest, so that neither huge nor tiny values leave the range of the dtype on the way.
    p = sigma / largest.where(largest > 0, 1.0)
    p = p / p.sum(dim=-1, keepdim=True)
    entropy = torch.special.entr(p).sum(dim=-1)
    effective: Tensor = entropy.exp().where(largest.squeeze(-1) > 0, 0.0)
    return effective


def vectors(op: Any, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of ``H_i`` at one position: what is carried, not only how much.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., L, L)``
    position : int
        ``i``, in ``0 .. L-1``.

    Returns
    -------
    U : Tensor, ``(..., d * (L - i), K)``
        Left singular vectors: column ``k`` says on which outputs, from ``i`` on, direction ``k`` shows.
    sigma : Tensor, ``(..., K)``
        Singular values, descending, ``K = d * min(i, L - i)``.
    Vh : Tensor, ``(..., K, d * i)``
        Right singular vectors: row ``k`` says which past inputs, weighted how, direction ``k`` is made of.
        Signs are such that its largest weight is positive. All three in float64 (float32 on MPS).

    Examples
    --------
    >>> import torch
    >>> U, sigma, Vh = vectors(torch.ones(4, 4).tril(), 2)
    >>> Vh[0]
    tensor([0.7071, 0.7071], dtype=torch.float64)
    """
    op = as_operator(op)
    d = op.block
    (i,) = position_list([position], op.length)
    H = checked_matrix(op)[..., d * i :, : d * i]
    H = H.to(working_dtype(H.device))
    with one_thread(H.device):
        U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
    if sigma.shape[-1]:
        peak = Vh.gather(-1, Vh.abs().argmax(dim=-1, keepdim=True))
        sign = torch.where(peak < 0, -1.0, 1.0).to(Vh.dtype)
        U, Vh = U * sign.mT, Vh * sign
    return U, sigma, Vh
