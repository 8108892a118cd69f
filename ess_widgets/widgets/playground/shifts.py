"""Toys that shift and weigh: diagonal, sums over the past, a delay, a short filter."""

from __future__ import annotations

import numpy as np
import torch

from ess_widgets.operators import Convolution, Operator, Recurrence

from .parameters import Choice, Seed, Whole
from .toy import Handle, Toy, Values, draw, limited

__all__ = ["Delay", "Diagonal", "Filter", "Sums"]


class Diagonal(Toy):
    """Every output reads its own input alone."""

    name = "diagonal"
    title = "diagonal"
    see = "Every output reads its own input and nothing before it: nothing has to be remembered anywhere."
    differs = "Nothing can differ: the diagonal never enters Hᵢ, so every Hᵢ is zero."
    parameters = (Seed("seed", "random draw"),)

    def operator(self, length: int, values: Values) -> Operator:
        return Convolution(
            torch.ones(1, dtype=torch.float64), output_gate=draw(values["seed"], 1, length), length=length
        )

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        return np.zeros(length, dtype=np.int64)

    def formula(self, length: int, values: Values) -> str:
        return "ESSᵢ = 0"

    def caption(self, values: Values) -> str:
        return "diagonal"


class Sums(Toy):
    """One number is carried: a sum, a mean, or the first token."""

    name = "sums"
    title = "all ones, causal mean"
    see = (
        "However long the past, a single number is carried across every position: the running sum. "
        "A dense picture is not a large memory."
    )
    differs = "The one singular value is never small here, so count, entropy and closed form all say 1."
    parameters = (
        Choice(
            "rows", "each row", {"sum": "all ones", "mean": "causal mean", "first": "reads token 0 alone"}
        ),
    )

    def operator(self, length: int, values: Values) -> Operator:
        ones = torch.ones(length, 1, dtype=torch.float64)
        counts = torch.arange(1, length + 1, dtype=torch.float64)[:, None]
        write = torch.where(counts == 1, 1.0, 0.0) if values["rows"] == "first" else ones
        read = 1 / counts if values["rows"] == "mean" else ones
        return Recurrence(ones[:, 0], write, read)

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        return np.minimum(1, np.arange(length))

    def formula(self, length: int, values: Values) -> str:
        sigma = "; σ₁ = √(i (L − i))" if values["rows"] == "sum" else ""
        return f"ESSᵢ = 1 for i ≥ 1{sigma}"

    def caption(self, values: Values) -> str:
        return {"sum": "all ones", "mean": "causal mean", "first": "token 0 everywhere"}[values["rows"]]


class Delay(Toy):
    """Each output is the input ``k`` positions before."""

    name = "delay"
    title = "delay by k"
    see = (
        "To repeat what came k steps ago, the last k inputs must be kept: the profile climbs to k and stays. "
        "Drag k beyond half the length and it turns down again: most delayed inputs never arrive."
    )
    differs = (
        "All singular values that are not zero are exactly 1, so count and entropy agree with the closed form "
        "for every τ below 1; at τ = 1 and above nothing is counted."
    )
    parameters = (Whole("k", "delay k", 0, lambda L: L, lambda L: L // 5, " (the length)"),)
    handle = Handle("k")

    def operator(self, length: int, values: Values) -> Operator:
        k = values["k"]
        kernel = torch.zeros(min(k + 1, length), dtype=torch.float64)
        if k < length:
            kernel[k] = 1.0
        return Convolution(kernel, length=length)

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        k = values["k"]
        return limited(min(k, length - k), length)

    def formula(self, length: int, values: Values) -> str:
        k = values["k"]
        return f"ESSᵢ = min(k, i, L − i, L − k) with k = {k}: at most {min(k, length - k)}"

    def caption(self, values: Values) -> str:
        return f"delay by {values['k']}"


class Filter(Toy):
    """A convolution with ``k`` taps."""

    name = "fir"
    title = "FIR filter of k taps"
    see = (
        "k taps look back k − 1 steps, so k − 1 inputs must be kept. A moving average keeps as many, until it is "
        "longer than half the sequence: then most of it is the same sum for everyone."
    )
    differs = (
        "The closed form holds for taps in general position. The smallest singular values shrink as taps are added, "
        "so a large τ counts fewer than k − 1."
    )
    parameters = (
        Whole("k", "taps k", 1, lambda L: L, lambda L: max(1, L // 6), " (the length)"),
        Choice("taps", "taps are", {"random": "random", "equal": "equal"}),
        Seed("seed", "random draw"),
    )
    handle = Handle("k", offset=-1)

    def operator(self, length: int, values: Values) -> Operator:
        k = values["k"]
        if values["taps"] == "equal":
            return Convolution(torch.full((k,), 1.0 / k, dtype=torch.float64), length=length)
        # The last tap is the largest, which keeps the singular values away from rounding error.
        taps = 0.6 * torch.tanh(draw(values["seed"], 2, length)[:k])
        taps[-1] = 1.0
        return Convolution(taps, length=length)

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        reach = values["k"] - 1
        if values["taps"] == "equal":
            reach = min(reach, length - reach)
        return limited(reach, length)

    def formula(self, length: int, values: Values) -> str:
        k = values["k"]
        more = ", L − k + 1" if values["taps"] == "equal" else ""
        return f"ESSᵢ = min(k − 1, i, L − i{more}) with k = {k}"

    def caption(self, values: Values) -> str:
        return f"{values['k']} {'equal' if values['taps'] == 'equal' else 'random'} taps"
