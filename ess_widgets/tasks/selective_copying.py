"""Selective copying."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.tasks.base import IGNORE, Task, whole

__all__ = ["SelectiveCopying"]


class SelectiveCopying(Task):
    """Selective copying: ``copy`` tokens scattered in noise, to be repeated in order after a signal.

    ``· b · · d a · > · · ·``: token 0 is noise, token 1 the signal ``>``; from the signal on, each position asks for
    the next of the scattered tokens.

    Parameters
    ----------
    copy : int
        Number of tokens to be remembered; ``2 copy + 1 < length``.
    length : int
        Tokens in a sample.
    vocab : int
        Number of tokens, noise and signal included; at least 3.
    seed, size : int
        See `Task`.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong kind, or the task cannot be laid out.

    References
    ----------
    Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023 (arXiv 2312.00752); Poli et al.,
    Mechanistic Design and Scaling of Hybrid Architectures, 2024 (arXiv 2403.17844).

    Examples
    --------
    >>> inputs, targets = SelectiveCopying(copy=2, length=8, vocab=6)[0]
    >>> inputs.tolist()
    [0, 0, 0, 2, 0, 4, 1, 0]
    >>> targets.tolist()
    [-100, -100, -100, -100, -100, -100, 2, 4]
    """

    NOISE, SIGNAL = 0, 1

    def __init__(
        self, copy: int = 16, length: int = 64, vocab: int = 16, *, seed: int = 0, size: int = 10_000
    ) -> None:
        super().__init__(length=length, vocab=vocab, seed=seed, size=size)
        self.copy = whole(copy, "copy", 1)
        if 2 * self.copy + 1 >= self.length:
            raise ValueError(
                f"copying {self.copy} tokens takes more than {2 * self.copy + 1} positions, but length is {self.length}"
            )
        if self.vocab < 3:
            raise ValueError(f"vocab must be at least 3: noise, signal and a token; it is {self.vocab}")

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments that make an equal task."""
        return {name: getattr(self, name) for name in ("copy", "length", "vocab", "seed", "size")}

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``count`` samples, ``(count, length)`` each."""
        context = self.length - self.copy
        tokens = torch.randint(2, self.vocab, (count, self.copy), generator=rng)
        places = torch.rand(count, context, generator=rng).argsort(1)[:, : self.copy].sort(1).values
        inputs = torch.full((count, self.length), self.NOISE)
        inputs.scatter_(1, places, tokens)
        targets = torch.full_like(inputs, IGNORE)
        inputs[:, context] = self.SIGNAL
        targets[:, context:] = tokens
        return inputs, targets
