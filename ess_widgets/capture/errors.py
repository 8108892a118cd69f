"""What capture raises."""

from __future__ import annotations

__all__ = ["Cancelled", "CaptureError", "NotCausalError", "UnknownLayerError"]


class CaptureError(ValueError):
    """The model ran, or could not be run, in a way that leaves no operator to look at."""


class NotCausalError(CaptureError):
    """A layer lets an output read a later input, so effective state-size is not defined for it."""


class UnknownLayerError(CaptureError, KeyError):
    """A layer was asked for by a name, index, pattern or predicate that fits none."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class Cancelled(Exception):
    """The run was superseded: ``should_stop()`` became true."""
