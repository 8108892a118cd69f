"""What every operator can do: the contract between capture, metrics and the views."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Operator"]


class Operator(ABC):
    """A causal sequence mixer ``y = T u``, batched over leading dimensions.

    Attributes
    ----------
    valid : Tensor or None
        Boolean, broadcastable to ``(..., L)``: the positions that are a sample's own tokens. Rows and
        columns of ``matrix()`` outside of them (padding) are zero. ``None`` when all positions are.
    splittable : bool
        Whether ``op[a:b].matrix()`` costs less than ``op.matrix()``, so that it pays to work part by part.
    block : int
        ``d``: rows and columns of ``T`` that belong to one position (several inputs mixed together). Then
        ``T`` is ``d * L`` rows by as many columns, causal block by block, and ``H_i = T[d*i:, :d*i]``.
    """

    valid: Tensor | None = None
    splittable: ClassVar[bool] = False
    block: int = 1

    @abstractmethod
    def matrix(self) -> Tensor:
        """Materialise ``T``, shape ``(..., d*L, d*L)``, float32 or float64, (block) lower triangular."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """``(..., d*L, d*L)``, without materialising anything."""

    @property
    def length(self) -> int:
        """``L``, the number of positions."""
        return self.shape[-1] // self.block

    @property
    @abstractmethod
    def state_size(self) -> Tensor:
        """TSS, the state-size the architecture provides: ``(L,)``, or ``(..., L)`` where samples differ."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of ``matrix()``."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where ``matrix()`` is computed."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Operator:
        """The same operator on another device."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Operator:
        """Index the leading dimensions; the last two stay."""

    # Numpy numbers on the left leave the product to __rmul__. The algebra is imported late: it knows the operators.
    __array_ufunc__: ClassVar[None] = None

    def __add__(self, other: Any) -> Operator:
        """``T_1 + T_2``."""
        from ess_widgets.operators import algebra

        return algebra.add(self, other) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: Any) -> Operator:
        """``T_1 - T_2``."""
        return self + -other if isinstance(other, Operator) else NotImplemented

    def __matmul__(self, other: Any) -> Operator:
        """``T_1 T_2``: the other operator is applied first."""
        from ess_widgets.operators import algebra

        return algebra.multiply(self, other) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, factor: Any) -> Operator:
        """A multiple, by one number; for one number per position see ``ess_widgets.operators.gate``."""
        from ess_widgets.operators import algebra

        return algebra.scale(self, factor) if algebra.is_factor(factor) else NotImplemented

    def __rmul__(self, factor: Any) -> Operator:
        """A multiple, by one number."""
        multiple: Operator = self * factor
        return multiple

    def __neg__(self) -> Operator:
        """``-T``."""
        return self * -1.0

    def __repr__(self) -> str:
        padded = ", padded" if self.valid is not None else ""
        dtype = str(self.dtype).removeprefix("torch.")
        block = f", block={self.block}" if self.block > 1 else ""
        return (
            f"{type(self).__name__}(shape={tuple(self.shape)}{block}, dtype={dtype}, "
            f"device={self.device}{padded})"
        )
