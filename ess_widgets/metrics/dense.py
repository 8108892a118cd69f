"""Effective state-size and spectra from the matrix itself, by the way that the question allows."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ess_widgets.metrics import low_rank
from ess_widgets.metrics._memory import within_memory
from ess_widgets.metrics._question import Question
from ess_widgets.metrics._svd import one_thread, singular_values
from ess_widgets.metrics.entropy import entropy
from ess_widgets.metrics.relative import relative_tolerance
from ess_widgets.metrics.support import apply
from ess_widgets.metrics.tolerance import tolerance

__all__ = ["LOOK_FROM", "answer", "check_low_rank", "singular_values_at"]

# From this size on, a look whether the rank is low costs little beside what it saves.
LOOK_FROM = 256
# So little is decomposed at once, exact to the last digits, in 5 to 50 ms: B * (N / 128)**4.
_TRIVIAL = {"entropy": 3.0, "relative": 1.0, "tolerance": 0.25}
# The rank that compression pays for: N over this.
_WORTHWHILE = {"entropy": 16, "relative": 8}
_EPS = torch.finfo(torch.float64).eps


def answer(T: Tensor, at: list[int], asked: Question, route: str) -> tuple[Tensor, Tensor, str]:
    """Values and errors, ``(B, P)`` each, of a batch ``T (B, N, N)`` at splits ``at``, and the route taken.

    ``route`` is ``"auto"``, or one of ``"dense"``, ``"low rank"`` and ``"svd"`` that has to be taken.
    """
    if route == "svd" or (route == "auto" and len(T) * (T.shape[-1] / 128) ** 4 <= _TRIVIAL[asked.measure]):
        sigma = singular_values_at(T, at)
        top = sigma.amax(dim=-1) if sigma.shape[-1] else torch.zeros(sigma.shape[:-1]).to(sigma)
        values, error, _ = asked.answer(sigma, _EPS * T.shape[-1] * top)
        return values, error, "svd"
    look = T.shape[-1] >= LOOK_FROM and asked.measure != "tolerance" and T.device.type != "mps"
    if route == "low rank" or (route == "auto" and look):
        limit = T.shape[-1] // _WORTHWHILE[asked.measure] if route == "auto" else None
        found = low_rank.spectra(T, at, rank_limit=limit)
        if found is not None:
            values, error, enough = asked.answer(*found)
            if route == "low rank" or bool(enough.all()):
                return values, error, "low rank"
        check_low_rank(found, route)
    values, error = within_memory(partial(_dense, at=at, asked=asked), T)
    return values, error, "dense"


def check_low_rank(found: object, route: str) -> None:
    if found is None and route == "low rank":
        raise ValueError("route='low rank' does not fit: blocks of the operator have a high numerical rank.")


def _dense(T: Tensor, *, at: list[int], asked: Question) -> tuple[Tensor, Tensor]:
    if asked.measure == "entropy":
        found = apply(lambda T, at: entropy(T, at, asked.rtol), T, at)
    elif asked.measure == "relative":
        found = apply(lambda T, at: relative_tolerance(T, asked.tol, at), T, at)
    else:
        tau = torch.full((len(T),), asked.tol, dtype=T.dtype, device=T.device)
        found = apply(lambda T, at, tau: tolerance(T, tau, at, certify=asked.certify), T, at, tau)
    values, error = found
    return values.to(error.dtype), error


def singular_values_at(T: Tensor, at: list[int]) -> Tensor:
    """One decomposition per split, of the part that is not zero: ``(B, P, K)``, with as many as any ``H_p`` has."""
    N = T.shape[-1]
    K = max((min(p, N - p) for p in at), default=0)

    def decompose(T: Tensor, at: list[int]) -> Tensor:
        sizes = [min(p, T.shape[-1] - p) for p in at]
        with one_thread(T.device):
            sigmas = [
                torch.nn.functional.pad(singular_values(T[:, p:, :p]), (0, max(sizes) - size))
                for p, size in zip(at, sizes, strict=True)
            ]
        return torch.stack(sigmas, dim=1)

    if not at:
        return torch.zeros(len(T), 0, 0, dtype=torch.float64, device=T.device)
    sigma = apply(decompose, T, at)
    return torch.nn.functional.pad(sigma, (0, K - sigma.shape[-1]))
