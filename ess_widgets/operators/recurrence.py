"""Linear recurrences with a state: linear attention, state-space models, the delta rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ess_widgets.operators._products import recurrence_matrix
from ess_widgets.operators._recurrence_checks import (
    by_channel,
    check_finite,
    common_shape,
    direct,
    transition,
)
from ess_widgets.operators._state_size import causal_last_reader, count_from_last_reader
from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import as_tensor, broadcast_valid, leading_index
from ess_widgets.operators.transitions import Transition

__all__ = ["Recurrence"]


class Recurrence(Operator):
    """``s_t = A_t s_{t-1} + B_t u_t``, read by ``y_t = C_t s_t + D_t u_t``.

    So ``T_ij = C_i A_i … A_{j+1} B_j`` for ``j <= i``, with ``D_i`` added on the diagonal. With
    ``read="before"`` an output reads the state before it is updated, ``y_t = C_t s_{t-1} + D_t u_t``:
    ``T_ij = C_i A_{i-1} … A_{j+1} B_j`` for ``j < i``, and ``D_i`` alone on the diagonal.

    Parameters
    ----------
    A : Transition, Tensor or ndarray
        A tensor is understood by its dimensions, where ``(...)`` are as many as ``B`` or ``C`` have:
        ``(..., L)`` one number per position, ``(..., L, n)`` or ``(..., L, 1)`` a diagonal,
        ``(..., L, n, n)`` full matrices. For anything else make it a :class:`Diagonal`,
        :class:`DenseTransition` or :class:`DiagonalPlusLowRank` yourself.
    B, C : Tensor or ndarray, ``(..., L, n)``; with ``block=d`` ``(..., L, d, n)``
        What input channel ``c`` adds to the state, ``B[t, c]``, and what output channel ``c`` reads,
        ``C[t, c]``. Complex values are allowed in ``A``, ``B`` and ``C``: then ``T = Re(C … B)``.
    D : Tensor or ndarray, ``(..., L)`` or ``(..., L, d, d)``, optional
        What passes the state by. Real. Without it nothing does.
    read : {"after", "before"}
    block : int, optional
        Channels ``d`` that share the state (S5, LRU, …).
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
        A sample's own tokens. Padding neither reads nor is read, and leaves the state as it is.
    name : str, optional
        What it is, for the ``repr``.

    In all of them a position dimension of size 1 stands for all positions, and leading dimensions
    broadcast, without copies. Half precision and integers are cast up.

    Attributes
    ----------
    A : Transition
    B, C : Tensor
        ``(..., L, n)``, or ``(..., L, d, n)`` for ``d > 1``, all leading dimensions written out.
    D : Tensor or None
        ``(..., L)``, or ``(..., L, d, d)`` for ``d > 1``.
    read : str
    order : int
        ``n``, the size of the state; complex entries count once.

    Raises
    ------
    TypeError
        If something is no tensor or array of numbers.
    ValueError
        If shapes or devices do not fit, or values are not finite.

    Examples
    --------
    One decaying mode.

    >>> import torch
    >>> op = Recurrence(torch.full((4,), 0.5), torch.ones(4, 1), torch.ones(4, 1))
    >>> op
    Recurrence(shape=(4, 4), n=1, A scalar, read after update, dtype=float64, device=cpu)
    >>> op.matrix()
    tensor([[1.0000, 0.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.0000, 0.0000],
            [0.2500, 0.5000, 1.0000, 0.0000],
            [0.1250, 0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """

    splittable = True
    A: Transition
    # Channels written out whatever ``block`` is: (..., L, d, n), (..., L, d, n) and (..., L, d, d).
    _B: Tensor
    _C: Tensor
    _D: Tensor | None

    def __init__(
        self,
        A: Any,
        B: Any,
        C: Any,
        D: Any = None,
        *,
        read: Literal["after", "before"] = "after",
        block: int | None = None,
        valid: Any = None,
        name: str | None = None,
    ) -> None:
        if read not in ("after", "before"):
            raise ValueError(f"read must be 'after' or 'before' (the update), but is {read!r}.")
        B, C = by_channel(B, C, block)
        D = direct(D, block)
        A = transition(A, B, C)
        *lead, L = shape = common_shape(A, B, C, D, valid)
        self.valid = broadcast_valid(valid, shape, B.device)
        if self.valid is not None:
            own = as_tensor(valid, "valid").to(B.device)
            A = A.identity_where(~own)
            B, C = (part.masked_fill(~own[..., None, None], 0.0) for part in (B, C))
            D = None if D is None else D.masked_fill(~own[..., None, None], 0.0)
        check_finite(A, B, C, D)
        self.A = A.expand(torch.Size(lead))
        self._B, self._C = (part.expand(*lead, L, *part.shape[-2:]) for part in (B, C))
        self._D = None if D is None else D.expand(*lead, L, *D.shape[-2:])
        self.block = B.shape[-2]
        self.read = read
        self.name = name

    @property
    def B(self) -> Tensor:
        return self._B.squeeze(-2) if self.block == 1 else self._B

    @property
    def C(self) -> Tensor:
        return self._C.squeeze(-2) if self.block == 1 else self._C

    @property
    def D(self) -> Tensor | None:
        return self._D if self._D is None or self.block > 1 else self._D[..., 0, 0]

    @property
    def order(self) -> int:
        return self._B.shape[-1]

    @property
    def is_complex(self) -> bool:
        """Whether the state is complex: it then stores two real numbers per entry."""
        return self.A.is_complex or self._B.is_complex() or self._C.is_complex()

    def matrix(self) -> Tensor:
        """``T``, ``(..., d*L, d*L)``, computed in float64 (float32 on MPS) from products of transitions."""
        *lead, L, d, _ = self._B.shape
        dtype = self.dtype.to_complex() if self.is_complex else self.dtype
        with torch.autocast(self.device.type, enabled=False):
            T = recurrence_matrix(
                self.A.to(dtype=dtype), self._B.to(dtype), self._C.to(dtype), before=self.read == "before"
            )
        if self._D is None:
            return T
        blocks = T.view(*lead, L, d, L, d).diagonal(dim1=-4, dim2=-2)
        blocks += self._D.to(self.dtype).movedim(-3, -1)
        return T

    @property
    def shape(self) -> torch.Size:
        *lead, L, d, _ = self._B.shape
        return torch.Size([*lead, d * L, d * L])

    @property
    def state_size(self) -> Tensor:
        """TSS: at most ``n`` real numbers (a complex one counts twice), at most ``d`` per own token before."""
        n = self.order * (2 if self.is_complex else 1)
        if self.valid is None:
            tokens = torch.arange(self.length, device=self.device)
        else:
            tokens = count_from_last_reader(causal_last_reader(self.valid))
        return (tokens * self.block).clamp(max=n)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def device(self) -> torch.device:
        return self._B.device

    def to(self, device: torch.device | str) -> Recurrence:
        return self._with(self.A.to(device), lambda part: part.to(device))

    def __getitem__(self, index: Any) -> Recurrence:
        where = leading_index(index, len(self.shape) - 2)
        return self._with(self.A[where], lambda part: part[where])

    def _with(self, A: Transition, f: Callable[[Tensor], Tensor]) -> Recurrence:
        op = copy.copy(self)
        op.A, op._B, op._C = A, f(self._B), f(self._C)
        op._D = None if self._D is None else f(self._D)
        op.valid = None if self.valid is None else f(self.valid)
        return op

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        block = f", block={self.block}" if self.block > 1 else ""
        field = ", complex" if self.is_complex else ""
        padded = ", padded" if self.valid is not None else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({name}shape={tuple(self.shape)}{block}, n={self.order}{field}, "
            f"A {self.A.form}, read {self.read} update, dtype={dtype}, device={self.device}{padded})"
        )
