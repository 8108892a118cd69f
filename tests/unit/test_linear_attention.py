"""Linear attention and its gated forms: RetNet, Lightning, GLA, WLA, GLA-S6, HGRN-2, mLSTM."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from ess_widgets.metrics import reference
from ess_widgets.operators import (
    Recurrence,
    gated_linear_attention,
    gla_s6,
    hgrn2,
    lightning_attention,
    linear_attention,
    mlstm,
    retention,
    weighted_linear_attention,
)
from tests.unit.recurrent import (
    F64,
    assert_outputs,
    assert_padding_is_absent,
    assert_same,
    capped,
    decays,
    matrix_state,
    rand,
    randn,
    randomise,
    rank,
    sizes,
    watch,
)

L, N, WIDTH, HEADS = 24, 5, 3, 4


def qkv(*lead: int, length: int = L, features: int = N, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*lead, length, features)
    return randn(*shape, seed=seed), randn(*shape, seed=seed + 1), randn(*lead, length, WIDTH, seed=seed + 2)


# Against plain loops of the published recurrences


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_linear_attention_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    q, k, v = qkv(length=length, features=n, seed=seed)
    assert_outputs(linear_attention(q, k, scale=1.0), v, matrix_state(q, k, v, torch.ones_like(k)))
    assert_outputs(linear_attention(q, k), v, matrix_state(q, k, v, torch.ones_like(k)) / math.sqrt(n))


@pytest.mark.parametrize("name", ["elu", "exp", "relu", "softmax"])
def test_feature_maps_and_the_causal_normaliser(name: str) -> None:
    def phi(x: Tensor) -> Tensor:
        if name == "elu":
            return torch.where(x > 0, x + 1, x.exp())
        if name == "softmax":
            return x.exp() / x.exp().sum(-1, keepdim=True)
        return x.exp() if name == "exp" else x.clamp(min=0)

    q, k, v = qkv()
    expected = torch.stack([
        sum(phi(q)[i] @ phi(k)[j] * v[j] for j in range(i + 1))
        / (sum(phi(q)[i] @ phi(k)[j] for j in range(i + 1)) + 1e-10)
        for i in range(L)
    ])  # fmt: skip
    op = linear_attention(q, k, feature_map=name, normalise=True, scale=1.0)
    assert_outputs(op, v, expected)
    if name != "relu":
        torch.testing.assert_close(op.matrix().sum(-1), torch.ones(L, dtype=F64), rtol=1e-8, atol=0)


def test_the_normaliser_keeps_its_sign_and_its_eps() -> None:
    q, k, v = qkv()
    scores = (q @ k.mT).tril()
    expected = scores / (scores.sum(-1, keepdim=True) + 0.25) @ v
    assert_outputs(linear_attention(q, k, normalise=True, eps=0.25, scale=1.0), v, expected, rtol=1e-11)


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_retention_and_lightning_attention_decay_at_a_fixed_rate(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    q, k, v = qkv(2, HEADS, length=length, features=n, seed=seed)
    gamma = decays(HEADS, seed=seed)
    for op in retention(q, k, gamma=gamma, scale=1.0), lightning_attention(q, k, -gamma.log(), scale=1.0):
        for head in range(HEADS):
            a = gamma[head].expand(length, n)
            assert_outputs(op[1, head], v[1, head], matrix_state(q[1, head], k[1, head], v[1, head], a))


def test_retention_decays_by_default_like_retnet() -> None:
    q, k, _ = qkv(HEADS)
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(HEADS)], dtype=F64)
    assert torch.equal(retention(q, k).matrix(), retention(q, k, gamma=gamma).matrix())
    assert_same(retention(q[0], k[0]).matrix(), retention(q, k).matrix()[0], 1e-14)
    assert_same(retention(q, k, gamma=0.5).matrix()[2], retention(q[2], k[2], gamma=0.5).matrix(), 1e-14)


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_gated_linear_attention_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    q, k, v = qkv(length=length, features=n, seed=seed)
    gates = decays(length, n, seed=seed)
    assert_outputs(gated_linear_attention(q, k, gates=gates, scale=1.0), v, matrix_state(q, k, v, gates))
    g = -30 * rand(length, n, seed=seed) ** 4
    assert_outputs(gated_linear_attention(q, k, g, scale=1.0), v, matrix_state(q, k, v, g.exp()))
    per_head = gated_linear_attention(q, k, g[:, :1], scale=1.0)
    assert_outputs(per_head, v, matrix_state(q, k, v, g[:, :1].exp().expand(-1, n)))


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_weighted_linear_attention_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    q, k, v = qkv(length=length, features=n, seed=seed)
    w = 20 * randn(n, seed=seed + 3)
    a = torch.sigmoid(w) ** (1 / 16)
    assert_outputs(
        weighted_linear_attention(q, k, w, scale=1.0), v, matrix_state(q, k, v, a.expand(length, n))
    )


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_gla_s6_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    q, k, v = qkv(length=length, features=n, seed=seed)
    delta = F.softplus(4 * randn(length, n, seed=seed + 3))
    a = torch.exp(-torch.arange(1, n + 1, dtype=F64) / 3.0 * delta)
    assert_outputs(gla_s6(q, k, delta, alpha=3.0, scale=1.0), v, matrix_state(q, k, v, a))


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_hgrn2_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    q, _, v = qkv(length=length, features=n, seed=seed)
    f = decays(length, n, seed=seed)
    assert_outputs(hgrn2(q, gates=f, scale=1.0), v, matrix_state(q, 1 - f, v, f))


def test_hgrn2_keeps_the_keys_of_slow_gates() -> None:
    # Gates of 1 - 1e-14 are 1 in float64 to two digits; their logarithms hold all of them.
    g = torch.full((3, 1), -1e-14, dtype=F64)
    op = hgrn2(torch.ones(3, 1), g, scale=1.0)
    torch.testing.assert_close(op.matrix()[2, 0], torch.tensor(1e-14, dtype=F64), rtol=1e-12, atol=0)


def stabilised_mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, eps: float) -> Tensor:
    C, n, m = torch.zeros(q.shape[-1], v.shape[-1], dtype=F64), torch.zeros(q.shape[-1], dtype=F64), 0.0
    q = q / math.sqrt(q.shape[-1])
    outputs = []
    for t in range(len(q)):
        log_f = float(F.logsigmoid(f[t]))
        previous, m = m, max(log_f + m, float(i[t]))
        a, b = math.exp(log_f + previous - m), math.exp(float(i[t]) - m)
        C, n = a * C + b * torch.outer(k[t], v[t]), a * n + b * k[t]
        outputs.append(q[t] @ C / (max(abs(float(q[t] @ n)), math.exp(-m)) + eps))
    return torch.stack(outputs)


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_mlstm_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    q, k, v = qkv(length=length, features=n, seed=seed)
    i, f = 5 * randn(length, seed=seed + 3), 3 + 6 * randn(length, seed=seed + 4)
    for eps in (0.0, 1e-6):
        # q·n may cancel, by at most |q|·|n|.
        assert_outputs(mlstm(q, k, i, f, eps=eps), v, stabilised_mlstm(q, k, v, i, f, eps), rtol=1e-10)


def test_mlstm_does_not_depend_on_its_stabiliser() -> None:
    # Without eps the textbook form, max(|q·n|, 1) and plain exponentials, is the same.
    q, k, _ = qkv()
    i, f = randn(L, seed=3), 2 + randn(L, seed=4)
    D = torch.zeros(L, L, dtype=F64)
    for row in range(L):
        for column in range(row + 1):
            D[row, column] = F.logsigmoid(f[column + 1 : row + 1]).sum() + i[column]
    scores = ((q @ k.mT) / math.sqrt(N) * D.exp()).tril()
    expected = scores / scores.sum(-1, keepdim=True).abs().clamp(min=1)
    assert_same(mlstm(q, k, i, f, eps=0.0).matrix(), expected, 1e-12)


@pytest.mark.parametrize("shift", [-2000.0, 0.0, 2000.0])
def test_mlstm_gates_far_out(shift: float) -> None:
    q, k, _ = qkv()
    T = mlstm(q, k, randn(L, seed=3) + shift, torch.linspace(-1e4, 1e4, L), eps=0.0).matrix()
    assert bool(torch.isfinite(T).all())
    assert bool(T.any()) == (shift > -2000)
    assert not mlstm(0 * q, k, randn(L, seed=3) + shift, torch.zeros(L), eps=0.0).matrix().any()


# Extreme decays


def test_resets_cut_and_long_products_neither_overflow_nor_lose_digits() -> None:
    length = 300
    q = k = torch.ones(length, 3, dtype=F64)
    a = torch.tensor([1e-12, 1 - 1e-9, 1.0], dtype=F64).expand(length, 3).clone()
    a[200] = 0.0
    T = gated_linear_attention(q, k, gates=a, scale=1.0).matrix()
    assert not T[200:, :200].any()
    i = torch.arange(length, dtype=F64)
    lag = i[:, None] - i
    within = (lag >= 0) & ((i[:, None] >= 200) == (i >= 200))
    expected = torch.where(within, 1e-12 ** lag.clamp(min=0) + (1 - 1e-9) ** lag.clamp(min=0) + 1.0, 0.0)
    torch.testing.assert_close(T, expected, rtol=1e-12, atol=0)
    logs = gated_linear_attention(q, k, a.log(), scale=1.0).matrix()
    torch.testing.assert_close(logs, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("g", [-1e4, -1e300, -math.inf])
def test_log_gates_that_underflow_forget(g: float) -> None:
    q, k, _ = qkv()
    T = gated_linear_attention(q, k, torch.full((L, 1), g, dtype=F64), scale=1.0).matrix()
    assert_same(T, ((q * k).sum(-1)).diag(), 1e-15)


# Against flash-linear-attention and transformers


def fla(name: str) -> ModuleType:
    return pytest.importorskip(f"fla.ops.{name}.naive", exc_type=ImportError)  # type: ignore[no-any-return]


def swap(x: Tensor) -> Tensor:
    """Between ``(B, H, T, ...)`` and the ``(B, T, H, ...)`` of flash-linear-attention."""
    return x.transpose(1, 2)


def test_flash_linear_attention_references() -> None:
    q, k, v = qkv(2, HEADS, length=64)
    g = F.logsigmoid(randn(2, HEADS, 64, N, seed=7))
    # They compute in float32.
    tight = 1e-6

    plain, _ = fla("linear_attn").naive_recurrent_linear_attn(swap(q), swap(k), swap(v))
    assert_same(linear_attention(q, k).matrix() @ v, swap(plain), tight)
    qp, kp = q.exp(), k.exp()
    normalised, _ = fla("linear_attn").naive_recurrent_linear_attn(
        swap(qp), swap(kp), swap(v), normalize=True
    )
    assert_same(linear_attention(qp, kp, normalise=True).matrix() @ v, swap(normalised), tight)
    assert_same(
        linear_attention(q, k, feature_map="exp", normalise=True, scale=0.7).matrix() @ v,
        swap(fla("linear_attn").naive_chunk_linear_attn(swap(qp), swap(kp), swap(v), 0.7, normalize=True)),
        1e-12,
    )
    assert_same(retention(q, k).matrix() @ v, fla("retention").naive_retention(q, k, v), tight)
    gated, _ = fla("gla").naive_recurrent_gla(swap(q), swap(k), swap(v), swap(g))
    assert_same(gated_linear_attention(q, k, g).matrix() @ v, swap(gated), tight)
    simple, _ = fla("simple_gla").naive_recurrent_simple_gla(swap(q), swap(k), swap(v), swap(g[..., 0]))
    assert_same(gated_linear_attention(q, k, g[..., :1]).matrix() @ v, swap(simple), tight)
    expanded, _ = fla("gla").naive_recurrent_gla(swap(q), swap(1 - g.exp()), swap(v), swap(g))
    assert_same(hgrn2(q, g).matrix() @ v, swap(expanded), tight)


def test_minimax_lightning_attention() -> None:
    from transformers import MiniMaxConfig, MiniMaxModel

    config = MiniMaxConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, num_local_experts=2, num_experts_per_tok=1, block_size=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    )  # fmt: skip
    model = randomise(MiniMaxModel(config))
    attention = model.layers[2].self_attn
    with torch.no_grad(), watch(attention, "qkv_proj", "norm") as seen:
        model(torch.arange(2 * L).view(2, L) % 32, use_cache=False)
    q, k, v = F.silu(seen.out["qkv_proj"]).view(2, L, 4, 12).transpose(1, 2).split(4, dim=-1)
    slope = torch.tensor([2 ** (-8 * (h + 1) / 4) * (1 - 2 / (2 + 1e-5) + 1e-5) for h in range(4)])
    op = lightning_attention(q, k, slope, scale=1.0)
    y = seen.args["norm"][0].view(2, L, 4, 4).transpose(1, 2)
    assert_same(op.matrix() @ v.double(), y, 1e-6)


def test_xlstm_mlstm() -> None:
    from transformers import xLSTMConfig, xLSTMModel

    config = xLSTMConfig(
        vocab_size=32, hidden_size=16, embedding_dim=16, num_hidden_layers=2, num_blocks=2, num_heads=2,
        chunk_size=8, qk_dim_factor=0.5, v_dim_factor=1.0,
    )  # fmt: skip
    model = randomise(xLSTMModel(config), scale=1.0)
    with torch.no_grad(), watch(model.blocks[1].mlstm_layer, "mlstm_backend") as seen:
        model(torch.arange(2 * L).view(2, L) * 7 % 32, use_cache=False)
    given_, (h, *_) = seen.kwargs["mlstm_backend"], seen.out["mlstm_backend"]
    op = mlstm(given_["query"], given_["key"], given_["igate"], given_["fgate"], eps=config.eps)
    assert_same(op.matrix() @ given_["value"].double(), h, 5e-6)


# Effective state-size


def test_ess_of_random_features_is_their_number() -> None:
    q, k, _ = qkv(length=20)
    w, g = randn(N, seed=5), F.logsigmoid(randn(20, N, seed=6)) / 4
    for op in (
        linear_attention(q, k),
        linear_attention(q, k, feature_map="exp", normalise=True),
        retention(q, k, gamma=0.9),
        lightning_attention(q, k, 0.1),
        gated_linear_attention(q, k, g),
        weighted_linear_attention(q, k, w),
        gla_s6(q, k, torch.ones(20, 1), alpha=16.0),
        hgrn2(q, g),
        mlstm(q, k, randn(20, seed=3), 4 + randn(20, seed=4)),
    ):
        assert torch.equal(rank(op), capped(N, 20)), op
        assert op.state_size.tolist() == [min(N, i) for i in range(20)]


def test_ess_with_rotary_embedding() -> None:
    q, k, _ = qkv(length=20, features=4)
    angle = torch.arange(20, dtype=F64)[:, None] * torch.tensor([1.0, 0.1])

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)

    assert torch.equal(rank(linear_attention(rotate(q), rotate(k))), capped(4, 20))


def test_ess_of_all_ones_and_of_the_causal_mean_is_one() -> None:
    ones = torch.ones(12, 3)
    i = torch.arange(1, 12, dtype=F64)
    op = linear_attention(ones[:, :1], ones[:, :1])
    torch.testing.assert_close(reference.spectrum(op.matrix())[1:, 0], (i * (12 - i)).sqrt())
    mean = linear_attention(ones, ones, normalise=True)
    assert_same(mean.matrix()[5, :6], torch.full((6,), 1 / 6, dtype=F64), 1e-9)
    assert torch.equal(rank(op), capped(1, 12)) and torch.equal(rank(mean), capped(1, 12))


def test_a_feature_that_forgets_at_once_adds_nothing() -> None:
    q, k, _ = qkv(length=20)
    gates = torch.tensor([0.0, 0.5, 0.9, 0.9, 1.0])
    assert torch.equal(rank(gated_linear_attention(q, k, gates=gates.expand(20, N))), capped(N - 1, 20))


def test_ess_of_a_single_pole() -> None:
    length = 16
    op = weighted_linear_attention(
        torch.ones(length, 1), torch.ones(length, 1), torch.tensor([4.0]), beta=1.0
    )
    a = float(torch.sigmoid(torch.tensor(4.0, dtype=F64)))
    assert torch.equal(rank(op), capped(1, length))
    sigma = reference.spectrum(op.matrix())[1:, 0]
    i = torch.arange(1, length, dtype=F64)
    expected = a * torch.sqrt((1 - a ** (2 * (length - i))) * (1 - a ** (2 * i))) / (1 - a**2)
    torch.testing.assert_close(sigma, expected, rtol=1e-12, atol=0)


def test_a_reset_separates_documents() -> None:
    q, k, _ = qkv(length=20)
    gates = torch.ones(20, 1)
    gates[12] = 0.0
    i = torch.arange(20)
    expected = torch.minimum(
        torch.minimum(i - 12 * (i >= 12), torch.where(i < 12, 12, 20) - i), torch.tensor(N)
    )
    assert torch.equal(rank(gated_linear_attention(q, k, gates=gates)), expected.to(F64))


# Layout, precision, padding, errors


def test_heads_share_keys_and_gates_by_groups() -> None:
    q, k, _ = qkv(2, HEADS)
    g = F.logsigmoid(randn(2, 2, L, N, seed=7))
    grouped = gated_linear_attention(q, k[:, :2], g)
    assert grouped.shape == (2, HEADS, L, L)
    for head in range(HEADS):
        single = gated_linear_attention(q[:, head], k[:, head // 2], g[:, head // 2])
        assert_same(grouped.matrix()[:, head], single.matrix(), 1e-14)
    assert_same(
        linear_attention(q, k[:1, :1]).matrix()[1, 2], linear_attention(q[1, 2], k[0, 0]).matrix(), 1e-14
    )


def test_gates_may_exceed_one_by_rounding() -> None:
    q, k, _ = qkv()
    above = torch.full((L, 1), 1.0 + torch.finfo(torch.float32).eps)
    open_gates = linear_attention(q, k).matrix()
    assert_same(gated_linear_attention(q, k, gates=above).matrix(), open_gates, 1e-5)
    assert_same(gated_linear_attention(q, k, above.log()).matrix(), open_gates, 1e-5)


Make = Callable[..., Recurrence]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_cast_up_first(dtype: torch.dtype) -> None:
    q, k, _ = (x.to(dtype) for x in qkv(HEADS))
    g = F.logsigmoid(randn(HEADS, L, N, seed=7)).to(dtype)
    i, f = randn(HEADS, L, seed=3).to(dtype), randn(HEADS, L, seed=4).to(dtype)
    cases: list[tuple[Make, tuple[Any, ...], dict[str, Any]]] = [
        (linear_attention, (q, k), {"feature_map": "elu", "normalise": True}),
        (retention, (q, k), {}),
        (lightning_attention, (q, k, torch.arange(HEADS, dtype=dtype)), {}),
        (gated_linear_attention, (q, k, g), {}),
        (weighted_linear_attention, (q, k, g[:, 0]), {}),
        (gla_s6, (q, k, -g), {"alpha": 4.0}),
        (hgrn2, (q, g), {}),
        (mlstm, (q, k, i, f), {}),
    ]
    for make, args, options in cases:
        op = make(*args, **options)
        assert op.dtype is F64
        assert torch.equal(op.matrix(), make(*(x.double() for x in args), **options).matrix())
        assert torch.equal(op.matrix(), make(*(x.float().numpy() for x in args), **options).matrix())


def test_padding_is_absent() -> None:
    q, k, _ = qkv(HEADS)
    g = F.logsigmoid(randn(HEADS, L, N, seed=7))
    positions = {"q": (q, -2), "k": (k, -2)}
    assert_padding_is_absent(linear_attention, positions, feature_map="elu", normalise=True)
    assert_padding_is_absent(linear_attention, positions, normalise=True, eps=0.0)
    assert_padding_is_absent(retention, positions)
    assert_padding_is_absent(lightning_attention, positions, slope_rate=0.3)
    assert_padding_is_absent(gated_linear_attention, positions | {"g": (g, -2)})
    assert_padding_is_absent(gated_linear_attention, positions | {"gates": (g[:, :, :1].exp(), -2)})
    assert_padding_is_absent(weighted_linear_attention, positions, w=g[:, 0])
    assert_padding_is_absent(gla_s6, positions | {"delta": (-g, -2)}, alpha=2.0)
    assert_padding_is_absent(hgrn2, {"q": (q, -2), "g": (g, -2)})
    gates = {"igate": (randn(HEADS, L, seed=3), -1), "fgate": (randn(HEADS, L, seed=4), -1)}
    assert_padding_is_absent(mlstm, positions | gates)


def test_a_mask_may_add_samples() -> None:
    q, k, _ = qkv(HEADS)
    valid = torch.ones(2, 1, L, dtype=torch.bool)
    valid[1, :, :5] = False
    T = linear_attention(q, k, normalise=True, valid=valid).matrix()
    assert T.shape == (2, HEADS, L, L)
    assert torch.equal(T[0], linear_attention(q, k, normalise=True).matrix())
    assert_same(T[1, :, 5:, 5:], linear_attention(q[:, 5:], k[:, 5:], normalise=True).matrix(), 1e-12)


def test_gradients_reach_queries_keys_and_gates() -> None:
    q, k, _ = (x.requires_grad_() for x in qkv(length=4, features=2))
    g = (-rand(4, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: gated_linear_attention(*x).matrix(), (q, k, g))
    assert torch.autograd.gradcheck(
        lambda *x: linear_attention(*x, feature_map="elu", normalise=True).matrix(), (q, k)
    )
    assert torch.autograd.gradcheck(lambda q, k, g: mlstm(q, k, g[:, 0], g[:, 1]).matrix(), (q, k, g))


def test_what_they_are_called() -> None:
    q, k, _ = qkv()
    for op, name in (
        (linear_attention(q, k), "linear attention"),
        (retention(q, k), "retention"),
        (lightning_attention(q, k, 0.1), "lightning attention"),
        (gated_linear_attention(q, k, -k.abs()), "gated linear attention"),
        (weighted_linear_attention(q, k, k[0]), "weighted linear attention"),
        (gla_s6(q, k, k.abs(), alpha=1.0), "GLA-S6"),
        (hgrn2(q, -k.abs()), "HGRN-2"),
        (mlstm(q, k, q[:, 0], k[:, 0]), "mLSTM"),
    ):
        assert name in repr(op)


Q, K = qkv()[:2]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear_attention(Q.tolist(), K), TypeError, "q must be a torch tensor or a numpy array"),
        (lambda: linear_attention(Q.long(), K), TypeError, "q must hold real floating-point numbers"),
        (lambda: linear_attention(Q, K.to(torch.complex64)), TypeError, "k must hold real floating-point"),
        (
            lambda: linear_attention(Q[0], K),
            ValueError,
            r"q and k must be \(..., heads, L, d_k\) or \(L, d_k\)",
        ),
        (lambda: linear_attention(Q[:0], K[:0]), ValueError, "must not be empty"),
        (lambda: linear_attention(Q[:, :2], K), ValueError, "the same number of features"),
        (lambda: linear_attention(Q[-1:], K), ValueError, "without a cached state"),
        (lambda: linear_attention(Q.expand(4, L, N), K.expand(3, L, N)), ValueError, "number of heads of q"),
        (lambda: linear_attention(Q / 0, K), ValueError, r"q is not finite: .* say so with valid="),
        (lambda: linear_attention(Q, K, feature_map="taylor"), ValueError, "elu, exp, relu, softmax or None"),
        (
            lambda: linear_attention(1e3 * Q, K, feature_map="exp"),
            ValueError,
            r"feature_map\(q\) is not finite",
        ),
        (
            lambda: linear_attention(0 * Q, K, normalise=True, eps=0.0),
            ValueError,
            "the normaliser .* is zero",
        ),
        (lambda: linear_attention(Q, K, scale=math.nan), ValueError, "scale must be finite"),
        (lambda: linear_attention(Q, K, valid=torch.ones(L)), TypeError, "valid must be boolean"),
        (lambda: linear_attention(Q, K, valid=torch.ones(3).bool()), ValueError, "valid of shape"),
        (lambda: retention(Q, K, gamma=1.5), ValueError, r"gamma.* = 1.5 is outside \[0, 1\]"),
        (lambda: retention(Q, K, gamma=torch.ones(3)), ValueError, "gamma of shape .* one number per head"),
        (lambda: lightning_attention(Q, K, -0.1), ValueError, "slope_rate.* the decay of one step is exp"),
        (lambda: lightning_attention(Q, K, math.nan), ValueError, "slope_rate.* = nan"),
        (lambda: gated_linear_attention(Q, K), TypeError, "exactly one of g .* and gates"),
        (lambda: gated_linear_attention(Q, K, -K.abs(), gates=K), TypeError, "exactly one of g"),
        (lambda: gated_linear_attention(Q, K, K.sigmoid()), ValueError, "pass gates themselves as gates="),
        (lambda: gated_linear_attention(Q, K, gates=-K.abs()), ValueError, "pass their logarithms as g="),
        (lambda: gated_linear_attention(Q, K, K / 0), ValueError, r"g\[.* log gates are at most 0"),
        (lambda: gated_linear_attention(Q, K, -K.abs()[0]), ValueError, r"g must be \(..., heads, L, d_k\)"),
        (lambda: gated_linear_attention(Q, K, -K.abs()[:, :2]), ValueError, r"g of shape \(24, 2\)"),
        (lambda: weighted_linear_attention(Q, K, K[0], beta=0), ValueError, "beta must be positive"),
        (lambda: weighted_linear_attention(Q, K, K), ValueError, r"w of shape .* \(..., heads, d_k\)"),
        (lambda: weighted_linear_attention(Q, K, K[0] / 0), ValueError, "w is not finite"),
        (lambda: gla_s6(Q, K, K, alpha=1.0), ValueError, "delta.* apply softplus before"),
        (lambda: gla_s6(Q, K, K.abs(), alpha=-1.0), ValueError, "alpha must be positive"),
        (lambda: gla_s6(Q, K, K.abs()[0], alpha=1.0), ValueError, r"delta must be \(..., heads, L, d_k\)"),
        (lambda: hgrn2(Q[0], -K.abs()), ValueError, r"q must be \(..., heads, L, d_k\)"),
        (lambda: hgrn2(Q), TypeError, "exactly one of g"),
        (lambda: mlstm(Q, K, K[:, 0], K), ValueError, r"fgate of shape .* \(..., heads, L\)"),
        (lambda: mlstm(Q, K, K[:, 0] / 0, K[:, 0]), ValueError, "igate is not finite"),
        (lambda: mlstm(Q, K, K[:, 0], K[:, 0], eps=-1), ValueError, "eps must not be negative"),
    ],
)
def test_errors_say_what_to_do(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        call()
