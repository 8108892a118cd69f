"""The delta-rule family against the references that layers are checked against: flash-linear-attention's plain
PyTorch functions and those of transformers. They compute in float32."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.operators import (
    Recurrence,
    delta_product,
    delta_rule,
    gated_delta_product,
    gated_delta_rule,
    generalised_delta_rule,
    kda,
    preconditioned_delta_rule,
    preconditioned_gated_delta_rule,
    preconditioned_kda,
    rwkv7,
)

B, H, L, D, V = 2, 3, 64, 8, 5


def fla(module: str, function: str) -> Callable[..., Any]:
    """A reference of flash-linear-attention, which is there on Linux only: importing it takes triton."""
    with warnings.catch_warnings():
        # It says that there is no GPU.
        warnings.simplefilter("ignore")
        return getattr(pytest.importorskip(f"fla.ops.{module}", exc_type=ImportError), function)  # type: ignore[no-any-return]


def from_transformers(model: str, function: str) -> Callable[..., Any]:
    """The plain PyTorch function, whether or not it would hand over to a GPU kernel that is installed."""
    modeling = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    return inspect.unwrap(getattr(modeling, function))


class Heads:
    """float32 arguments, ``(B, H, L, ...)``."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.q, self.raw_k = self.normal(L, D), self.normal(L, D)
        self.k = F.normalize(self.raw_k, dim=-1)
        self.v = self.normal(L, V)
        self.beta, self.beta_atk = self.normal(L).sigmoid(), self.normal(L).sigmoid()
        self.g, self.g_atk = F.logsigmoid(self.normal(L) + 1), F.logsigmoid(self.normal(L) + 1)
        self.wide_g = F.logsigmoid(self.normal(L, D) + 1)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(B, H, *shape, generator=self.generator)


def time_first(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2).contiguous() for x in tensors]


def heads_first(y: Tensor) -> Tensor:
    return y.transpose(1, 2)


def check(op: Recurrence, v: Tensor, y: Tensor) -> None:
    """What float32 explains of the reference's own rounding, and no more."""
    ours = op.matrix() @ v.double()
    assert ours.shape == y.shape
    assert (ours - y.double()).norm() < 2e-6 * y.double().norm()


def test_delta_rule() -> None:
    x = Heads(0)
    op = delta_rule(x.q, x.k, x.beta)
    for name in ("delta_rule_recurrence", "delta_rule_chunkwise"):
        y, _ = fla("delta_rule.naive", name)(x.q, x.k, x.v, x.beta)
        check(op, x.v, y)


def test_delta_rule_matrix() -> None:
    x = Heads(1)
    y, T = fla("delta_rule.naive", "delta_rule_parallel")(x.q, x.k, x.v, x.beta, BM=32, BN=16)
    # It mixes β v, so β is left to the values there.
    assert (delta_rule(x.q, x.k, x.beta).matrix() - T.double() * x.beta[..., None, :]).abs().max() < 2e-6
    check(delta_rule(x.q, x.k, x.beta), x.v, y)


def test_gated_delta_rule() -> None:
    x = Heads(2)
    op = gated_delta_rule(x.q, x.k, x.g, x.beta)
    arg = dict(zip("qkvgb", time_first(x.q, x.k, x.v, x.g, x.beta), strict=True))
    arg["beta"] = arg.pop("b")
    for name in ("naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"):
        y, _ = fla("gated_delta_rule.naive", name)(**arg)
        check(op, x.v, heads_first(y))


def test_kda() -> None:
    x = Heads(3)
    op = kda(x.q, x.k, x.wide_g, x.beta, scale=0.3)
    for name in ("naive_recurrent_kda", "naive_chunk_kda"):
        y, _ = fla("kda.naive", name)(*time_first(x.q, x.k, x.v, x.wide_g, x.beta), scale=0.3)
        check(op, x.v, heads_first(y))


def test_kda_grouped_values() -> None:
    x = Heads(4)
    q, k = x.q[:, :1], x.k[:, :1]
    y, _ = fla("kda.naive", "naive_recurrent_kda")(*time_first(q, k, x.v, x.wide_g, x.beta))
    check(kda(q, k, x.wide_g, x.beta), x.v, heads_first(y))


def test_generalised_delta_rule() -> None:
    x = Heads(5)
    a, b = -x.k, x.k * x.beta[..., None]
    key = x.normal(L, D)
    for name in ("dplr_recurrence", "dplr_chunkwise"):
        y, _ = fla("generalized_delta_rule.dplr.naive", name)(x.q, key, x.v, a, b, x.wide_g)
        check(generalised_delta_rule(x.q, key, a, b, x.wide_g), x.v, y)
    for name in ("iplr_recurrence", "iplr_chunkwise"):
        y, _ = fla("generalized_delta_rule.iplr.naive", name)(x.q, key, x.v, a, b)
        check(generalised_delta_rule(x.q, key, a, b), x.v, y)


