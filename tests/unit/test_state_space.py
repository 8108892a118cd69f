"""State-space models: S4D, S5, LRU, RG-LRU, S6 (Mamba) and SSD (Mamba-2)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.operators import lru, rg_lru, s4d, s5, selective_ssm, ssd
from tests.unit.recurrent import (
    F64,
    assert_outputs,
    assert_padding_is_absent,
    assert_same,
    capped,
    rand,
    randn,
    randomise,
    rank,
    sizes,
    watch,
)

L, N, CHANNELS = 20, 4, 6


def complex_randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.complex(randn(*shape, seed=seed), randn(*shape, seed=seed + 1))


def poles(*shape: int, seed: int = 0) -> Tensor:
    """Decaying poles in continuous time."""
    return torch.complex(-0.1 - rand(*shape, seed=seed), 3 * randn(*shape, seed=seed + 1))


def scan(A: Tensor, B: Tensor, C: Tensor, D: Tensor, u: Tensor) -> Tensor:
    """``x = A ⊙ x + B u``, ``y = Re(C x) + D u`` for ``A (n,)``, ``B (n, d)``, ``C (d, n)``, ``u (L, d)``."""
    x = torch.zeros_like(A)
    outputs = []
    for u_t in u:
        x = A * x + B @ u_t.to(B.dtype)
        y = C @ x
        outputs.append((y.real if y.is_complex() else y) + D * u_t)
    return torch.stack(outputs)


def zoh(A: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return (step * A).exp(), ((step * A).exp() - 1) / A


def bilinear(A: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return (1 + step * A / 2) / (1 - step * A / 2), step / (1 - step * A / 2)


# Against plain loops of the published recurrences


@settings(deadline=None, max_examples=25)
@given(sizes(), st.sampled_from(["zoh", "bilinear"]))
def test_s4d_is_the_plain_recurrence(size: tuple[int, int, int], method: Any) -> None:
    length, n, seed = size
    A, B, C = poles(2, n, seed=seed), complex_randn(2, n, seed=seed + 2), complex_randn(2, n, seed=seed + 4)
    delta, D, u = 0.05 + rand(2, seed=seed), randn(2, seed=seed + 6), randn(length, 1, seed=seed + 7)
    op = s4d(A, B, C, delta, D, length=length, discretization=method)
    real_op = s4d(A.real, B.real, C.real, delta, D, length=length, discretization=method)
    discretise = zoh if method == "zoh" else bilinear
    for c in range(2):
        a, b = discretise(A[c], delta[c])
        assert_outputs(op[c], u, scan(a, (b * B[c])[:, None], 2 * C[c][None], D[c], u))
        a, b = discretise(A[c].real, delta[c])
        assert_outputs(real_op[c], u, scan(a, (b * B[c].real)[:, None], C[c].real[None], D[c], u))


def test_s4d_is_the_published_kernel() -> None:
    # S4D's own kernel: K_l = 2 Re(Σ C (exp(ΔA) - 1)/A exp(ΔA l)).
    A, C, log_dt = poles(CHANNELS, N), complex_randn(CHANNELS, N, seed=2), randn(CHANNELS) - 2
    dtA = A * log_dt.exp()[:, None]
    K = dtA[..., None] * torch.arange(L)
    kernel = 2 * torch.einsum("hn,hnl->hl", C * (dtA.exp() - 1) / A, K.exp()).real
    op = s4d(A, torch.ones(CHANNELS, N), C, log_dt.exp(), length=L)
    assert_same(op.matrix()[:, :, 0], kernel, 1e-12)
    assert_same(op.matrix()[:, -1].flip(-1), kernel, 1e-12)


def test_zero_order_hold_keeps_its_digits_at_slow_poles() -> None:
    ones = torch.ones(1, 1, dtype=F64)
    for A in (-1e-12 * ones, 0 * ones, torch.complex(-1e-13 * ones, 1e-12 * ones)):
        T = s4d(A, ones, ones, ones[0], length=2).matrix()[0]
        torch.testing.assert_close(
            T[0, 0], torch.tensor(2.0 if A.is_complex() else 1.0, dtype=F64), rtol=1e-11, atol=0
        )
    step = torch.tensor([1e-9], dtype=F64)
    imaginary = s4d(torch.complex(0 * ones, ones), ones, torch.complex(0 * ones, ones), step, length=1)
    # 2·Re(i (exp(iΔ) - 1)/i) = 2 (cos Δ - 1) = -Δ².
    torch.testing.assert_close(imaginary.matrix().squeeze(), -(step.squeeze() ** 2), rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_s5_and_lru_are_the_plain_recurrences(length: int, d: int, n: int, seed: int) -> None:
    A, B, C = poles(n, seed=seed), complex_randn(n, d, seed=seed + 2), complex_randn(d, n, seed=seed + 4)
    delta, D, u = 0.05 + rand(n, seed=seed), randn(d, seed=seed + 6), randn(length, d, seed=seed + 7)
    for method, discretise in (("zoh", zoh), ("bilinear", bilinear)):
        a, b = discretise(A, delta)
        op = s5(A, B, C, delta, D, length=length, discretization=method)
        assert op.block == d and op.shape == (d * length, d * length)
        expected = scan(a, b[:, None] * B, 2 * C, D, u).reshape(-1, 1)
        assert_outputs(op, u.reshape(-1, 1), expected)
    a, b = zoh(A, torch.tensor(0.5, dtype=F64))
    op = s5(A, B, C, 0.5, D.diag(), length=length, conj_sym=False)
    assert_outputs(op, u.reshape(-1, 1), scan(a, b[:, None] * B, C, D, u).reshape(-1, 1))
    Lambda = A.exp()
    gamma = torch.sqrt(1 - Lambda.abs() ** 2)
    op = lru(Lambda, B, C, D, gamma=gamma, length=length)
    assert_outputs(op, u.reshape(-1, 1), scan(Lambda, gamma[:, None] * B, C, D, u).reshape(-1, 1))
    assert torch.equal(op.matrix(), lru(Lambda, gamma[:, None] * B, C, D, length=length).matrix())


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_selective_ssm_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    delta = F.softplus(4 * randn(2, CHANNELS, length, seed=seed))
    A, D = -torch.exp(3 * randn(CHANNELS, n, seed=seed + 1)), randn(CHANNELS, seed=seed + 2)
    B, C, u = (
        randn(2, length, n, seed=seed + 3),
        randn(2, length, n, seed=seed + 4),
        randn(length, 1, seed=seed),
    )
    op = selective_ssm(delta, A, B, C, D)
    assert op.shape == (2, CHANNELS, length, length)
    for c in range(CHANNELS):
        h, y = torch.zeros(n, dtype=F64), []
        for t in range(length):
            h = torch.exp(delta[1, c, t] * A[c]) * h + delta[1, c, t] * B[1, t] * u[t]
            y.append(C[1, t] @ h + D[c] * u[t])
        assert_outputs(op[1, c], u, torch.stack(y))


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_ssd_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, n, seed = size
    heads, groups = 4, 2
    dt, A = F.softplus(4 * randn(2, heads, length, seed=seed)), -torch.exp(3 * randn(heads, seed=seed + 1))
    D, u = randn(heads, seed=seed + 2), randn(length, 3, seed=seed + 5)
    B, C = randn(2, groups, length, n, seed=seed + 3), randn(2, groups, length, n, seed=seed + 4)
    op = ssd(dt, A, B, C, D)
    for h in range(heads):
        state, y = torch.zeros(n, 3, dtype=F64), []
        for t in range(length):
            written = dt[1, h, t] * torch.outer(B[1, h // 2, t], u[t])
            state = torch.exp(dt[1, h, t] * A[h]) * state + written
            y.append(C[1, h // 2, t] @ state + D[h] * u[t])
        assert_outputs(op[1, h], u, torch.stack(y))


@settings(deadline=None, max_examples=25)
@given(sizes())
def test_rg_lru_is_the_plain_recurrence(size: tuple[int, int, int]) -> None:
    length, channels, seed = size
    r, i = rand(channels, length, seed=seed), rand(channels, length, seed=seed + 1)
    param, u = 5 * randn(channels, seed=seed + 2), randn(length, 1, seed=seed + 3)
    reset = rand(length, seed=seed + 4) < 0.2
    for given_reset in (None, reset):
        op = rg_lru(r, i, param, reset=given_reset)
        for c in range(channels):
            h, y = torch.zeros(1, dtype=F64), []
            for t in range(length):
                log_a = -8 * F.softplus(param[c]) * r[c, t]
                a, factor = torch.exp(log_a), torch.sqrt(-torch.expm1(2 * log_a))
                if t == 0 if given_reset is None else bool(reset[t]):
                    a, factor = torch.zeros(()), torch.ones(())
                h = a * h + factor * i[c, t] * u[t]
                y.append(h)
            assert_outputs(op[c], u, torch.stack(y))


# Extreme steps


def test_decays_from_nothing_to_everything() -> None:
    length = 200
    delta = torch.ones(1, length, dtype=F64)
    delta[0, 100] = 1e6
    A = torch.tensor([[-27.6, -1e-9, 0.0]], dtype=F64)
    ones = torch.ones(length, 3, dtype=F64)
    T = selective_ssm(delta, A, ones, ones).matrix()[0]
    total = delta[0].cumsum(0)
    lag = (total[:, None] - total).clamp(min=0)
    expected = (delta[0] * torch.exp(A[0] * lag[..., None]).sum(-1)).tril()
    torch.testing.assert_close(T, expected, rtol=1e-9, atol=0)
    heads = ssd(delta.expand(3, -1), A[0], ones[None], ones[None] / 3).matrix()
    torch.testing.assert_close(heads.sum(0), expected, rtol=1e-9, atol=0)


def test_a_huge_step_forgets_and_a_step_of_zero_does_nothing() -> None:
    delta, A = torch.ones(1, 4, dtype=F64), torch.tensor([[-1.0]], dtype=F64)
    delta[0, 2] = 1e308
    T = selective_ssm(delta, 10 * A, torch.ones(4, 1), torch.ones(4, 1)).matrix()[0]
    assert T[2:, :2].tolist() == [[0.0, 0.0]] * 2 and T[2, 2] == 1e308
    delta[0, 2] = 0.0
    T = selective_ssm(delta, A, torch.ones(4, 1), torch.ones(4, 1)).matrix()[0]
    assert T[:, 2].tolist() == [0.0] * 4
    assert torch.equal(T[2, :2], T[1, :2])


# Against transformers


def tokens(vocabulary: int = 32) -> Tensor:
    return torch.arange(2 * L).view(2, L) * 7 % vocabulary


def convolved(conv: torch.nn.Conv1d, x: Tensor) -> Tensor:
    """Causal convolution and SiLU, ``(batch, L, channels)``."""
    return F.silu(conv(x.mT)[..., : x.shape[-2]]).mT


def test_transformers_mamba() -> None:
    from transformers import MambaConfig, MambaModel

    config = MambaConfig(vocab_size=32, hidden_size=8, state_size=N, num_hidden_layers=2, time_step_rank=3)
    model = randomise(MambaModel(config), scale=0.5)
    mixer = model.layers[1].mixer
    with torch.no_grad(), watch(mixer, "in_proj", "x_proj", "out_proj") as seen:
        model(tokens(), use_cache=False)
    u, gate = seen.args["x_proj"][0], seen.out["in_proj"].chunk(2, dim=-1)[1]
    low_rank, B, C = seen.out["x_proj"].split([3, N, N], dim=-1)
    delta = F.softplus(mixer.dt_proj(low_rank)).mT
    op = selective_ssm(delta, -mixer.A_log.exp(), B, C, mixer.D)
    assert op.shape == (2, 16, L, L)
    y = (op.matrix() @ u.mT[..., None].double())[..., 0].mT
    assert_same(y * F.silu(gate), seen.args["out_proj"][0], 1e-6)


def test_transformers_mamba2() -> None:
    from transformers import Mamba2Config, Mamba2Model

    config = Mamba2Config(
        vocab_size=32, hidden_size=8, state_size=N, num_hidden_layers=2, num_heads=4, head_dim=4, n_groups=2,
        chunk_size=8,
    )  # fmt: skip
    model = randomise(Mamba2Model(config), scale=0.5)
    mixer = model.layers[1].mixer
    with torch.no_grad(), watch(mixer, "in_proj", "norm") as seen:
        model(tokens(), use_cache=False)
    _, mixed, dt = seen.out["in_proj"].split([16, 16 + 4 * N, 4], dim=-1)
    u, B, C = convolved(mixer.conv1d, mixed).split([16, 2 * N, 2 * N], dim=-1)
    B, C = (x.reshape(2, L, 2, N).transpose(1, 2) for x in (B, C))
    op = ssd(F.softplus(dt + mixer.dt_bias).mT, -mixer.A_log.exp(), B, C, mixer.D)
    y = op.matrix() @ u.reshape(2, L, 4, 4).transpose(1, 2).double()
    assert_same(y.transpose(1, 2).reshape(2, L, 16), seen.args["norm"][0], 1e-6)


def test_transformers_rg_lru() -> None:
    from transformers import RecurrentGemmaConfig, RecurrentGemmaModel

    config = RecurrentGemmaConfig(
        vocab_size=32, hidden_size=8, lru_width=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, attention_window_size=8,
    )  # fmt: skip
    model = randomise(RecurrentGemmaModel(config), scale=0.5)
    block = model.layers[1].temporal_block
    with torch.no_grad(), watch(block, "rg_lru") as seen:
        model(tokens(), use_cache=False)
    unit, u = block.rg_lru, seen.args["rg_lru"][0]

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        return (
            torch.sigmoid(torch.einsum("blhi,hij->blhj", u.view(2, L, 2, 4), weight) + bias)
            .reshape(2, L, 8)
            .mT
        )

    r = gate(unit.recurrent_gate_weight, unit.recurrent_gate_bias)
    i = gate(unit.input_gate_weight, unit.input_gate_bias)
    op = rg_lru(r, i, unit.recurrent_param)
    y = (op.matrix() @ u.mT[..., None].double())[..., 0].mT
    assert_same(y, seen.out["rg_lru"], 1e-6)


# Effective state-size


def test_ess_is_the_number_of_poles() -> None:
    delta, A = 0.2 + rand(2, L), -torch.arange(1.0, N + 1).expand(2, N) / 2
    B, C = randn(L, N), randn(L, N, seed=1)
    i = torch.arange(L)
    for op in (
        selective_ssm(delta, A, B, C),
        ssd(delta, -torch.ones(2), B[None], C[None]),
        s4d(A, torch.ones(2, N), C[:2], delta[:, 0], length=L),
    ):
        assert torch.equal(rank(op), capped(N, L).expand(2, L)), op
        assert torch.equal(op.state_size, i.clamp(max=N))
    # A complex pole with its conjugate counts twice, a repeated one once.
    op = s4d(poles(1, 2), torch.ones(1, 2), complex_randn(1, 2), torch.ones(1), length=L)
    assert torch.equal(rank(op)[0], capped(4, L))
    assert torch.equal(op.state_size, i.clamp(max=4))
    repeated = s4d(poles(1, 1).expand(1, 3), torch.ones(1, 3), complex_randn(1, 3), torch.ones(1), length=L)
    assert torch.equal(rank(repeated)[0], capped(2, L))
    gated = rg_lru(rand(3, L), rand(3, L, seed=1), torch.zeros(3), c=0.5)
    assert torch.equal(rank(gated), capped(1, L).expand(3, L))
    assert torch.equal(gated.state_size, i.clamp(max=1))


def test_state_size_of_a_whole_layer() -> None:
    d, n, length = 3, 4, 10
    B, C = complex_randn(n, d), complex_randn(d, n, seed=2)
    for op in s5(poles(n), B, C, 0.1, length=length), lru(poles(n).exp(), B, C, length=length):
        assert op.block == d and op.length == length
        assert op.state_size.tolist() == [min(2 * n, d * i) for i in range(length)]
        T = op.matrix()
        ranks = [int(torch.linalg.matrix_rank(T[d * i :, : d * i], rtol=1e-11)) for i in range(1, length)]
        assert ranks == [min(2 * n, d * i, d * (length - i)) for i in range(1, length)]
    real = s5(-rand(n), B.real, C.real, 0.1, length=length, conj_sym=False)
    assert real.state_size.tolist() == [min(n, d * i) for i in range(length)]


# Layout, precision, padding, errors


def test_vectors_per_channel_or_per_group_of_channels() -> None:
    delta, A = rand(2, CHANNELS, L), -rand(CHANNELS, N)
    B, C = randn(2, 3, L, N), randn(2, L, N, seed=1)
    T = selective_ssm(delta, A, B, C).matrix()
    for c in range(CHANNELS):
        single = selective_ssm(delta[:, c : c + 1], A[c : c + 1], B[:, c // 2], C).matrix()[:, 0]
        assert_same(T[:, c], single, 1e-14)
    full = selective_ssm(delta, A, B.repeat_interleave(2, dim=1), C).matrix()
    assert torch.equal(full, T)
    for_all = selective_ssm(delta, A, B[0, 0], C).matrix()
    assert torch.equal(for_all, selective_ssm(delta, A, B[:1, 0].expand(2, L, N), C).matrix())


def test_samples_may_share_what_does_not_depend_on_the_input() -> None:
    A, B, C = poles(CHANNELS, N), torch.ones(N), complex_randn(N, seed=2)
    shared = s4d(A, B, C, torch.tensor(0.1), length=L)
    assert shared.shape == (CHANNELS, L, L)
    assert_same(shared.matrix()[2], s4d(A[2], B, C, torch.tensor(0.1), length=L).matrix(), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_cast_up_first(dtype: torch.dtype) -> None:
    delta, A, B, C = (x.to(dtype) for x in (rand(2, L), -rand(2, N), randn(L, N), randn(L, N, seed=1)))
    cases: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
        (selective_ssm, (delta, A, B, C, A[:, 0]), {}),
        (ssd, (delta, A[:, 0], B[None], C[None], A[:, 1]), {}),
        (s4d, (A, B[:2], C[:2], delta[:, 0], A[:, 0]), {"length": L}),
        (s5, (A[0], B[:2].mT, C[:2], delta[0, :N], A[0, :2]), {"length": L}),
        (lru, (A[0], B[:2].mT, C[:2]), {"length": L}),
        (rg_lru, (delta, delta, A[:, 0]), {}),
    ]
    for make, args, options in cases:
        op = make(*args, **options)
        assert op.matrix().dtype is F64
        assert torch.equal(op.matrix(), make(*(x.double() for x in args), **options).matrix())
        assert torch.equal(op.matrix(), make(*(x.float().numpy() for x in args), **options).matrix())


def test_padding_is_absent() -> None:
    delta, A = rand(CHANNELS, L), -rand(CHANNELS, N)
    B, C, D = randn(L, N), randn(L, N, seed=1), randn(CHANNELS)
    vectors = {"B": (B, -2), "C": (C, -2)}
    assert_padding_is_absent(selective_ssm, {"delta": (delta, -1)} | vectors, A=A, D=D)
    grouped = {"B": (B[None], -2), "C": (C[None], -2)}
    assert_padding_is_absent(ssd, {"dt": (delta, -1)} | grouped, A=A[:, 0], D=D)
    gates = {"recurrence_gate": (delta, -1), "input_gate": (rand(CHANNELS, L, seed=1), -1)}
    first = torch.zeros(L, dtype=torch.bool)
    assert_padding_is_absent(rg_lru, gates | {"reset": (first, -1)}, recurrent_param=D)


def test_padding_leaves_a_time_invariant_state_alone() -> None:
    own = torch.ones(L, dtype=torch.bool)
    own[:3], own[7] = False, False
    kept = int(own.sum())
    A, B, C = poles(2, N), complex_randn(2, N), complex_randn(2, N, seed=2)
    delta, D = rand(2), randn(2)
    T = s4d(A, B, C, delta, D, length=L, valid=own).matrix()
    assert_same(T[:, own][:, :, own], s4d(A, B, C, delta, D, length=kept).matrix(), 1e-12)
    assert not T[:, ~own].any() and not T[:, :, ~own].any()
    B, C = complex_randn(N, 2), complex_randn(2, N, seed=2)
    rows = own.repeat_interleave(2)
    for make, lead in ((s5, (A[0], B, C, 0.3, D)), (lru, (A[0].exp(), B, C, D))):
        T = make(*lead, length=L, valid=own).matrix()
        assert_same(T[rows][:, rows], make(*lead, length=kept).matrix(), 1e-12)
        assert not T[~rows].any() and not T[:, ~rows].any()


def test_gradients() -> None:
    delta, A = rand(1, 4).requires_grad_(), (-rand(1, 2)).requires_grad_()
    B, C = randn(4, 2).requires_grad_(), randn(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: selective_ssm(*x).matrix(), (delta, A, B, C))
    assert torch.autograd.gradcheck(
        lambda d, A, B, C: ssd(d, A[:, 0], B[None], C[None]).matrix(), (delta, A, B, C)
    )
    assert torch.autograd.gradcheck(lambda A, d: s4d(A, A, A, d, length=4).matrix(), (A, delta[:, 0]))


def test_what_they_are_called() -> None:
    delta, A, B = rand(2, L), -rand(2, N), randn(L, N)
    for op, name in (
        (selective_ssm(delta, A, B, B), "S6"),
        (ssd(delta, A[:, 0], B[None], B[None]), "SSD"),
        (s4d(A, B[:2], B[:2], delta[:, 0], length=L), "S4D"),
        (s5(A[0], B[:2].mT, B[:2], 0.1, length=L), "S5"),
        (lru(A[0], B[:2].mT, B[:2], length=L), "LRU"),
        (rg_lru(delta, delta, A[:, 0]), "RG-LRU"),
    ):
        assert f"'{name}'" in repr(op)


STEP, RATE, VEC = rand(2, L), -rand(2, N), randn(L, N)
POLE, IN, OUT = poles(N), complex_randn(N, 3), complex_randn(3, N)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: selective_ssm(-STEP, RATE, VEC, VEC), ValueError, "delta.* add the bias and apply softplus"),
        (lambda: selective_ssm(STEP, -RATE, VEC, VEC), ValueError, r"pass A = -exp\(A_log\)"),
        (
            lambda: selective_ssm(STEP, RATE[:, 0], VEC, VEC),
            ValueError,
            r"A must be \(channels, n\)|A of shape",
        ),
        (lambda: selective_ssm(STEP, RATE[0, 0], VEC, VEC), ValueError, r"A must be \(channels, n\)"),
        (lambda: selective_ssm(STEP[0], RATE, VEC, VEC), ValueError, r"delta must be \(..., channels, L\)"),
        (
            lambda: selective_ssm(STEP, RATE, VEC[0], VEC),
            ValueError,
            r"B must be \(..., L, n\) for all channels",
        ),
        (lambda: selective_ssm(STEP, RATE, VEC, VEC.mT), ValueError, "C of shape"),
        (lambda: selective_ssm(STEP, RATE, VEC / 0, VEC), ValueError, "B is not finite"),
        (lambda: selective_ssm(STEP / 0, RATE, VEC, VEC), ValueError, "delta is not finite"),
        (lambda: selective_ssm(STEP, RATE, VEC, VEC, D=STEP), ValueError, "D of shape"),
        (lambda: selective_ssm(STEP, RATE.to(torch.complex64), VEC, VEC), TypeError, "A must hold real"),
        (lambda: ssd(STEP, -RATE[:, 0], VEC[None], VEC[None]), ValueError, r"pass A = -exp\(A_log\)"),
        (lambda: ssd(STEP, RATE, VEC[None], VEC[None]), ValueError, "A of shape .* one rate per head"),
        (lambda: ssd(STEP, RATE[:, 0], VEC, VEC), ValueError, r"B must be \(..., groups, L, n\)"),
        (lambda: ssd(-STEP, RATE[:, 0], VEC[None], VEC[None]), ValueError, "dt.* softplus"),
        (lambda: ssd(STEP, RATE[:, 0], VEC.expand(3, L, N), VEC[None]), ValueError, "B of shape"),
        (lambda: ssd(STEP, RATE[:, 0], VEC[None], VEC.int()[None]), TypeError, "C must hold real"),
        (
            lambda: s4d(-RATE, RATE, RATE, STEP[:, 0], length=L),
            ValueError,
            r"Re\(A\).* continuous time decay",
        ),
        (lambda: s4d(RATE, RATE, RATE, -STEP[:, 0], length=L), ValueError, r"delta.* pass exp\(log_step\)"),
        (lambda: s4d(RATE, RATE, RATE, STEP, length=L), ValueError, "delta of shape .* one step per channel"),
        (lambda: s4d(RATE, RATE.mT, RATE, STEP[:, 0], length=L), ValueError, "B of shape"),
        (lambda: s4d(RATE, RATE, RATE / 0, STEP[:, 0], length=L), ValueError, "C is not finite"),
        (lambda: s4d(RATE, RATE, RATE, STEP[:, 0], length=0), ValueError, "length must be at least 1"),
        (lambda: s4d(RATE, RATE, RATE, STEP[:, 0], length=2.0), TypeError, "length must be an int"),
        (
            lambda: s4d(RATE, RATE, RATE, STEP[:, 0], length=L, discretization="foh"),
            ValueError,
            "must be 'zoh' or 'bilinear'",
        ),
        (
            lambda: s4d(RATE.long(), RATE, RATE, STEP[:, 0], length=L),
            TypeError,
            "A must hold real or complex",
        ),
        (
            lambda: s4d(RATE[0, 0], RATE, RATE, STEP[:, 0], length=L),
            ValueError,
            r"A must be \(..., channels, n\)",
        ),
        (lambda: s5(POLE.exp(), IN, OUT, 0.1, length=L), ValueError, "Lambda is not yet discrete"),
        (lambda: s5(POLE, OUT, IN, 0.1, length=L), ValueError, r"Lambda must be \(..., n\), B \(..., n, d\)"),
        (lambda: s5(POLE, IN, OUT, -0.1, length=L), ValueError, "delta"),
        (lambda: s5(POLE, IN, OUT, 0.1, RATE[0], length=L), ValueError, r"D must be \(..., d\)"),
        (lambda: lru(1.5 * POLE / POLE.abs(), IN, OUT, length=L), ValueError, "inside the unit circle"),
        (lambda: lru(POLE.exp(), IN, OUT, gamma=RATE[0, :2], length=L), ValueError, "gamma of shape"),
        (lambda: lru(POLE.exp(), IN / 0, OUT, length=L), ValueError, "B is not finite"),
        (lambda: lru(POLE.exp(), IN[0], OUT, length=L), ValueError, "none empty"),
        (lambda: rg_lru(2 * STEP, STEP, RATE[:, 0]), ValueError, "recurrence_gate.* apply the sigmoid"),
        (lambda: rg_lru(STEP, -STEP, RATE[:, 0]), ValueError, "input_gate.* apply the sigmoid"),
        (lambda: rg_lru(STEP, STEP, RATE[0]), ValueError, "recurrent_param of shape"),
        (lambda: rg_lru(STEP, STEP, RATE[:, 0], c=0), ValueError, "c must be positive"),
        (lambda: rg_lru(STEP, STEP, RATE[:, 0], reset=STEP), TypeError, "reset must be boolean"),
        (lambda: rg_lru(STEP, STEP, RATE[:, 0], reset=torch.ones(3).bool()), ValueError, "reset of shape"),
        (
            lambda: rg_lru(STEP[0, 0], STEP, RATE[:, 0]),
            ValueError,
            r"recurrence_gate must be \(..., channels",
        ),
    ],
)
def test_errors_say_what_to_do(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        call()


def test_lru_normalisation_at_the_start() -> None:
    nu, theta = torch.log(-torch.log(0.5 + 0.4 * rand(N))), torch.log(math.pi * rand(N, seed=1))
    Lambda = torch.exp(-nu.exp() + 1j * theta.exp())
    op = lru(Lambda, IN, OUT, gamma=torch.sqrt(1 - Lambda.abs() ** 2), length=4)
    block = (OUT @ torch.diag(Lambda**2 * torch.sqrt(1 - Lambda.abs() ** 2)).to(OUT.dtype) @ IN).real
    assert_same(op.matrix()[9:, 3:6], block, 1e-13)
