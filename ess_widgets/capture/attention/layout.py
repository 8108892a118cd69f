"""From a model's own arrangement of dimensions to (batch, groups, ...)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

__all__ = ["Axes", "Layout", "Roles", "batch_size", "contraction", "sizes_of"]


@dataclass(frozen=True)
class Axes:
    """Which dimension of two operands and their product means what; a dimension is an integer label."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    out: tuple[int, ...]

    def flipped(self) -> Axes:
        return Axes(self.right, self.left, self.out)

    def roles(self, sizes: dict[int, int]) -> Roles | None:
        """Read the left operand as weights (query, key); None where it cannot be that."""
        summed = [a for a in self.left if a in self.right and a not in self.out]
        if len(summed) != 1 or any(a not in self.out and a != summed[0] for a in (*self.left, *self.right)):
            return None
        (key,) = summed
        rows = [a for a in self.left if a in self.out and a not in self.right]
        if not rows:
            return None
        square = [a for a in rows if sizes[a] == sizes[key]]
        query = (square or rows)[-1]
        # Negative labels are dimensions that broadcast: they lead even where the weights lack them.
        lead = (*(a for a in self.out if a < 0), *(a for a in self.left if a >= 0 and a not in (query, key)))
        width = tuple(a for a in self.right if a not in self.left and a >= 0)
        return Roles(lead, query, key, width)


