"""An operator whose matrix is computed when it is asked for, and not kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._state_size import given_state_size
from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import broadcast_valid, leading_index

__all__ = ["Deferred"]


class Deferred(Operator):
    """An operator whose matrix a function computes on demand; nothing of it is kept between calls.

    Parameters
    ----------
    build : callable
        Takes nothing and returns ``T``, ``(..., L, L)``, of the given shape, dtype and device.
        Called once per ``matrix()``, whatever the index: for several heads, call it once and index that.
    shape, dtype, device
        Those of what ``build`` returns; dtype is float32 or float64.
    state_size : int, integer Tensor or callable, optional
        As in :class:`Dense`; a function that returns one of these is called when TSS is asked for.
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
        A sample's own tokens; rows and columns of the matrix outside become zero.

    Examples
    --------
    >>> import torch
    >>> ones = torch.ones(2, 3, 4, 4)
    >>> op = Deferred(lambda: ones.tril(), shape=(2, 3, 4, 4), dtype=torch.float32, device="cpu")
    >>> op[0, 1].matrix().shape
    torch.Size([4, 4])
    """

    def __init__(
        self,
        build: Callable[[], Tensor],
        *,
        shape: torch.Size | tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str,
        state_size: Any = None,
        valid: Any = None,
    ) -> None:
        if len(shape) < 2 or shape[-1] != shape[-2] or 0 in shape:
            raise ValueError(f"shape must be (..., L, L) without zeros, but is {tuple(shape)}.")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, but is {dtype}.")
        self._build = build
        self._full_shape = torch.Size(shape)
        self._dtype = dtype
        self._device = torch.device(device)
        self._state_size = state_size
        self._full_valid = broadcast_valid(valid, self._full_shape[:-1], self._device)
        self._indices: tuple[tuple[Any, ...], ...] = ()
        self._lead = self._full_shape[:-2]
        self.valid = self._full_valid

    def matrix(self) -> Tensor:
        """Compute ``T``, ``(..., L, L)``.

        Raises
        ------
        ValueError
            If the function returns another shape or dtype than was announced.
        """
        T = self._build()
        if T.shape != self._full_shape or T.dtype != self._dtype:
            raise ValueError(
                f"build returned {T.dtype} of shape {tuple(T.shape)}, "
                f"but {self._dtype} of shape {tuple(self._full_shape)} was announced."
            )
        T = self._indexed(T).to(self._device)
        if self.valid is not None:
            T = T.masked_fill(~(self.valid.unsqueeze(-1) & self.valid.unsqueeze(-2)), 0.0)
        return T

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self._lead, *self._full_shape[-2:]])

    @property
    def state_size(self) -> Tensor:
        given = self._state_size() if callable(self._state_size) else self._state_size
        size = given_state_size(given, self._full_shape, self._full_valid, self._device)
        return self._indexed(size) if size.ndim > 1 else size

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: torch.device | str) -> Deferred:
        op = copy.copy(self)
        op._device = torch.device(device)
        op._full_valid = None if self._full_valid is None else self._full_valid.to(device)
        op.valid = None if self.valid is None else self.valid.to(device)
        return op

    def __getitem__(self, index: Any) -> Deferred:
        where = leading_index(index, len(self._lead))
        op = copy.copy(self)
        # A tensor without storage of its own tells the new shape, and whether the index is in range, at once.
        op._lead = torch.zeros(()).expand(self._lead)[where].shape
        op._indices = (*self._indices, where)
        op.valid = None if self.valid is None else self.valid[where]
        return op

    def _indexed(self, value: Tensor) -> Tensor:
        for where in self._indices:
            value = value[where]
        return value
