"""Multi-query associative recall."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.tasks.base import IGNORE, Task, whole

__all__ = ["MQAR"]


class MQAR(Task):
    """Multi-query associative recall: ``kv`` pairs of key and value, then each key again, once, in random order.

    ``k1 v1 k2 v2 … · · k2 · k1 …``: where a key comes again its value is asked for. Queries stand at every other
    position, sooner more often than later (a power law); the rest is the filling token 0. Keys are drawn without
    repetition from the first half of the vocabulary, values with repetition from the second.

    Parameters
    ----------
    kv : int
        Number of pairs to be remembered; ``4 kv ≤ length``.
    length : int
        Tokens in a sample, even.
    vocab : int
        Number of tokens, more than ``2 kv``.
    power : float
        Exponent of the law by which queries are placed, as in the reference: the smaller, the sooner.
    seed, size : int
        See `Task`.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong kind, or the task cannot be laid out.

    References
    ----------
    Arora et al., Zoology: Measuring and Improving Recall in Efficient Language Models, 2023 (arXiv 2312.04927).

    Examples
    --------
    >>> inputs, targets = MQAR(kv=2, length=8, vocab=12)[0]
    >>> inputs.tolist()
    [2, 8, 5, 11, 5, 0, 2, 0]
    >>> targets.tolist()
    [-100, -100, -100, -100, 11, -100, 8, -100]
    """

    def __init__(
        self,
        kv: int = 8,
        length: int = 64,
        vocab: int = 128,
        *,
        power: float = 0.01,
        seed: int = 0,
        size: int = 10_000,
    ) -> None:
        super().__init__(length=length, vocab=vocab, seed=seed, size=size)
        self.kv = whole(kv, "kv", 1)
        self.power = float(power)
        if self.length % 2:
            raise ValueError(f"length must be even, but it is {self.length}")
        if 4 * self.kv > self.length:
            raise ValueError(
                f"{self.kv} pairs and as many queries take {4 * self.kv} tokens, but length is {self.length}"
            )
        if (self.vocab - 1) // 2 < self.kv:
            raise ValueError(
                f"a vocabulary of {self.vocab} has {(self.vocab - 1) // 2} keys, fewer than the {self.kv} pairs; "
                f"take at least {2 * self.kv + 1}"
            )
        if not self.power > 0 or not bool(torch.isfinite(self._chances()).all()):
            raise ValueError(
                f"power must be positive, and not so large that chances overflow, but it is {power}"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments that make an equal task."""
        names = ("kv", "length", "vocab", "power", "seed", "size")
        return {name: getattr(self, name) for name in names}

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``count`` samples, ``(count, length)`` each."""
        kv, half = self.kv, (self.vocab + 1) // 2
        keys = 1 + torch.rand(count, half - 1, generator=rng).argsort(1)[:, :kv]
        values = torch.randint(half, self.vocab, (count, kv), generator=rng)
        inputs = torch.zeros(count, self.length, dtype=torch.int64)
        inputs[:, 0 : 2 * kv : 2], inputs[:, 1 : 2 * kv : 2] = keys, values
        places = 2 * kv + 2 * torch.multinomial(self._chances().expand(count, -1), kv, generator=rng)
        targets = torch.full_like(inputs, IGNORE)
        return inputs.scatter_(1, places, keys), targets.scatter_(1, places, values)

    def _chances(self) -> Tensor:
        """How likely each place is for a query, up to a factor, ``((length - 2 kv) / 2,)``."""
        slots = torch.arange(1, (self.length - 2 * self.kv) // 2 + 1, dtype=torch.float64)
        return self.power * slots ** (self.power - 1)
