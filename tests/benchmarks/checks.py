"""Whether an answer is right, by the singular values that the loop found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ess_widgets.metrics import from_spectrum

from .baseline import Loop

ENTROPY = 1e-4
# Singular values, against the largest: a decomposition's own rounding at these sizes.
SPECTRUM = 1e-11
# Rounding of the entropies that are compared with.
_SLACK = 1e-9


@dataclass(frozen=True)
class Verdict:
    """``compared`` values; what was found wrong with them.

    ``mismatches`` are counts outside of what the stated band around the threshold allows; ``ties`` differ
    from the decomposition's within it. ``error`` and ``bound`` are the largest, relative, and None for counts.
    """

    compared: int
    mismatches: int = 0
    ties: int = 0
    error: float | None = None
    bound: float | None = None
    right: bool = True

    def __str__(self) -> str:
        if self.error is None:
            tied = f" ({self.ties} in the tie band)" if self.ties else ""
            return f"{self.mismatches} of {self.compared:,} counts differ{tied}"
        promise = "" if self.bound is None else f", bound {self.bound:.0e}"
        wrong = "" if self.right else " **too large**"
        return f"error {self.error:.0e}{promise}{wrong}, {self.compared:,} compared"


def counts(found: Tensor, band: Tensor, loop: Loop, tol: float, relative: bool) -> Verdict:
    """Tolerance-ESS and the band around the threshold, ``(heads, L)`` each."""
    compared = mismatches = ties = 0
    for position, sigma in zip(loop.positions, loop.sigma, strict=True):
        mine, width = found[loop.heads, position], band[loop.heads, position, None].double()
        tau = tol * sigma[:, :1] if relative else torch.full_like(sigma[:, :1], tol)
        most, least = ((sigma > tau * edge).sum(dim=-1) for edge in (1.0 - width, 1.0 + width))
        wrong = (mine > most) | (mine < least) | ~(mine == mine.round())
        compared += len(mine)
        mismatches += int(wrong.sum())
        ties += int(((mine != (sigma > tau).sum(dim=-1)) & ~wrong).sum())
    return Verdict(compared, mismatches, ties, right=mismatches == 0)


def entropies(found: Tensor, bound: Tensor | None, loop: Loop) -> Verdict:
    """Entropy-ESS and the bounds on its relative error, ``(heads, L)`` each; without them ``ENTROPY`` is promised."""
    compared, worst, right = 0, 0.0, True
    for position, sigma in zip(loop.positions, loop.sigma, strict=True):
        truth = from_spectrum(sigma, "entropy")
        error = (found[loop.heads, position] - truth).abs() / truth.where(truth > 0, 1.0)
        promise = ENTROPY if bound is None else bound[loop.heads, position].clamp(max=ENTROPY)
        compared += len(truth)
        worst = max(worst, float(error.max()))
        right &= bool((error <= promise + _SLACK).all())
    return Verdict(compared, error=worst, bound=None if bound is None else float(bound.max()), right=right)


def spectra(found: Tensor, loop: Loop) -> Verdict:
    """Singular values, ``(heads, L, K)``; the error is against the largest at each position."""
    compared, worst = 0, 0.0
    for position, sigma in zip(loop.positions, loop.sigma, strict=True):
        mine = found[loop.heads, position]
        padded = torch.nn.functional.pad(sigma, (0, mine.shape[-1] - sigma.shape[-1]))
        top = sigma[:, :1]
        worst = max(worst, float(((mine - padded).abs() / top.where(top > 0, 1.0)).max()))
        compared += len(mine)
    return Verdict(compared, error=worst, right=worst <= SPECTRUM)
