"""The rank of the state that a layer actually holds: another question than effective state-size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ess_widgets.metrics._checks import Kind, check_kind, check_tol, position_list
from ess_widgets.metrics._svd import one_thread, singular_values
from ess_widgets.metrics.reference import from_spectrum
from ess_widgets.operators import Recurrence
from ess_widgets.operators.checks import as_tensor

__all__ = ["state_matrix_rank"]

# Entries of the states that are decomposed at once: 32 MB in float64.
_ENTRIES = 2**22


def state_matrix_rank(
    op: Recurrence,
    values: Any,
    kind: Kind = "entropy",
    tol: float = 1e-3,
    relative: bool = False,
    positions: Any = None,
) -> Tensor:
    """Rank of the matrix state ``S_t = A_t S_{t-1} + B_t v_tᵀ`` after each token. **Not** effective state-size.

    The state of linear attention and its relatives is a matrix, ``n x d_v``: how many directions it holds
    depends on the past keys *and values*. Effective state-size depends on the past keys and the *future
    queries*, never on the values. The state may be full where no later query reads it (high rank, low
    ESS), and of rank 1 where equal values came with different keys (low rank, high ESS).

    Parameters
    ----------
    op : Recurrence, leading dimensions ``(...)``
        With ``B`` the keys and ``A`` the transitions; ``C`` does not enter.
    values : Tensor or ndarray, ``(..., L, d_v)``; ``(..., L, d, d_v)`` for an operator with ``block`` ``d > 1``
        ``u``, what the layer mixes; leading dimensions broadcast against the operator's. For a layer whose
        channels have states of their own (Mamba-1) ``d_v`` is 1, and so is the rank.
    kind, tol, relative
        As in :func:`ess`: the entropy of the singular values of ``S_t``, or how many exceed a tolerance.
    positions : sequence of int, optional
        Which ``t``, in this order; all by default.

    Returns
    -------
    Tensor, ``(..., L)`` or ``(..., P)``
        float64 (float32 on MPS). Entry ``t`` is for the state after token ``t``, which is what ``H_{t+1}``
        faces. A complex state is decomposed as it is, and its directions count once.

    Raises
    ------
    TypeError
        If ``op`` is no recurrence, or values are no numbers.
    ValueError
        If shapes do not fit, values are not finite, or an argument is out of range.

    References
    ----------
    arXiv:2602.02195 and arXiv:2602.04852 study this rank in trained models.

    Examples
    --------
    Four orthogonal keys with the same value: one direction in the state, four that queries can tell apart.

    >>> import torch
    >>> from ess_widgets.metrics import ess
    >>> from ess_widgets.operators import Recurrence
    >>> keys, queries = torch.eye(4).repeat(2, 1), torch.eye(4).repeat(2, 1)
    >>> op = Recurrence(torch.ones(8), keys, queries)
    >>> state_matrix_rank(op, torch.ones(8, 3), "tolerance")
    tensor([1., 1., 1., 1., 1., 1., 1., 1.], dtype=torch.float64)
    >>> ess(op, "tolerance")
    tensor([0., 1., 2., 3., 4., 3., 2., 1.], dtype=torch.float64)
    """
    if not isinstance(op, Recurrence):
        raise TypeError(
            f"the matrix state is that of a recurrence, but op is of type {type(op).__name__}; softmax "
            "attention and convolutions have none."
        )
    check_kind(kind)
    tol = check_tol(tol)
    wanted = position_list(positions, op.length)
    lead = op.shape[:-2]
    v = _by_channel(values, op)
    out = torch.zeros(*lead, len(wanted), dtype=op.dtype, device=op.device)
    order = sorted(set(wanted))
    held: list[Tensor] = []
    done = 0
    for t, state in _states(op, v, order):
        held.append(state)
        if len(held) * state.numel() < _ENTRIES and t != order[-1]:
            continue
        sigma = _singular_values(torch.stack(held, dim=-3))
        for n, rank in enumerate(from_spectrum(sigma, kind, tol, relative).unbind(dim=-1)):
            for column in (k for k, at in enumerate(wanted) if at == order[done + n]):
                out[..., column] = rank
        done += len(held)
        held = []
    return out


@torch.no_grad()
def _states(op: Recurrence, v: Tensor, order: list[int]) -> Iterator[tuple[int, Tensor]]:
    """``S_t``, ``(..., n, d_v)``, at each of these positions, ascending."""
    B = op.B if op.block > 1 else op.B.unsqueeze(-2)
    dtype = op.dtype.to_complex() if op.is_complex else op.dtype
    A = op.A.to(dtype=dtype)
    state = torch.zeros(*op.shape[:-2], 1, op.order, v.shape[-1], dtype=dtype, device=op.device)
    start = 0
    for t in order:
        for s in range(start, t + 1):
            added = B[..., s, :, :].to(dtype).mT @ v[..., s, :, :].to(dtype)
            state = A.at(slice(s, s + 1)).apply(state) + added.unsqueeze(-3)
        start = t + 1
        yield t, state.squeeze(-3)


def _singular_values(S: Tensor) -> Tensor:
    """``(..., n, d_v)`` to ``(..., min(n, d_v))``."""
    flat = S.reshape(-1, *S.shape[-2:])
    with one_thread(S.device):
        sigma = torch.linalg.svdvals(flat) if S.is_complex() else singular_values(flat)
    return sigma.reshape(*S.shape[:-2], sigma.shape[-1])


def _by_channel(values: Any, op: Recurrence) -> Tensor:
    """Checked values, ``(..., L, d, d_v)``."""
    v = as_tensor(values, "values").detach().to(op.device)
    own = "L, d_v" if op.block == 1 else "L, d, d_v"
    inner = (op.length,) if op.block == 1 else (op.length, op.block)
    if v.ndim < len(inner) + 1 or v.shape[-1] == 0 or v.shape[-len(inner) - 1 : -1] != inner:
        raise ValueError(
            f"values must be (..., {own}) with {dict(zip(own.split(', '), inner, strict=False))}, "
            f"but their shape is {tuple(v.shape)}."
        )
    if not bool(torch.isfinite(v).all()):
        raise ValueError("values are not finite: they hold NaN or infinity.")
    if op.block == 1:
        v = v.unsqueeze(-2)
    lead = op.shape[:-2]
    try:
        return v.expand(*lead, *v.shape[-3:])
    except RuntimeError:
        raise ValueError(
            f"values of shape {tuple(as_tensor(values, 'values').shape)} do not broadcast to the operator's "
            f"leading dimensions {tuple(lead)}."
        ) from None
