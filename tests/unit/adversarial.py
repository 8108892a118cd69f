"""Matrices that are hard on anything faster than a decomposition per position, and what a right count is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

F64 = torch.float64
EPS = torch.finfo(F64).eps


class Draw:
    """Random tensors of one size."""

    def __init__(self, N: int, seed: int) -> None:
        self.N = N
        self.random = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=F64)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, max(low + 1, high), (), generator=self.random))

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.random)

    def square(self) -> Tensor:
        return self.randn(self.N, self.N)

    def orthogonal(self, n: int) -> Tensor:
        return torch.linalg.qr(self.randn(n, n))[0]


def _lag(N: int) -> Tensor:
    index = torch.arange(N, dtype=F64)
    return (index[:, None] - index).clamp(min=0)


def _softmax(scores: Tensor) -> Tensor:
    future = torch.ones(scores.shape, dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)


def _sinks(d: Draw) -> Tensor:
    scores = d.square() * 3
    scores[:, 0] += 12
    return _softmax(scores)


def _window(d: Draw) -> Tensor:
    return _softmax((d.square() * 2).masked_fill(_lag(d.N) > max(1, d.N // 5), -torch.inf))


def _documents(leak: float) -> Callable[[Draw], Tensor]:
    def make(d: Draw) -> Tensor:
        T = _softmax(d.square())
        for start in (d.N // 3, d.N // 2, d.N // 2 + 1):
            T[start:, :start] *= leak
        return T

    return make


def _entry(value: float) -> Callable[[Draw], Tensor]:
    def make(d: Draw) -> Tensor:
        T = d.square()
        T[d.integer(0, d.N), d.integer(0, d.N)] = value
        return T

    return make


def _grading(d: Draw, low: float = -12.0) -> Tensor:
    return torch.logspace(low, 0, d.N, dtype=F64)[d.permutation(d.N)]


def _delay(d: Draw) -> Tensor:
    return torch.ones(max(0, d.N - 1), dtype=F64).diag(-1).roll(d.integer(0, max(1, d.N // 2)), 0)


def _with_block(d: Draw, block: Tensor) -> Tensor:
    """One block astride the middle, for all positions that cut it; small noise elsewhere."""
    T = 1e-3 * d.square()
    rows, columns = block.shape
    if 0 in block.shape:
        return T
    middle = d.N // 2
    T[middle : middle + rows, middle - columns : middle] = block
    return T


def _clustered(spread: float) -> Callable[[Draw], Tensor]:
    """Singular values 1 + spread * (normal) in the block astride the middle."""

    def make(d: Draw) -> Tensor:
        n = d.N // 2
        sigma = 1.0 + spread * d.randn(n)
        return _with_block(d, d.orthogonal(n) * sigma @ d.orthogonal(n))

    return make


def _singular_parts(d: Draw) -> Tensor:
    """Parts that are eliminated have the singular value 1, though the H_p have not."""
    T = 0.3 * d.square()
    N = d.N
    for start, stop in ((N // 2, N), (3 * N // 4, N), (N // 4, N // 2)):
        n = min(start, stop - start)
        if n:
            T[start : start + n, :n] = d.orthogonal(n)
    return T


def _orthogonal_plus(d: Draw) -> Tensor:
    return d.orthogonal(d.N) + 1e-9 * d.square()


FAMILIES: dict[str, Callable[[Draw], Tensor]] = {
    "random": Draw.square,
    "softmax, flat": lambda d: _softmax(0.3 * d.square()),
    "softmax, sharp": lambda d: _softmax(20 * d.square()),
    "softmax with a sink": _sinks,
    "softmax, window": _window,
    "documents": _documents(0.0),
    "documents that leak": _documents(1e-9),
    "entry of 1e7": _entry(1e7),
    "entry of 1e12": _entry(1e12),
    "graded rows": lambda d: _grading(d)[:, None] * d.square(),
    "graded columns": lambda d: d.square() * _grading(d),
    "graded rows and columns": lambda d: _grading(d)[:, None] * d.square() * _grading(d),
    "rows fall": lambda d: torch.logspace(0, -12, d.N, dtype=F64)[:, None] * d.square(),
    "columns rise": lambda d: d.square() * torch.logspace(-12, 0, d.N, dtype=F64),
    "delay": _delay,
    "permutation": lambda d: torch.eye(d.N, dtype=F64)[d.permutation(d.N)],
    "permutation, a little off": lambda d: (
        torch.eye(d.N, dtype=F64)[d.permutation(d.N)] * (1 + 3e-6 * d.randn(d.N))
    ),
    "signs": lambda d: d.square().sign(),
    "orthogonal": lambda d: d.orthogonal(d.N),
    "orthogonal, a little off": _orthogonal_plus,
    "low rank and noise": lambda d: d.randn(d.N, 3) @ d.randn(3, d.N) + 1e-6 * d.square(),
    "low rank": lambda d: d.randn(d.N, 3) @ d.randn(3, d.N),
    "Hilbert": lambda d: 1 / (_lag(d.N) + 1),
    "Cauchy": lambda d: 1 / (torch.arange(d.N)[:, None] + torch.arange(d.N) + 0.5).to(F64),
    "exponentials": lambda d: sum(a ** _lag(d.N) for a in (1e-12, 0.1, 0.5, 0.9, 0.999, -0.7)),  # type: ignore[misc, return-value]
    "Gaussian kernel": lambda d: torch.exp(-((_lag(d.N) / 8) ** 2)),
    "all ones": lambda d: torch.ones(d.N, d.N, dtype=F64),
    "zero": lambda d: torch.zeros(d.N, d.N, dtype=F64),
    "sparse": lambda d: (d.square() > 1.3).to(F64),
    "dead rows and columns": lambda d: d.square() * (d.randn(d.N, 1) > 0) * (d.randn(d.N) > 0.5),
    "clustered at 1": _clustered(1e-8),
    "clustered near 1": _clustered(1e-4),
    "equal in the middle": _clustered(0.0),
    "parts with the value 1": _singular_parts,
    "integers": lambda d: (2 * d.square()).round(),
}


def matrix(family: str, N: int, seed: int) -> Tensor:
    """``(N, N)``, lower triangular."""
    return FAMILIES[family](Draw(N, seed)).tril()


def sigmas(T: Tensor, p: int) -> Tensor:
    """Of one ``(N, N)``, by a decomposition of ``H_p`` scaled to its own size: ``(min(p, N - p),)``."""
    H = T[p:, :p].to(F64)
    if 0 in H.shape:
        return torch.zeros(0, dtype=F64)
    exponent = torch.frexp(H.abs().amax()).exponent.clamp(-1000, 1000)
    return torch.ldexp(torch.linalg.svdvals(torch.ldexp(H, -exponent)), exponent)


def limits(sigma: Tensor, tau: float, band: float = 0.0) -> tuple[int, int]:
    """The least and the most that may be counted, for singular values that are rounded themselves."""
    rounding = EPS * max(8, 2 * len(sigma)) * float(sigma.max()) if len(sigma) else 0.0
    low = (sigma > tau * (1 + band) + rounding).sum()
    high = (sigma > tau * (1 - band) - rounding).sum()
    return int(low), int(high)


def splits(N: int) -> list[int]:
    return list(range(N + 1))
