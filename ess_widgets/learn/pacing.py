"""When to measure, so that measuring takes no more than its share of the time."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Pace"]

# Of a long run no more measurements than this for each doubling-and-a-bit (a factor of e) of its steps.
_PER_E_FOLD = 500
# A measurement costs a little more than the time it takes: the steps after it find caches full of other things.
_AIM = 0.85


class Pace:
    """Keeps account of the time that training and monitoring take.

    A measurement is due when, with what it will probably cost, monitoring stays within ``overhead`` of the training
    time so far, and within it since the last measurement alone: a pause is no reason to measure at every step.

    Parameters
    ----------
    every : int, optional
        Measure at multiples of so many steps, whatever it costs.
    overhead : float
        Monitoring time over training time.

    Attributes
    ----------
    training, monitoring : float
        Seconds so far.

    Examples
    --------
    >>> pace = Pace(None, 0.05)
    >>> pace.measured(0, 1.0)
    >>> pace.training = 30.0
    >>> pace.due(1)
    False
    >>> pace.training = 50.0
    >>> pace.due(2)
    True
    """

    def __init__(self, every: int | None, overhead: float) -> None:
        self.every, self.limit = every, overhead
        self.training = self.monitoring = 0.0
        self._costs: deque[float] = deque(maxlen=3)
        self._last_step: int | None = None
        self._last_time = 0.0

    @property
    def overhead(self) -> float:
        """Monitoring time over training time; NaN before there is any."""
        return self.monitoring / self.training if self.training > 0 else math.nan

    def expect(self, step: int, seconds: float) -> None:
        """What an earlier run paid for its measurement of ``step``."""
        self._costs.append(seconds)
        self._last_step = step

    def measured(self, step: int, seconds: float) -> None:
        """A measurement was made; its time counts as monitoring."""
        self.monitoring += seconds
        self._costs.append(seconds)
        self._last_step, self._last_time = step, self.training

    def rewind(self, step: int) -> None:
        """Training goes on from an earlier step."""
        if self._last_step is not None:
            self._last_step = min(self._last_step, step)

    def due(self, step: int) -> bool:
        """Whether to measure after this step."""
        if self.every is not None:
            return step % self.every == 0
        if not self._costs:
            return True
        if self._last_step is not None and step - self._last_step < step / _PER_E_FOLD:
            return False
        cost = max(self._costs)
        since = self.training - self._last_time
        limit = _AIM * self.limit
        return self.monitoring + cost <= limit * self.training and cost <= limit * since

    def room(self, seconds: float, share: float) -> bool:
        """Whether something small that takes so long fits into this share of the training time since it was measured."""
        return seconds <= share * self.limit * (self.training - self._last_time)
