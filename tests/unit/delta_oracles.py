"""Plain loops over the delta-rule family, written from the formulas, with every transition a full matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

F64 = torch.float64


def run(steps: Iterator[tuple[Tensor, Tensor, Tensor | None]], v: Tensor) -> Tensor:
    """``s = A s + b u``, read by ``c`` where there is one: a row per step, zero without a reader."""
    state, rows = None, []
    for (A, b, c), u in zip(steps, v, strict=True):
        written = torch.outer(b, u)
        state = written if state is None else A @ state + written
        rows.append(torch.zeros_like(u) if c is None else c @ state)
    return torch.stack(rows)


def eye(k: Tensor) -> Tensor:
    return torch.eye(k.shape[-1], dtype=F64)


def erase(write: Tensor, read: Tensor) -> Tensor:
    return eye(read) - torch.outer(write, read)


def delta_rule(q: Tensor, k: Tensor, beta: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for t in range(len(q)):
        yield erase(beta[t] * k[t], k[t]), beta[t] * k[t], q[t]


def gated_delta_rule(
    q: Tensor, k: Tensor, g: Tensor, beta: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for t in range(len(q)):
        yield g[t].exp() * erase(beta[t] * k[t], k[t]), beta[t] * k[t], q[t]


def kda(q: Tensor, k: Tensor, g: Tensor, beta: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for t in range(len(q)):
        yield erase(beta[t] * k[t], k[t]) @ g[t].exp().diag(), beta[t] * k[t], q[t]


def generalised(
    q: Tensor, k: Tensor, a: Tensor, b: Tensor, g: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for t in range(len(q)):
        kept = eye(k) if g is None else g[t].exp().diag()
        yield kept + torch.outer(b[t], a[t]), k[t], q[t]


def rwkv7(r: Tensor, w: Tensor, k: Tensor, kk: Tensor, a: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for t in range(len(r)):
        yield w[t].exp().diag() - torch.outer(a[t] * kk[t], kk[t]), k[t], r[t]


def delta_product(
    q: Tensor, k: Tensor, beta: Tensor, g: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """One micro-step after the other; the token decays before its first and is read after its last."""
    m = len(k) // len(q)
    for row in range(len(k)):
        t, step = divmod(row, m)
        alpha = g[t].exp() if g is not None and step == 0 else 1.0
        A = alpha * erase(beta[row] * k[row], k[row])
        yield A, beta[row] * k[row], q[t] if step == m - 1 else None


def preconditioned(
    q: Tensor,
    k: Tensor,
    g: Tensor,
    beta: Tensor,
    beta_atk: Tensor,
    g_atk: Tensor,
    *,
    x: float = 1.5,
    centre: float = -0.2,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """``g`` of ``(L, 1)`` decays the state as a whole, of ``(L, d)`` feature by feature."""
    power = torch.zeros_like(k[0])
    for t in range(len(q)):
        power = g_atk[t].exp() * power + beta_atk[t] * k[t] ** 2
        r = torch.log(power + 1e-6) - centre
        M = torch.exp(-math.log(x) * r / (1 + r.abs()))
        write = beta[t] * M * k[t]
        yield erase(write, k[t]) @ g[t].exp().expand(k.shape[-1]).diag(), write, q[t]
