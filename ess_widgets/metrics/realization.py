"""Spectra of recurrences from their factors: ``O(L n³)``, with an error bound for each position.

``H_i = O_i R_i``, where ``R_i`` (n x i) says how inputs reach the state and ``O_i`` ((L-i) x n) how outputs
observe it. The square-root form carries triangular factors of both, never Gramians, which lose half the digits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ess_widgets.metrics._checks import check_chunk, position_list
from ess_widgets.metrics._pool import in_parallel
from ess_widgets.metrics._svd import threads, working_dtype
from ess_widgets.metrics._sweeps import Factors, Sweeps, chunk_size
from ess_widgets.operators.recurrence import Recurrence

__all__ = ["Factors", "factors", "spectra"]

# Bytes that each kind of temporary may take.
_BYTES = {"cpu": 2**25, "cuda": 2**29}
_LEAST = 2**20
Take = Callable[[slice, Tensor, Factors, Tensor], None]
Result = TypeVar("Result", Factors, tuple[Tensor, Tensor])


@torch.no_grad()
def spectra(op: Recurrence, positions: Any = None, *, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Singular values of ``H_i`` of a recurrence at every position, without its matrix.

    Parameters
    ----------
    op : Recurrence, ``(..., d*L, d*L)``
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.
    chunk : int, optional
        Leading entries (heads, channels) taken at once; by default as many as fit in some tens of MB (hundreds
        on a GPU).

    Returns
    -------
    sigma : Tensor, ``(..., P, K)``
        Descending, zero-padded to ``K``, the most that the state and the shapes of all ``H_i`` asked for allow.
        float64 (float32 on MPS), on the operator's device.
    bound : Tensor, ``(..., P)``
        No singular value at this position is further than this from the true one of the given ``A``, ``B`` and
        ``C``; ``inf`` where numbers overflow. About ``eps * Σ_k |column k of O_i| |row k of R_i|`` times the
        number of factorisations behind it: large against the singular values where the state is reached
        strongly in a direction that is hardly read.

    Raises
    ------
    TypeError
        If ``op`` is not a recurrence.

    Examples
    --------
    A sum of all inputs: rank 1, ``sqrt(i * (L - i))``.

    >>> import torch
    >>> one = torch.ones(4, 1)
    >>> sigma, bound = spectra(Recurrence(one, one, one))
    >>> sigma.squeeze(-1)
    tensor([0.0000, 1.7321, 2.0000, 1.7321], dtype=torch.float64)
    >>> bool((bound < 1e-12).all())
    True
    """
    wanted = _checked(op, positions, chunk)
    return _within_memory(op, lambda op, room: _spectra(op, wanted, chunk, room))


@torch.no_grad()
def factors(op: Recurrence, positions: Any = None, *, chunk: int | None = None) -> Factors:
    """Square factors of what reaches the state and of what is observed of it, at every position.

    Parameters
    ----------
    op, positions, chunk
        As in :func:`spectra`.

    Returns
    -------
    Factors
        ``reach`` and ``observe``, ``(..., P, n, n)``: ``M Mᵀ = R_i R_iᵀ`` and ``N Nᵀ = O_iᵀ O_i``, so that
        ``H_i`` has the singular values of ``Nᵀ M``. ``s = R_i u`` is the state before position ``i``. A complex
        state counts as one of ``2n`` real numbers, all real parts first. ``bound``, ``(..., P)``: how far those
        singular values may be from the true ones.

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(4, 1)
    >>> found = factors(Recurrence(one, one, one), positions=[1, 2])
    >>> found.reach.abs().flatten(), found.observe.abs().flatten()
    (tensor([1.0000, 1.4142], dtype=torch.float64), tensor([1.7321, 1.4142], dtype=torch.float64))
    """
    wanted = _checked(op, positions, chunk)
    return _within_memory(op, lambda op, room: _factors(op, wanted, chunk, room))


def _checked(op: Any, positions: Any, chunk: int | None) -> list[int]:
    if not isinstance(op, Recurrence):
        raise TypeError(
            f"factors exist for a Recurrence, but op is of type {type(op).__name__}; "
            "ess and spectrum take any operator."
        )
    check_chunk(chunk)
    return position_list(positions, op.length)


