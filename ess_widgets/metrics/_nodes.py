"""Sums over singular values from log-determinants: nodes, weights, and how far they can be wrong.

With ``f(s) = Σ_k log(1 + σ_k² / s²)`` at a few shifts ``s`` and ``F = Σσ²``, both ``Σσ`` and ``Σ σ log σ`` are
approximated by combinations of the ``f`` and ``F``: ``σ = (1/π) ∫ log(1 + σ² / t²) dt``, and the trapezoid rule
in ``log t`` with step ``h`` converges like ``exp(-π² / h)``. What is left over is a function ``e(σ)`` of one
singular value. Second differences of ``log(1 + σ² / s²)`` along ``log s`` are non-negative and peak where ``σ`` is
near the middle one: combinations of them that dominate ``|e(σ)|`` everywhere have sums that are again known
from the ``f``, about the local error times the number of singular values there. That is the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["FIRST", "Rule", "rule"]

# Nodes that every rule has, so that they can be evaluated before the rule is chosen, in units of max ‖H‖_F.
FIRST = (1.0, 0.125)
# Steps of the grids, in log σ, on which weights are fitted and errors bounded, and where they are finer: what
# lies between points of the finer one is covered by the margin, with half of it to spare.
_FIT_STEP, _CHECK_STEP, _CROWDED = 0.12, 0.02, 0.6
_MARGIN = 1.01
# How much faster than the error allowed, in logarithms, the nodes below α thin out.
_THINNING = 0.8
# The parts of an error that are bounded by ε (σ + β σ²), and by ε α for each singular value; bumps do the rest.
_PARTS = (0.1, 0.3, 0.6, 1.0)
_FLOORS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
# The reference points of the logarithm at which errors are bounded.
_REFERENCES = 7

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Rule:
    """Weights for ``x = (f(s_1), …, f(s_S), F)`` in units in which all singular values are at most ``upper``.

    Attributes
    ----------
    shifts : tuple of float
        Descending.
    centre, upper : float
    sums : ``(S + 1, 2)``
        ``x @ sums`` is about ``Σσ`` and ``Σ σ log(σ / centre)``.
    floors : ``(C,)``
        The error of ``K`` singular values is at most ``x @ c + K * floor`` for each floor and its ``c``:
    wrong_sum : ``(C, S + 1)``
        for ``Σσ``,
    references : ``(R,)``
        and, for these values of ``λ``,
    wrong_entropy : ``(R, C, S + 1)``
        for ``(1 + λ) Σσ - Σ σ log(σ / centre)``.
    nominal : float
        The largest error of the latter for ``λ = 0``, relative to ``σ + α + β σ²``.
    """

    shifts: tuple[float, ...]
    centre: float
    upper: float
    sums: Array
    wrong_sum: Array
    floor_sum: Array
    references: Array
    wrong_entropy: Array
    floor_entropy: Array
    nominal: float


def _fill(alpha: float, beta: float, upper: float, L: float) -> list[float]:
    """Nodes for errors of about ``exp(-L)`` relative to ``σ + α + β σ²``, besides the first ones.

    Steps of ``π² / L`` where ``σ`` is the largest of the three, wider where more is allowed. The slopes and
    the places to stop were found by trying a range of each.
    """
    low, high, top = math.log(alpha), -math.log(beta), math.log(upper)

    def step(y: float) -> float:
        allowed = _THINNING * max(0.0, low - y) + max(0.0, min(y, top) - high) + 3 * max(0.0, y - top)
        return min(math.pi**2 / max(L - allowed, 1.0), 6.0)

    above, below = (math.log(node) for node in FIRST)
    parts = math.ceil((above - below) / step(below))
    between = [below + k * (above - below) / parts for k in range(parts)]
    nodes = [y for last, y in pairwise(between) if last < top + 0.2]
    y = above + step(above)
    while 3 * (y - top) < 0.2 * L:
        nodes.append(y)
        y += step(y)
    y = below - step(below)
    while _THINNING * (low - y) < L - 1.5:
        nodes.append(y)
        y -= step(y)
    return [math.exp(y) for y in nodes]


def _basis(sigma: Array, shifts: Array) -> Array:
    """``log(1 + σ²/s²)`` and ``σ²``, scaled to be of the order of ``s`` at ``s``: ``(points, S + 1)``."""
    return np.column_stack([shifts * np.log1p((sigma[:, None] / shifts) ** 2), sigma**2])


def _minimax(basis: Array, target: Array, rounds: int = 5) -> Array:
    """Weights with about the smallest largest error (Lawson's iteration)."""
    weight = np.full(len(target), 1 / len(target))
    best, found = math.inf, np.zeros(basis.shape[1])
    for _ in range(rounds):
        root = np.sqrt(weight)
        fit = np.linalg.lstsq(basis * root[:, None], target * root, rcond=1e-14)[0]
        error = np.abs(basis @ fit - target)
        worst = float(error.max())
        if worst < best:
            best, found = worst, fit
        weight *= error / worst + 1e-3
        weight /= weight.sum()
    return found


def _grid(low: float, high: float, step: float) -> Array:
    """Even in ``log σ``, ten times finer near the upper end, where a smallest largest error crowds its extrema."""
    near = high * math.exp(-_CROWDED)
    parts = [(low, near, step), (near, high, step / 10)]
    logs = [np.arange(math.log(a), math.log(b), d) for a, b, d in parts]
    points: Array = np.exp(np.append(np.concatenate(logs), math.log(high)))
    return points


def _bumps(shifts: Array) -> Array:
    """Combinations of ``x`` that are non-negative for every ``σ``: ``(S + 1, S)``.

    Second differences along ``log s``, which each have the height of a few tenths around their middle shift,
    the last slope, which counts what is larger than all shifts, and ``σ²``.
    """
    S = len(shifts)
    slopes = np.zeros((S + 1, S - 1))
    gaps = np.log(shifts[:-1] / shifts[1:])
    index = np.arange(S - 1)
    slopes[index, index] = -1 / gaps
    slopes[index + 1, index] = 1 / gaps
    square = np.zeros((S + 1, 1))
    square[-1] = 1 / shifts[0] ** 2
    return np.hstack([slopes[:, 1:] - slopes[:, :-1], slopes[:, :1], square])


def _dominate(error: Array, bumps: Array) -> Array:
    """Non-negative weights of bumps ``(points, J)`` whose sum is at least ``error`` at all points.

    With ``p_j = b_j² / Σ b²``, which add up to 1, it is enough that ``c_j b_j ≥ p_j · error``.
    """
    share = bumps / np.square(bumps).sum(-1, keepdims=True)
    weights: Array = np.stack([np.max(error * part, axis=-1) for part in share.T], axis=-1)
    return weights


def _make(alpha: float, beta: float, upper: float, L: float) -> Rule:
    shifts = np.array(sorted([*FIRST, *_fill(alpha, beta, upper, L)], reverse=True))
    centre = math.sqrt(alpha / beta)
    scale = np.append(shifts, 1.0)

    sigma = _grid(alpha * math.exp(-16), upper, _FIT_STEP)
    size = sigma + alpha + beta * sigma**2
    basis = _basis(sigma, shifts) / size[:, None]
    plain = _minimax(basis, sigma / size)
    entropy = _minimax(basis, (sigma - sigma * np.log(sigma / centre)) / size)

    sigma = _grid(alpha * math.exp(-24), upper, _CHECK_STEP)
    basis = _basis(sigma, shifts)
    error_plain = basis @ plain - sigma
    error_entropy = basis @ entropy - (sigma - sigma * np.log(sigma / centre))
    size = sigma + alpha + beta * sigma**2
    half = 0.5 * math.log(1 / (alpha * beta)) + 0.5
    references = np.linspace(-half, half, _REFERENCES)
    errors = np.abs(np.vstack([error_plain, error_entropy + references[:, None] * error_plain]))
    worst = _MARGIN * np.max(errors / size, axis=-1)
    parts, floors = (x.ravel() for x in np.meshgrid(_PARTS, _FLOORS, indexing="ij"))
    covered = parts[:, None] * (sigma + beta * sigma**2) + floors[:, None] * alpha
    left = np.maximum(_MARGIN * errors[:, None] - worst[:, None, None] * covered, 0.0)
    combine = _bumps(shifts)
    sums = np.column_stack([plain, plain - entropy]) * scale[:, None]
    even = sums[:, 0] + np.append(np.zeros(len(shifts)), beta)
    wrong = (
        _dominate(left, (basis / scale) @ combine) @ combine.T + (worst[:, None] * parts)[..., None] * even
    )
    floors = worst[:, None] * floors * alpha
    return Rule(
        shifts=tuple(shifts.tolist()),
        centre=centre,
        upper=upper,
        sums=sums,
        wrong_sum=wrong[0],
        floor_sum=floors[0],
        references=references,
        wrong_entropy=wrong[1:],
        floor_entropy=floors[1:],
        nominal=float(worst[1 + _REFERENCES // 2]),
    )


@lru_cache(maxsize=256)
def rule(alpha: int, beta: int, upper: int, target: int) -> Rule:
    """The rule for ``α = 2**alpha``, ``β = 2**beta``, ``σ ≤ 2**(upper / 2)`` and about ``ε ≤ 2**(target / 2)``."""
    goal = 2.0 ** (target / 2)
    L = 0.5 - math.log(goal)
    best = _make(2.0**alpha, 2.0**beta, 2.0 ** (upper / 2), L)
    for _ in range(8):
        if best.nominal <= goal:
            break
        L += 0.5
        made = _make(2.0**alpha, 2.0**beta, 2.0 ** (upper / 2), L)
        best = made if made.nominal < best.nominal else best
    return best
