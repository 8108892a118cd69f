"""An operator given by its matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators._state_size import given_state_size
from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import (
    as_tensor,
    broadcast_valid,
    check_block,
    check_finite_causal,
    drop_padding,
    leading_index,
    require_float,
)

__all__ = ["Dense"]


class Dense(Operator):
    """An operator given by its matrix.

    Parameters
    ----------
    T : Tensor or ndarray, ``(..., L, L)``
        Lower triangular; row ``i`` holds what output ``i`` reads. float32 and float64 stay, integers and
        booleans become float32. Memory is shared with the caller where no change is needed.
    block : int
        ``d``, for a layer that mixes ``d`` channels with each other: ``T`` is then ``(..., d*L, d*L)``, rows
        and columns ``d*i .. d*i + d-1`` belong to position ``i``, the ``d x d`` blocks on the diagonal may be
        full, and ``H_i = T[d*i:, :d*i]``.
    state_size : int or integer Tensor, optional
        TSS. An int ``n`` stands for a recurrence that stores ``n`` numbers, ``min(n, d*i)``; a tensor
        ``(L,)`` or ``(..., L)`` is taken as it is. By default every past input may be stored: ``d*i``.
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
        A sample's own tokens. Rows and columns outside (padding) are set to zero.

    Raises
    ------
    TypeError
        If ``T`` is not a dense numeric tensor or array.
    ValueError
        If ``T`` is not square, empty, complex, in half precision, not finite, or not causal, or if ``block``
        does not divide its size.

    Examples
    --------
    >>> import torch
    >>> op = Dense(torch.ones(4, 4).tril())
    >>> op
    Dense(shape=(4, 4), dtype=float32, device=cpu)
    >>> op.state_size
    tensor([0, 1, 2, 3])
    >>> Dense(torch.ones(4, 4), block=4).length
    1
    """

    def __init__(self, T: Any, *, block: int = 1, state_size: Any = None, valid: Any = None) -> None:
        T = as_tensor(T, "T")
        if T.ndim < 2 or T.shape[-1] != T.shape[-2]:
            raise ValueError(f"T must be square, (..., L, L), but its shape is {tuple(T.shape)}.")
        if 0 in T.shape:
            raise ValueError(f"T is empty, its shape is {tuple(T.shape)}: at least one position is needed.")
        T = require_float(T, "T")
        self.block = check_block(block, T.shape[-1])
        positions = torch.Size([*T.shape[:-2], T.shape[-1] // self.block])
        self.valid = broadcast_valid(valid, positions, T.device)
        self._T = check_finite_causal(drop_padding(T, self.valid, block), block=block)
        self._state_size = given_state_size(state_size, T.shape, self.valid, T.device, block)

    @classmethod
    def _trusted(cls, T: Tensor, state_size: Tensor, valid: Tensor | None, block: int) -> Dense:
        """Parts of a checked operator, without checking again."""
        op = cls.__new__(cls)
        op._T, op._state_size, op.valid, op.block = T, state_size, valid, block
        return op

    def matrix(self) -> Tensor:
        """The matrix itself, ``(..., d*L, d*L)``; not a copy."""
        return self._T

    @property
    def shape(self) -> torch.Size:
        return self._T.shape

    @property
    def state_size(self) -> Tensor:
        return self._state_size

    @property
    def dtype(self) -> torch.dtype:
        return self._T.dtype

    @property
    def device(self) -> torch.device:
        return self._T.device

    def to(self, device: torch.device | str) -> Dense:
        valid = None if self.valid is None else self.valid.to(device)
        return Dense._trusted(self._T.to(device), self._state_size.to(device), valid, self.block)

    def __getitem__(self, index: Any) -> Dense:
        where = leading_index(index, len(self.shape) - 2)
        size = self._state_size
        return Dense._trusted(
            self._T[where],
            size[where] if size.ndim > 1 else size,
            None if self.valid is None else self.valid[where],
            self.block,
        )