@dataclass(frozen=True)
class Roles:
    """The labels of a product of weights and values."""

    lead: tuple[int, ...]
    query: int
    key: int
    width: tuple[int, ...]

    def weights(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        """``lead + (query, key)``."""
        return _arrange(tensor, axes, (*self.lead, self.query, self.key))

    def values(self, tensor: Tensor, axes: tuple[int, ...], sizes: dict[int, int]) -> Tensor:
        """``lead + (key, width)``; values that several weights share are expanded."""
        tensor = _arrange(tensor, axes, (*self.lead, self.key, *self.width))
        lead = [sizes[a] for a in self.lead]
        tensor = tensor.expand(*lead, *tensor.shape[len(lead) :])
        return _join_width(tensor, len(lead) + 1)

    def products(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        """``lead + (query, width)``."""
        return _join_width(_arrange(tensor, axes, (*self.lead, self.query, *self.width)), len(self.lead) + 1)


@dataclass(frozen=True)
class Layout:
    """How leading dimensions become ``(batch, groups)``.

    ``order`` permutes the leading dimensions once they are split; the first ``batch_dims`` of them are the batch.
    """

    lead: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    batch_dims: int

    @classmethod
    def of(cls, lead: Iterable[int], batch: int | None) -> Layout:
        """Find the batch among leading dimensions, given the model's batch size where it is known."""
        lead = tuple(lead)
        if not lead:
            return cls((), (), (), 0)
        everything = tuple(range(len(lead)))
        if len(lead) == 1:
            (n,) = lead
            if batch is None or n % batch:
                return cls(lead, lead, (0,), 0)
            if n == batch:
                return cls(lead, lead, (0,), 1)
            return cls(lead, (batch, n // batch), (0, 1), 1)
        if batch == 1 and 1 not in lead:
            return cls(lead, lead, everything, 0)
        at = lead.index(batch) if batch in lead else 0
        return cls(lead, lead, (at, *(i for i in everything if i != at)), 1)

    def heads_first(self) -> Layout:
        """The same where one leading dimension holds (heads, batch) and not (batch, heads)."""
        return replace(self, split=(self.split[1], self.split[0]), order=(1, 0))

    @property
    def merged(self) -> bool:
        """Whether one leading dimension holds both batch and heads."""
        return len(self.lead) == 1 and len(self.split) == 2

    @property
    def plain(self) -> bool:
        """Whether the leading dimensions are ``(batch, groups)`` as they are."""
        return self.split == self.lead and self.order == (0, 1) and self.batch_dims == 1

    @property
    def shape(self) -> tuple[int, int]:
        sizes = [self.split[i] for i in self.order]
        batch = groups = 1
        for size in sizes[: self.batch_dims]:
            batch *= size
        for size in sizes[self.batch_dims :]:
            groups *= size
        return batch, groups

    def apply(self, tensor: Tensor, inner: int) -> Tensor:
        """Bring ``lead + inner`` dimensions to ``(batch, groups) + inner``."""
        tail = tensor.shape[tensor.ndim - inner :]
        tensor = tensor.expand(*self.lead, *tail).reshape(*self.split, *tail)
        n = len(self.split)
        tensor = tensor.permute(*self.order, *range(n, n + inner))
        return tensor.reshape(*self.shape, *tail)


def batch_size(inputs: Iterable[Tensor], length: int) -> int | None:
    """The batch size of the first input that has a dimension of this length; of those with one dimension last."""
    alone = None
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if len(shape) == 1 and shape[0] == length:
            alone = 1
        if len(shape) >= 2 and shape[1] == length:
            return shape[0]
        if len(shape) >= 2 and shape[0] == length:
            return 1 if len(shape) == 2 and tensor.is_floating_point() else shape[1]
    return alone


def contraction(name: str, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Axes] | None:
    """The two operands of a product and its axes; None for what is not a product of two tensors."""
    if name == "einsum":
        return _einsum(args)
    if name in ("baddbmm", "addmm"):
        names = ("batch1", "batch2") if name == "baddbmm" else ("mat1", "mat2")
        rest = list(args[0 if "input" in kwargs else 1 :])
        left = kwargs.get(names[0], rest[0] if rest else None)
        right = kwargs.get(names[1], rest[-1] if rest else None)
    else:
        left = args[0] if args else kwargs.get("input")
        right = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("mat2", kwargs.get("tensor2")))
    if name == "__rmatmul__":
        left, right = right, left
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.ndim < 2 or right.ndim < 2:
        return None
    shared = [-i for i in range(max(left.ndim, right.ndim) - 2, 0, -1)]
    a = (*shared[len(shared) - left.ndim + 2 :], 0, 1)
    b = (*shared[len(shared) - right.ndim + 2 :], 1, 2)
    return left, right, Axes(a, b, (*shared, 0, 2))


def sizes_of(tensors: Iterable[tuple[Tensor, tuple[int, ...]]]) -> dict[int, int]:
    """The size of each label, broadcasting considered."""
    sizes: dict[int, int] = {}
    for tensor, axes in tensors:
        for axis, size in zip(axes, tensor.shape, strict=True):
            sizes[axis] = max(size, sizes.get(axis, 1))
    return sizes


def _einsum(args: Any) -> tuple[Tensor, Tensor, Axes] | None:
    if not args or not isinstance(args[0], str):
        return None
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], tuple | list) else list(args[1:])
    if len(operands) != 2 or not all(isinstance(item, Tensor) for item in operands):
        return None
    equation = args[0].replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if len(terms) != 2:
        return None
    dots = [
        max(op.ndim - len(t.replace("...", "")), 0) if "..." in t else 0
        for op, t in zip(operands, terms, strict=True)
    ]
    most = max(dots)

    def labels(term: str, n: int) -> tuple[int, ...]:
        front, ellipsis, back = term.partition("...")
        middle = tuple(i - most for i in range(most - n, most)) if ellipsis else ()
        return (*map(ord, front), *middle, *map(ord, back))

    if not arrow:
        letters = sorted(c for c in set(inputs) - set(",.") if inputs.count(c) == 1)
        output = ("..." if "..." in inputs else "") + "".join(letters)
    left, right = (labels(term, n) for term, n in zip(terms, dots, strict=True))
    if len(set(left)) != len(left) or len(set(right)) != len(right):
        return None
    return operands[0], operands[1], Axes(left, right, labels(output, most))


def _arrange(tensor: Tensor, axes: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    present = [a for a in wanted if a in axes]
    tensor = tensor.permute(*(axes.index(a) for a in present))
    for i, a in enumerate(wanted):
        if a not in axes:
            tensor = tensor.unsqueeze(i)
    return tensor


def _join_width(tensor: Tensor, start: int) -> Tensor:
    return tensor.flatten(start) if tensor.ndim > start else tensor.unsqueeze(-1)
