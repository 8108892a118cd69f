"""What is asked of an operator, and the answer that singular values give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ess_widgets.metrics._checks import Kind
from ess_widgets.metrics.reference import from_spectrum

__all__ = ["Question"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Question:
    """Which effective state-size, how exact, and at which positions; the arguments of :func:`ess_widgets.ess`."""

    kind: Kind
    tol: float
    relative: bool
    rtol: float
    certify: bool
    positions: list[int]

    @property
    def measure(self) -> str:
        return "relative" if self.kind == "tolerance" and self.relative else self.kind

    def answer(self, sigma: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From singular values ``(..., P, K)`` known to an absolute bound ``(..., P)``.

        Returns the values, their error as a :class:`Profile` has it, and where that is small enough: the entropy as
        exact as asked, the count certain or as certain as one singular value decomposition makes it.
        """
        values = from_spectrum(sigma, self.kind, self.tol, self.relative)
        K = max(1, sigma.shape[-1])
        top = sigma.amax(dim=-1) if sigma.shape[-1] else torch.zeros_like(bound)
        if self.kind == "entropy":
            total = sigma.sum(dim=-1)
            share = bound / total.where(total > 0, 1.0)
            error = K * share * (2.0 - torch.log(share.clamp(min=1e-300) / K))
            return values, error, error <= self.rtol
        tau = self.tol * top if self.relative else torch.full_like(top, self.tol)
        reach = bound * (1.0 + self.tol) if self.relative else bound
        near = ((sigma - tau.unsqueeze(-1)).abs() <= reach.unsqueeze(-1)).any(dim=-1)
        near |= (tau <= reach) & (reach > 0)
        error = torch.where(near, reach / tau.where(tau > 0, 1.0), 0.0)
        return values, error, ~near | (bound <= 8 * K * _EPS * top)
