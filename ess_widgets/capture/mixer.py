"""What one intercepted mixing of tokens offers, whatever form the call had."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ess_widgets.capture.interception.tape import Leaves, Ref
from ess_widgets.operators import Operator

__all__ = ["Future", "Mixer"]


@dataclass(frozen=True)
class Future:
    """An entry above the diagonal."""

    entry: tuple[int, ...]
    value: float | None

    def __str__(self) -> str:
        sample, group, query, key = self.entry
        how = "" if self.value is None else f" with weight {self.value:.3g}"
        return f"in sample {sample}, head {group}, output {query} reads the later input {key}{how}"


class Mixer(ABC):
    """A mixing ``y = T u`` that a model computed, as ``(batch, groups, L, ...)``."""

    family = "softmax attention"
    group = "head"
    rounded = False
    note = ""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """``(batch, groups, L)``."""

    @abstractmethod
    def inputs(self) -> Tensor:
        """What is mixed, ``(batch, groups, L, width)``."""

    @abstractmethod
    def outputs(self) -> Tensor:
        """What the model computed, ``(batch, groups, L, width)``."""

    def computed(self) -> Tensor:
        """What to look through for NaN, ``(batch, groups or 1, L, width)``."""
        return self.outputs()

    def dtype(self) -> torch.dtype:
        """The float type of the model there."""
        return self.outputs().dtype

    @abstractmethod
    def operator(self, valid: Tensor | None) -> Operator:
        """``T``, with ``valid`` ``(batch, L)`` marking a sample's own tokens."""

    @abstractmethod
    def allowed(self) -> Tensor | None:
        """Which output may read which input, ``(batch or 1, groups or 1, L, L)``; None for causal, all of the past."""

    @abstractmethod
    def future(self, valid: Tensor | None) -> Future | None:
        """An own token that reads a later own token, if there is one."""

    @property
    def own_tokens(self) -> Tensor | None:
        """A sample's own tokens, ``(batch, L)``, where the call itself tells; None otherwise."""
        return None

    def linearity(self) -> Tensor | None:
        """How far a linearised layer is from linear, ``(batch,)``; None where the operator is the layer's own."""
        return None

    def reads_beyond(self, valid: Tensor) -> bool:
        """Whether own tokens read padding, ``(batch, L)`` False: then it is not padding to this layer."""
        return False

    def rescale(self, ref: Ref, divides: bool, factor: Tensor, output: Tensor, leaves: Leaves) -> bool:
        """Take in that the model multiplied or divided the rows of ``y`` by something made from the weights.

        Parameters
        ----------
        ref : Ref
            How ``factor`` came about.
        divides : bool
            Whether rows were divided by it.
        factor, output : Tensor
            One number per row, and the result.

        Returns
        -------
        bool
            Whether that is what it was.
        """
        return False

    @abstractmethod
    def settle(self) -> None:
        """Called when the run is over: let go of what only the run needed."""
