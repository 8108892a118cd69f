"""What a model makes of several results of attention: their difference, or chunks of queries put together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ess_widgets.capture.attention.replay import evaluate
from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.tape import Leaves, Node, Ref, Tape
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.operators import Deferred, Operator
from ess_widgets.operators._state_size import count_from_last_reader, mask_last_reader

__all__ = ["Chunks", "Difference", "Joins", "Rows"]

_SCALES = frozenset(
    {"mul", "multiply", "__mul__", "__rmul__", "div", "divide", "true_divide", "__truediv__", "neg"}
)
_SIGNS = {"add": 1, "__add__": 1, "__radd__": 1, "sub": -1, "subtract": -1, "__sub__": -1}
_VIEWS = calls.VIEWS | calls.CASTS
_JOINS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack"})


class Rows(Protocol):
    """A result whose entries are known by sample, group, row and channel."""

    @property
    def rows(self) -> tuple[int, int, int]:
        """``(batch, groups, queries)``."""

    def arranged(self, result: Tensor) -> Tensor:
        """The result, or another tensor of its shape, as ``(batch, groups, queries, width)``."""

    def inputs(self) -> Tensor:
        """Values, ``(batch, groups, keys, width)``."""


class Piece(Rows, Protocol):
    """Some queries' attention to some keys."""

    def value(self) -> Tensor:
        """Values as the model gave them."""

    def key_axis(self) -> int:
        """Which dimension of these counts keys."""

    def weights(self) -> Tensor:
        """``(batch, groups, queries, keys)``, in float32 or float64."""

    def readable(self) -> Tensor:
        """Which weights may differ from zero, by the masks; same shape, or one that broadcasts to it."""


