"""Calls of kernels for linear recurrences, by the names and conventions of flash-linear-attention.

Tensors along the sequence are ``(batch, L, heads, ...)`` there, or ``(batch, heads, L, ...)`` with ``head_first``;
gates are logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ess_widgets.capture.families._expected import Needs, needs
from ess_widgets.capture.reading import Call, Reading, Recogniser
from ess_widgets.operators import Operator

__all__ = ["NAMES", "Kernel", "continues", "expand", "named", "per_channel", "restart", "scale_of"]

# Other names of the same arguments.
NAMES: dict[str, tuple[str, ...]] = {
    "q": ("q", "query", "r"),
    "k": ("k", "key"),
    "v": ("v", "value"),
}
# How the same numbers are computed or stored, and what else is returned.
_IMMATERIAL = frozenset({
    "output_final_state", "chunk_size", "BT", "BM", "BN", "checkpoint_level", "cu_seqlens_cpu", "chunk_indices",
    "disable_recompute", "return_intermediate_states", "state_v_first", "transpose_state_layout", "safe_gate",
    "output_attentions", "solve_tril_precision", "use_graph", "max_num_seqs", "head_first", "lower_bound", "A_log",
    "dt_bias",
})  # fmt: skip
_STATES = frozenset({
    "initial_state", "initial_A_state", "initial_S", "initial_M", "h_kk_init", "h_kv_init", "h0", "state",
    "c_initial", "n_initial", "m_initial",
})  # fmt: skip
_PACKED = ("cu_seqlens", "offsets")


@dataclass(frozen=True)
class Kernel:
    """Reads the calls of a kind of kernel.

    Attributes
    ----------
    family : str or callable
        The family, or what finds it from the arguments.
    build : callable
        From the arguments by role, heads before positions, to the operator; ``starts`` among them marks the first
        positions of packed sequences but the first, or is None.
    along : tuple of str
        Roles of tensors along the sequence; those that are not in ``optional`` must be there.
    optional : tuple of str
        Those that need not be there.
    options : tuple of str
        Roles of what ``build`` honours beside them: numbers, switches, tensors without positions.
    given : dict
        Values of options that are not among a function's arguments.
    head_first : bool
        The layout of functions that do not say.
    swallows : bool
        Whether a function takes any other argument and ignores it.
    packs : bool
        Whether ``build`` knows ``starts``.
    values : callable, optional
        From the arguments by role to what is mixed, where that is not ``v``.
    by_channel : callable, optional
        Whether value channels have operators of their own; they are the groups then.
    """

    family: str | Callable[[Mapping[str, Any]], str]
    build: Callable[[Mapping[str, Any], Tensor | None], Operator]
    along: tuple[str, ...] = ("q", "k", "v")
    optional: tuple[str, ...] = ()
    options: tuple[str, ...] = ("scale",)
    given: Mapping[str, Any] = field(default_factory=dict)
    head_first: bool = False
    swallows: bool = False
    packs: bool = True
    values: Callable[[Mapping[str, Any]], Tensor] | None = None
    by_channel: Callable[[Mapping[str, Any]], bool] | None = None

    @property
    def needs(self) -> Needs:
        """The tensors without which a call is none of such a function."""
        roles = (role for role in self.along if role not in self.optional)
        dims = {role: ": 4" if role in NAMES else ": 3 4" for role in self.along}
        return needs(*(" ".join(NAMES.get(role, (role,))) + dims[role] for role in roles))

    def __call__(self, call: Call) -> Reading | str:
        found = self._arguments(call)
        if isinstance(found, str):
            return found
        y, v = found["y"], found["v"]
        batch, heads, L = y.shape[:3]
        if v.shape[0] != batch or v.shape[2] % L or heads % v.shape[1]:
            return f"its values have the shape {tuple(v.shape)}, its result {tuple(y.shape)}"
        split = self.by_channel is not None and self.by_channel(found)
        groups = heads * y.shape[-1] if split else heads
        build, values = self.build, self.values or (lambda t: t["v"])

        def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
            return build(t, valid)

        def inputs(t: Mapping[str, Any]) -> Tensor:
            u = expand(values(t), heads)
            return per_channel(u) if split else u

        def outputs(t: Mapping[str, Any]) -> Tensor:
            result: Tensor = t["y"]
            steps = t["v"].shape[2] // L
            if steps > 1:  # the operator's rows between are zero: the model reads the last step alone
                rows = result.new_zeros(*result.shape[:3], steps, result.shape[-1])
                rows[..., -1, :] = result
                result = rows.flatten(2, 3)
            return per_channel(result) if split else result

        family = self.family if isinstance(self.family, str) else self.family(found)
        group = "channel" if split else "head"
        return Reading(family, (batch, groups, L), found, operator, inputs, outputs, group=group)

    def _arguments(self, call: Call) -> dict[str, Any] | str:
        output = call.output
        if output is None or output.ndim != 4:
            return "it was expected to return one tensor of four dimensions"
        roles = {role: call.first(*NAMES.get(role, (role,))) for role in self.along}
        missing = [role for role, item in roles.items() if item is None and role not in self.optional]
        if missing:
            return f"it was expected to be given {', '.join(missing)}"
        if not all(
            isinstance(item, Tensor) and item.ndim >= 3 for item in roles.values() if item is not None
        ):
            return f"its arguments {', '.join(self.along)} were expected to be tensors along the sequence"
        reason = self._why_not(call)
        if reason:
            return reason
        head_first = bool(call.first("head_first", default=self.head_first))
        found = {
            role: item if item is None or head_first else item.transpose(1, 2) for role, item in roles.items()
        }
        found["y"] = output if head_first else output.transpose(1, 2)
        for role in self.options:
            found[role] = call.first(role, default=None if role in call.arguments else self.given.get(role))
        found["starts"] = None if self.swallows else _starts(call, found["y"].shape[2])
        if found["starts"] is not None and not self.packs:
            return "it mixes packed sequences (cu_seqlens); run them one by one"
        return found

    def _why_not(self, call: Call) -> str:
        if continues(call):
            return "it goes on from an earlier state; run the full sequence in one call"
        if self.swallows:
            return ""
        if call.first("reverse"):
            return "it runs from the end to the beginning"
        known = {name for role in (*self.along, *self.options) for name in NAMES.get(role, (role,))}
        for name, item in call.arguments.items():
            if name in known or name in _IMMATERIAL or name in _STATES or name in _PACKED:
                continue
            if item is not None and item is not False and item != ():
                return f"its option {name!r} is not known; ew.register teaches it"
        return ""


def named(read: Recogniser, names: str) -> dict[str, Recogniser]:
    """A recogniser under several names, separated by spaces."""
    return dict.fromkeys(names.split(), read)


def continues(call: Call) -> bool:
    """Whether a call begins with something stored."""
    return any(_stores(call.arguments.get(name)) for name in _STATES)


def _stores(state: Any) -> bool:
    if isinstance(state, Tensor):
        return bool(state.any())
    return isinstance(state, tuple | list) and any(_stores(item) for item in state)


def _starts(call: Call, L: int) -> Tensor | None:
    borders = call.first(*_PACKED)
    if not isinstance(borders, Tensor):
        return None
    starts = torch.zeros(L, dtype=torch.bool, device=borders.device)
    first = borders[1:-1].long()
    starts[first[(first > 0) & (first < L)]] = True
    return starts if bool(starts.any()) else None


def scale_of(t: Mapping[str, Any]) -> float | None:
    """The factor on the scores, None for the square root of the features."""
    scale = t.get("scale")
    return None if scale is None else float(scale)


def expand(x: Tensor, heads: int) -> Tensor:
    """Heads that are shared, repeated: ``(batch, heads, ...)``."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def per_channel(x: Tensor) -> Tensor:
    """``(batch, heads, L, width)`` to ``(batch, heads * width, L, 1)``."""
    return x.mT.flatten(1, 2).unsqueeze(-1)


def restart(g: Tensor | None, starts: Tensor | None, like: Tensor) -> Tensor | None:
    """Log gates ``(batch, heads, L, 1 or features)`` that forget everything where a packed sequence begins."""
    if starts is None:
        return g
    if g is None:
        g = torch.zeros(*like.shape[:3], 1, dtype=torch.float64, device=like.device)
    return g.masked_fill(starts[:, None], -torch.inf)
