"""Convolutions: what is not zero of ``H_i`` is a small Hankel matrix of the taps, between the gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ess_widgets.metrics._checks import position_list
from ess_widgets.metrics._svd import one_thread, singular_values, working_dtype
from ess_widgets.operators import Convolution
from ess_widgets.operators.convolution import toeplitz

__all__ = ["convolution_part", "convolution_spectrum", "convolution_values"]

# Entries of small matrices that are decomposed at once: 32 MB.
_ENTRIES = 2**22


def convolution_part(op: Convolution, positions: Any = None) -> tuple[Tensor, list[int], Tensor]:
    """A small matrix that has every ``H_i`` of an ungated convolution among its own, up to transposition.

    ``H_i`` holds the tap ``h_{r+c+1}`` in row ``r`` from the top and column ``c`` from the right: it is the upper left
    part of one symmetric matrix, with ``min(L - i, K - 1)`` rows and ``min(i, K - 1)`` columns that are not zero. So
    all positions in the middle share one spectrum, and so do ``i`` and ``L - i``.

    Parameters
    ----------
    op : Convolution
        Without gates and padding; ``D`` makes no difference.
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.

    Returns
    -------
    T : Tensor, ``(..., n, n)``
        ``n = min(L, 2 (K - 1))``, at least 1; leading dimensions that only broadcast have size 1.
    at : list of int
        The different splits of it that are needed.
    index : int64 Tensor, ``(P,)``
        Which of ``at`` each position has.

    Examples
    --------
    >>> T, at, index = convolution_part(Convolution(torch.ones(3), length=100), [0, 1, 2, 50, 98, 99])
    >>> T.shape, at, index.tolist()
    (torch.Size([4, 4]), [0, 1, 2], [0, 1, 2, 2, 2, 1])
    """
    if op.gated or op.valid is not None:
        raise ValueError("positions of a convolution share their spectra only without gates and padding.")
    L, reach = op.length, min(op.taps, op.length) - 1
    wanted = np.asarray(position_list(positions, L), dtype=np.int64)
    local, index = np.unique(np.minimum(np.minimum(wanted, L - wanted), reach), return_inverse=True)
    T = toeplitz(_distinct(op.kernel).to(op.dtype), max(1, min(L, 2 * reach)))
    return T, local.tolist(), torch.from_numpy(index.reshape(-1)).to(T.device)


def convolution_values(op: Convolution, positions: Any = None) -> Tensor:
    """Singular values of ``H_i`` of a convolution, as many as its taps allow.

    Without gates and padding there are at most ``K`` different positions, whatever the length. Else every position has
    a matrix of ``K - 1`` rows and columns of its own, which pays where ``K`` is far smaller than the length.

    Parameters
    ----------
    op : Convolution
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.

    Returns
    -------
    Tensor, ``(..., P, k)``
        Descending, ``k`` the smaller of ``K - 1`` and the largest ``min(i, L - i)``. float64 (float32 on MPS), on the
        operator's device; leading dimensions that only broadcast are views.

    Examples
    --------
    >>> gate = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    >>> convolution_values(Convolution(torch.tensor([0.0, 0.0, 1.0]), input_gate=gate))
    tensor([[0., 0.],
            [1., 0.],
            [1., 1.],
            [1., 0.],
            [1., 0.],
            [1., 0.]], dtype=torch.float64)
    """
    wanted = position_list(positions, op.length)
    reach = min(op.taps, op.length) - 1
    k = min(reach, max((min(i, op.length - i) for i in wanted), default=0))
    lead = op.shape[:-2]
    if k == 0:
        return torch.zeros(*lead, len(wanted), 0, dtype=working_dtype(op.device), device=op.device)
    with one_thread(op.device):
        if not op.gated and op.valid is None:
            T, at, index = convolution_part(op, wanted)
            flat = T.flatten(0, -3) if lead else T[None]
            values = [singular_values(flat[:, p:, :p])[:, :k] for p in at]
            table = torch.stack([torch.nn.functional.pad(s, (0, k - s.shape[-1])) for s in values], dim=1)
            table = table.reshape(*T.shape[:-2], len(at), k)[..., index, :]
            return table.expand(*lead, len(wanted), k)
        rows = torch.split(torch.arange(lead.numel()), max(1, _ENTRIES // (len(wanted) * reach**2)))
        parts = [op[torch.unravel_index(some, lead)] if lead else op[None] for some in rows]
        found = [singular_values(_corners(part, wanted).flatten(0, 1))[:, :k] for part in parts]
    return torch.cat(found).reshape(*lead, len(wanted), k)


def convolution_spectrum(op: Convolution, positions: Any = None) -> Tensor:
    """Singular values of ``H_i`` of a convolution, padded as :func:`ess_widgets.metrics.spectrum` has them.

    Parameters
    ----------
    op : Convolution
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.

    Returns
    -------
    Tensor, ``(..., P, K)``
        Descending, padded with zeros to the largest ``min(i, L - i)`` of the positions asked for. float64 (float32 on
        MPS), on the operator's device.

    Examples
    --------
    A delay by two steps keeps two numbers.

    >>> convolution_spectrum(Convolution(torch.tensor([0.0, 0.0, 1.0]), length=6))
    tensor([[0., 0., 0.],
            [1., 0., 0.],
            [1., 1., 0.],
            [1., 1., 0.],
            [1., 1., 0.],
            [1., 0., 0.]], dtype=torch.float64)
    """
    wanted = position_list(positions, op.length)
    width = max((min(i, op.length - i) for i in wanted), default=0)
    values = convolution_values(op, wanted)
    return torch.nn.functional.pad(values, (0, width - values.shape[-1]))


def _corners(op: Convolution, wanted: list[int]) -> Tensor:
    """What is not zero of each ``H_i``: ``g_{i+r} h_{r+c+1} b_{i-1-c}``, ``(b, P, K - 1, K - 1)``."""
    reach = min(op.taps, op.length) - 1
    step = torch.arange(reach, device=op.device)
    dtype = working_dtype(op.device)
    taps = torch.nn.functional.pad(op.kernel.detach()[..., 1 : reach + 1].to(dtype), (0, reach))
    at = torch.tensor(wanted, device=op.device).unsqueeze(-1)
    output = _gate(op.output_gate, op, dtype, (0, reach))[..., at + step]
    input_ = _gate(op.input_gate, op, dtype, (reach, 0))[..., at + reach - 1 - step]
    hankel = taps[..., step.unsqueeze(-1) + step].unsqueeze(-3)
    return output.unsqueeze(-1) * hankel * input_.unsqueeze(-2)


def _gate(gate: Tensor | None, op: Convolution, dtype: torch.dtype, beyond: tuple[int, int]) -> Tensor:
    """The gate, one where there is none, zero at padding and beyond the ends: ``(b, L + K - 1)``."""
    ones = torch.ones(op.kernel.shape[0], op.length, dtype=dtype, device=op.device)
    gate = ones if gate is None else gate.detach().to(dtype)
    gate = gate if op.valid is None else gate.masked_fill(~op.valid, 0.0)
    return torch.nn.functional.pad(gate, beyond)


def _distinct(kernel: Tensor) -> Tensor:
    """The kernel, with leading dimensions that only broadcast cut back to size 1."""
    kernel = kernel.detach()
    for dim in range(kernel.ndim - 1):
        if kernel.stride(dim) == 0:
            kernel = kernel.narrow(dim, 0, 1)
    return kernel
