"""Selective state-space models: Mamba's scan per channel, Mamba-2's per head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.capture.families._expected import takes
from ess_widgets.capture.families._scan import (
    document_starts,
    filled,
    interrupted,
    restarted,
    starts_of,
    steps,
    wide,
)
from ess_widgets.capture.reading import Call, Reading, Recogniser, first_tensor, without
from ess_widgets.operators import Diagonal, Operator, Recurrence, selective_ssm, ssd

__all__ = ["FUNCTIONS", "s6", "ssd_heads"]

FAMILY = "selective SSM"
STATE = "it starts from a state that is not zero; pass the full sequence without a cache"
_STEP = "one token is added to the state in a cache; pass the full sequence without a cache"
_NARROW = frozenset({"mamba_selective_scan", "mamba2_chunk_scan"})


_S6 = ("u hidden_states x: 3", "delta dt: 3", "A: 2", "B: 2 3 4", "C: 2 3 4")


@takes(*_S6)
def _channels_first(call: Call) -> Reading | str:
    """``selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)``, ``u`` ``(batch, channels, L)``."""
    u, delta = call.first("u", "hidden_states", "x"), call.first("delta", "dt")
    A, B, C = (call.first(name) for name in "ABC")
    if not _tensors(u, delta, A, B, C, call.output):
        return "arguments u, delta, A, B and C were expected"
    if u.ndim != 3 or A.ndim != 2:
        return f"u must be (batch, channels, L) and A (channels, n), but they are {_shapes(u, A)}"
    if filled(call.first("initial_state", "initial_states", "ssm_state", "h0")):
        return STATE
    cu = call.first("cu_seqlens")
    starts = None if cu is None else document_starts(cu, u.shape[-1])
    arguments = {**call.arguments, "D": None, "z": None}
    return _s6_reading(call, u, delta, A, B, C, starts, arguments)


@takes(*_S6)
def _channels_last(call: Call) -> Reading | str:
    """``selective_scan(u, delta, A, B, C, D)`` with ``u`` ``(batch, L, channels)``, as minimal versions have it."""
    u, delta = call.first("u", "x", "hidden_states"), call.first("delta", "dt")
    A, B, C = (call.first(name) for name in "ABC")
    if not _tensors(u, delta, A, B, C, call.output) or u.ndim != 3 or A.ndim != 2:
        return ""
    if tuple(B.shape) != (*u.shape[:2], A.shape[1]) or u.shape[2] != A.shape[0]:
        return _channels_first(call) if u.shape[1] == A.shape[0] else ""
    if call.first("z") is not None or call.output is None or call.output.shape != u.shape:
        return f"outputs of shape {tuple(u.shape)} without a gate were expected"
    D = call.first("D")
    arguments = {**call.arguments, "D": None if D is None else torch.zeros_like(D)}
    return _s6_reading(call, u.mT, delta.mT, A, B.mT, C.mT, None, arguments, last=True)


def _s6_reading(
    call: Call,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    starts: Tensor | None,
    arguments: dict[str, Any],
    last: bool = False,
) -> Reading:
    y = call.output
    assert y is not None
    kept = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": call.first("D"), "z": call.first("z")}
    kept |= {"bias": call.first("delta_bias", "dt_bias"), "y": y.mT if last else y, "starts": starts}
    fused = kept["D"] is not None or kept["z"] is not None
    kept["arguments"] = arguments if fused else None
    softplus = bool(call.first("delta_softplus", "dt_softplus", default=False))
    narrow, again = call.name in _NARROW, call.again

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        step = steps(t["delta"].mT, t["bias"], softplus, narrow=narrow).mT
        return s6(step, t["A"], t["B"], t["C"], valid=valid, starts=t["starts"])

    def outputs(t: Mapping[str, Any]) -> Tensor:
        own: Tensor = t["y"]
        if t["arguments"] is None:
            return own.unsqueeze(-1)
        bare = first_tensor(again(**t["arguments"]))
        assert bare is not None
        gate = None if t["z"] is None else F.silu(t["z"])
        skip = None if t["D"] is None else skipped(t["u"], t["D"][:, None])
        return without(own, bare.mT if last else bare, skip, gate).unsqueeze(-1)

    return Reading(
        FAMILY,
        (u.shape[0], u.shape[1], u.shape[2]),
        kept,
        operator,
        lambda t: t["u"].unsqueeze(-1),
        outputs,
        group="channel",
        computed=lambda t: t["y"].unsqueeze(-1),
    )


def s6(
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    valid: Tensor | None = None,
    starts: Tensor | None = None,
) -> Operator:
    """S6 from the tensors of ``selective_scan_fn``.

    Parameters
    ----------
    step : Tensor, ``(batch, channels, L)``
        After bias and softplus.
    A : Tensor, ``(channels, n)``
        Real or complex; of a complex one the output is twice the real part.
    B, C : Tensor
        ``(channels, n)``, ``(batch, n, L)`` or ``(batch, groups, n, L)``; beside a complex ``A`` those with
        positions hold real and imaginary parts in turn, ``2 L`` of them.
    valid : bool Tensor ``(batch, 1, L)``, optional
    starts : bool Tensor ``(batch, L)``, optional
        Where the state is dropped.
    """
    B, C = (_positions_first(x, A.is_complex(), step.shape[-1]) for x in (B, C))
    if not A.is_complex():
        if starts is None and not interrupted(valid):
            return selective_ssm(step, A, B, C, valid=valid)
        return restarted(selective_ssm(step, A, B, C), valid, starts)
    exact = step.to(wide(step))[..., None]
    B, C = (x.unsqueeze(1) if x.ndim == 3 else x for x in (B, C))
    B, C = (x.repeat_interleave(step.shape[1] // x.shape[1], 1) if x.shape[1] > 1 else x for x in (B, C))
    op = Recurrence(Diagonal(torch.exp(exact * A[:, None])), exact * B, 2 * C, name="S6")
    return restarted(op, valid, starts)


def _positions_first(x: Tensor, paired: bool, length: int) -> Tensor:
    """``(batch, L, n)`` or ``(batch, groups, L, n)`` of input or output vectors in the layouts of the kernel."""
    if x.ndim == 2:
        return x[None, :, None].expand(1, -1, length, -1)
    x = x.mT
    if not paired:
        return x
    pairs = x.to(wide(x)).reshape(*x.shape[:-2], length, 2, x.shape[-1])
    return torch.complex(pairs[..., 0, :], pairs[..., 1, :])


@takes("x hidden_states: 4", "dt: 3", "A: 1", "B: 4", "C: 4")
def _chunk_scan(call: Call) -> Reading | str:
    """``mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D, z, dt_bias, …)``, ``x`` ``(batch, L, heads, width)``."""
    x, dt = call.first("x", "hidden_states"), call.first("dt")
    A, B, C = (call.first(name) for name in "ABC")
    y = call.output
    if not _tensors(x, dt, A, B, C, y):
        return "arguments x, dt, A, B and C were expected"
    if x.ndim != 4 or A.ndim != 1 or B.ndim != 4:
        return (
            "x must be (batch, L, heads, width), A (heads,) and B (batch, L, groups, n), "
            f"but they are {_shapes(x, A, B)}"
        )
    if filled(call.first("initial_states")):
        return STATE
    batch, L, heads, _ = x.shape
    documents = call.first("seq_idx")
    kept = {"u": x, "dt": dt, "A": A, "B": B, "C": C, "D": call.first("D"), "z": call.first("z"), "y": y}
    kept |= {"bias": call.first("dt_bias"), "starts": None if documents is None else starts_of(documents)}
    fused = kept["D"] is not None or kept["z"] is not None
    kept["arguments"] = {**call.arguments, "D": None, "z": None} if fused else None
    softplus = bool(call.first("dt_softplus", default=False))
    limits = call.first("dt_limit", default=(0.0, float("inf")))
    narrow, again = call.name in _NARROW, call.again

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        step = steps(t["dt"], t["bias"], softplus, limits, narrow=narrow).mT
        return ssd_heads(step, t["A"], t["B"], t["C"], valid=valid, starts=t["starts"])

    def outputs(t: Mapping[str, Any]) -> Tensor:
        own: Tensor = t["y"]
        if t["arguments"] is not None:
            bare = first_tensor(again(**t["arguments"]))
            assert bare is not None
            gate = None if t["z"] is None else F.silu(t["z"])
            D = t["D"]
            u = t["u"].float() if narrow else t["u"]  # rounded by transformers' function, in float64 too
            skip = None if D is None else skipped(u, D if D.ndim == 2 else D[:, None])
            own = without(own, bare, skip, gate)
        return own.transpose(1, 2)

    return Reading(
        FAMILY,
        (batch, heads, L),
        kept,
        operator,
        lambda t: t["u"].transpose(1, 2),
        outputs,
        computed=lambda t: t["y"].transpose(1, 2),
    )


def ssd_heads(
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    valid: Tensor | None = None,
    starts: Tensor | None = None,
) -> Operator:
    """SSD from the tensors of ``mamba_chunk_scan_combined``.

    Parameters
    ----------
    step : Tensor, ``(batch, heads, L)``
        After bias, softplus and limits.
    A : Tensor, ``(heads,)``
    B, C : Tensor, ``(batch, L, groups, n)``
    valid : bool Tensor ``(batch, 1, L)``, optional
    starts : bool Tensor ``(batch, L)``, optional
        Where the state is dropped.
    """
    B, C = B.transpose(1, 2), C.transpose(1, 2)
    if starts is None and not interrupted(valid):
        return ssd(step, A, B, C, valid=valid)
    return restarted(ssd(step, A, B, C), valid, starts)


@takes("X x: 4", "A: 3", "B: 4", "C: 4")
def _discrete(call: Call) -> Reading | str:
    """``ssd_minimal_discrete(X, A, B, C, block_len)``: ``X`` holds Δx and ``A`` the logarithms of the decays, ΔA."""
    x = call.first("X", "x")
    A, B, C = (call.first(name) for name in "ABC")
    y = call.output
    if y is None or not _tensors(x, A, B, C) or x.ndim != 4 or A.shape != x.shape[:3] or B.ndim != 4:
        return ""
    if filled(call.first("initial_states")):
        return STATE
    batch, L, heads, _ = x.shape

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        decay = torch.exp(t["A"].to(wide(t["A"]))).mT[..., None]
        vectors = (t[name].transpose(1, 2) for name in "BC")
        vectors = (v.repeat_interleave(heads // v.shape[1], 1) for v in vectors)
        op = Recurrence(Diagonal(decay), *vectors, name="SSD")
        return restarted(op, valid, None)

    kept = {"u": x, "A": A, "B": B, "C": C, "y": y}
    return Reading(
        FAMILY,
        (batch, heads, L),
        kept,
        operator,
        lambda t: t["u"].transpose(1, 2),
        lambda t: t["y"].transpose(1, 2),
    )


def skipped(u: Tensor, D: Tensor) -> Tensor:
    """What passes the state by, ``D u``, in float32 as both the functions and the kernels compute it."""
    precision = torch.promote_types(torch.promote_types(u.dtype, D.dtype), torch.float32)
    return u.to(precision) * D.to(precision)


def _tensors(*values: Any) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)


@takes("x hidden_states: 2 3", "state ssm_state ssm_states: 2 3 4")
def _one_step(call: Call) -> str:
    return _STEP


FUNCTIONS: dict[str, Recogniser] = {
    **dict.fromkeys(("mamba_selective_scan", "selective_scan_fn", "selective_scan_ref"), _channels_first),
    **dict.fromkeys(("selective_scan", "selective_scan_seq"), _channels_last),
    **dict.fromkeys(
        ("mamba2_chunk_scan", "mamba_chunk_scan_combined", "mamba_chunk_scan", "ssd_chunk_scan_combined_ref"),
        _chunk_scan,
    ),
    **dict.fromkeys(("ssd_minimal_discrete", "ssd"), _discrete),
    **dict.fromkeys(
        (
            "mamba_selective_state_update",
            "mamba2_selective_state_update",
            "selective_state_update",
            "selective_state_update_ref",
        ),
        _one_step,
    ),
}
