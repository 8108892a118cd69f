"""Sums, products and gated forms of operators: structured where the parts are, lazy elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators import _structured
from ess_widgets.operators._state_size import given_state_size
from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import as_tensor, drop_padding, leading_index

__all__ = ["Gated", "Product", "Sum", "add", "gate", "multiply", "scale"]


class _Composed(Operator):
    """Operators on the same positions, whose leading dimensions broadcast against each other."""

    splittable = True
    sign = ""

    def __init__(self, *parts: Operator) -> None:
        _check_fit(parts)
        self._put(parts, _common_lead(parts))

    def _put(self, parts: tuple[Operator, ...], lead: torch.Size) -> None:
        self.parts, self._lead = parts, lead
        self.block = parts[0].block
        self.valid = self._valid()

    def _valid(self) -> Tensor | None:
        """Own tokens are those of any part: elsewhere rows and columns of sums and products are zero."""
        own = [part.valid for part in self.parts if part.valid is not None]
        if len(own) < len(self.parts):
            return None
        return reduce(torch.logical_or, own).expand(*self._lead, self.length)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self._lead, *self.parts[0].shape[-2:]])

    @property
    def state_size(self) -> Tensor:
        """TSS: the states of the parts side by side, and at most every input before ``i``."""
        stored = reduce(torch.add, [part.state_size for part in self.parts])
        available = given_state_size(None, self.shape, self.valid, self.device, self.block)
        size = torch.minimum(stored, available)
        return size if size.ndim == 1 else size.expand(*self._lead, self.length)

    @property
    def dtype(self) -> torch.dtype:
        return reduce(torch.promote_types, [part.dtype for part in self.parts])

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def to(self, device: torch.device | str) -> Operator:
        return self._with(
            tuple(part.to(device) for part in self.parts), self._lead, lambda part: part.to(device)
        )

    def __getitem__(self, index: Any) -> Operator:
        where = leading_index(index, len(self._lead))
        # A tensor without storage of its own tells the new shape, and whether the index is in range, at once.
        lead = torch.zeros(()).expand(self._lead)[where].shape
        parts = tuple(_take(part, self._lead, where) for part in self.parts)
        return self._with(parts, lead, lambda part: part[where])

    def _with(self, parts: tuple[Operator, ...], lead: torch.Size, f: Callable[[Tensor], Tensor]) -> Operator:
        """The same of changed parts, without checks; ``f`` is what happens to tensors of the leading shape."""
        op = type(self).__new__(type(self))
        op._put(parts, lead)
        return op

    def _flat(self) -> tuple[Operator, ...]:
        return self.parts

    def __repr__(self) -> str:
        names = f" {self.sign} ".join(type(part).__name__ for part in self.parts)
        return super().__repr__().replace("(", f"({names}, ", 1)


class Sum(_Composed):
    """``T_1 + T_2 + …``; made by ``op1 + op2`` where no structure is left to keep.

    Examples
    --------
    >>> import torch
    >>> from ess_widgets.operators import Dense, softmax_attention
    >>> Dense(torch.eye(4)) + softmax_attention(torch.zeros(2, 4, 8), torch.zeros(2, 4, 8))
    Sum(Dense + SoftmaxAttention, shape=(2, 4, 4), dtype=float32, device=cpu)
    """

    sign = "+"

    def matrix(self) -> Tensor:
        """``T``, ``(..., d*L, d*L)``, in the widest dtype of the parts."""
        return reduce(torch.add, [part.matrix() for part in self.parts]).expand(self.shape)


class Product(_Composed):
    """``T_1 T_2 …``, the last one applied first; made by ``op1 @ op2`` where no structure is left to keep.

    Examples
    --------
    >>> import torch
    >>> from ess_widgets.operators import Dense
    >>> delay = Dense(torch.eye(4).roll(1, 0).tril())
    >>> (delay @ delay).matrix()
    tensor([[0., 0., 0., 0.],
            [0., 0., 0., 0.],
            [1., 0., 0., 0.],
            [0., 1., 0., 0.]])
    """

    sign = "@"

    def matrix(self) -> Tensor:
        """``T``, ``(..., d*L, d*L)``, in the widest dtype of the parts; multiplied in float64 (float32 on MPS)."""
        work = torch.float32 if self.device.type == "mps" else torch.float64
        with torch.autocast(self.device.type, enabled=False):
            T = reduce(torch.matmul, [part.matrix().to(work) for part in self.parts])
        return T.to(self.dtype).expand(self.shape)


class Gated(_Composed):
    """``T_ij = g_i S_ij b_j``; made by :func:`gate` where the operator ``S`` has no gates of its own."""

    def __init__(self, op: Operator, output_gate: Tensor | None, input_gate: Tensor | None) -> None:
        gates = {"output_gate": output_gate, "input_gate": input_gate}
        lead = _broadcast([op.shape[:-2], *(gate.shape[:-1] for gate in gates.values() if gate is not None)])
        for name, gate in gates.items():
            setattr(self, name, None if gate is None else gate.expand(*lead, op.shape[-1]))
        self._put((op,), lead)

    output_gate: Tensor | None
    input_gate: Tensor | None

    def matrix(self) -> Tensor:
        """``T``, ``(..., d*L, d*L)``, in the widest dtype of the operator and its gates."""
        T = self.parts[0].matrix()
        if self.output_gate is not None:
            T = T * self.output_gate.to(self.dtype).unsqueeze(-1)
        if self.input_gate is not None:
            T = T * self.input_gate.to(self.dtype).unsqueeze(-2)
        return drop_padding(T.to(self.dtype).expand(self.shape), self.valid, self.block)

    @property
    def dtype(self) -> torch.dtype:
        wide = any(
            gate is not None and gate.dtype is torch.float64 for gate in (self.output_gate, self.input_gate)
        )
        return torch.float64 if wide else self.parts[0].dtype

    def _with(self, parts: tuple[Operator, ...], lead: torch.Size, f: Callable[[Tensor], Tensor]) -> Operator:
        op = type(self).__new__(type(self))
        op.output_gate = None if self.output_gate is None else f(self.output_gate)
        op.input_gate = None if self.input_gate is None else f(self.input_gate)
        op._put(parts, lead)
        return op


def add(first: Operator, second: Operator) -> Operator:
    """``first + second``: recurrences side by side, kernels added, else a :class:`Sum`."""
    _check_fit((first, second))
    _common_lead((first, second))
    structured = _structured.add(first, second)
    if structured is not None:
        return structured
    return Sum(*_terms(first, Sum), *_terms(second, Sum))


def multiply(first: Operator, second: Operator) -> Operator:
    """``first @ second``: recurrences one after the other, kernels convolved, else a :class:`Product`."""
    _check_fit((first, second))
    _common_lead((first, second))
    structured = _structured.multiply(first, second)
    if structured is not None:
        return structured
    return Product(*_terms(first, Product), *_terms(second, Product))


def scale(op: Operator, factor: Any) -> Operator:
    """``factor * op`` for one number."""
    number = torch.as_tensor(factor)
    if not bool(torch.isfinite(number)):
        raise ValueError(f"the factor of an operator must be finite, but is {number.item()}.")
    return gate(op, output_gate=number.to(op.dtype).to(op.device).expand(op.shape[-1]))


def is_factor(value: Any) -> bool:
    """Whether ``scale`` takes it: a real number, or a tensor of one without dimensions."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex() and value.dtype is not torch.bool
    return isinstance(value, Real | np.number) and not isinstance(value, bool | np.complexfloating)


