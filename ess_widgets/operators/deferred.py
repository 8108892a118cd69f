"""An operator whose matrix is computed when it is asked for, and not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators.checks import broadcast_valid, leading_index
from ess_widgets.operators._state_size import given_state_size
from ess_widgets.operators.base import Operator

__all__ = ["Deferred"]


class Deferred(Operator):
    """An operator whose matrix a function computes on demand; nothing of it is kept between calls.

    Parameters
    ----------
    build : callable
        Takes nothing and returns ``T``, ``(..., L, L)``, of the given shape, dtype and device.
        Called once per ``matrix()``: index after ``matrix()`` rather than before, where several heads are wanted.
    shape, dtype, device
        Those of what ``build`` returns; dtype is float32 or float64.
    state_size : int, integer Tensor or callable, optional
        As in :class:`Dense`; a function that returns one of these is called when TSS is asked for.
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
        A sample's own tokens; rows and columns of the matrix outside become zero.

    Examples
    --------
    >>> import torch
    >>> op = Deferred(lambda: torch.ones(2, 3, 4, 4).tril(), shape=(2, 3, 4, 4), dtype=torch.float32, device="cpu")
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
        for where in self._indices:
            T = T[where]
        T = T.to(self._device)
        if self.valid is not None:
            T = T.masked_fill(~(self.valid.unsqueeze(-1) & self.valid.unsqueeze(-2)), 0.0)
        return T

    @property
    def shape(self) -> torch.Size:
        lead = torch.zeros(()).expand(self._full_shape[:-2])
        for where in self._indices:
            lead = lead[where]
        return torch.Size([*lead.shape, *self._full_shape[-2:]])

    @property
    def state_size(self) -> Tensor:
        given = self._state_size() if callable(self._state_size) else self._state_size
        size = given_state_size(given, self._full_shape, self._full_valid, self._device)
        if size.ndim > 1:
            for where in self._indices:
                size = size[where]
        return size

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: torch.device | str) -> Deferred:
        return self._derived(torch.device(device), self._indices)

    def __getitem__(self, index: Any) -> Deferred:
        where = leading_index(index, len(self.shape) - 2)
        return self._derived(self._device, (*self._indices, where))

    def _derived(self, device: torch.device, indices: tuple[tuple[Any, ...], ...]) -> Deferred:
        op = Deferred(
            self._build,
            shape=self._full_shape,
            dtype=self._dtype,
            device=device,
            state_size=self._state_size,
            valid=self._full_valid,
        )
        op._indices = indices
        for where in indices:
            if op.valid is not None:
                op.valid = op.valid[where]
        return op
