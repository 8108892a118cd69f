"""What the tasks share: samples that depend on the seed and their index alone, and how answers are judged."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["IGNORE", "Task", "accuracy", "loss", "whole"]

IGNORE = -100
# Keeps the streams of single samples and of batches apart.
_ITEMS, _BATCHES = 0, 1


class Task(Dataset[tuple[Tensor, Tensor]], ABC):
    """A dataset of token sequences made on the fly; the same seed gives the same samples on every machine.

    Samples are ``(input_ids, targets)``, both int64 of shape ``(length,)``; targets are ``IGNORE`` where nothing
    is asked.

    Attributes
    ----------
    length : int
        Tokens in a sample.
    vocab : int
        Number of tokens.
    seed : int
        Two tasks with different seeds share no stream of random numbers.
    size : int
        Number of samples that indexing knows; ``batch`` has no end.
    """

    def __init__(self, *, length: int, vocab: int, seed: int, size: int) -> None:
        self.length = whole(length, "length", 1)
        self.vocab = whole(vocab, "vocab", 1)
        self.seed = whole(seed, "seed", 0)
        self.size = whole(size, "size", 1)

    @abstractmethod
    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``count`` samples, ``(count, length)`` each."""

    def batch(self, count: int, index: int = 0) -> tuple[Tensor, Tensor]:
        """The batch number ``index`` of an endless stream, inputs and targets of shape ``(count, length)``."""
        return self.draw(whole(count, "count", 1), self._rng(_BATCHES, whole(index, "index", 0)))

    def held_out(self) -> Task:
        """The same task with samples of its own, for testing."""
        return type(self)(**{**self.parameters, "seed": self.seed + 1_000_003})

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The arguments that make an equal task."""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = whole(index, "index", -(2**63))
        if not -self.size <= index < self.size:
            raise IndexError(f"index {index} is outside of a task of {self.size} samples")
        inputs, targets = self.draw(1, self._rng(_ITEMS, index % self.size))
        return inputs[0], targets[0]

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{type(self).__name__}({inside})"

    def _rng(self, stream: int, index: int) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed} {stream} {index}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of the asked positions whose most likely token is the right one.

    Parameters
    ----------
    logits : Tensor, ``(..., length, vocab)``
    targets : int64 Tensor, ``(..., length)``

    Raises
    ------
    ValueError
        If nothing is asked, or the shapes do not fit.

    Examples
    --------
    >>> accuracy(torch.eye(3), torch.tensor([0, 2, IGNORE]))
    0.5
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}")
    asked = targets != IGNORE
    if not bool(asked.any()):
        raise ValueError("no position of these targets is asked")
    return float((logits.argmax(-1) == targets)[asked].double().mean())


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the asked positions, in nats; shapes as in :func:`accuracy`. NaN where nothing is asked."""
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}")
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE)


def whole(value: Any, name: str, least: int) -> int:
    """``value`` as an integer of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, but it is {value!r}")
    number = int(value.__index__())
    if number < least:
        raise ValueError(f"{name} must be at least {least}, but it is {number}")
    return number
