"""Causal convolutions whose taps are matrices: every output channel reads every input channel."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators._state_size import count_from_last_reader
from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import as_tensor, broadcast_valid, leading_index

__all__ = ["MimoConvolution"]

# A larger matrix, in bytes, is refused before it is allocated.
_LARGEST = 2**36


class MimoConvolution(Operator):
    """A causal convolution that mixes channels, ``y_i = Σ_k H_k u_{i-k}``, hence blocks ``T_ij = H_{i-j}``.

    Parameters
    ----------
    kernel : Tensor or ndarray, ``(..., K, out, in)``
        The taps ``H_0 .. H_{K-1}``. With ``d = max(out, in)`` an operator has ``d`` rows and columns per position;
        channels that are missing on one side are zero there.
    length : int
        ``L``.
    valid : bool Tensor, ``(..., L)``, optional
        A sample's own tokens; rows and columns of ``matrix()`` outside (padding) are zero.

    Attributes
    ----------
    kernel : Tensor
    taps : int
        ``K``.
    block : int
        ``d``.

    Notes
    -----
    Only the taps are kept: ``matrix()`` has ``(d L)²`` entries and is made when it is asked for, :meth:`apply` does
    without it. TSS counts the channels of past inputs that an output from ``i`` on can read, ``in · min(i, K - 1)``.

    Raises
    ------
    TypeError
        If the kernel is not a real numeric tensor or array.
    ValueError
        If shapes do not fit, or values are not finite.

    Examples
    --------
    >>> import torch
    >>> op = MimoConvolution(torch.randn(4, 3, 3), length=16)
    >>> op
    MimoConvolution(taps=4, shape=(48, 48), block=3, dtype=float32, device=cpu)
    >>> op.state_size[:6]
    tensor([0, 3, 6, 9, 9, 9])
    >>> u = torch.randn(48, 1)
    >>> torch.allclose(op.matrix() @ u, op.apply(u), atol=1e-5)
    True
    """

    splittable = True
    kernel: Tensor

    def __init__(self, kernel: Any, length: int, *, valid: Any = None) -> None:
        kernel = as_tensor(kernel, "kernel")
        if kernel.is_complex():
            raise TypeError(f"kernel must hold real numbers, but its dtype is {kernel.dtype}.")
        if kernel.ndim < 3 or 0 in kernel.shape:
            raise ValueError(
                f"kernel must be (..., K, out, in) without zeros, but its shape is {tuple(kernel.shape)}."
            )
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"length must be a positive integer, but is {length!r}.")
        if not bool(torch.isfinite(kernel).all()):
            raise ValueError("kernel is not finite: it holds NaN or infinity.")
        if kernel.dtype not in (torch.float32, torch.float64):
            kernel = kernel.to(torch.float32)
        lead = kernel.shape[:-3]
        if valid is not None:
            lead = torch.Size(np.broadcast_shapes(lead, as_tensor(valid, "valid").shape[:-1]))
        self.valid = broadcast_valid(valid, torch.Size([*lead, length]), kernel.device)
        self.kernel = kernel.expand(*lead, *kernel.shape[-3:])
        self.block = max(kernel.shape[-2:])
        self._length = length

    def matrix(self) -> Tensor:
        """``T``, ``(..., d*L, d*L)``; refused beyond 64 GiB, with the size."""
        L, d, lead = self._length, self.block, self.kernel.shape[:-3]
        size = torch.Size([*lead, d * L, d * L]).numel() * self.dtype.itemsize
        if size > _LARGEST:
            raise ValueError(
                f"the matrix of {d} channels at {L} positions, {tuple(self.shape)}, would take "
                f"{size / 2**30:,.0f} GiB. Take a shorter input; apply(u) gives T @ u without the matrix."
            )
        T = self.kernel.new_zeros(*lead, L, d, L, d)
        out, into = self.kernel.shape[-2:]
        for k in range(min(self.taps, L)):
            # Positions (i, i - k) as a dimension of their own, last.
            band = T.diagonal(-k, dim1=-4, dim2=-2)
            band[..., :out, :into, :] = self.kernel[..., k, :, :].unsqueeze(-1)
        T = T.view(*lead, d * L, d * L)
        if self.valid is not None:
            own = self.valid.repeat_interleave(d, -1)
            T.mul_(own.unsqueeze(-1)).mul_(own.unsqueeze(-2))
        return T

    def apply(self, u: Tensor) -> Tensor:
        """``T @ u`` for ``u`` of shape ``(..., d*L, width)``, tap by tap, without the matrix."""
        L, d = self._length, self.block
        out, into = self.kernel.shape[-2:]
        parts = u.reshape(*u.shape[:-2], L, d, u.shape[-1])[..., :into, :]
        if self.valid is not None:
            parts = torch.where(self.valid[..., None, None], parts, 0)
        kernel = self.kernel.to(torch.promote_types(u.dtype, self.dtype))
        y = parts.new_zeros(*parts.shape[:-2], d, parts.shape[-1], dtype=kernel.dtype)
        for k in range(min(self.taps, L)):
            tap = kernel[..., k, :, :].unsqueeze(-3)
            y[..., k:, :out, :] += tap @ parts[..., : L - k, :, :].to(kernel.dtype)
        if self.valid is not None:
            y = torch.where(self.valid[..., None, None], y, 0)
        return y.flatten(-3, -2)

    @property
    def taps(self) -> int:
        return self.kernel.shape[-3]

    @property
    def shape(self) -> torch.Size:
        size = self.block * self._length
        return torch.Size([*self.kernel.shape[:-3], size, size])

    @property
    def state_size(self) -> Tensor:
        """TSS: the channels of own inputs before ``i`` that an own output within reach can read from ``i`` on."""
        position = torch.arange(self._length, device=self.device)
        reach = (position + self.taps - 1).clamp(max=self._length - 1)
        if self.valid is not None:
            latest = torch.where(self.valid, position, -1).cummax(dim=-1).values
            reach = torch.where(self.valid, latest[..., reach], -1)
        return count_from_last_reader(reach) * self.kernel.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.kernel.dtype

    @property
    def device(self) -> torch.device:
        return self.kernel.device

    def to(self, device: torch.device | str) -> MimoConvolution:
        op = copy.copy(self)
        op.kernel = self.kernel.to(device)
        op.valid = None if self.valid is None else self.valid.to(device)
        return op

    def __getitem__(self, index: Any) -> MimoConvolution:
        where = leading_index(index, self.kernel.ndim - 3)
        op = copy.copy(self)
        op.kernel = self.kernel[where]
        op.valid = None if self.valid is None else self.valid[where]
        return op

    def __repr__(self) -> str:
        return super().__repr__().replace("(", f"(taps={self.taps}, ", 1)
