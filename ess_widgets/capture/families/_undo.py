"""What a mixer mixed, from what was computed of it afterwards: skip, gate, norm and output projection undone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Ending", "settled"]

# Entries of the projections of single tokens that are in memory at once.
_CHUNK = 2**24


@dataclass(frozen=True)
class Ending:
    """What happens to the mixed values ``m`` ``(batch, L, channels)``: ``v = (m + skip) factor``, projected.

    Attributes
    ----------
    skip : Tensor or None
        ``(batch, L, channels)``.
    factor : Tensor
        Gate, and the norm with its root mean square as recomputed; ``(batch, L, channels)``.
    beside : Tensor or None
        ``(batch, L, more)``: what stands before ``v`` in the input of the projection.
    weight, bias : Tensor or None
        Of the output projection; without it ``v`` itself is known.
    """

    skip: Tensor | None
    factor: Tensor
    beside: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


def settled(mixed: Tensor, ending: Ending, known: Tensor) -> Tensor:
    """The mixed values nearest to ``mixed`` that lead to what the model computed.

    Parameters
    ----------
    mixed : Tensor, ``(batch, L, channels)``
        As recomputed, in full precision. It is the answer wherever it explains ``known`` to the rounding of that,
        with the digits that a division by a small gate would lose.
    ending : Ending
    known : Tensor, ``(batch, L, …)``
        The model's own values: the output of the projection where ``ending`` has one, else its input.

    Returns
    -------
    Tensor
        Like ``mixed``, with the digits that the model has, those of ``known``.
    """
    skip = torch.zeros_like(mixed) if ending.skip is None else ending.skip.to(mixed.dtype)
    factor = ending.factor.to(mixed.dtype)
    v, size = (mixed + skip) * factor, (mixed.abs() + skip.abs()) * factor.abs()
    eps = torch.finfo(known.dtype).eps
    if ending.weight is None:
        error = _beyond(known.to(v.dtype) - v, 8 * eps * size)
        return (mixed + torch.where(error == 0, 0, error / factor)).to(known.dtype)
    if ending.beside is not None:
        beside = ending.beside.to(v.dtype)
        v, size = torch.cat([beside, v], -1), torch.cat([beside.abs(), size], -1)
    weight = ending.weight.to(v.dtype)
    bias = None if ending.bias is None else ending.bias.to(v.dtype)
    rounding = 32 * eps * F.linear(size, weight.abs(), None if bias is None else bias.abs())
    error = _beyond(known.to(v.dtype) - F.linear(v, weight, bias), rounding)
    change = _least_change(error, weight[:, weight.shape[1] - mixed.shape[-1] :], factor)
    return (mixed + change).to(known.dtype)


def _beyond(error: Tensor, rounding: Tensor) -> Tensor:
    return torch.where(error.abs() <= rounding, 0, error)


def _least_change(error: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """The smallest ``x`` with ``weight (factor x) = error`` for every token, by least squares."""
    change = torch.zeros_like(factor)
    tokens = torch.nonzero(error.ne(0).any(-1))
    step = max(1, _CHUNK // weight.numel())
    for begin in range(0, len(tokens), step):
        at = tuple(tokens[begin : begin + step].T)
        scaled, target = weight * factor[at].unsqueeze(-2), error[at].unsqueeze(-1)
        if weight.shape[0] <= weight.shape[1]:
            solution = scaled.mT @ _solve(scaled @ scaled.mT, target)
        else:
            solution = _solve(scaled.mT @ scaled, scaled.mT @ target)
        change[at] = solution.squeeze(-1)
    return change


def _solve(gram: Tensor, target: Tensor) -> Tensor:
    """Solve with just enough added to the diagonal for a singular matrix."""
    size = gram.diagonal(dim1=-2, dim2=-1)
    more = (
        64 * torch.finfo(gram.dtype).eps * size.sum(-1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    )
    solution: Tensor = torch.linalg.solve(gram + torch.diag_embed(more.expand_as(size)), target)
    return solution
