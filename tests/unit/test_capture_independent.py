"""Operators worked out again in numpy, from weights and from what a hook on the mixer sees, entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ess_widgets as ew
from tests.unit.hidden_kernels import plain

L = 21
ENDS: dict[str, Any] = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
Array = np.ndarray
# T (batch, groups, L, L) and u (batch, groups, L, width)
Answer = tuple[Array, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def weight(module: nn.Module, name: str) -> Array:
    return module.get_parameter(name).detach().double().numpy()


def linear(module: nn.Module, x: Array) -> Array:
    bias = module.bias
    return x @ weight(module, "weight").T + (0 if bias is None else weight(module, "bias"))


def convolved(module: nn.Module, x: Array) -> Array:
    """SiLU of a causal depthwise convolution of ``(batch, L, channels)``."""
    taps, out = weight(module, "weight")[:, 0], np.zeros_like(x)
    for back in range(taps.shape[-1]):
        out[:, back:] += x[:, : x.shape[1] - back] * taps[:, -1 - back]
    out += 0 if module.bias is None else weight(module, "bias")
    return out * sigmoid(out)


def lower(shape: tuple[int, int], entry: Callable[[int, int], Array]) -> Array:
    T = np.zeros((*shape, L, L))
    for i in range(L):
        for j in range(i + 1):
            T[:, :, i, j] = entry(i, j)
    return T


def mamba(mixer: Any, x: Array) -> Answer:
    channels, rank, n = mixer.intermediate_size, mixer.time_step_rank, mixer.ssm_state_size
    u = convolved(mixer.conv1d, linear(mixer.in_proj, x)[..., :channels])
    parts = linear(mixer.x_proj, u)
    delta = softplus(linear(mixer.dt_proj, parts[..., :rank]))
    B, C = parts[..., rank : rank + n], parts[..., rank + n :]
    A, sums = -np.exp(weight(mixer, "A_log")), np.cumsum(delta, 1)

    def entry(i: int, j: int) -> Array:
        decay = np.exp(A * (sums[:, i] - sums[:, j])[..., None])
        return np.einsum("bn,bdn,bn->bd", C[:, i], decay, B[:, j]) * delta[:, j]

    return lower((2, channels), entry), u.transpose(0, 2, 1)[..., None]


def mamba2(mixer: Any, x: Array) -> Answer:
    width, heads, groups, n = mixer.intermediate_size, mixer.num_heads, mixer.n_groups, mixer.ssm_state_size
    projected = linear(mixer.in_proj, x)
    mixed = convolved(mixer.conv1d, projected[..., width : width + mixer.conv_dim])
    delta = softplus(projected[..., width + mixer.conv_dim :] + weight(mixer, "dt_bias"))
    B, C = (
        mixed[..., start : start + groups * n].reshape(2, L, groups, n).repeat(heads // groups, 2)
        for start in (width, width + groups * n)
    )
    sums = np.cumsum(-delta * np.exp(weight(mixer, "A_log")), 1)
    T = lower(
        (2, heads),
        lambda i, j: np.exp(sums[:, i] - sums[:, j]) * (C[:, i] * B[:, j]).sum(-1) * delta[:, j],
    )
    return T, mixed[..., :width].reshape(2, L, heads, -1).transpose(0, 2, 1, 3)


def gated_delta_net(mixer: Any, x: Array) -> Answer:
    wide, given = mixer.double(), torch.from_numpy(x)
    with torch.no_grad():
        parts = wide.fix_query_key_value_ordering(wide.in_proj_qkvz(given), wide.in_proj_ba(given))
    q, k, v, _, b, a = (part.numpy() for part in parts)
    flat = np.concatenate([part.reshape(2, L, -1) for part in (q, k, v)], -1)
    mixed, keys = convolved(mixer.conv1d, flat), k[0, 0].size
    repeat = v.shape[2] // k.shape[2]

    def unit(start: int) -> Array:
        t = mixed[..., start : start + keys].reshape(k.shape)
        return (t / np.sqrt((t * t).sum(-1, keepdims=True) + 1e-6)).repeat(repeat, 2)

    q, k = unit(0) / np.sqrt(k.shape[-1]), unit(keys)
    beta = sigmoid(b)
    decay = np.exp(-np.exp(weight(mixer, "A_log")) * softplus(a + weight(mixer, "dt_bias")))
    T = np.zeros((2, v.shape[2], L, L))
    for sample, head in np.ndindex(*T.shape[:2]):
        for j in range(L):
            state = beta[sample, j, head] * k[sample, j, head]
            for i in range(j, L):
                if i > j:
                    key = k[sample, i, head]
                    state = decay[sample, i, head] * (state - beta[sample, i, head] * key * (key @ state))
                T[sample, head, i, j] = q[sample, i, head] @ state
    return T, mixed[..., 2 * keys :].reshape(v.shape).transpose(0, 2, 1, 3)


def gated_convolution(mixer: Any, x: Array) -> Answer:
    B, C, u = np.split(linear(mixer.in_proj, x), 3, -1)
    taps = weight(mixer.conv, "weight")[:, 0]
    K = taps.shape[-1]
    T = lower(
        (2, u.shape[-1]),
        lambda i, j: C[:, i] * taps[:, K - 1 - i + j] * B[:, j] if i - j < K else 0 * B[:, 0],
    )
    return T, u.transpose(0, 2, 1)[..., None]


def rwkv(mixer: Any, x: Array) -> Answer:
    shifted = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], 1)

    def mixed(name: str) -> Array:
        share = weight(mixer, f"time_mix_{name}")
        return linear(mixer.get_submodule(name), x * share + shifted * (1 - share))

    k, v, w, bonus = (
        mixed("key"),
        mixed("value"),
        np.exp(weight(mixer, "time_decay")),
        weight(mixer, "time_first"),
    )
    T = lower(
        (2, k.shape[-1]),
        lambda i, j: np.exp(k[:, j] + bonus) if i == j else np.exp(k[:, j] - w * (i - 1 - j)),
    )
    return T / T.sum(-1, keepdims=True), v.transpose(0, 2, 1)[..., None]


def rg_lru(mixer: Any, x: Array) -> Answer:
    parts = x.reshape(2, L, mixer.num_attention_heads, -1)

    def gate(name: str) -> Array:
        scores = np.einsum("blhw,hwv->blhv", parts, weight(mixer, f"{name}_gate_weight"))
        return sigmoid(scores + weight(mixer, f"{name}_gate_bias")).reshape(x.shape)

    logs = -8 * gate("recurrent") * softplus(weight(mixer, "recurrent_param"))
    enters = gate("input") * np.sqrt(1 - np.exp(2 * logs))
    enters[:, 0] = gate("input")[:, 0]  # the first position starts anew
    sums = np.cumsum(logs, 1)
    T = lower((2, x.shape[-1]), lambda i, j: np.exp(sums[:, i] - sums[:, j]) * enters[:, j])
    return T, x.transpose(0, 2, 1)[..., None]


CASES: dict[str, tuple[str, str, dict[str, Any], str, str, Callable[[Any, Array], Answer]]] = {
    "Mamba": (
        "mamba",
        "Mamba",
        {"hidden_size": 24, "state_size": 6, "num_hidden_layers": 2},
        "backbone.layers.1.mixer",
        "selective SSM",
        mamba,
    ),
    "Mamba-2": (
        "mamba2",
        "Mamba2",
        {
            "hidden_size": 32,
            "state_size": 6,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "num_hidden_layers": 2,
        },
        "backbone.layers.1.mixer",
        "selective SSM",
        mamba2,
    ),
    "Gated DeltaNet": (
        "qwen3_next",
        "Qwen3Next",
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "model.layers.0.linear_attn",
        "delta rule",
        gated_delta_net,
    ),
    "LFM2": (
        "lfm2",
        "Lfm2",
        {
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"],
        },
        "model.layers.0.conv",
        "convolution",
        gated_convolution,
    ),
    "RWKV-4": (
        "rwkv",
        "Rwkv",
        {"hidden_size": 24, "attention_hidden_size": 24, "num_hidden_layers": 2, "context_length": 64},
        "rwkv.blocks.1.attention",
        "RWKV",
        rwkv,
    ),
    "RG-LRU": (
        "recurrent_gemma",
        "RecurrentGemma",
        {
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "lru_width": 24,
            "attention_window_size": 8,
        },
        "model.layers.1.temporal_block.rg_lru",
        "gated linear recurrence",
        rg_lru,
    ),
}


def build(case: str) -> nn.Module:
    module, name, settings, *_ = CASES[case]
    modeling = plain(module)
    model = getattr(modeling, f"{name}ForCausalLM")(getattr(modeling, f"{name}Config")(**settings, **ENDS))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
            elif case == "RWKV-4":
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()  # type: ignore[no-any-return]


def given_to(mixer: nn.Module, model: nn.Module, ids: Tensor) -> Array:
    """What a mixer's first argument is in a plain forward pass."""
    seen: list[Tensor] = []
    hook = mixer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    with torch.no_grad():
        model(ids)
    hook.remove()
    return seen[0].double().numpy()


