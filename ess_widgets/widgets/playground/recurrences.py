"""Toys with a state that changes along the sequence: linear attention, the delta rule, a gate that resets."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators import Operator, Recurrence, delta_rule, linear_attention

from .parameters import Choice, Number, Seed, Whole
from .toy import Handle, Toy, Values, draw, limited, uninterrupted

__all__ = ["Combined", "DeltaRule", "GatedRecurrence", "LinearAttention"]


def _features(seed: int, salt: int, length: int, size: int) -> Tensor:
    """Random features, the first ones of a longer row: another one is added when there is one more."""
    return draw(seed, salt, length, 2 * length)[:, :size]


class LinearAttention(Toy):
    """Linear attention with random features."""

    name = "linear_attention"
    title = "linear attention"
    see = (
        "The past is folded into d_k numbers per channel: the profile climbs to d_k and is cut off there. "
        "Drag d_k to L / 2 and the ceiling of the shape takes over: more state cannot be used."
    )
    differs = "Random features stay well apart; near d_k = L / 2 the smallest singular value is small and a large τ drops it."
    parameters = (
        Whole("d_k", "features d_k", 1, lambda L: 2 * L, lambda L: max(1, L // 8), " (twice the length)"),
        Seed("seed", "random draw"),
    )
    handle = Handle("d_k")

    def operator(self, length: int, values: Values) -> Operator:
        q, k = (_features(values["seed"], salt, length, values["d_k"]) for salt in (7, 8))
        return linear_attention(q, k)

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        return limited(values["d_k"], length)

    def formula(self, length: int, values: Values) -> str:
        return f"ESSᵢ = min(d_k, i, L − i) with d_k = {values['d_k']}"

    def caption(self, values: Values) -> str:
        return f"linear attention, d_k = {values['d_k']}"


class DeltaRule(Toy):
    """The delta rule with random unit keys and one writing strength."""

    name = "delta_rule"
    title = "delta rule"
    see = (
        "Before a value is written, what its key held is erased by β. At β = 1 the newest key has nothing old left: "
        "one of the d_k directions is empty at every position. At β = 0 nothing is ever written."
    )
    differs = (
        "Close to β = 1 the last direction holds only 1 − β of what it held, a singular value about that small; "
        "the closed form counts it until β is exactly 1. Repeated erasing also makes old values fade."
    )
    parameters = (
        Number("beta", "strength β", 0.0, 2.0, 1.0),
        Whole("d_k", "features d_k", 1, lambda L: L, lambda L: max(1, L // 8), " (the length)"),
        Seed("seed", "random draw"),
    )

    def operator(self, length: int, values: Values) -> Operator:
        q, k = (_features(values["seed"], salt, length, values["d_k"]) for salt in (9, 10))
        k = k / torch.linalg.vector_norm(k, dim=-1, keepdim=True)
        return delta_rule(q, k, torch.full((length,), values["beta"], dtype=torch.float64))

    def _order(self, values: Values) -> int:
        if values["beta"] == 0:
            return 0
        return int(values["d_k"]) - int(values["beta"] == 1)

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        return limited(self._order(values), length)

    def formula(self, length: int, values: Values) -> str:
        if values["beta"] == 0:
            return "ESSᵢ = 0: nothing is written"
        minus = " − 1" if values["beta"] == 1 else ""
        return f"ESSᵢ = min(d_k{minus}, i, L − i) with d_k = {values['d_k']}"

    def caption(self, values: Values) -> str:
        return f"delta rule, β = {values['beta']:.12g}"


class GatedRecurrence(Toy):
    """A recurrence with a constant gate, and one position where it is (almost) closed."""

    name = "gated"
    title = "gated, with a reset"
    see = (
        "At the reset the gate closes and the state is thrown away: the memory falls to zero there and fills again. "
        "Approaching it, the profile already declines: what will not be read any more need not be kept."
    )
    differs = (
        "A gate that is not quite closed keeps the rank; the singular values at the reset are as small as the gate. "
        "With a gate below 1 old values also fade, and long memories fall below τ."
    )
    parameters = (
        Whole("reset", "reset at", 0, lambda L: L, lambda L: L // 2, " (the length: none)"),
        Number("leak", "gate there", 1e-8, 1.0, 0.0, True, (0.0, None), ("closed", "")),
        Number("gate", "gate elsewhere", 0.0, 1.0, 0.95),
        Whole("state", "state n", 1, lambda L: L, lambda L: max(1, L // 8), " (the length)"),
        Seed("seed", "random draw"),
    )
    handle = Handle("reset", corner=True)

    def _gates(self, length: int, values: Values) -> np.ndarray:
        gates = np.full(length, float(values["gate"]))
        if 0 < values["reset"] < length:
            gates[values["reset"]] = values["leak"]
        return gates

    def operator(self, length: int, values: Values) -> Operator:
        read, write = (_features(values["seed"], salt, length, values["state"]) for salt in (11, 12))
        gates = torch.from_numpy(self._gates(length, values))
        return Recurrence(gates, write / math.sqrt(values["state"]), read)

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        return uninterrupted(self._gates(length, values), values["state"])

    def formula(self, length: int, values: Values) -> str:
        n, p = values["state"], values["reset"]
        if values["gate"] == 0:
            kept = 0 < p < length and values["leak"] > 0
            return f"ESSᵢ = 0: the gate is closed everywhere{f' but at {p}, where it is 1' if kept else ''}"
        if values["leak"] == 0 and 0 < p < length:
            return f"ESSᵢ = min(n, distance to the last and to the next reset or end) with n = {n}; 0 at {p}"
        return f"ESSᵢ = min(n, i, L − i) with n = {n}"

    def caption(self, values: Values) -> str:
        return f"gated recurrence, reset at {values['reset']}"


class Combined(Toy):
    """The sum or the product of two linear attentions."""

    name = "combined"
    title = "sum or product"
    see = (
        "Two layers side by side (sum) or one after the other (product): their memories add up, "
        "as neither can be inferred from the other, and never more than add up."
    )
    differs = (
        "In a product the singular values multiply and spread over more decades: a τ that sees all of the sum may miss "
        "some of the product."
    )
    parameters = (
        Choice("operation", "T is", {"sum": "T₁ + T₂", "product": "T₁ T₂"}),
        Whole("first", "features of T₁", 1, lambda L: L, lambda L: max(1, L // 8), " (the length)"),
        Whole("second", "features of T₂", 1, lambda L: L, lambda L: max(1, L // 16), " (the length)"),
        Seed("seed", "random draw"),
    )

    def operator(self, length: int, values: Values) -> Operator:
        one, two = (
            linear_attention(*(_features(values["seed"], salt + n, length, size) for n in (0, 1)))
            for salt, size in ((13, values["first"]), (15, values["second"]))
        )
        return one + two if values["operation"] == "sum" else one @ two

    def closed_form(self, length: int, values: Values) -> np.ndarray:
        return limited(values["first"] + values["second"], length)

    def formula(self, length: int, values: Values) -> str:
        d1, d2 = values["first"], values["second"]
        return f"ESSᵢ = min(d₁ + d₂, i, L − i) with d₁ + d₂ = {d1} + {d2} = {d1 + d2}"

    def caption(self, values: Values) -> str:
        sign = "+" if values["operation"] == "sum" else "after"
        return f"{values['first']} {sign} {values['second']} features"
