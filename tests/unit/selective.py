"""Mamba and Mamba-2 as mamba_ssm has them: its modules' attributes, and its functions in plain torch.

The package itself needs a GPU. What is computed here is written from its reference code's definition, step by step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Any:
    """``(batch, channels, L)``, in float32 inside, as the kernel."""
    dtype, u, delta = u.dtype, u.float(), delta.float()
    if delta_bias is not None:
        delta = delta + delta_bias[:, None].float()
    if delta_softplus:
        delta = F.softplus(delta)
    channels, L = u.shape[1:]

    def vectors(x: Tensor) -> Tensor:
        """``(batch or 1, channels or 1, n, L or 1)``."""
        if x.ndim == 2:
            return x[None, :, :, None]
        if A.is_complex():
            x = torch.view_as_complex(x.float().unflatten(-1, (L, 2)).contiguous())
        x = x if x.ndim == 4 else x[:, None]
        return x.repeat_interleave(channels // x.shape[1], 1) if x.shape[1] > 1 else x

    B, C = vectors(B).expand(-1, -1, -1, L), vectors(C).expand(-1, -1, -1, L)
    starts = [] if cu_seqlens is None else cu_seqlens[1:-1].tolist()
    state: Any = 0
    ys = []
    for t in range(L):
        entering = delta[:, :, t, None] * B[..., t] * u[:, :, t, None]
        state = entering + (0 if t in starts else torch.exp(delta[:, :, t, None] * A) * state)
        y = (C[..., t] * state).sum(-1)
        ys.append(2 * y.real if y.is_complex() else y)
    y = torch.stack(ys, -1)
    if D is not None:
        y = y + u * D[:, None]
    if z is not None:
        y = y * F.silu(z.float())
    return (y.to(dtype), state) if return_last_state else y.to(dtype)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
) -> Any:
    """``(batch, L, heads, width)``, in float32 inside, as the kernel."""
    heads = x.shape[2]
    step = dt.float() + (0 if dt_bias is None else dt_bias.float())
    step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit)
    B, C = (v.float().repeat_interleave(heads // v.shape[2], 2) for v in (B, C))
    state = x.new_zeros(x.shape[0], heads, x.shape[3], B.shape[3], dtype=torch.float32)
    state = state if initial_states is None else initial_states.float()
    ys = []
    for t in range(x.shape[1]):
        if t and seq_idx is not None:
            state = torch.where((seq_idx[:, t] != seq_idx[:, t - 1])[:, None, None, None], 0, state)
        entering = step[:, t, :, None, None] * x[:, t, :, :, None].float() * B[:, t, :, None]
        state = torch.exp(step[:, t] * A)[..., None, None] * state + entering
        ys.append((state * C[:, t, :, None]).sum(-1))
    y = torch.stack(ys, 1)
    if D is not None:
        y = y + x.float() * (D if D.ndim == 2 else D[:, None])
    if z is not None:
        y = y * F.silu(z.float())
    y = y.to(x.dtype)
    return (y, state) if return_final_states else y


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """With its SiLU, ``x`` ``(batch, channels, L)``, as causal_conv1d computes it."""
    weight = weight.reshape(len(weight), 1, -1)
    taps = weight.shape[-1]
    y = F.conv1d(x, weight, bias, padding=taps - 1, groups=len(weight))
    return F.silu(y[..., : x.shape[-1]])


def inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    scan: Any = selective_scan_fn,
) -> Tensor:
    """What ``mamba_inner_fn`` computes."""
    x, z = xz.chunk(2, 1)
    x = short_convolution(x, conv1d_weight, conv1d_bias)
    n, rank = A.shape[1], delta_proj_weight.shape[1]
    low, own_B, own_C = F.linear(x.mT, x_proj_weight).split([rank, n, n], -1)
    delta = delta_proj_weight @ low.mT
    B, C = (own.mT if fixed is None else fixed for own, fixed in ((own_B, B), (own_C, C)))
    y = scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.mT, out_proj_weight, out_proj_bias)


def split_scan(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    scan: Any = mamba_chunk_scan_combined,
) -> Tensor:
    """What ``mamba_split_conv1d_scan_combined`` computes."""
    heads = len(A)
    width = headdim or D.shape[1]
    dim, both = heads * width, len(conv1d_weight) - heads * width
    mlp = (zxbcdt.shape[-1] - 2 * dim - both - heads) // 2
    z0, x0, z, xBC, dt = zxbcdt.split([mlp, mlp, dim, dim + both, heads], -1)
    x, B, C = short_convolution(xBC.mT, conv1d_weight, conv1d_bias).mT.split([dim, both // 2, both // 2], -1)
    x, B, C = (v.unflatten(-1, (parts, -1)) for v, parts in ((x, heads), (B, ngroups), (C, ngroups)))
    own = rmsnorm_weight is None
    y = scan(
        x, dt, A, B, C, chunk_size, D=D, z=z.unflatten(-1, (heads, -1)) if own else None, dt_bias=dt_bias,
        initial_states=initial_states, seq_idx=seq_idx, dt_softplus=True, dt_limit=dt_limit,
    ).flatten(2)  # fmt: skip
    if rmsnorm_weight is not None:
        y = gated_norm(y, z, rmsnorm_weight, rmsnorm_eps, ngroups, norm_before_gate)
    y = torch.cat([F.silu(z0) * x0, y], -1) if mlp else y
    return y if outproj_weight is None else F.linear(y, outproj_weight, outproj_bias)


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int, before: bool) -> Tensor:
    dtype, y, gate = y.dtype, y.float(), F.silu(z.float())
    y = y if before else y * gate
    parts = y.unflatten(-1, (groups, -1))
    y = (parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight.float()
    return (y * gate if before else y).to(dtype)


class Mamba(nn.Module):
    """Attributes of ``mamba_ssm.Mamba``; ``how`` it runs: "inline", "raw", or through a function."""

    use_fast_path = True

    def __init__(
        self, d_model: int = 8, d_state: int = 4, d_conv: int = 4, expand: int = 2, how: Any = "inline"
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner, self.dt_rank, self.how = expand * d_model, 3, how
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.activation, self.act = "silu", nn.SiLU()
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.rand(self.d_inner, d_state))
        self.D = nn.Parameter(torch.randn(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        xz = (hidden_states @ self.in_proj.weight.T).mT
        A = -torch.exp(self.A_log.float())
        if callable(self.how):
            return self.how(
                xz, self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight,
                self.out_proj.weight, self.out_proj.bias, A, None, None, self.D.float(),
                delta_bias=self.dt_proj.bias.float(), delta_softplus=True,
            )  # fmt: skip
        L = xz.shape[-1]
        x, z = xz.chunk(2, 1)
        calls = self.how == "inline"  # the modules inside, else their weights alone
        if calls:
            x = self.act(self.conv1d(x)[..., :L])
            small = self.x_proj(x.mT.flatten(0, 1)).unflatten(0, (-1, L))
        else:
            x = short_convolution(x, self.conv1d.weight, self.conv1d.bias)
            small = F.linear(x.mT, self.x_proj.weight)
        low, B, C = small.split([self.dt_rank, self.d_state, self.d_state], -1)
        delta = F.softplus((F.linear(low, self.dt_proj.weight) + self.dt_proj.bias).mT)
        state = x.new_zeros(*x.shape[:2], self.d_state)
        ys = []
        for t in range(L):
            step = delta[:, :, t, None]
            state = torch.exp(step * A) * state + step * B[:, t, None] * x[:, :, t, None]
            ys.append((state * C[:, t, None]).sum(-1))
        y = (torch.stack(ys, -1) + self.D[:, None] * x).to(x.dtype) * F.silu(z)
        return self.out_proj(y.mT) if calls else F.linear(y.mT, self.out_proj.weight, self.out_proj.bias)


class RMSNormGated(nn.Module):
    """Attributes of ``mamba_ssm``'s gated norm."""

    def __init__(self, width: int, group_size: int, norm_before_gate: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(width))
        self.eps, self.group_size, self.norm_before_gate = 1e-5, group_size, norm_before_gate

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return gated_norm(x, z, self.weight, self.eps, x.shape[-1] // self.group_size, self.norm_before_gate)


class Mamba2(nn.Module):
    """Attributes of ``mamba_ssm.Mamba2``; ``how`` as for :class:`Mamba`."""

    use_mem_eff_path = True

    def __init__(
        self,
        d_model: int = 8,
        d_state: int = 4,
        headdim: int = 4,
        ngroups: int = 2,
        d_ssm: int | None = None,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        D_has_hdim: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        how: Any = "inline",
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, 4, 2
        self.d_inner, self.headdim, self.ngroups, self.how = 2 * d_model, headdim, ngroups, how
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.nheads, self.rmsnorm, self.norm_before_gate = self.d_ssm // headdim, rmsnorm, norm_before_gate
        self.D_has_hdim, self.dt_limit, self.activation, self.chunk_size = D_has_hdim, dt_limit, "silu", 8
        conv_dim = self.d_ssm + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + 2 * ngroups * d_state + self.nheads, bias=False)
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, 4, groups=conv_dim, padding=3)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(torch.randn(self.nheads))
        self.A_log = nn.Parameter(torch.rand(self.nheads))
        self.D = nn.Parameter(torch.randn(self.d_ssm if D_has_hdim else self.nheads))
        if rmsnorm:
            self.norm = RMSNormGated(self.d_ssm, self.d_ssm // ngroups, norm_before_gate)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        A = -torch.exp(self.A_log.float())
        D = self.D.unflatten(0, (self.nheads, -1)) if self.D_has_hdim else self.D
        fused: dict[str, Any] = {
            "D": D,
            "chunk_size": self.chunk_size,
            "seq_idx": seq_idx,
            "activation": self.activation,
            "rmsnorm_weight": self.norm.weight if self.rmsnorm else None,
            "rmsnorm_eps": self.norm.eps if self.rmsnorm else 1e-6,
            "outproj_weight": self.out_proj.weight,
            "outproj_bias": self.out_proj.bias,
            "headdim": None if self.D_has_hdim else self.headdim,
            "ngroups": self.ngroups,
            "norm_before_gate": self.norm_before_gate,
            "dt_limit": self.dt_limit,
        }
        if self.how != "inline":
            how = self.how if callable(self.how) else lambda *a, **k: split_scan(*a, **k, scan=steps_inline)
            zxbcdt = F.linear(u, self.in_proj.weight)
            return how(zxbcdt, self.conv1d.weight[:, 0], self.conv1d.bias, self.dt_bias, A, **fused)
        zxbcdt = self.in_proj(u)
        both = self.ngroups * self.d_state
        mlp = self.d_inner - self.d_ssm
        z0, x0, z, xBC, dt = zxbcdt.split([mlp, mlp, self.d_ssm, self.d_ssm + 2 * both, self.nheads], -1)
        xBC = self.act(self.conv1d(xBC.mT)[..., : u.shape[1]]).mT
        x, B, C = xBC.split([self.d_ssm, both, both], -1)
        x, B, C = (
            v.unflatten(-1, (n, -1)) for v, n in ((x, self.nheads), (B, self.ngroups), (C, self.ngroups))
        )
        gate = None if self.rmsnorm else z.unflatten(-1, (self.nheads, -1))
        y = steps_inline(
            x, dt, A, B, C, 8, D=D, z=gate, dt_bias=self.dt_bias, dt_softplus=True, dt_limit=self.dt_limit
        ).flatten(2)
        y = self.norm(y, z) if self.rmsnorm else y
        y = torch.cat([F.silu(z0) * x0, y], -1) if mlp else y
        return self.out_proj(y)


def steps_inline(*args: Any, **kwargs: Any) -> Any:
    """The chunked scan under a name that nobody knows."""
    return mamba_chunk_scan_combined.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]


def _renamed(function: Any) -> Any:
    """The same function, whose code has another name."""
    code = function.__code__.replace(co_name="step_by_step")
    return type(function)(
        code, function.__globals__, "step_by_step", function.__defaults__, function.__closure__
    )


mamba_chunk_scan_combined.__wrapped__ = _renamed(mamba_chunk_scan_combined)  # type: ignore[attr-defined]
unnamed_scan = _renamed(selective_scan_fn)
