"""Attention written by hand: weights from a softmax, then a product with the values."""

from __future__ import annotations

import torch
from torch import Tensor

from ess_widgets.capture.attention.layout import Axes, Layout, Roles, contraction
from ess_widgets.capture.attention.replay import pattern, replay, structure
from ess_widgets.capture.interception.tape import Leaf, Leaves, Node, Ref, map_tree
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.operators import Deferred, Operator
from ess_widgets.operators._state_size import count_from_last_reader, mask_last_reader

__all__ = ["Weights", "family_of", "is_causal", "is_distribution"]

# How far rows of half-precision weights may exceed 1.
_SLACK = 0.02
# Weights on padding that are no more than this are what is left of a soft mask.
_READ = 1e-6


def is_distribution(weights: Tensor) -> bool:
    """Whether no row of ``(..., query, key)`` has a negative entry or a sum above 1; NaN rows pass."""
    if bool(weights.sum(-1, dtype=torch.float32).amax() > 1 + _SLACK):
        return False
    return not bool(weights.amin() < 0)


def is_causal(weights: Tensor) -> bool:
    """Whether ``(..., L, L)`` has nothing above its diagonal, and looks like what mixes values.

    Chunked delta rules and triangular inverses make strictly lower triangular matrices on their way, and ones with
    nothing but 1 on the diagonal.
    """
    if bool(weights.triu(1).ne(0).any()):
        return False
    diagonal = weights.diagonal(dim1=-2, dim2=-1)
    return bool(diagonal.ne(0).any()) and bool(diagonal.ne(1).any())


def family_of(node: Node) -> str:
    """What attention it is, by the functions that scores went through."""
    if node.soft or not node.scored:
        return "softmax attention"
    return "attention" if node.curved else "linear attention"