def test_comba() -> None:
    x = Heads(12)
    p, alpha, beta = F.normalize(x.normal(L, D), dim=-1), x.g.exp()[..., None], x.beta[..., None]
    arg = dict(zip(("q", "k", "v", "p", "beta", "g"), time_first(x.q, x.k, x.v, p, x.beta, x.g), strict=True))
    y, _ = fla("comba.naive", "naive_recurrent_comba")(**arg)
    op = generalised_delta_rule(x.q, beta * x.k, alpha * p, -beta * x.k, x.g[..., None].expand_as(x.k))
    check(op, x.v, heads_first(y))


def test_gated_deltanet_2() -> None:
    x = Heads(13)
    e, w = x.normal(L, D).sigmoid(), x.normal(L, V).sigmoid()
    y, _ = fla("gdn2.naive", "naive_recurrent_gdn2")(*time_first(x.q, x.k, x.v, x.wide_g, e, w))
    op = generalised_delta_rule(x.q, x.k, x.wide_g.exp() * e * x.k, -x.k, x.wide_g)
    check(op, w * x.v, heads_first(y))


def test_rwkv7() -> None:
    """Its kernels call the generalised rule with ``a = -κ`` and ``b = κ ⊙ a``; scale 1 in the layer."""
    x = Heads(6)
    rate, key = x.normal(L, D).sigmoid(), x.normal(L, D)
    w = -0.6065306597126334 * x.wide_g.exp()
    y, _ = fla("generalized_delta_rule.dplr.naive", "dplr_recurrence")(x.q, key, x.v, -x.k, x.k * rate, w)
    check(rwkv7(x.q, w, key, x.k, rate), x.v, y * D**0.5)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_delta_product(steps: int, gated: bool) -> None:
    x = Heads(7)
    k, v = F.normalize(x.normal(steps * L, D), dim=-1), x.normal(steps * L, V)
    beta, g = 2 * x.normal(steps * L).sigmoid(), x.g if gated else None
    y, _ = fla("gated_delta_product.naive", "naive_recurrent_gated_delta_product")(
        *time_first(x.q, k, v), g if g is None else time_first(g)[0], *time_first(beta), 0.4,
        num_householder=steps,
    )  # fmt: skip
    op = (
        delta_product(x.q, k, beta, scale=0.4)
        if g is None
        else gated_delta_product(x.q, k, g, beta, scale=0.4)
    )
    rows = torch.zeros(B, H, L, steps, V)
    rows[..., -1, :] = heads_first(y)
    check(op, v, rows.flatten(2, 3))


@pytest.mark.parametrize("gated", [False, True])
def test_preconditioned_gated_delta_rule(gated: bool) -> None:
    x = Heads(8)
    g = x.g if gated else torch.zeros_like(x.g)
    centre = torch.tensor([-0.2, 0.5, -3.0])
    y, *_ = fla("precond_gated_delta_rule.naive", "naive_recurrent_precond_gated_delta_rule")(
        *time_first(x.q, x.raw_k, x.v, x.g_atk, g, x.beta_atk, x.beta), log_atk_scale=centre, x=1.8
    )
    more: dict[str, Any] = {
        "beta_atk": x.beta_atk,
        "g_atk": x.g_atk,
        "log_atk_scale": centre,
        "squash_x": 1.8,
    }
    more |= {"normalise": True, "norm_eps": 0.0}
    if gated:
        check(preconditioned_gated_delta_rule(x.q, x.raw_k, g, x.beta, **more), x.v, heads_first(y))
    else:
        check(preconditioned_delta_rule(x.q, x.raw_k, x.beta, **more), x.v, heads_first(y))


def test_preconditioned_kda() -> None:
    x = Heads(9)
    y, *_ = fla("precond_kda.naive", "naive_recurrent_precond_kda")(
        *time_first(x.q, x.k, x.v, x.wide_g, x.g_atk, x.beta_atk, x.beta)
    )
    op = preconditioned_kda(x.q, x.k, x.wide_g, x.beta, beta_atk=x.beta_atk, g_atk=x.g_atk)
    check(op, x.v, heads_first(y))


@pytest.mark.parametrize("kind", ["recurrent", "chunk"])
def test_qwen3_next(kind: str) -> None:
    x = Heads(10)
    q, k, v, g, beta = time_first(x.q, x.raw_k, x.v, x.g, x.beta)
    y, _ = from_transformers("qwen3_next", f"torch_{kind}_gated_delta_rule")(
        q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True
    )
    check(gated_delta_rule(x.q, x.raw_k, x.g, x.beta, normalise=True), x.v, heads_first(y))


@pytest.mark.parametrize("kind", ["recurrent", "chunk"])
def test_kimi_linear(kind: str) -> None:
    x = Heads(11)
    q, k, v, g, beta = time_first(x.q, x.raw_k, x.v, x.wide_g, x.beta)
    y, _ = from_transformers("kimi_linear", f"{kind}_kimi_delta_attention")(
        q, k, v, g=g, beta=beta, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=True
    )
    check(kda(x.q, x.raw_k, x.wide_g, x.beta, normalise=True), x.v, heads_first(y))