class Joins:
    """Follows results of attention through views, factors and concatenations, as long as they are alive."""

    def __init__(self, leaves: Leaves) -> None:
        self._tape = Tape(leaves)
        self._leaves = leaves
        self._sources: dict[Node, tuple[Rows, Any]] = {}

    def add(self, result: Tensor, source: Rows, tag: Any) -> None:
        """Follow a result; ``tag`` is what the answer will name it by."""
        if not self._tape.active:
            self._sources.clear()
        self._tape.given_result(result)
        node = self._tape.node(result)
        if node is not None:
            self._sources[node] = (source, tag)

    @property
    def active(self) -> bool:
        """Whether a result that is followed is alive."""
        return self._tape.active

    def forget(self) -> None:
        self._tape.forget()
        self._sources.clear()

    def see(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> list[tuple[list[Any], Mixer]]:
        """Look at a call that follows; the answer is which results it joined, and to what."""
        if name == "__setitem__":
            if not self._tape.remembers(args[0]):
                if not self._tape.any_known(args[2:], {}):
                    return []
                self._tape.given_result(args[0])  # made empty, and filled piece by piece
            self._tape.follow(func, name, args, kwargs, result)
            return self._collected(args[0])
        if not self._tape.any_known(args, kwargs):
            return []
        if name in _SIGNS:
            refs = [self._tape.ref(item) for item in args[:2]]
            if len(args) == 2 and not kwargs and refs[0] is not None and refs[1] is not None:
                return self._subtracted(refs[0], refs[1], _SIGNS[name], result)
        elif name in _VIEWS or name in _SCALES:
            self._tape.follow(func, name, args, kwargs, result)
            if name in _JOINS:
                return self._collected(result)
        return []

    # Differences ----------------------------------------------------------------------------------------------

    def _subtracted(self, left: Ref, right: Ref, sign: int, result: Tensor) -> list[tuple[list[Any], Mixer]]:
        sources = self._behind(left, right)
        if sources is None or not all(isinstance(source, Mixer) for source, _ in sources.values()):
            return []
        where = _Entries(sources)
        a, b = where.of(left, result.shape), where.of(right, result.shape)
        if a is None or b is None or bool((a[:, (1, 3)] != b[:, (1, 3)]).any()):
            return []  # other samples or positions: a shift, not a difference of maps
        factors = (_factor(left, result.shape), sign * _factor(right, result.shape))
        found: list[tuple[list[Any], Mixer]] = []
        pairs = torch.stack([a[:, 0], b[:, 0]], 1)
        for pair in torch.unique(pairs, dim=0):
            at = (pairs == pair).all(1).nonzero().squeeze(1)
            joined = self._difference(where, a[at], b[at], [f[at] for f in factors], result.reshape(-1)[at])
            if joined is not None:
                found.append(([where.tags[int(i)] for i in torch.unique(pair)], joined))
        return found

    def _difference(
        self, where: _Entries, a: Tensor, b: Tensor, factors: list[Tensor], y: Tensor
    ) -> Difference | None:
        groups, group = torch.unique(torch.stack([a[:, 2], b[:, 2]], 1), dim=0, return_inverse=True)
        widths, width = torch.unique(torch.stack([a[:, 4], b[:, 4]], 1), dim=0, return_inverse=True)
        batch, L = int(a[:, 1].max()) + 1, int(a[:, 3].max()) + 1
        shape = (batch, len(groups), L, len(widths))
        if len(y) != batch * len(groups) * L * len(widths):
            return None
        at = ((a[:, 1] * shape[1] + group) * L + a[:, 3]) * shape[3] + width
        order = at.argsort()
        if bool((at[order] != torch.arange(len(at), device=at.device)).any()):
            return None
        first, second = where.rows[int(a[0, 0])], where.rows[int(b[0, 0])]
        assert isinstance(first, Mixer) and isinstance(second, Mixer)
        scales = []
        for factor in factors:
            factor = factor[order].view(shape)
            if bool((factor != factor[:, :, :1, :1]).any()):
                return None  # a gate
            scales.append(factor[:, :, :1, :1])
        parts = [_Part(m, g, s) for m, g, s in zip((first, second), groups.unbind(1), scales, strict=True)]
        values = [p.take(p.mixer.inputs())[..., w] for p, w in zip(parts, widths.unbind(1), strict=True)]
        if not torch.equal(*values):
            return None
        y = y if self._leaves.differentiable else y.detach()
        return Difference(parts, widths[:, 0], y[order].view(shape))

    # Chunks ---------------------------------------------------------------------------------------------------

    def _collected(self, result: Tensor) -> list[tuple[list[Any], Mixer]]:
        ref = self._tape.ref(result)
        sources = None if ref is None else self._behind(ref)
        if ref is None or sources is None or len(sources) == 1:
            return []
        pieces: list[Any] = [source for source, _ in sources.values()]
        if not all(hasattr(piece, "key_axis") for piece in pieces):
            return []
        columns = _columns(pieces)
        L = sum(piece.rows[2] for piece in pieces)
        if columns is None or columns[1] != L or len({piece.rows[:2] for piece in pieces}) != 1:
            return []
        where = _Entries(sources)
        entries = where.of(ref, result.shape)
        if entries is None:
            return []
        starts = torch.tensor([0, *(piece.rows[2] for piece in pieces)], device=entries.device).cumsum(0)
        batch, groups, _ = pieces[0].rows
        shape = (batch, groups, L, int(entries[:, 4].max()) + 1)
        row = starts[entries[:, 0]] + entries[:, 3]
        at = ((entries[:, 1] * groups + entries[:, 2]) * L + row) * shape[3] + entries[:, 4]
        order = at.argsort()
        if len(at) != shape[0] * groups * L * shape[3]:
            return []
        if bool((at[order] != torch.arange(len(at), device=at.device)).any()):
            return []
        y = result if self._leaves.differentiable else result.detach()
        mixer = Chunks(pieces, columns[0], L, y.reshape(-1)[order].view(shape))
        return [([tag for _, tag in sources.values()], mixer)]

    def _behind(self, *refs: Ref) -> dict[Node, tuple[Rows, Any]] | None:
        """The results behind, in the order in which they were made; None where something else is, or a sum."""
        nodes: dict[Node, None] = {}
        todo = [ref.node for ref in refs]
        while todo:
            node = todo.pop()
            if node not in nodes:
                nodes[node] = None
                todo.extend(node.parents())
        roots = [node for node in nodes if node.root]
        known = {node: source for node, source in self._sources.items() if node in nodes}
        blank = [node for node in roots if node not in known]
        return known if known and len(blank) <= 1 else None


class _Entries:
    """Where every entry of a tensor comes from: ``(source, sample, group, row, channel)``."""

    def __init__(self, sources: dict[Node, tuple[Rows, Any]]) -> None:
        self.rows = [source for source, _ in sources.values()]
        self.tags = [tag for _, tag in sources.values()]
        self._first: dict[Node, int] = {}
        places, total = [], 0
        for number, (node, (source, _)) in enumerate(sources.items()):
            self._first[node] = total
            raw = torch.arange(node.shape.numel()).view(node.shape)
            order = source.arranged(raw)
            axes = torch.meshgrid(*(torch.arange(n) for n in order.shape), indexing="ij")
            place = torch.empty(raw.numel(), 5, dtype=torch.long)
            place[:, 0] = number
            place[order.reshape(-1), 1:] = torch.stack([axis.reshape(-1) for axis in axes], 1)
            places.append(place)
            total += raw.numel()
        self._places = torch.cat(places)

    def of(self, ref: Ref, shape: torch.Size) -> Tensor | None:
        """``(entries, 5)`` of a tensor, in the order of its memory; None where an entry comes from elsewhere."""

        def step(node: Node, args: Any, kwargs: Any) -> Any:
            if node.root:
                if node not in self._first:
                    return torch.full(node.shape, -1.0, dtype=torch.float64)
                count = torch.arange(node.shape.numel(), dtype=torch.float64)
                return count.view(node.shape) + self._first[node]
            if node.name in _SCALES:
                item = next(
                    item for item in args if isinstance(item, Tensor) and item.numel() == node.shape.numel()
                )
                return item.reshape(node.shape)
            return _again(node, args, kwargs)

        try:
            # (Any other tensor that is mixed in is told by a number that no entry has.)
            labels = evaluate(
                ref, step, torch.float64, leaf=lambda t: torch.full(t.shape, -1.0, dtype=torch.float64)
            )
        except RuntimeError:  # a view that depends on how the model's own tensor lies in memory
            return None
        labels = labels.expand(shape).reshape(-1)
        if bool((labels < 0).any()):
            return None
        return self._places[labels.long()]


def _factor(ref: Ref, shape: torch.Size) -> Tensor:
    """By what the model multiplied each entry."""

    def step(node: Node, args: Any, kwargs: Any) -> Any:
        if node.root:
            return torch.ones(node.shape, dtype=torch.float64)
        return _again(node, args, kwargs)

    factor = evaluate(ref, step, torch.float64, leaf=lambda t: t.double().cpu())
    return factor.expand(shape).reshape(-1)


def _again(node: Node, args: Any, kwargs: Any) -> Any:
    if node.name in ("view", "view_as"):  # the model's own tensor may lie otherwise in memory
        return args[0].reshape(node.shape)
    if node.name in calls.CASTS:
        return args[0]
    return node.func(*args, **kwargs)


class _Part:
    """Some groups of a mixer, each with a factor ``(batch, groups, 1, 1)``."""

    def __init__(self, mixer: Mixer, groups: Tensor, factor: Tensor) -> None:
        self.mixer, self.groups, self.factor = mixer, groups, factor

    def take(self, tensor: Tensor) -> Tensor:
        return tensor[:, self.groups.to(tensor.device)]

    def matrix(self, valid: Tensor | None) -> Tensor:
        T = self.take(self.mixer.operator(valid).matrix())
        return T * self.factor.to(T.device, T.dtype)


class Difference(Mixer):
    """``y = (c1 T1 + c2 T2) u``, the results of two attention maps over the same values, added or subtracted."""

    def __init__(self, parts: list[_Part], width: Tensor, output: Tensor) -> None:
        self._parts, self._width, self._y = parts, width, output
        self.family = parts[0].mixer.family
        self.rounded = any(part.mixer.rounded for part in parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, groups, L, _ = self._y.shape
        return batch, groups, L

    def inputs(self) -> Tensor:
        values = self._parts[0].take(self._parts[0].mixer.inputs())
        return values[..., self._width.to(values.device)]

    def outputs(self) -> Tensor:
        return self._y

    def allowed(self) -> Tensor | None:
        return None

    def future(self, valid: Tensor | None) -> Future | None:
        return None  # each map was looked at by itself

    def operator(self, valid: Tensor | None) -> Operator:
        first = self._parts[0].mixer.operator(valid)
        batch, groups, L = self.shape

        def build() -> Tensor:
            one, other = (part.matrix(valid) for part in self._parts)
            return one + other

        def state_size() -> Tensor:
            sizes = [part.mixer.operator(valid).state_size for part in self._parts]
            each = [
                size if size.ndim == 1 else part.take(size)
                for size, part in zip(sizes, self._parts, strict=True)
            ]
            return torch.maximum(*each)

        own = None if valid is None else valid.unsqueeze(1)
        return Deferred(
            build,
            shape=(batch, groups, L, L),
            dtype=first.dtype,
            device=first.device,
            state_size=state_size,
            valid=own,
        )

    def settle(self) -> None:
        for part in self._parts:
            part.mixer.settle()


class Chunks(Mixer):
    """Rows of one operator that were computed chunk by chunk."""

    def __init__(self, pieces: list[Piece], columns: list[int], L: int, output: Tensor) -> None:
        self._pieces, self._columns, self._L = pieces, columns, L
        self._y = output.clone()
        self.family = getattr(pieces[0], "family", Mixer.family)
        self.rounded = any(getattr(piece, "rounded", False) for piece in pieces)

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, groups, _ = self._pieces[0].rows
        return batch, groups, self._L

    def inputs(self) -> Tensor:
        first = self._pieces[0].inputs()
        values = first.new_zeros(*self.shape, first.shape[-1])
        for piece, start in zip(self._pieces, self._columns, strict=True):
            part = piece.inputs()
            values[:, :, start : start + part.shape[2]] = part
        return values

    def outputs(self) -> Tensor:
        return self._y

    def allowed(self) -> Tensor | None:
        return self._filled(lambda piece: piece.readable(), torch.bool)

    def future(self, valid: Tensor | None) -> Future | None:
        above = self._filled(lambda piece: piece.readable(), torch.bool).triu(1)
        if valid is not None:
            above &= valid[:, None, :, None] & valid[:, None, None, :]
        if not bool(above.any()):
            return None
        return Future(tuple(int(i) for i in above.nonzero()[0]), None)

    def operator(self, valid: Tensor | None) -> Operator:
        values = self._pieces[0].value()
        dtype = torch.float64 if values.dtype is torch.float64 else torch.float32

        def state_size() -> Tensor:
            allowed = self._filled(lambda piece: piece.readable(), torch.bool).tril()
            if valid is not None:
                allowed &= valid[:, None, :, None] & valid[:, None, None, :]
            size = count_from_last_reader(mask_last_reader(allowed))
            return size[0, 0] if bool((size == size[:1, :1]).all()) else size

        return Deferred(
            lambda: self._filled(lambda piece: piece.weights(), dtype),
            shape=(*self.shape, self._L),
            dtype=dtype,
            device=values.device,
            state_size=state_size,
            valid=None if valid is None else valid.unsqueeze(1),
        )

    def settle(self) -> None:
        pass

    def _filled(self, rows: Callable[[Any], Tensor], dtype: torch.dtype) -> Tensor:
        device = self._pieces[0].value().device
        T = torch.zeros(*self.shape, self._L, dtype=dtype, device=device)
        row = 0
        for piece, start in zip(self._pieces, self._columns, strict=True):
            part = rows(piece)
            T[:, :, row : row + part.shape[-2], start : start + part.shape[-1]] = part
            row += piece.rows[2]
        return T


def _columns(pieces: list[Any]) -> tuple[list[int], int] | None:
    """The first key of each piece, and their number, from where the values lie; None where that does not tell."""
    values = [piece.value() for piece in pieces]
    counts = [v.shape[piece.key_axis()] for v, piece in zip(values, pieces, strict=True)]
    steps = {(v.stride(piece.key_axis()), calls.storage(v)) for v, piece in zip(values, pieces, strict=True)}
    if len(steps) == 1:
        (step, where), starts = next(iter(steps)), [v.storage_offset() for v in values]
        offsets = [start - min(starts) for start in starts]
        if where is None or step == 0 or any(offset % step for offset in offsets):
            return None
        columns = [offset // step for offset in offsets]
        return columns, max(start + count for start, count in zip(columns, counts, strict=True))
    # Copies: chunks that read the beginning of the same values, more and more of it.
    longest = values[counts.index(max(counts))]
    for v, piece, count in zip(values, pieces, counts, strict=True):
        if not torch.equal(v, longest.narrow(piece.key_axis(), 0, count)):
            return None
    return [0] * len(pieces), max(counts)
