"""State transitions ``A_t`` of a recurrence: diagonal, dense, or diagonal plus low rank."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ess_widgets.operators.checks import as_tensor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DenseTransition", "Diagonal", "DiagonalPlusLowRank", "Transition", "parameter"]

_EXACT = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def parameter(value: Any, name: str) -> Tensor:
    """A parameter in single or double precision: half precision and integers are cast up, exactly."""
    tensor = as_tensor(value, name)
    if tensor.dtype in _EXACT:
        return tensor
    if tensor.is_complex():
        return tensor.to(torch.complex64)
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.float64)


class Transition(ABC):
    """One ``n x n`` matrix ``A_t`` per position, batched over leading dimensions.

    Attributes
    ----------
    parts : tuple of Tensor
        What it is made of. A position axis of size 1 stands for all positions (time-invariant).
    """

    # How many dimensions of each part follow its position axis.
    tails: ClassVar[tuple[int, ...]]
    names: ClassVar[tuple[str, ...]]

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts

    def _each(self, f: Callable[[Tensor, int], Tensor]) -> Self:
        """The same kind of transition from changed parts, without checks."""
        new = type(self).__new__(type(self))
        new.parts = tuple(f(part, tail) for part, tail in zip(self.parts, self.tails, strict=True))
        return new

    @property
    def lead(self) -> torch.Size:
        """The leading shape, broadcast over the parts."""
        shapes = (
            part.shape[: part.ndim - tail - 1] for part, tail in zip(self.parts, self.tails, strict=True)
        )
        lead: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        return lead

    @property
    def length(self) -> int:
        """Positions; 1 where time-invariant."""
        lengths = (part.shape[-tail - 1] for part, tail in zip(self.parts, self.tails, strict=True))
        return max(lengths)

    @property
    @abstractmethod
    def order(self) -> int:
        """``n``, or 1 where one number serves a state of any size."""

    @property
    @abstractmethod
    def form(self) -> str:
        """What it is, in a word or two."""

    @property
    def is_complex(self) -> bool:
        return any(part.is_complex() for part in self.parts)

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        return self._each(lambda part, _: part.to(device=device, dtype=dtype))

    def expand(self, lead: torch.Size) -> Self:
        """Broadcast the leading dimensions, without copying."""
        return self._each(lambda part, tail: part.expand(*lead, *part.shape[part.ndim - tail - 1 :]))

    def __getitem__(self, where: tuple[Any, ...]) -> Self:
        """Index the leading dimensions, all of which every part must have."""
        return self._each(lambda part, _: part[where])

    def at(self, positions: slice | Tensor) -> Self:
        """The transitions of these positions."""

        def pick(part: Tensor, tail: int) -> Tensor:
            axis = part.ndim - tail - 1
            if part.shape[axis] == 1:
                return part
            if isinstance(positions, Tensor):
                return part.index_select(axis, positions)
            return part[(slice(None),) * axis + (positions,)]

        return self._each(pick)

    def identity_where(self, held: Tensor) -> Self:
        """Leave the state as it is at the positions ``held``, ``(..., L)``, whatever is stored there."""
        identity = iter(self._identity())

        def hold(part: Tensor, tail: int) -> Tensor:
            flags = held.reshape(*held.shape, *(1,) * tail)
            return torch.where(flags, next(identity).to(part), part)

        return self._each(hold)

    def padded(self, count: int) -> Self:
        """``count`` more positions at the end, which forget everything."""

        def pad(part: Tensor, tail: int) -> Tensor:
            if part.shape[-tail - 1] == 1:
                return part
            return torch.nn.functional.pad(part, (0, 0) * tail + (0, count))

        return self._each(pad) if count else self

    @abstractmethod
    def _identity(self) -> tuple[Tensor, ...]:
        """Parts of the identity, broadcastable to those of one position."""

    @abstractmethod
    def apply(self, X: Tensor) -> Tensor:
        """``A_t X_t`` for ``X`` of shape ``(..., L, n, m)``."""

    @abstractmethod
    def apply_magnitude(self, x: Tensor) -> Tensor:
        """``|A_t| x_t`` for ``x >= 0``, ``(..., L, n)``, or a little more: how far rounding can spread."""

    @abstractmethod
    def transposed(self) -> Transition:
        """``A_tᵀ``, without conjugation."""

    @abstractmethod
    def apply_rounding(self, x: Tensor) -> Tensor:
        """How far rows of ``A_t X_t`` are off by rounding, in units of roundoff, where ``x`` are the norms of the
        rows of ``X_t``: ``(..., L, n)``.

        More than is seen in practice. What can be proven grows with ``n``, what happens with its root.
        """

    def adjoint(self) -> Transition:
        """``A_tᴴ``: transposed and conjugated."""
        transposed = self.transposed()
        return transposed._each(lambda part, _: part.conj()) if self.is_complex else transposed

    def join(self, other: Transition) -> Self:
        """Both, one after the other along the first leading dimension; ``other`` is of the same kind."""
        parts = iter(other.parts)
        return self._each(lambda part, _: torch.cat([part, next(parts)]))

    @abstractmethod
    def after(self, first: Transition | None, n: int) -> Transition:
        """The product ``A_t first_t``, with ``first`` of the kind that this method returns."""

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name}={tuple(part.shape)}" for name, part in zip(self.names, self.parts, strict=True)
        )
        return f"{type(self).__name__}({shapes})"


class Diagonal(Transition):
    """``A_t = diag(a_t)``.

    Parameters
    ----------
    a : Tensor or ndarray, ``(..., L, n)`` or ``(..., L, 1)``
        Real or complex; a last dimension of 1 is one number for the whole state.

    Examples
    --------
    >>> import torch
    >>> Diagonal(torch.full((8, 4), 0.9))
    Diagonal(a=(8, 4))
    """

    tails = (1,)
    names = ("a",)

    def __init__(self, a: Any) -> None:
        a = parameter(a, "a")
        if a.ndim < 2 or 0 in a.shape[-2:]:
            raise ValueError(f"a must be (..., L, n) or (..., L, 1), but its shape is {tuple(a.shape)}.")
        super().__init__(a)

    @property
    def order(self) -> int:
        return self.parts[0].shape[-1]

    @property
    def form(self) -> str:
        return "scalar" if self.order == 1 else "diagonal"

    def _identity(self) -> tuple[Tensor, ...]:
        return (torch.ones((), device=self.device),)

    def apply(self, X: Tensor) -> Tensor:
        return self.parts[0].unsqueeze(-1) * X

    def apply_magnitude(self, x: Tensor) -> Tensor:
        return self.parts[0].abs() * x

    def apply_rounding(self, x: Tensor) -> Tensor:
        return self.apply_magnitude(3 * x if self.is_complex else x)

    def transposed(self) -> Diagonal:
        return self

    def after(self, first: Transition | None, n: int) -> Diagonal:
        return self if first is None else self._each(lambda a, _: a * first.parts[0])


class DenseTransition(Transition):
    """``A_t`` as a full matrix.

    Parameters
    ----------
    A : Tensor or ndarray, ``(..., L, n, n)``
        Real or complex.

    Examples
    --------
    >>> import torch
    >>> DenseTransition(torch.eye(4).expand(8, 4, 4))
    DenseTransition(A=(8, 4, 4))
    """

    tails = (2,)
    names = ("A",)

    def __init__(self, A: Any) -> None:
        A = parameter(A, "A")
        if A.ndim < 3 or A.shape[-1] != A.shape[-2] or 0 in A.shape[-3:]:
            raise ValueError(f"A must be (..., L, n, n), but its shape is {tuple(A.shape)}.")
        super().__init__(A)

    @property
    def order(self) -> int:
        return self.parts[0].shape[-1]

    @property
    def form(self) -> str:
        return "dense"

    def _identity(self) -> tuple[Tensor, ...]:
        return (torch.eye(self.order, device=self.device),)

    def apply(self, X: Tensor) -> Tensor:
        return self.parts[0] @ X

    def apply_magnitude(self, x: Tensor) -> Tensor:
        return (self.parts[0].abs() @ x.unsqueeze(-1)).squeeze(-1)

    def apply_rounding(self, x: Tensor) -> Tensor:
        return self.apply_magnitude((2 if self.is_complex else 1) * (1 + math.sqrt(self.order)) * x)

    def transposed(self) -> DenseTransition:
        return self._each(lambda A, _: A.mT)

    def after(self, first: Transition | None, n: int) -> DenseTransition:
        return self if first is None else self._each(lambda A, _: A @ first.parts[0])


class DiagonalPlusLowRank(Transition):
    """``A_t = diag(d_t) + U_t V_tᵀ``: the delta rule and its relatives, never written out as ``n x n``.

    Parameters
    ----------
    d : Tensor or ndarray, ``(..., L, n)`` or ``(..., L, 1)``
    U, V : Tensor or ndarray, ``(..., L, n, r)``
        Real or complex; ``V`` is transposed, not conjugated.

    Examples
    --------
    The delta rule erases along the key: ``A_t = I - β_t k_t k_tᵀ``.

    >>> import torch
    >>> k, beta = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1), torch.rand(8, 1)
    >>> DiagonalPlusLowRank(torch.ones(1, 1), (-beta * k)[..., None], k[..., None])
    DiagonalPlusLowRank(d=(1, 1), U=(8, 4, 1), V=(8, 4, 1))
    """

    tails = (1, 2, 2)
    names = ("d", "U", "V")

    def __init__(self, d: Any, U: Any, V: Any) -> None:
        d, U, V = parameter(d, "d"), parameter(U, "U"), parameter(V, "V")
        shapes = f"d has shape {tuple(d.shape)}, U {tuple(U.shape)} and V {tuple(V.shape)}"
        if d.ndim < 2 or U.ndim < 3 or V.ndim < 3 or 0 in (*d.shape[-2:], *U.shape[-3:], *V.shape[-3:]):
            raise ValueError(f"d must be (..., L, n) or (..., L, 1), U and V (..., L, n, r), but {shapes}.")
        if U.shape[-2:] != V.shape[-2:] or d.shape[-1] not in (1, U.shape[-2]):
            raise ValueError(f"d, U and V must agree in n, and U and V in r, but {shapes}.")
        lengths = {d.shape[-2], U.shape[-3], V.shape[-3]} - {1}
        if len(lengths) > 1:
            raise ValueError(f"d, U and V must cover the same positions, or one for all, but {shapes}.")
        if not d.device == U.device == V.device:
            raise ValueError(f"d is on {d.device}, U on {U.device} and V on {V.device}; use one device.")
        dtype = torch.promote_types(torch.promote_types(d.dtype, U.dtype), V.dtype)
        super().__init__(d.to(dtype), U.to(dtype), V.to(dtype))

    @property
    def order(self) -> int:
        return self.parts[1].shape[-2]

    @property
    def form(self) -> str:
        d, U, _ = self.parts
        return f"{'scalar' if d.shape[-1] == 1 else 'diagonal'} plus rank {U.shape[-1]}"

    def _identity(self) -> tuple[Tensor, ...]:
        one = torch.ones((), device=self.device)
        return one, 0 * one, 0 * one

    def apply(self, X: Tensor) -> Tensor:
        d, U, V = self.parts
        return d.unsqueeze(-1) * X + U @ (V.mT @ X)

    def apply_magnitude(self, x: Tensor) -> Tensor:
        return self._magnitude(x, 1.0, 1.0)

    def _magnitude(self, x: Tensor, diagonal: float, low_rank: float) -> Tensor:
        d, U, V = (part.abs() for part in self.parts)
        return diagonal * d * x + low_rank * (U @ (V.mT @ x.unsqueeze(-1))).squeeze(-1)

    def apply_rounding(self, x: Tensor) -> Tensor:
        n, r = self.parts[1].shape[-2:]
        return self._magnitude((2 if self.is_complex else 1) * x, 2.0, 2 + math.sqrt(n) + math.sqrt(r))

    def transposed(self) -> DiagonalPlusLowRank:
        new = self._each(lambda part, _: part)
        d, U, V = self.parts
        new.parts = (d, V, U)
        return new

    def after(self, first: Transition | None, n: int) -> DenseTransition:
        d, U, V = self.parts
        if first is None:
            return DenseTransition(d.unsqueeze(-1) * torch.eye(n, dtype=d.dtype, device=d.device) + U @ V.mT)
        return DenseTransition(self.apply(first.parts[0]))
