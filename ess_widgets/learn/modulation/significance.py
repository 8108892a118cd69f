"""Tests over texts: heads and positions of one text depend on each other, so a text is one observation."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

__all__ = ["Tested", "attainable", "holm", "over_texts", "sign_flips"]

Array = np.ndarray[Any, Any]
EXACT = 13  # texts: up to here all sign patterns are tried
DRAWS = 9999
RESAMPLES = 4999


@dataclass(frozen=True)
class Tested:
    """One entry per column of what was tested, ``(columns,)`` each; NaN where fewer than two texts contribute.

    Attributes
    ----------
    texts : integers
        How many contribute.
    mean
        Over texts.
    low, high
        95 % bootstrap interval of the mean over texts (bias-corrected and accelerated).
    p
        Sign-flip test of a distribution that is symmetric about 0.
    p_holm
        Corrected over the columns by Holm.
    p_max
        Corrected over the columns by Westfall and Young (the same flips for all columns, step-down maxima).
    effect
        Mean over standard deviation (Cohen's d of paired differences).
    positive
        Share of texts above 0.
    """

    texts: Array
    mean: Array
    low: Array
    high: Array
    p: Array
    p_holm: Array
    p_max: Array
    effect: Array
    positive: Array


def attainable(texts: int) -> float:
    """The smallest two-sided p that so many texts can give."""
    return 2.0 ** (1 - texts) if texts <= EXACT else 1.0 / (DRAWS + 1)


def over_texts(values: Array, seed: int = 0, *, greater: bool = False) -> Tested:
    """Test columns of ``(texts, columns)``; NaN where a text has nothing to say on a column.

    Two-sided, or one-sided for a mean ``greater`` than 0.
    """
    values = np.asarray(values, dtype=float)
    known = np.isfinite(values)
    count = known.sum(axis=0)
    filled = np.where(known, values, 0.0)
    mean = np.divide(filled.sum(axis=0), count, out=np.full(values.shape[1], np.nan), where=count > 0)
    enough = count >= 2
    p, p_max = sign_flips(filled, seed, greater=greater)
    p, p_max = np.where(enough, p, np.nan), np.where(enough, p_max, np.nan)
    low, high, effect = (np.full(values.shape[1], np.nan) for _ in range(3))
    for j in np.flatnonzero(enough):
        column = values[known[:, j], j]
        low[j], high[j] = _interval(column, seed)
        deviation = float(column.std(ddof=1))
        effect[j] = mean[j] / deviation if deviation > 0 else np.copysign(np.inf, mean[j]) if mean[j] else 0.0
    positive = np.divide(
        ((values > 0) & known).sum(axis=0), count, out=np.full(len(count), np.nan), where=count > 0
    )
    return Tested(count, mean, low, high, p, holm(p), p_max, effect, positive)


def sign_flips(values: Array, seed: int = 0, *, greater: bool = False) -> tuple[Array, Array]:
    """p of each column of ``(texts, columns)``, alone and corrected over all columns.

    Under the null hypothesis a text's values are as likely with the other sign, all columns of a text together.
    All sign patterns are tried for up to 13 texts, else 9,999 random ones beside the one that was observed.
    """
    texts, columns = values.shape
    if texts == 0 or columns == 0:
        return np.ones(columns), np.ones(columns)
    if texts <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**texts)[:, None] >> np.arange(texts)) & 1)
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (DRAWS, texts))
        signs = np.vstack([np.ones(texts), 1.0 - 2.0 * drawn])
    # Flips leave the sum of squares as it is: dividing by it makes columns comparable and keeps the order of Student's t.
    norm = np.sqrt((values**2).sum(axis=0))
    scaled = np.divide(values, norm, out=np.zeros_like(values), where=norm > 0)
    flipped, observed = signs @ scaled, scaled.sum(axis=0)
    if not greater:
        flipped, observed = np.abs(flipped), np.abs(observed)
    observed = observed - 1e-9  # ties count
    p = (flipped >= observed).mean(axis=0)
    p_max = np.empty(columns)
    order = np.argsort(observed)  # ascending: the step-down maximum runs over a column and all weaker ones
    largest = np.full(len(signs), -np.inf)
    for j in order:
        largest = np.maximum(largest, flipped[:, j])
        p_max[j] = (largest >= observed[j]).mean()
    p_max[order[::-1]] = np.maximum.accumulate(p_max[order[::-1]])
    return p, p_max


def holm(p: Array) -> Array:
    """Holm's correction; NaN stays and does not count."""
    out = np.full(len(p), np.nan)
    order = np.flatnonzero(np.isfinite(p))
    order = order[np.argsort(p[order], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return out


def _interval(column: Array, seed: int) -> tuple[float, float]:
    """Efron's bias-corrected and accelerated percentiles of the mean."""
    if np.ptp(column) <= 1e-12 * max(1.0, float(np.abs(column).max())):
        return float(column.min()), float(column.max())
    count = len(column)
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    means = column[drawn].mean(axis=1)
    normal = NormalDist()
    below = ((means < column.mean()).mean() + (means <= column.mean()).mean()) / 2
    bias = normal.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    # Leaving out a text moves the mean by its deviation over count - 1: the skewness of the deviations is left.
    deviation = column - column.mean()
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)

    def quantile(level: float) -> float:
        z = bias + normal.inv_cdf(level)
        return float(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))))

    return quantile(0.025), quantile(0.975)