def _spectra(op: Recurrence, wanted: list[int], chunk: int | None, room: int) -> tuple[Tensor, Tensor]:
    lead, d, L = op.shape[:-2], op.block, op.length
    ranks = [min(_state(op), d * i, d * (L - i)) for i in wanted]
    K = max(ranks, default=0)
    sigma = torch.zeros(lead.numel(), len(wanted), K, dtype=torch.float64, device=op.device)
    bound = sigma.new_zeros(lead.numel(), len(wanted))

    def take(rows: slice, columns: Tensor, part: Factors, exponents: Tensor) -> None:
        values, error = _singular_values(part)
        # Half of it twice: as a whole it may leave the range of floats.
        exponent = exponents.sum(dim=0)
        for half in (exponent // 2, exponent - exponent // 2):
            values, error = values * _two_to(half).view(-1, 1, 1), error * _two_to(half).view(-1, 1)
        sigma[rows, columns], bound[rows, columns] = values[..., :K], error

    _work(op, wanted, chunk, room, take)
    beyond = torch.arange(K, device=op.device) >= torch.tensor(ranks, device=op.device).unsqueeze(-1)
    sigma.masked_fill_(beyond, 0.0)
    return sigma.reshape(*lead, len(wanted), K), bound.reshape(*lead, len(wanted))


def _factors(op: Recurrence, wanted: list[int], chunk: int | None, room: int) -> Factors:
    lead, n = op.shape[:-2], _state(op)
    reach = torch.zeros(lead.numel(), len(wanted), n, n, dtype=torch.float64, device=op.device)
    observe, bound = torch.zeros_like(reach), reach.new_zeros(lead.numel(), len(wanted))

    def take(rows: slice, columns: Tensor, part: Factors, exponents: Tensor) -> None:
        B_scale, C_scale = _two_to(exponents)
        reach[rows, columns] = part.reach * B_scale.view(-1, 1, 1, 1)
        observe[rows, columns] = part.observe * C_scale.view(-1, 1, 1, 1)
        bound[rows, columns] = part.bound * B_scale.view(-1, 1) * C_scale.view(-1, 1)

    _work(op, wanted, chunk, room, take)
    shape = (*lead, len(wanted))
    return Factors(reach.reshape(*shape, n, n), observe.reshape(*shape, n, n), bound.reshape(shape))


def _state(op: Recurrence) -> int:
    return op.order * (2 if op.is_complex else 1)


def _work(op: Recurrence, wanted: list[int], chunk: int | None, room: int, take: Take) -> None:
    """Hand over the factors of all leading entries, some entries and some positions at a time."""
    count, L, n = op.shape[:-2].numel(), op.length, _state(op)
    workers = threads() if op.device.type == "cpu" else 1
    room //= workers
    size = chunk_size(L, op.block, n)
    # Per leading entry: what the first pass keeps, and what the second makes of one chunk.
    kept, made = 16 * L * n * (1 + n // size), 16 * n * n * (size + 1)
    at_once = chunk or max(1, min(room // max(kept, made), -(-count // workers)))
    at = torch.tensor(wanted, dtype=torch.int64, device=op.device)

    @torch.no_grad()
    def piece(rows: slice) -> None:
        sweeps, exponents = _sweeps(op, rows)
        where = at // size
        for chunks in torch.unique(where).split(max(1, room // (made * (rows.stop - rows.start)))):
            columns = torch.isin(where, chunks).nonzero().squeeze(-1)
            local = torch.searchsorted(chunks, where[columns]) * size + at[columns] % size
            part = sweeps.factors(chunks)
            if len(local) < len(chunks) * size or bool((local.diff() != 1).any()):
                part = Factors(part.reach[:, local], part.observe[:, local], part.bound[:, local])
            take(rows, columns, part, exponents)

    rows = (slice(start, min(start + at_once, count)) for start in range(0, count, at_once))
    in_parallel([partial(piece, some) for some in rows], op.device)


def _sweeps(op: Recurrence, rows: slice) -> tuple[Sweeps, Tensor]:
    """The sweeps of some leading entries, and the exponents of two, ``(2, b)``, by which ``reach`` and ``observe``
    are then too small."""
    lead = op.shape[:-2]
    entries = torch.arange(rows.start, rows.stop, device=op.device)
    part = op[torch.unravel_index(entries, lead) if lead else None]
    B, C = (X if op.block > 1 else X.unsqueeze(-2) for X in (part.B, part.C))
    dtype = torch.complex128 if op.is_complex else torch.float64
    # Dividing by a power of two rounds nothing, and near 1 squares stay in range.
    exponents = torch.stack([torch.frexp(X.abs().flatten(1).amax(-1).double())[1] for X in (B, C)])
    exponents = exponents.clamp(-1000, 1000)
    B, C = (
        X.to(dtype) / scale.view(-1, 1, 1, 1) for X, scale in zip((B, C), _two_to(exponents), strict=True)
    )
    return Sweeps(part.A.to(dtype=dtype), B, C, before=op.read == "before"), exponents


def _two_to(exponent: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)


def _singular_values(part: Factors) -> tuple[Tensor, Tensor]:
    """Of ``Nᵀ M``, and how far they may be from those of ``H_i``, all roundings included."""
    root, eps = math.sqrt(part.reach.shape[-1]), torch.finfo(part.reach.dtype).eps
    core = part.observe.mT @ part.reach
    norms = [torch.linalg.vector_norm(X, dim=-1) for X in (part.observe, part.reach)]
    bound = part.bound + (1 + root) * eps * (norms[0] * norms[1]).sum(-1)
    # LAPACK takes no NaN; where something overflowed nothing is known. Finite norms make a finite core.
    known = torch.isfinite(bound)
    if not bool(known.all()):
        core = core.where(known[..., None, None], 0.0)
    values = torch.linalg.svdvals(core)
    return values, (bound + 4 * root * eps * values[..., 0]).where(known, torch.inf)


def _within_memory(op: Recurrence, compute: Callable[[Recurrence, int], Result]) -> Result:
    """Compute with as much memory as there is: a quarter at a time where a GPU has too little, then the CPU."""
    device = op.device
    room = _BYTES.get(device.type, _BYTES["cpu"])
    if device.type == "mps":
        return _moved(compute(op.to("cpu"), room), device)
    while room >= _LEAST:
        result = _try(compute, op, room)
        if result is not None:
            return result
        room //= 4
    warnings.warn(
        f"{device} has no memory left for the factors of {op!r}; they are computed on the CPU, which is slower.",
        RuntimeWarning,
        stacklevel=4,
    )
    return _moved(compute(op.to("cpu"), _BYTES["cpu"]), device)


def _try(compute: Callable[[Recurrence, int], Result], op: Recurrence, room: int) -> Result | None:
    try:
        return compute(op, room)
    except torch.OutOfMemoryError:
        if op.device.type == "cpu":
            raise
        return None


def _moved(result: Result, device: torch.device) -> Result:
    move = partial(torch.Tensor.to, device=device, dtype=working_dtype(device))
    parts = (result.reach, result.observe, result.bound) if isinstance(result, Factors) else result
    moved = [move(part) for part in parts]
    return Factors(*moved) if isinstance(result, Factors) else (moved[0], moved[1])
