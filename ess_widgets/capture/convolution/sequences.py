"""Which dimension of a tensor runs along the model's sequence, told by its length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from ess_widgets.capture.names import Frame

__all__ = ["Sequences"]


class Sequences:
    """Lengths of what a model, and the modules that are running, were given.

    Parameters
    ----------
    inputs : iterable of Tensor
        What the model was given. Token ids and masks, ``(batch, L)``, say the length; where there are none,
        ``(batch, L, width)``, ``(batch, channels, L)`` and ``(L, batch, width)`` are possible.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        inputs = list(inputs)
        tokens = {t.shape[-1] for t in inputs if t.ndim >= 2 and not _is_signal(t)}
        self._tokens = frozenset(tokens)
        signals = {n for t in inputs if _is_signal(t) for n in _lengths(t)}
        alone = {t.shape[0] for t in inputs if t.ndim == 1}
        self._signals = inputs
        self._own = tokens or signals or alone

    def leading(
        self, length: int, other: int, most: int, frames: Sequence[Frame]
    ) -> Iterator[tuple[int, bool]]:
        """How many of ``length`` positions may stand in front of (or behind) the sequence, the likeliest first.

        Parameters
        ----------
        length, other : int
            The size of the dimension in question, and of the one with channels.
        most : int
            At most so many.
        frames : sequence of Frame
            Modules that are running, the innermost last.

        Yields
        ------
        (int, bool)
            The number, and whether the sequence is one of the model's own inputs.
        """
        if other in self._tokens and length not in self._tokens:
            return  # the channels run along the sequence
        yield from ((n, True) for n in _before(length, self._own, most))
        for frame in reversed(frames):
            seen = {n for t in frame.tensors if _is_signal(t) and t.ndim >= 3 for n in _lengths(t)}
            yield from ((n, False) for n in _before(length, seen - self._own, most))

    def batch(self, length: int, frames: Sequence[Frame]) -> int | None:
        """The batch size of the first input ``(batch, channels, length)``."""
        given = (t for frame in reversed(frames) for t in frame.tensors)
        signals = (t for t in (*self._signals, *given) if _is_signal(t) and t.ndim >= 3)
        return next((t.shape[0] for t in signals if t.shape[-1] == length), None)


def _before(length: int, lengths: Iterable[int], most: int) -> Iterator[int]:
    return (length - L for L in sorted(lengths, reverse=True) if 0 <= length - L <= most)


def _lengths(tensor: Tensor) -> tuple[int, ...]:
    if tensor.ndim >= 3:
        return tensor.shape[1], tensor.shape[-1], tensor.shape[0]
    return tuple(tensor.shape[:2])


def _is_signal(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
