"""The delta rule by the names of its kernels: DeltaNet, Gated DeltaNet, KDA, DeltaProduct and their relatives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.capture import Capture, CaptureError, capture
from tests.unit.hidden_kernels import plain
from tests.unit.kernel_calls import Draw, Net, called, fla, kernel
from tests.unit.recurrent import randomise

D, V = 4, 5
LIMIT = 1e-5
PACKED = torch.tensor([0, 4, 5, 17, 21])


def only(cap: Capture, groups: int = 3, length: int = 21, family: str = "delta rule") -> Any:
    """The one layer, which must be true."""
    (layer,) = cap.values()
    assert layer.family == family
    assert layer.operator.shape[1:] == (groups, length, length)
    assert bool((layer.residual < LIMIT).all()), layer.residual
    return layer


def arguments(seed: int = 0, **sizes: int) -> tuple[Draw, dict[str, Tensor]]:
    x = Draw(seed, **sizes)
    return x, {"q": x.normal(D), "k": x.unit(D), "v": x.normal(V), "beta": x.gate()}


def heads_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: item.transpose(1, 2).contiguous() for name, item in tensors.items()}


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def grouped(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def delta(a: dict[str, Any], fault: str = "") -> Any:
    """What the kernels of DeltaNet, Gated DeltaNet and KDA compute, in float32, step by step."""
    q, k, v = a["q"], a["k"], a["v"]
    heads = v.shape[2]
    beta = torch.ones_like(v[..., 0]) if a.get("beta") is None else a["beta"]
    if a.get("use_beta_sigmoid_in_kernel"):
        beta = beta.sigmoid() * (2 if a.get("allow_neg_eigval") else 1)
    beta = beta.unsqueeze(-1) if beta.ndim == 3 else beta
    if a.get("use_qk_l2norm_in_kernel") and fault != "unnormalised":
        q, k = unit(q), unit(k)
    q, k = grouped(q, heads), grouped(k, heads)
    g = a.get("g")
    if g is not None:
        g = g.unsqueeze(-1) if g.ndim == 3 else g
        if a.get("use_gate_in_kernel"):
            rate = 1.0 if a.get("A_log") is None else a["A_log"].exp()[:, None]
            g = g + (0 if a.get("dt_bias") is None else a["dt_bias"].view(heads, -1))
            bound = a.get("lower_bound")
            g = -rate * F.softplus(g) if bound is None else bound * torch.sigmoid(rate * g)
    scale = D**-0.5 if a.get("scale") is None else a["scale"]
    borders = set() if a.get("cu_seqlens") is None else set(a["cu_seqlens"].tolist())
    state = q.new_zeros(q.shape[0], heads, D, v.shape[-1])
    rows = []
    for t in range(q.shape[1]):
        state = state * 0 if t in borders else state
        for decay, dim in ((g, -1), (a.get("gk"), -1), (a.get("gv"), -2)):
            if decay is not None:
                state = state * decay[:, t].exp().unsqueeze(dim)
        read = (k[:, t].unsqueeze(-1) * state).sum(-2)
        read = read * 0 if fault == "no erase" else read
        written = beta[:, t] * (v[:, t] - read)
        state = state + k[:, t].unsqueeze(-1) * written.unsqueeze(-2)
        rows.append((scale * q[:, t].unsqueeze(-1) * state).sum(-2))
    return torch.stack(rows, dim=1), None


# Every reference of flash-linear-attention


@pytest.mark.parametrize(
    ("module", "name", "gate", "head_first"),
    [
        ("delta_rule", "delta_rule_recurrence", "", True),
        ("delta_rule", "delta_rule_chunkwise", "", True),
        ("gated_delta_rule", "naive_recurrent_gated_delta_rule", "head", False),
        ("gated_delta_rule", "naive_chunk_gated_delta_rule", "head", False),
        ("kda", "naive_recurrent_kda", "feature", False),
        ("kda", "naive_chunk_kda", "feature", False),
    ],
)
def test_references(module: str, name: str, gate: str, head_first: bool) -> None:
    x, given = arguments(length=64)
    if gate:
        given["g"] = x.log_gate(D) if gate == "feature" else x.log_gate()
    given = heads_first(given) if head_first else given
    layer = only(called(fla(f"{module}.naive", name), given), length=64)
    assert torch.equal(layer.inputs, given["v"] if head_first else given["v"].transpose(1, 2))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_delta_product(steps: int, gated: bool, padded: bool) -> None:
    x, tokens = Draw(0), Draw(1, length=21 * steps)
    given = {
        "q": x.normal(D),
        "k": tokens.unit(D),
        "v": tokens.normal(V),
        "beta": 2 * tokens.gate(),
        "g": x.log_gate() if gated else None,
    }
    function = fla("gated_delta_product.naive", "naive_recurrent_gated_delta_product")

    class Product(nn.Module):
        def forward(self, given: dict[str, Any], attention_mask: Tensor | None = None) -> Tensor:
            result: Tensor = function(**given, scale=0.4, num_householder=steps)[0]
            return result

    mask = torch.ones(2, 21, dtype=torch.long)
    if padded:
        mask[0, -3:] = 0
    layer = only(capture(Product(), given, attention_mask=mask), length=21 * steps)
    assert layer.operator.block == steps
    assert layer.inputs.shape == layer.outputs.shape == (2, 3, 21 * steps, V)


def test_comba_and_gated_deltanet_2() -> None:
    x, given = arguments()
    more = {"g": x.log_gate(), "p": x.unit(D)}
    only(called(fla("comba.naive", "naive_recurrent_comba"), given | more))
    del given["beta"]
    given |= {"g": x.log_gate(D), "b": x.gate(D), "w": x.gate(V)}
    for name in ("naive_recurrent_gdn2", "naive_chunk_gdn2"):
        layer = only(called(fla("gdn2.naive", name), given))
        assert torch.equal(layer.inputs, (given["w"] * given["v"]).transpose(1, 2))


def test_preconditioned() -> None:
    x, given = arguments()
    given |= {"g_atk": x.log_gate(), "beta_atk": x.gate()}
    centre = torch.tensor([-0.2, 0.5, -3.0])
    only(
        called(
            fla("precond_gated_delta_rule.naive", "naive_recurrent_precond_gated_delta_rule"),
            given | {"k": x.normal(D), "g": x.log_gate()},
            x=1.8,
            log_atk_scale=centre,
        )
    )
    only(called(fla("precond_kda.naive", "naive_recurrent_precond_kda"), given | {"g": x.log_gate(D)}))


# The kernels' own names and signatures


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("module", "name", "gates", "options"),
    [
        ("delta_rule", "chunk_delta_rule", (), {"use_qk_l2norm_in_kernel": True}),
        ("delta_rule", "fused_recurrent_delta_rule", (), {"scale": 0.7}),
        ("gated_delta_rule", "chunk_gated_delta_rule", ("g",), {"use_qk_l2norm_in_kernel": True}),
        ("gated_delta_rule", "chunk_gated_delta_rule", ("g",), {"use_gate_in_kernel": True}),
        ("gated_delta_rule", "chunk_gated_delta_rule", ("g",), {"allow_neg_eigval": True}),
        ("gated_delta_rule", "fused_recurrent_gated_delta_rule", ("g",), {"output_final_state": True}),
        ("gated_delta_rule", "fused_recurrent_gated_delta_rule", ("g", "gk"), {}),
        ("gated_delta_rule", "fused_recurrent_gated_delta_rule", ("gv",), {}),
        ("gated_delta_rule", "fused_recurrent_gated_delta_rule", ("g", "gv"), {}),
        ("gated_delta_rule", "fused_recurrent_gated_delta_rule", ("g", "beta"), {}),
        ("gated_delta_rule", "fused_recurrent_gated_delta_rule", (), {}),
        ("kda", "chunk_kda", ("gd",), {"use_qk_l2norm_in_kernel": True}),
        ("kda", "chunk_kda", ("gd",), {"use_gate_in_kernel": True}),
        ("kda", "chunk_kda", ("gd",), {"use_gate_in_kernel": True, "lower_bound": -5.0, "safe_gate": True}),
        ("kda", "fused_recurrent_kda", ("gd",), {"use_gate_in_kernel": True, "lower_bound": -3.0}),
        ("kda", "fused_recurrent_kda", ("gd",), {"allow_neg_eigval": True}),
    ],
)
@pytest.mark.parametrize("heads", [3, 6])
def test_kernels(
    module: str, name: str, gates: tuple[str, ...], options: dict[str, Any], heads: int, packed: bool
) -> None:
    """With three query heads and as many or twice as many value heads."""
    x, given = arguments(batch=1 if packed else 2)
    values, options = Draw(1, batch=1 if packed else 2, heads=heads), dict(options)
    given |= {"v": values.normal(V), "beta": values.gate()}
    if options.get("use_qk_l2norm_in_kernel"):
        given["k"] = x.normal(D)
    raw = bool(options.get("use_gate_in_kernel"))
    draws = {
        "g": values.normal() if raw else values.log_gate(),
        "gd": values.normal(D) if raw else values.log_gate(D),
        "gk": values.log_gate(D),
        "gv": values.log_gate(V),
        "beta": values.gate(V),
    }
    given |= {"g" if gate == "gd" else gate: draws[gate] for gate in gates}
    if options.get("allow_neg_eigval"):
        options["use_beta_sigmoid_in_kernel"] = True
        given["beta"] = values.normal()
    if raw:
        options |= {"A_log": torch.linspace(-1, 0.5, heads), "dt_bias": torch.randn(given["g"][0, 0].numel())}
    if packed:
        options["cu_seqlens"] = PACKED
    layer = only(
        called(kernel(module, name, delta), given, **options), heads * (V if {"gv", "beta"} & {*gates} else 1)
    )
    if packed:
        assert not layer.operator.matrix()[..., 5:, :5].any()


@pytest.mark.parametrize("name", ["chunk_comba", "fused_recurrent_comba"])
@pytest.mark.parametrize("normalised", [False, True])
def test_comba_kernels(name: str, normalised: bool) -> None:
    def compute(a: dict[str, Any]) -> Any:
        q, k, p = (unit(a[n]) if a["use_qk_l2norm_in_kernel"] else a[n] for n in ("q", "k", "p"))
        return fla("comba.naive", "naive_recurrent_comba")(q, k, a["v"], p, a["beta"], a["g"], a["scale"])

    x, given = arguments()
    given |= {"g": x.log_gate(), "p": x.normal(D) if normalised else x.unit(D)}
    only(called(kernel("comba", name, compute), given, use_qk_l2norm_in_kernel=normalised))


@pytest.mark.parametrize("kind", ["iplr", "dplr"])
def test_generalised(kind: str) -> None:
    def compute(a: dict[str, Any]) -> Any:
        given = [a[n].transpose(1, 2) for n in ("q", "k", "v", "a", "b", "gk") if n in a]
        o, state = fla(f"generalized_delta_rule.{kind}.naive", f"{kind}_recurrence")(*given)
        return o.transpose(1, 2), state

    x, given = arguments()
    strength = given.pop("beta").unsqueeze(-1)
    given |= {"k": x.normal(D), "a": -given["k"], "b": strength * given["k"]}
    if kind == "dplr":
        given["gk"] = x.log_gate(D)
    for name in (f"chunk_{kind}_delta_rule", f"fused_recurrent_{kind}_delta_rule"):
        only(called(kernel("generalized_delta_rule", name, compute), given))


def test_packed_sequences_of_the_others() -> None:
    def apart(compute: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
        def each(a: dict[str, Any]) -> Any:
            borders = a["cu_seqlens"].tolist()
            parts = [
                compute({n: t[:, i:j] if isinstance(t, Tensor) and t.ndim > 2 else t for n, t in a.items()})
                for i, j in pairwise(borders)
            ]
            return torch.cat(parts, dim=1), None

        return each

    def dplr(a: dict[str, Any]) -> Tensor:
        given = [a[n].transpose(1, 2) for n in ("q", "k", "v", "a", "b", "gk")]
        o: Tensor = fla("generalized_delta_rule.dplr.naive", "dplr_recurrence")(*given)[0]
        return o.transpose(1, 2)

    def atk(a: dict[str, Any]) -> Tensor:
        names = ("q", "k", "v", "g", "g_atk", "beta_atk", "beta")
        o: Tensor = fla("precond_kda.naive", "naive_recurrent_precond_kda")(*(a[n] for n in names))[0]
        return o

    x, given = arguments(batch=1)
    more = {"a": -given["k"], "b": given["beta"].unsqueeze(-1) * given["k"], "gk": x.log_gate(D)}
    rank_one = {name: item for name, item in (given | more).items() if name != "beta"}
    function = kernel("generalized_delta_rule", "chunk_dplr_delta_rule", apart(dplr))
    only(called(function, rank_one, cu_seqlens=PACKED))
    given |= {"g": x.log_gate(D), "g_atk": x.log_gate(), "beta_atk": x.gate()}
    function = kernel("precond_kda", "fused_recurrent_precond_kda", apart(atk))
    only(called(function, given, cu_seqlens=PACKED, use_qk_l2norm_in_kernel=False))


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("chunk_gated_delta_rule", {"initial_state": torch.ones(2, 3, D, V)}, "earlier state"),
        ("chunk_gated_delta_rule", {"momentum": 0.9}, "its option 'momentum' is not known"),
        ("chunk_gated_delta_rule", {"cp_context": object()}, "its option 'cp_context' is not known"),
    ],
)
def test_reasons(name: str, more: dict[str, Any], reason: str) -> None:
    x, given = arguments()
    with pytest.raises(CaptureError, match=reason):
        called(kernel("gated_delta_rule", name, delta), given | {"g": x.log_gate()}, **more)


# Layers as one writes them, and planted faults


class Layer(nn.Module):
    """Projections to heads, short of a convolution, around a kernel."""

    def __init__(self, gate: int, function: Callable[..., Any], heads: int = 2, width: int = 12) -> None:
        super().__init__()
        self.heads, self.function = heads, function
        sizes = {"q": D, "k": D, "v": V, "beta": 1} | ({"g": gate} if gate else {})
        self.proj = nn.ModuleDict({name: nn.Linear(width, heads * size) for name, size in sizes.items()})
        self.out = nn.Linear(heads * V, width)

    def forward(self, x: Tensor) -> Tensor:
        t = {name: f(x).unflatten(-1, (self.heads, -1)) for name, f in self.proj.items()}
        t["beta"] = t["beta"].sigmoid().squeeze(-1)
        if "g" in t:
            t["g"] = F.logsigmoid(t["g"]) if t["g"].shape[-1] > 1 else F.logsigmoid(t["g"]).squeeze(-1)
        result: Tensor = self.out(self.function(**t, use_qk_l2norm_in_kernel=True)[0].flatten(2))
        return result


KINDS = {
    "DeltaNet": ("delta_rule", "chunk_delta_rule", 0),
    "Gated DeltaNet": ("gated_delta_rule", "chunk_gated_delta_rule", 1),
    "KDA": ("kda", "chunk_kda", D),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["", "no erase", "unnormalised"])
def test_layers(kind: str, fault: str) -> None:
    module, name, gate = KINDS[kind]
    layer = Layer(gate, kernel(module, name, lambda a: delta(a, fault)))
    model = randomise(Net(layer), scale=0.5)
    cap = capture(model, torch.randn(2, 19, 12, generator=torch.Generator().manual_seed(3)))
    if fault:
        assert bool((cap["layer"].residual > 1e-2).all())
    else:
        only(cap, 2, 19)
        assert cap["layer"].state_size.max() == D


# transformers' models


def qwen3_next() -> nn.Module:
    modeling = plain("qwen3_next")
    config = modeling.Qwen3NextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=4, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, layer_types=["linear_attention", "linear_attention", "full_attention"],
    )  # fmt: skip
    return randomise(modeling.Qwen3NextForCausalLM(config))


def olmo_hybrid() -> nn.Module:
    modeling = plain("olmo_hybrid")
    config = modeling.OlmoHybridConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=16, linear_allow_neg_eigval=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    return randomise(modeling.OlmoHybridForCausalLM(config))


def kimi_linear() -> nn.Module:
    modeling = plain("kimi_linear")
    config = modeling.KimiLinearConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, kv_lora_rank=8, q_lora_rank=None, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=8, num_experts=2, num_experts_per_token=1, moe_intermediate_size=16,
        linear_head_dim=8, linear_num_heads=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    return randomise(modeling.KimiLinearForCausalLM(config))


MODELS = {"qwen3_next": qwen3_next, "olmo_hybrid": olmo_hybrid, "kimi_linear": kimi_linear}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("length", [23, 70])
def test_transformers(name: str, side: str, length: int) -> None:
    """Below and above the chunk of 64, a multiple of it never."""
    model = MODELS[name]()
    ids = torch.randint(3, 64, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if side != "none":
        mask[0, slice(0, 4) if side == "left" else slice(-4, None)] = 0
    cap = capture(model, input_ids=ids, attention_mask=mask, use_cache=length < 64)
    kinds = [layer.family for layer in cap.values() if layer.family != "convolution"]
    assert kinds == ["delta rule"] * (len(kinds) - 1) + ["softmax attention"]
    assert not cap.skipped
    for layer in cap.values():
        assert bool((layer.residual < LIMIT).all()), layer
        if layer.family == "delta rule" and side != "none":
            assert torch.equal(layer.valid, mask.bool())


@pytest.mark.parametrize("name", MODELS)
def test_transformers_in_half_precision(name: str) -> None:
    ids = torch.randint(3, 64, (2, 23), generator=torch.Generator().manual_seed(0))
    cap = capture(MODELS[name]().bfloat16(), ids)
    assert all(bool((layer.residual < 1e-2).all()) for layer in cap.values())


def test_the_erase_term_and_the_normalisation_matter_in_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    modeling, model = plain("qwen3_next"), qwen3_next()
    ids = torch.randint(3, 64, (2, 23), generator=torch.Generator().manual_seed(0))
    true = capture(model, ids, use_cache=False)

    def worst(function: Callable[..., Any]) -> float:
        function.__code__ = function.__code__.replace(co_name="torch_chunk_gated_delta_rule")
        monkeypatch.setattr(modeling, "torch_chunk_gated_delta_rule", function)
        cap = capture(model, ids, use_cache=False)
        monkeypatch.undo()
        assert list(cap) == list(true)
        return float(next(layer for layer in cap.values() if layer.family == "delta rule").residual.min())

    def right(query, key, value, g, beta, use_qk_l2norm_in_kernel=False, **kwargs):  # type: ignore[no-untyped-def]
        return step(query, key, value, g, beta, "")

    def erases_nothing(query, key, value, g, beta, use_qk_l2norm_in_kernel=False, **kwargs):  # type: ignore[no-untyped-def]
        return step(query, key, value, g, beta, "no erase")

    def normalises_nothing(query, key, value, g, beta, use_qk_l2norm_in_kernel=False, **kwargs):  # type: ignore[no-untyped-def]
        return step(query, key, value, g, beta, "unnormalised")

    def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, fault: str) -> Any:
        given = {"q": q, "k": k, "v": v, "g": g, "beta": beta, "scale": q.shape[-1] ** -0.5}
        return delta8(given | {"use_qk_l2norm_in_kernel": True}, fault)

    assert worst(right) < LIMIT
    assert worst(erases_nothing) > 1e-2
    assert worst(normalises_nothing) > 1e-2


def delta8(a: dict[str, Any], fault: str) -> Any:
    """:func:`delta` for keys of 8 features."""
    q, k = (grouped(x if fault == "unnormalised" else unit(x), a["v"].shape[2]) for x in (a["q"], a["k"]))
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], a["v"].shape[-1])
    rows = []
    for t in range(q.shape[1]):
        state = state * a["g"][:, t].exp()[..., None, None]
        read = 0 if fault == "no erase" else (k[:, t].unsqueeze(-1) * state).sum(-2)
        written = a["beta"][:, t].unsqueeze(-1) * (a["v"][:, t] - read)
        state = state + k[:, t].unsqueeze(-1) * written.unsqueeze(-2)
        rows.append((a["scale"] * q[:, t].unsqueeze(-1) * state).sum(-2))
    return torch.stack(rows, dim=1), None