def gate(op: Operator, *, output_gate: Any = None, input_gate: Any = None) -> Operator:
    """``T_ij = g_i S_ij b_j``: an operator ``S`` between an input gate ``b`` and an output gate ``g``.

    A recurrence stays a recurrence and a convolution a convolution. Gates that are nowhere zero do not change the rank
    of any ``H_i``, only its singular values.

    Parameters
    ----------
    op : Operator, ``(..., d*L, d*L)``
    output_gate, input_gate : Tensor or ndarray, ``(..., d*L)``, optional
        One number per row and column of ``T``. Half precision is cast up.

    Returns
    -------
    Operator
        Leading dimensions broadcast.

    Examples
    --------
    >>> import torch
    >>> from ess_widgets.operators import Dense
    >>> gate(Dense(torch.ones(3, 3).tril()), output_gate=torch.tensor([1.0, 2.0, 3.0])).matrix()
    tensor([[1., 0., 0.],
            [2., 2., 0.],
            [3., 3., 3.]])
    """
    g, b = _gate_tensor(output_gate, "output_gate", op), _gate_tensor(input_gate, "input_gate", op)
    if g is None and b is None:
        return op
    structured = _structured.gate(op, g, b)
    return Gated(op, g, b) if structured is None else structured


def _gate_tensor(value: Any, name: str, op: Operator) -> Tensor | None:
    if value is None:
        return None
    tensor = as_tensor(value, name)
    if tensor.is_complex():
        raise TypeError(f"{name} must hold real numbers, but its dtype is {tensor.dtype}.")
    if tensor.device != op.device:
        raise ValueError(
            f"{name} is on {tensor.device} and the operator on {op.device}; move them to one device."
        )
    if tensor.ndim < 1 or tensor.shape[-1] != op.shape[-1]:
        raise ValueError(
            f"{name} must have one number per row of T, (..., {op.shape[-1]}), but its shape is {tuple(tensor.shape)}."
        )
    _broadcast([op.shape[:-2], tensor.shape[:-1]])
    if op.valid is not None:
        own = op.valid if op.block == 1 else op.valid.repeat_interleave(op.block, dim=-1)
        tensor = tensor.masked_fill(~own, 0.0)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name} is not finite: {int((~torch.isfinite(tensor)).sum())} entries are NaN or infinite."
        )
    return tensor if tensor.dtype is torch.float64 else tensor.to(torch.float32)


def _terms(op: Operator, kind: type[_Composed]) -> tuple[Operator, ...]:
    return op.parts if type(op) is kind else (op,)


def _check_fit(parts: tuple[Operator, ...]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if part.shape[-1] != first.shape[-1] or part.block != first.block:
            raise ValueError(
                "operators must cover the same positions and channels to be added or multiplied, but these have "
                f"{first.length} positions of {first.block} rows and {part.length} positions of {part.block} rows."
            )
        if part.device != first.device:
            raise ValueError(
                f"one operator is on {first.device}, another on {part.device}; move them to one device."
            )


def _common_lead(parts: tuple[Operator, ...]) -> torch.Size:
    return _broadcast([part.shape[:-2] for part in parts])


def _broadcast(leads: list[torch.Size]) -> torch.Size:
    try:
        return torch.Size(np.broadcast_shapes(*leads))
    except ValueError:
        shapes = " and ".join(str(tuple(lead)) for lead in leads)
        raise ValueError(f"leading dimensions {shapes} do not broadcast against each other.") from None


def _take(op: Operator, lead: torch.Size, where: tuple[Any, ...]) -> Operator:
    """``op``, broadcast to ``lead`` and indexed; one without leading dimensions stays as it is."""
    own = op.shape[:-2]
    if own == lead:
        return op[where]
    if not own:
        return op
    number = torch.arange(math.prod(own)).view(own).expand(lead)[where]
    return op[torch.unravel_index(number, own)]
