"""Compression: a whole sequence through one position."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.tasks.base import IGNORE, Task

__all__ = ["Compression", "Compressor"]


class Compression(Task):
    """Compression: random tokens and a last token at which the model must hold all of them.

    ``b d a c … #``: token 0 is ``#``. The targets are the tokens themselves, but a model sees the future of none of
    them: `Compressor` reads every answer from the model's output at ``#`` alone.

    Parameters
    ----------
    length : int
        Tokens in a sample, ``#`` included; at least 2.
    vocab : int
        Number of tokens, ``#`` included; at least 3.
    seed, size : int
        See `Task`.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong kind, or the task cannot be laid out.

    References
    ----------
    Poli et al., Mechanistic Design and Scaling of Hybrid Architectures, 2024 (arXiv 2403.17844).

    Examples
    --------
    >>> inputs, targets = Compression(length=6, vocab=8)[0]
    >>> inputs.tolist()
    [2, 5, 5, 1, 6, 0]
    >>> targets.tolist()
    [2, 5, 5, 1, 6, -100]
    """

    def __init__(self, length: int = 32, vocab: int = 16, *, seed: int = 0, size: int = 10_000) -> None:
        super().__init__(length=length, vocab=vocab, seed=seed, size=size)
        if self.length < 2:
            raise ValueError(f"length must be at least 2, a token and the last one; it is {self.length}")
        if self.vocab < 3:
            raise ValueError(
                f"vocab must be at least 3: the last token and two to tell apart; it is {self.vocab}"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments that make an equal task."""
        return {name: getattr(self, name) for name in ("length", "vocab", "seed", "size")}

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``count`` samples, ``(count, length)`` each."""
        inputs = torch.randint(1, self.vocab, (count, self.length), generator=rng)
        targets = inputs.clone()
        inputs[:, -1], targets[:, -1] = 0, IGNORE
        return inputs, targets


class Compressor(nn.Module):
    """Decodes all tokens of a `Compression` sample from a model's output at the last position.

    Parameters
    ----------
    model : torch.nn.Module
        From ``(batch, length)`` tokens to features ``(batch, length, width)``.
    width, vocab : int
        Features of the model; number of tokens.
    """

    def __init__(self, model: nn.Module, width: int, vocab: int) -> None:
        super().__init__()
        self.model = model
        self.decode = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, vocab))
        self.width = width

    def forward(self, input_ids: Tensor) -> Tensor:
        last = self.model(input_ids)[:, -1:]
        places = _waves(input_ids.shape[1], self.width).to(last)
        both = torch.cat([last.expand(-1, len(places), -1), places.expand(len(last), -1, -1)], dim=-1)
        return self.decode(both)  # type: ignore[no-any-return]


def _waves(length: int, width: int) -> Tensor:
    """Sines and cosines of each position, ``(length, width)``."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