class Weights(Mixer):
    """Weights that are computed again from the tape when they are asked for."""

    def __init__(
        self,
        leaves: Leaves,
        layout: Layout,
        roles: Roles,
        axes: Axes,
        sizes: dict[int, int],
        *,
        ref: Ref,
        weights: Tensor,
        values: Tensor,
        output: Tensor,
    ) -> None:
        self.layout = layout
        self._roles, self._axes, self._sizes = roles, axes, sizes
        self._ref = ref
        self._u: Leaf = leaves.keep(values)
        self._y: Leaf = leaves.keep(output)
        self._rows: list[tuple[Ref, bool, int]] = []
        self.rounded = ref.node.rounded
        self.family = family_of(ref.node)
        self._seen: Tensor | None = weights
        self._dtype = torch.float64 if weights.dtype is torch.float64 else torch.float32
        self._device = weights.device

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.layout.shape, self._sizes[self._roles.key])

    def inputs(self) -> Tensor:
        return self.layout.apply(self._roles.values(self._u.tensor, self._axes.right, self._sizes), 2)

    def outputs(self) -> Tensor:
        return self.arranged(self._y.tensor)

    # What is asked where this is a chunk of the queries, or one of two maps.

    @property
    def rows(self) -> tuple[int, int, int]:
        return (*self.layout.shape, self._sizes[self._roles.query])

    def arranged(self, result: Tensor) -> Tensor:
        return self.layout.apply(self._roles.products(result, self._axes.out), 2)

    def value(self) -> Tensor:
        return self._u.tensor

    def key_axis(self) -> int:
        return self._axes.right.index(self._roles.key)

    def weights(self) -> Tensor:
        return self._matrix()

    def readable(self) -> Tensor:
        return self._grouped(structure(self._ref))

    def rescale(self, ref: Ref, divides: bool, factor: Tensor, output: Tensor, leaves: Leaves) -> bool:
        sizes = dict(zip(self._axes.out, self._y.tensor.shape, strict=True))
        here = self._axes.out[len(sizes) - factor.ndim :]
        mixed = any(
            sizes[a] != 1 and a in self._roles.width for a, n in zip(here, factor.shape, strict=True) if n > 1
        )
        if mixed or output.shape != self._y.tensor.shape or factor.numel() == 1:
            return False
        self._rows.append((ref, divides, factor.ndim))
        self.rounded = self.rounded or ref.node.rounded
        self._y = leaves.keep(output)
        return True

    def allowed(self) -> Tensor | None:
        return self._grouped(structure(self._ref))

    def future(self, valid: Tensor | None) -> Future | None:
        if self._seen is None:
            raise RuntimeError("the weights are looked at while the model runs")
        seen = self._seen_weights()
        lead = tuple(range(seen.ndim - 2))
        extremes = (seen.amax(lead), seen.amin(lead)) if lead else (seen,)
        if not any(bool(extreme.triu(1).ne(0).any()) for extreme in extremes):
            return None
        above = torch.triu(self._grouped(self._seen), 1)
        if valid is not None:
            above = above.masked_fill(~(valid[:, None, :, None] & valid[:, None, None, :]), 0)
        above = torch.nan_to_num(above)
        if not bool(above.ne(0).any()):
            return None
        at = tuple(int(i) for i in above.ne(0).nonzero()[0])
        return Future(at, float(above[at]))

    def reads_beyond(self, valid: Tensor) -> bool:
        if self._seen is None:
            raise RuntimeError("the weights are looked at while the model runs")
        read = self.layout.apply(self._seen_weights(), 2).tril().abs().amax(1) > _READ
        return bool((read & valid.unsqueeze(-1) & ~valid.unsqueeze(-2)).any())

    def unread(self) -> bool:
        """Whether some key is read by nobody, itself included: perhaps padding."""
        if self._seen is None:
            raise RuntimeError("the weights are looked at while the model runs")
        diagonal = self.layout.apply(self._seen_weights().diagonal(dim1=-2, dim2=-1), 1)
        return bool((~(diagonal > 0)).all(1).any())

    def operator(self, valid: Tensor | None) -> Operator:
        batch, groups, L = self.shape
        return Deferred(
            self._matrix,
            shape=(batch, groups, L, L),
            dtype=self._dtype,
            device=self._device,
            state_size=lambda: self._state_size(valid),
            valid=None if valid is None else valid.unsqueeze(1),
        )

    def settle(self) -> None:
        self._seen = None

    def _matrix(self) -> Tensor:
        T = self._grouped(replay(self._ref, self._dtype)).to(self._dtype)
        for ref, divides, ndim in self._rows:
            factor = replay(ref, self._dtype)
            factor = factor.reshape((1,) * (len(self._axes.out) - ndim) + tuple(factor.shape))
            factor = self.layout.apply(self._roles.products(factor, self._axes.out), 2)
            T = T / factor if divides else T * factor
        return T

    def _state_size(self, valid: Tensor | None) -> Tensor:
        allowed = self._grouped(structure(self._ref)).tril()
        if valid is not None:
            allowed = allowed & valid[:, None, :, None] & valid[:, None, None, :]
        size = count_from_last_reader(mask_last_reader(allowed))
        features = self._features()
        if features is not None:
            size = size.clamp(max=features)
        first = size[:1, :1]
        return first[0, 0] if bool((size == first).all()) else size

    def _features(self) -> int | None:
        """Size of the state that linear attention needs: that of a key, where its mask is a decay."""
        if self.family != "linear attention":
            return None
        roots = [node for node in _all(self._ref.node) if node.root]
        if len(roots) != 1:
            return None
        plain = map_tree((roots[0].args, roots[0].kwargs), lambda x: x.tensor if isinstance(x, Leaf) else x)
        found = contraction(roots[0].name, *plain)
        if found is None or not _is_decay(self._grouped(pattern(self._ref))):
            return None
        left, _, axes = found
        sizes = dict(zip(axes.left, left.shape, strict=True))
        features = 1
        for axis in set(axes.left) & set(axes.right) - set(axes.out):
            features *= sizes[axis]
        return features

    def _seen_weights(self) -> Tensor:
        assert self._seen is not None
        return self._roles.weights(self._seen, self._axes.left)

    def _grouped(self, weights: Tensor) -> Tensor:
        return self.layout.apply(self._roles.weights(weights, self._axes.left), 2)


def _all(node: Node) -> set[Node]:
    """A node and everything behind it."""
    found, todo = {node}, [node]
    while todo:
        for parent in todo.pop().parents():
            if parent not in found:
                found.add(parent)
                todo.append(parent)
    return found


def _is_decay(mask: Tensor) -> bool:
    """Whether ``M_ij M_kl = M_il M_kj`` wherever ``i, k >= j, l``: what a query forgets needs no memory of its own."""
    upper, lower = mask[..., :-1, :], mask[..., 1:, :]
    one = upper[..., :-1] * lower[..., 1:]
    other = upper[..., 1:] * lower[..., :-1]
    L = mask.shape[-1]
    past = torch.ones(L - 1, L - 1, dtype=torch.bool, device=mask.device).tril(-1)
    return bool(((one - other).abs() <= 1e-4 * (one.abs() + other.abs()))[..., past].all())
