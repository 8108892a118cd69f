"""Toys whose rows read anything before them: random, softmax attention, documents."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators import Dense, Operator

from .parameters import Number, Seed, Whole
from .toy import Handle, Toy, Values, draw, shape_limit, uninterrupted

__all__ = ["Documents", "RandomDense", "Softmax"]

FEATURES = 8


class RandomDense(Toy):
    """Independent random entries."""

    name = "dense"
    title = "random dense"
    see = (
        "Nothing can be summarised: every past input counts, until at L / 2 more have passed than outputs are left. "
        "The fall after the middle is the shape of Hᵢ, not forgetting."
    )
    differs = (
        "The smallest singular value of a square random block is about 1/√L of an entry: a τ above it counts less "
        "around the middle, where Hᵢ is square."
    )
    parameters = (Seed("seed", "random draw"),)

    def operator(self, length: int, values: Values) -> Operator:
        return Dense(draw(values["seed"], 3, length, length).tril())

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        return shape_limit(length)

    def formula(self, length: int, values: Values) -> str:
        return "ESSᵢ = min(i, L − i)"

    def caption(self, values: Values) -> str:
        return "random dense"


class Softmax(Toy):
    """Softmax attention at a temperature."""

    name = "softmax"
    title = "softmax attention"
    see = (
        "Heat it, and every row becomes the same average: one number is remembered. Cool it, and each row copies one "
        "token: what is remembered is how many different tokens the future still copies."
    )
    differs = (
        "At every finite temperature the rank is full, min(i, L − i): exp makes scores of any rank full. "
        "But most singular values are tiny: near the uniform end all but one vanish below any τ, and near the hard end "
        "rows underflow to plain copies. Here a rank says little, and a tolerance much."
    )
    parameters = (
        Number("temperature", "temperature", 0.01, 100.0, 1.0, True, (0.0, math.inf), ("hard", "uniform")),
        Seed("seed", "random draw"),
    )

    def _scores(self, length: int, seed: int) -> Tensor:
        q, k = draw(seed, 4, length, FEATURES), draw(seed, 5, length, FEATURES)
        scores: Tensor = (q @ k.mT) / math.sqrt(FEATURES)
        return scores.masked_fill(~torch.ones(length, length).tril().bool(), -math.inf)

    def operator(self, length: int, values: Values) -> Operator:
        scores, temperature = self._scores(length, values["seed"]), values["temperature"]
        if temperature == 0:
            copied = scores.argmax(-1)
            return Dense(torch.nn.functional.one_hot(copied, length).double())
        if math.isinf(temperature):
            return Dense(scores.exp().sign() / torch.arange(1, length + 1, dtype=torch.float64)[:, None])
        # The largest first, so that a small temperature divides nothing infinite by infinity.
        scores = scores - scores.amax(-1, keepdim=True)
        return Dense((scores / temperature).softmax(-1))

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        if math.isinf(values["temperature"]):
            return np.minimum(1, np.arange(length))
        if values["temperature"] > 0:
            return shape_limit(length)
        copied = self._scores(length, values["seed"]).argmax(-1).numpy()
        return np.array([len({j for j in copied[i:].tolist() if j < i}) for i in range(length)])

    def formula(self, length: int, values: Values) -> str:
        if math.isinf(values["temperature"]):
            return "ESSᵢ = 1 for i ≥ 1: every row is the mean"
        if values["temperature"] == 0:
            return "ESSᵢ = number of different tokens before i that a row from i on copies"
        return "ESSᵢ = min(i, L − i) at every finite temperature"

    def caption(self, values: Values) -> str:
        temperature = values["temperature"]
        if temperature == 0:
            return "hard attention"
        return "uniform attention" if math.isinf(temperature) else f"softmax at temperature {temperature:.3g}"


class Documents(Toy):
    """Two documents one after the other, that may leak into each other."""

    name = "documents"
    title = "two documents"
    see = (
        "Nothing crosses the boundary, so there the memory is empty: two tents with a dip to zero between them. "
        "Drag the boundary; then let the second document read a little of the first."
    )
    differs = (
        "Any leak at all makes the rank full across the boundary; a tolerance asks how much leaks. With a small leak "
        "the count keeps its dip where the closed form has already lost it: the dip is what a trained model shows."
    )
    parameters = (
        Whole("boundary", "boundary", 0, lambda L: L, lambda L: (3 * L) // 8, " (the length)"),
        Number("leak", "leak", 1e-8, 1.0, 0.0, True, (0.0, None), ("none", "")),
        Seed("seed", "random draw"),
    )
    handle = Handle("boundary", corner=True)

    def operator(self, length: int, values: Values) -> Operator:
        p, leak = values["boundary"], values["leak"]
        T = draw(values["seed"], 6, length, length).tril()
        T[p:, :p] *= leak
        at = torch.arange(length)
        # Where nothing leaks, what can be stored begins anew at the boundary and is of no use after it.
        size = at if leak > 0 else torch.where(at < p, at, at - p)
        return Dense(T, state_size=size)

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        gates = np.ones(length)
        if 0 < values["boundary"] < length:
            gates[values["boundary"]] = values["leak"]
        return uninterrupted(gates, length)

    def formula(self, length: int, values: Values) -> str:
        p = values["boundary"]
        if values["leak"] > 0 or not 0 < p < length:
            return "ESSᵢ = min(i, L − i)"
        return f"ESSᵢ = min(i, {p} − i) before the boundary, min(i − {p}, L − i) after it, 0 at {p}"

    def caption(self, values: Values) -> str:
        return f"documents split at {values['boundary']}"
