"""Causal convolutions with taps of their own at every position: dynamic convolutions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._state_size import count_from_last_reader
from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import as_tensor, broadcast_valid, drop_padding, leading_index

__all__ = ["VaryingConvolution"]


class VaryingConvolution(Operator):
    """A banded causal operator, ``y_i = Σ_k h_{i,k} u_{i-k}``, hence ``T_ij = h_{i,i-j}``.

    Parameters
    ----------
    kernel : Tensor or ndarray, ``(..., L, K)``
        Output ``i`` reads its own input by ``h_{i,0}`` and the one ``k`` steps back by ``h_{i,k}``.
    valid : bool Tensor, ``(..., L)``, optional
        A sample's own tokens; rows and columns of ``matrix()`` outside (padding) are zero.

    Attributes
    ----------
    kernel : Tensor
    taps : int
        ``K``.

    Notes
    -----
    TSS counts the past inputs that an output from ``i`` on can read: ``min(i, K - 1)`` without padding.

    Raises
    ------
    TypeError
        If the kernel is not a real numeric tensor or array.
    ValueError
        If shapes do not fit, or values are not finite.

    Examples
    --------
    >>> import torch
    >>> VaryingConvolution(torch.tensor([[1.0, 0.0], [2.0, 3.0], [4.0, 5.0]])).matrix()
    tensor([[1., 0., 0.],
            [3., 2., 0.],
            [0., 5., 4.]])
    """

    splittable = True
    kernel: Tensor

    def __init__(self, kernel: Any, *, valid: Any = None) -> None:
        kernel = as_tensor(kernel, "kernel")
        if kernel.is_complex():
            raise TypeError(f"kernel must hold real numbers, but its dtype is {kernel.dtype}.")
        if kernel.ndim < 2 or 0 in kernel.shape:
            raise ValueError(f"kernel must be (..., L, K), but its shape is {tuple(kernel.shape)}.")
        if kernel.dtype not in (torch.float32, torch.float64):
            kernel = kernel.to(torch.float32)
        self.valid = broadcast_valid(valid, kernel.shape[:-1], kernel.device)
        bad = ~torch.isfinite(kernel)
        if self.valid is not None:
            bad &= self.valid.unsqueeze(-1)
        if bool(bad.any()):
            first = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"kernel is not finite: NaN or infinity in {int(bad.sum())} entries, the first at {first}."
            )
        self.kernel = kernel

    def matrix(self) -> Tensor:
        """``T``, ``(..., L, L)``."""
        L = self.length
        T = self.kernel.new_zeros(*self.shape)
        for k in range(min(self.taps, L)):
            T.diagonal(-k, dim1=-2, dim2=-1).copy_(self.kernel[..., k:, k])
        return drop_padding(T, self.valid)

    @property
    def taps(self) -> int:
        return self.kernel.shape[-1]

    @property
    def shape(self) -> torch.Size:
        *lead, L, _ = self.kernel.shape
        return torch.Size([*lead, L, L])

    @property
    def state_size(self) -> Tensor:
        """TSS: the own inputs before ``i`` that an own output within reach of the taps can read from ``i`` on."""
        position = torch.arange(self.length, device=self.device)
        reach = (position + self.taps - 1).clamp(max=self.length - 1)
        if self.valid is None:
            return count_from_last_reader(reach)
        latest = torch.where(self.valid, position, -1).cummax(dim=-1).values
        return count_from_last_reader(torch.where(self.valid, latest[..., reach], -1))

    @property
    def dtype(self) -> torch.dtype:
        return self.kernel.dtype

    @property
    def device(self) -> torch.device:
        return self.kernel.device

    def to(self, device: torch.device | str) -> VaryingConvolution:
        op = copy.copy(self)
        op.kernel = self.kernel.to(device)
        op.valid = None if self.valid is None else self.valid.to(device)
        return op

    def __getitem__(self, index: Any) -> VaryingConvolution:
        where = leading_index(index, self.kernel.ndim - 2)
        op = copy.copy(self)
        op.kernel = self.kernel[where]
        op.valid = None if self.valid is None else self.valid[where]
        return op

    def __repr__(self) -> str:
        return super().__repr__().replace("(", f"(taps={self.taps}, ", 1)
