"""Jacobians of a sequence function in pieces bounded in memory, and derivatives along one direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["directional", "jacobian_rows"]

Function = Callable[[Tensor], Tensor]

# Bytes that one piece of a Jacobian may take beside the pass itself.
_BUDGET = 2**28
# Steps of the finite differences, by the precision in which the function runs: large enough for rounding, small
# enough for kinks.
_STEPS = {
    torch.float64: (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
    torch.float32: (1e-1, 3e-2, 1e-2, 3e-3, 1e-3),
}


def jacobian_rows(
    f: Function,
    u: Tensor,
    read: Tensor | None,
    write: Tensor | None,
    out_width: int,
    *,
    chunk: int | None = None,
    largest: int = 0,
) -> Tensor:
    """``∂(readᵀ y_i) / ∂u_j · write`` for every pair of positions, ``(batch, L, a, L, b)``.

    Parameters
    ----------
    f : callable
        From ``(batch, L, d_in)`` to ``(batch, L, d_out)``; samples are independent of each other.
    u : Tensor, ``(batch, L, d_in)``
        Where to take the derivative.
    read, write : Tensor ``(d_out, a)`` and ``(d_in, b)``, or None
        Directions; None for all channels.
    out_width : int
        ``d_out``.
    chunk : int, optional
        Directions at a time; by default as many as 256 MiB hold.
    largest : int
        Entries of the largest tensor in the function.
    """
    batch, L, d_in = u.shape
    a = out_width if read is None else read.shape[1]
    b = d_in if write is None else write.shape[1]
    per_direction = 4 * u.element_size() * max(largest, batch * L * max(d_in, out_width))
    size = chunk or max(1, _BUDGET // per_direction)
    forward = b < a
    attempts = ([_forward_mode] if forward else []) + [_reverse_mode, _one_by_one]
    error: Exception | None = None
    for attempt in attempts:
        by_columns = attempt is _forward_mode
        basis = _Basis(
            u, L, write if by_columns else read, b if by_columns else a, d_in if by_columns else out_width
        )
        result = u.new_empty(batch, L, a, L, b)
        while True:
            try:
                for part, value in attempt(f, u, basis, size):
                    _store(result, part, value, read if by_columns else write, by_columns)
                return result
            except (MemoryError, torch.OutOfMemoryError) as memory:
                if size == 1:
                    raise
                error, size = memory, max(1, size // 4)
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as failed:
                # No batching rule, no forward derivative, values that decide about control flow, ...
                error = failed
                break
    assert error is not None
    raise error


class _Basis:
    """Unit directions: one position and one channel (or one combination of channels) each."""

    def __init__(self, like: Tensor, L: int, mix: Tensor | None, width: int, channels: int) -> None:
        self._like, self._L, self._mix, self.width, self._channels = like, L, mix, width, channels
        self.total = L * width

    def part(self, start: int, stop: int) -> Tensor:
        """``(stop - start, batch, L, channels)``; the same for all samples."""
        at = torch.arange(start, stop, device=self._like.device)
        position, which = at // self.width, at % self.width
        n = len(at)
        flat = self._like.new_zeros(n, self._L, self._channels)
        if self._mix is None:
            flat[torch.arange(n, device=at.device), position, which] = 1.0
        else:
            flat[torch.arange(n, device=at.device), position] = self._mix.T[which]
        return flat.unsqueeze(1).expand(n, self._like.shape[0], -1, -1)


Part = tuple[int, int]


def _reverse_mode(f: Function, u: Tensor, basis: _Basis, size: int) -> Iterator[tuple[Part, Tensor]]:
    pull = torch.func.vjp(f, u)[1]
    pulled = torch.func.vmap(lambda v: pull(v)[0])
    for start in range(0, basis.total, size):
        stop = min(start + size, basis.total)
        yield (start, stop), pulled(basis.part(start, stop))


def _forward_mode(f: Function, u: Tensor, basis: _Basis, size: int) -> Iterator[tuple[Part, Tensor]]:
    pushed = torch.func.vmap(lambda v: torch.func.jvp(f, (u,), (v,))[1], randomness="same")
    for start in range(0, basis.total, size):
        stop = min(start + size, basis.total)
        yield (start, stop), pushed(basis.part(start, stop))


def _one_by_one(f: Function, u: Tensor, basis: _Basis, size: int) -> Iterator[tuple[Part, Tensor]]:
    """Plain backward passes: whatever torch can differentiate at all."""
    with torch.enable_grad():
        leaf = u.detach().clone().requires_grad_()
        y = f(leaf)
    for n in range(basis.total):
        if y.requires_grad:
            (g,) = torch.autograd.grad(y, leaf, basis.part(n, n + 1)[0], retain_graph=True, allow_unused=True)
        else:
            g = None
        yield (n, n + 1), (torch.zeros_like(u) if g is None else g).unsqueeze(0)


def _store(result: Tensor, part: Part, value: Tensor, mix: Tensor | None, by_columns: bool) -> None:
    """Put derivatives ``(n, batch, L, channels)`` in their rows or columns."""
    value = value.detach() if mix is None else value.detach() @ mix
    batch, L, a, _, b = result.shape
    if by_columns:
        result.view(batch, L, a, L * b)[..., part[0] : part[1]] = value.permute(1, 2, 3, 0)
    else:
        result.view(batch, L * a, L, b)[:, part[0] : part[1]] = value.transpose(0, 1)


def directional(f: Function, u: Tensor, direction: Tensor) -> Tensor:
    """The derivative of ``f`` along ``direction`` from its values alone: central differences, extrapolated.

    Of several steps that one is taken, for each sample, from which a ten times smaller one changes the result
    least. ``direction`` is of the size of ``u``.
    """
    steps: Sequence[float] = _STEPS.get(u.dtype, _STEPS[torch.float32])
    best: Tensor | None = None
    least: Tensor | None = None
    plain: list[Tensor] = []
    refined: list[Tensor] = []
    for n, h in enumerate(steps):
        plain.append((f(u + h * direction) - f(u - h * direction)) / (2 * h))
        if n:
            ratio = (steps[n - 1] / h) ** 2
            refined.append(plain[n] + (plain[n] - plain[n - 1]) / (ratio - 1))
        for estimates in (plain[-2:], refined[-2:]):
            if len(estimates) == 2:
                old, new = estimates
                change = torch.linalg.vector_norm(new - old, dim=(1, 2), keepdim=True).nan_to_num(
                    nan=torch.inf
                )
                best = new if best is None or least is None else torch.where(change < least, new, best)
                least = change if least is None else torch.minimum(change, least)
    assert best is not None
    return best