def count(T: Array, tol: float) -> Array:
    sigma = [
        np.linalg.svd(T[..., i:, :i], compute_uv=False) if i else np.zeros((*T.shape[:-2], 0))
        for i in range(L)
    ]
    return np.stack([(s > tol).sum(-1) for s in sigma], -1)


@pytest.mark.parametrize("case", CASES)
def test_every_entry(case: str) -> None:
    *_, path, family, work_out = CASES[case]
    model, ids = build(case), torch.randint(3, 97, (2, L))
    layer = ew.capture(model, ids)[path]
    mixer = model.get_submodule(path)
    T, u = work_out(mixer, given_to(mixer, model, ids))
    captured = layer.operator.matrix().double().numpy()
    assert layer.family == family
    np.testing.assert_allclose(captured, T, rtol=0, atol=5e-6 * np.abs(T).max())
    np.testing.assert_allclose(layer.inputs.double().numpy(), u, rtol=0, atol=5e-6 * np.abs(u).max())
    assert layer.residual.max() < 5e-6
    # Where no singular value is within rounding of the threshold.
    expected = count(T, 1e-3)
    sure = (count(T, 1e-3 - 1e-5) == expected) & (count(T, 1e-3 + 1e-5) == expected)
    ess = ew.ess(layer.operator, kind="tolerance", tol=1e-3).numpy()
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(ess[sure], expected[sure])
    assert expected.max() > 0
