"""Attention written by hand: weights from a softmax, then a product with the values."""

from __future__ import annotations

import torch
from torch import Tensor

from ess_widgets.capture.layout import Axes, Layout, Roles
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.capture.replay import replay, structure
from ess_widgets.capture.tape import Leaf, Leaves, Ref
from ess_widgets.operators import Deferred, Operator
from ess_widgets.operators._state_size import count_from_last_reader, mask_last_reader

__all__ = ["Weights", "is_distribution"]

# How far rows of half-precision weights may exceed 1.
_SLACK = 0.02


def is_distribution(weights: Tensor) -> bool:
    """Whether no row of ``(..., query, key)`` has a negative entry or a sum above 1; NaN rows pass."""
    negative = (weights < 0).any()
    heavy = (weights.sum(-1, dtype=torch.float32) > 1 + _SLACK).any()
    return not bool(negative | heavy)


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
        self.rounded = ref.node.rounded
        self._seen: Tensor | None = weights
        self._dtype = torch.float64 if weights.dtype is torch.float64 else torch.float32
        self._device = weights.device

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.layout.shape, self._sizes[self._roles.key])

    def inputs(self) -> Tensor:
        return self.layout.apply(self._roles.values(self._u.tensor, self._axes.right, self._sizes), 2)

    def outputs(self) -> Tensor:
        return self.layout.apply(self._roles.products(self._y.tensor, self._axes.out), 2)

    def allowed(self) -> Tensor | None:
        return self._grouped(structure(self._ref))

    def future(self, valid: Tensor | None) -> Future | None:
        if self._seen is None:
            raise RuntimeError("the weights are looked at while the model runs")
        if not bool(torch.triu(self._seen_weights(), 1).ne(0).any()):
            return None
        above = torch.triu(self._grouped(self._seen), 1)
        if valid is not None:
            above = above.masked_fill(~(valid[:, None, :, None] & valid[:, None, None, :]), 0)
        above = torch.nan_to_num(above)
        if not bool(above.ne(0).any()):
            return None
        at = tuple(int(i) for i in above.ne(0).nonzero()[0])
        return Future(at, float(above[at]))

    def unread(self) -> bool:
        """Whether some key is read by nobody, itself included: perhaps padding."""
        if self._seen is None:
            raise RuntimeError("the weights are looked at while the model runs")
        diagonal = self.layout.apply(self._seen_weights().diagonal(dim1=-2, dim2=-1), 1)
        return bool((~(diagonal > 0)).all(1).any())

    def operator(self, valid: Tensor | None) -> Operator:
        batch, groups, L = self.shape
        return Deferred(
            lambda: self._grouped(replay(self._ref, self._dtype)).to(self._dtype),
            shape=(batch, groups, L, L),
            dtype=self._dtype,
            device=self._device,
            state_size=lambda: self._state_size(valid),
            valid=None if valid is None else valid.unsqueeze(1),
        )

    def settle(self) -> None:
        self._seen = None

    def _state_size(self, valid: Tensor | None) -> Tensor:
        allowed = self._grouped(structure(self._ref)).tril()
        if valid is not None:
            allowed = allowed & valid[:, None, :, None] & valid[:, None, None, :]
        size = count_from_last_reader(mask_last_reader(allowed))
        first = size[:1, :1]
        return first[0, 0] if bool((size == first).all()) else size

    def _seen_weights(self) -> Tensor:
        assert self._seen is not None
        return self._roles.weights(self._seen, self._axes.left)

    def _grouped(self, weights: Tensor) -> Tensor:
        return self.layout.apply(self._roles.weights(weights, self._axes.left), 2)
