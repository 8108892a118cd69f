"""Linear attention by the names of its kernels: RetNet, GLA, HGRN, Based, gated slots, lightning attention."""

from __future__ import annotations

import math
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


def only(cap: Capture, family: str, groups: int, length: int) -> Any:
    """The one layer, which must be true."""
    (layer,) = cap.values()
    assert layer.name == "layer"
    assert layer.family == family
    assert layer.operator.shape[1:] == (groups, length, length)
    assert bool((layer.residual < LIMIT).all()), layer.residual
    return layer


def arguments(seed: int = 0, **sizes: int) -> tuple[Draw, dict[str, Tensor]]:
    x = Draw(seed, **sizes)
    return x, {"q": x.normal(D), "k": x.normal(D), "v": x.normal(V)}


def heads_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: item.transpose(1, 2).contiguous() for name, item in tensors.items()}


def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, gv: Tensor | None, scale: float) -> Tensor:
    """Gated linear attention in float32, all ``(batch, L, heads, ...)``."""
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    rows = []
    for i in range(q.shape[1]):
        if g is not None:
            state = state * g[:, i].exp()[..., None]
        if gv is not None:
            state = state * gv[:, i].exp().unsqueeze(-2)
        state = state + k[:, i].unsqueeze(-1) * v[:, i].unsqueeze(-2)
        rows.append((scale * q[:, i].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(rows, dim=1)


# Every function of flash-linear-attention that computes on a CPU


@pytest.mark.parametrize(
    ("module", "name", "gate", "options", "head_first"),
    [
        ("linear_attn", "naive_recurrent_linear_attn", "", {}, False),
        ("linear_attn", "naive_recurrent_linear_attn", "", {"scale": 0.3}, False),
        ("linear_attn", "naive_chunk_linear_attn", "", {}, False),
        ("gla", "naive_recurrent_gla", "gk", {}, False),
        ("simple_gla", "naive_recurrent_simple_gla", "g", {}, False),
        ("simple_gla", "naive_chunk_simple_gla", "g", {"scale": 0.3}, False),
        ("simple_gla", "naive_parallel_simple_gla", "g", {}, False),
        ("retention", "naive_retention", "", {}, True),
        ("based", "naive_parallel_based", "", {}, True),
        ("based", "naive_parallel_based", "", {"use_norm": False, "scale": 0.3}, True),
        ("based", "naive_chunk_based", "", {"chunk_size": 16}, True),
        ("rebased", "naive_parallel_rebased", "", {}, True),
        ("rebased", "naive_parallel_rebased", "", {"use_norm": False}, True),
    ],
)
def test_references(module: str, name: str, gate: str, options: dict[str, Any], head_first: bool) -> None:
    x, given = arguments(length=64)
    if gate:
        given[gate] = x.log_gate(D) if gate == "gk" else x.log_gate()
    given = heads_first(given) if head_first else given
    family = "gated linear attention" if gate else "linear attention"
    layer = only(called(fla(f"{module}.naive", name), given, **options), family, 3, 64)
    v = given["v"] if head_first else given["v"].transpose(1, 2)
    assert torch.equal(layer.inputs, v)


def test_the_normaliser_is_part_of_the_operator() -> None:
    _, given = arguments()
    given |= {"q": given["q"].exp(), "k": given["k"].exp()}
    layer = only(
        called(fla("linear_attn.naive", "naive_recurrent_linear_attn"), given, normalize=True),
        "linear attention",
        3,
        21,
    )
    torch.testing.assert_close(layer.operator.matrix().sum(-1), torch.ones(2, 3, 21, dtype=torch.float64))


@pytest.mark.parametrize("gated", [True, False])
def test_gated_slots_are_their_second_pass(gated: bool) -> None:
    x, given = arguments()
    given["s"] = x.normal(6)
    if gated:
        given["g"] = x.log_gate(6)
    layer = only(called(fla("gsa.naive", "naive_recurrent_gsa"), given), "gated linear attention", 3, 21)
    assert layer.state_size.max() == 6  # slots
    if not gated:
        only(called(fla("abc.naive", "naive_recurrent_abc"), heads_first(given)), layer.family, 3, 21)


def test_gated_slots_with_fewer_keys() -> None:
    x = Draw(heads=2)
    given = {"k": x.normal(D), "v": x.normal(V), "s": x.normal(6), "g": x.log_gate(6)}
    given["q"] = Draw(1, heads=4).normal(D)
    layer = only(called(fla("gsa.naive", "naive_recurrent_gsa"), given), "gated linear attention", 4, 21)
    assert torch.equal(layer.inputs[:, 0], layer.inputs[:, 1])


def test_hgrn_is_an_operator_for_each_channel() -> None:
    x = Draw(heads=7)
    layer = only(
        called(fla("hgrn.naive", "naive_recurrent_hgrn"), {"x": x.normal(), "g": x.log_gate()}),
        "gated linear recurrence",
        7,
        21,
    )
    assert layer.inputs.shape == (2, 7, 21, 1)
    assert layer.state_size.tolist() == [0] + [1] * 20


# The kernels' own names and signatures


def gla_like(arguments: dict[str, Any]) -> Any:
    """What ``chunk_gla`` and its like compute."""
    q, k, v, gv = (arguments.get(name) for name in ("q", "k", "v", "gv"))
    g = arguments.get("gk") if arguments.get("gk") is not None else arguments.get("g")
    assert q is not None and k is not None and v is not None
    if g is not None and g.ndim == 3:
        g = g.unsqueeze(-1)
    if arguments.get("g_gamma") is not None:
        gamma = arguments["g_gamma"][:, None].expand(*q.shape[:3], 1)
        g = gamma if g is None else g + gamma
    scale = q.shape[-1] ** -0.5 if arguments.get("scale") is None else arguments["scale"]
    borders = arguments.get("cu_seqlens")
    borders = [0, q.shape[1]] if borders is None else borders.tolist()
    parts = [
        recurrence(*(None if t is None else t[:, a:b] for t in (q, k, v, g, gv)), scale)  # type: ignore[arg-type]
        for a, b in pairwise(borders)
    ]
    o = torch.cat(parts, dim=1)
    if arguments.get("normalize"):
        total = torch.cat([k[:, a:b].cumsum(1) for a, b in pairwise(borders)], dim=1)
        o = o / ((q * scale * total).sum(-1, keepdim=True) + 1e-10)
    return o, None


PACKED = torch.tensor([0, 4, 5, 17, 21])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("module", "name", "gates", "options"),
    [
        ("linear_attn", "chunk_linear_attn", (), {"normalize": False}),
        ("linear_attn", "chunk_linear_attn", (), {}),
        ("linear_attn", "fused_chunk_linear_attn", (), {"scale": 0.5}),
        ("linear_attn", "fused_recurrent_linear_attn", (), {}),
        ("linear_attn", "fused_recurrent_linear_attn", (), {"normalize": True}),
        ("gla", "chunk_gla", ("g",), {"output_final_state": True}),
        ("gla", "fused_recurrent_gla", ("gk",), {"scale": 1.0}),
        ("gla", "fused_recurrent_gla", ("gk", "gv"), {}),
        ("gla", "fused_recurrent_gla", ("gv",), {}),
        ("simple_gla", "chunk_simple_gla", ("g1",), {}),
        ("simple_gla", "fused_chunk_simple_gla", ("g1",), {}),
        ("simple_gla", "fused_recurrent_simple_gla", (), {"g_gamma": -torch.tensor([0.1, 0.2, 0.3])}),
        ("simple_gla", "chunk_simple_gla", ("g1",), {"g_gamma": -torch.tensor([0.1, 0.2, 0.3])}),
    ],
)
def test_kernels(
    module: str, name: str, gates: tuple[str, ...], options: dict[str, Any], packed: bool
) -> None:
    function = kernel(module, name, gla_like)
    x, given = arguments(batch=1 if packed else 2)
    if "normalize" in str(options) or name in ("chunk_linear_attn", "fused_chunk_linear_attn"):
        given |= {"q": given["q"].exp(), "k": given["k"].exp()}
    draws = {"g": x.log_gate(D), "gk": x.log_gate(D), "gv": x.log_gate(V), "g1": x.log_gate()}
    given |= {gate[:1] if gate == "g1" else gate: draws[gate] for gate in gates}
    options = {**options, "cu_seqlens": PACKED} if packed else options
    groups = 3 * V if "gv" in gates else 3
    family = "gated linear attention" if gates else "linear attention"
    layer = only(called(function, given, **options), family, groups, 21)
    if packed:
        T = layer.operator.matrix()
        assert not T[..., 5:, :5].any() and bool(T[..., 6, 5].any())


@pytest.mark.parametrize("packed", [False, True])
def test_fixed_decays(packed: bool) -> None:
    heads = torch.arange(3)

    def retained(arguments: dict[str, Any]) -> Any:
        return gla_like({**arguments, "g_gamma": torch.log(1 - 2.0 ** (-5 - heads))})

    def lightning(arguments: dict[str, Any]) -> Any:
        slope = 8 / 3 * (1 - arguments["layer_idx"] / arguments["num_layers"]) * heads
        return gla_like({**arguments, "g_gamma": -slope})

    _, given = arguments(batch=1 if packed else 2)
    more = {"cu_seqlens": PACKED} if packed else {}
    for name in (
        "chunk_retention",
        "fused_chunk_retention",
        "fused_recurrent_retention",
        "parallel_retention",
    ):
        only(called(kernel("retention", name, retained), given, **more), "linear attention", 3, 21)
    for name in ("chunk_lightning_attn", "fused_recurrent_lightning_attn"):
        function = kernel("lightning_attn", name, lightning)
        only(called(function, given, layer_idx=2, num_layers=5, **more), "linear attention", 3, 21)


def test_based_kernels() -> None:
    def compute(arguments: dict[str, Any]) -> Any:
        q, k, v = (arguments[name].transpose(1, 2) for name in ("q", "k", "v"))
        return fla("based.naive", "naive_parallel_based")(
            q, k, v, arguments["scale"], arguments["use_norm"]
        ).transpose(1, 2)

    _, given = arguments()
    for name in ("fused_chunk_based", "parallel_based"):
        layer = only(called(kernel("based", name, compute), given), "linear attention", 3, 21)
        assert layer.state_size[-1] == 1 + D + D * (D + 1) // 2


def test_older_versions_put_heads_first() -> None:
    def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, head_first=True):  # type: ignore[no-untyped-def]
        o, _ = gla_like({"q": q.transpose(1, 2), "k": k.transpose(1, 2), "v": v.transpose(1, 2),
                         "g": g.transpose(1, 2), "scale": scale})  # fmt: skip
        return o.transpose(1, 2), None

    x, given = arguments()
    given["g"] = x.log_gate(D)
    only(called(chunk_gla, heads_first(given)), "gated linear attention", 3, 21)


# What cannot be read is left out with its reason


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"initial_state": torch.ones(2, 3, D, V)}, "it goes on from an earlier state"),
        ({"reverse": True}, "it runs from the end to the beginning"),
        ({"sharpness": 2.0}, "its option 'sharpness' is not known; ew.register teaches it"),
    ],
)
def test_reasons(more: dict[str, Any], reason: str) -> None:
    x, given = arguments()
    with pytest.raises(CaptureError, match=reason):
        called(kernel("gla", "fused_recurrent_gla", gla_like), given | {"gk": x.log_gate(D)}, **more)


def test_an_initial_state_of_zeros_is_none() -> None:
    x, given = arguments()
    function = kernel("gla", "chunk_gla", gla_like)
    zeros = torch.zeros(2, 3, D, V)
    only(called(function, given | {"g": x.log_gate(D)}, initial_state=zeros), "gated linear attention", 3, 21)


class TwoFunctions(nn.Module):
    def __init__(self, first: Callable[..., Any], second: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a: Tensor = self.first(q=q, k=k, v=v)
        b: Tensor = self.second(q=q, k=k, v=v)[0]
        return a + b


def test_other_kernels_are_named_with_a_reason() -> None:
    def chunk_strange_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q * k).cumsum(1).sum(-1, keepdim=True) * v

    def chunk_sums(x: Tensor) -> Tensor:
        return x.cumsum(1)

    _, given = arguments()
    known = fla("linear_attn.naive", "naive_recurrent_linear_attn")
    cap = capture(Net(TwoFunctions(chunk_strange_attn, known)), **given)
    assert [layer.family for layer in cap.values()] == ["linear attention"]
    assert cap.skipped == {"layer": "chunk_strange_attn: it is not known; ew.register teaches it"}
    with pytest.raises(CaptureError) as caught:
        called(chunk_sums, {"x": given["v"]})
    assert "chunk_sums" not in str(caught.value)


def test_other_kernels_do_not_hide_what_they_call() -> None:
    def parallel_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def chunk_lightnet(q: Tensor, k: Tensor, v: Tensor) -> Any:
        z = k.logcumsumexp(1)
        g = torch.cat([z[:, :1], z[:, :-1]], 1) - z
        return fla("gla.naive", "naive_recurrent_gla")(q, (k - z).exp(), v, g)

    _, given = arguments()
    assert not called(parallel_attn, given).skipped
    cap = called(chunk_lightnet, given)
    assert not cap.skipped
    only(cap, "gated linear attention", 3, 21)


# Layers as one writes them, and planted faults


class Layer(nn.Module):
    """Projections to heads around a function."""

    def __init__(self, sizes: dict[str, int], heads: int = 2, width: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.proj = nn.ModuleDict({name: nn.Linear(width, heads * size) for name, size in sizes.items()})
        self.out = nn.Linear(heads * sizes["v"], width)

    def heads_of(self, x: Tensor) -> dict[str, Tensor]:
        return {name: f(x).unflatten(-1, (self.heads, -1)) for name, f in self.proj.items()}

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.mix(**self.heads_of(x)).flatten(2))
        return result

    def mix(self, **t: Tensor) -> Tensor:
        raise AssertionError


class RetNet(Layer):
    def mix(self, **t: Tensor) -> Tensor:
        result: Tensor = kernel("retention", "chunk_retention", self.retain)(**t)[0]
        return result

    def retain(self, arguments: dict[str, Any]) -> Any:
        return gla_like({**arguments, "g_gamma": torch.log(1 - 2.0 ** (-5 - torch.arange(self.heads)))})


class GLA(Layer):
    def mix(self, **t: Tensor) -> Tensor:
        t["g"] = F.logsigmoid(t["g"]) / 16
        result: Tensor = kernel("gla", "chunk_gla", gla_like)(**t)[0]
        return result


class HGRN2(Layer):
    def mix(self, **t: Tensor) -> Tensor:
        f = 0.3 + 0.7 * t.pop("f").sigmoid()
        result: Tensor = kernel("gla", "chunk_gla", gla_like)(q=F.silu(t["q"]), k=1 - f, v=t["v"], g=f.log())[
            0
        ]
        return result


class Based(Layer):
    def mix(self, **t: Tensor) -> Tensor:
        """With the Taylor features written out, as Based's layer does."""
        features = {}
        for name in ("q", "k"):
            x = t[name] / t[name].shape[-1] ** 0.25
            pairs = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) / math.sqrt(2)
            features[name] = torch.cat([torch.ones_like(x[..., :1]), x, pairs], dim=-1)
        function = kernel("linear_attn", "fused_chunk_linear_attn", gla_like)
        result: Tensor = function(**features, v=t["v"], scale=1.0, normalize=True)[0]
        return result


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (RetNet, {"q": 4, "k": 4, "v": 6}),
        (GLA, {"q": 4, "k": 4, "v": 6, "g": 4}),
        (HGRN2, {"q": 4, "f": 4, "v": 6}),
        (Based, {"q": 3, "k": 3, "v": 6}),
    ],
)
def test_layers(kind: type[Layer], sizes: dict[str, int]) -> None:
    model = randomise(Net(kind(sizes)), scale=0.5)
    x = torch.randn(2, 19, 12, generator=torch.Generator().manual_seed(3))
    cap = capture(model, x)
    family = "linear attention" if kind in (RetNet, Based) else "gated linear attention"
    layer = only(cap, family, 2, 19)
    # The layer's own output, from T alone.
    y = (layer.operator.matrix() @ layer.inputs.double()).transpose(1, 2).flatten(2)
    own = model.layer.out(y.float())
    torch.testing.assert_close(own, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fault", ["scale", "gate", "key", "late"])
def test_planted_faults_exceed_the_limit(fault: str) -> None:
    def wrong(arguments: dict[str, Any]) -> Any:
        a = dict(arguments)
        if fault == "scale":
            a["scale"] = 1.0
        elif fault == "gate":
            a["g"] = a["g"] * 1.01
        elif fault == "key":
            a["k"] = F.normalize(a["k"], dim=-1)
        else:
            a["g"] = torch.cat([a["g"][:, 1:], a["g"][:, :1]], dim=1)
        return gla_like(a)

    x, given = arguments()
    cap = called(kernel("gla", "chunk_gla", wrong), given | {"g": x.log_gate(D)})
    assert bool((cap[0].residual > 1e-3).all())


# MiniMax


def minimax(block_size: int, layers: int = 3) -> nn.Module:
    modeling = plain("minimax")
    config = modeling.MiniMaxConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, num_local_experts=2, num_experts_per_tok=1, block_size=block_size,
        layer_types=["linear_attention", "full_attention", "linear_attention"][:layers],
    )  # fmt: skip
    return randomise(modeling.MiniMaxForCausalLM(config))


@pytest.mark.parametrize("block_size", [4, 8, 64])
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_minimax_lightning_attention(block_size: int, side: str) -> None:
    model = minimax(block_size)
    ids = torch.arange(42).view(2, 21) * 5 % 32
    mask = torch.ones_like(ids)
    if side != "none":
        mask[0, slice(0, 4) if side == "left" else slice(-4, None)] = 0
    for use_cache in (True, False):
        cap = capture(model, input_ids=ids, attention_mask=mask, use_cache=use_cache)
        assert list(cap) == [f"model.layers.{i}.self_attn" for i in range(3)]
        assert [layer.family for layer in cap.values()] == [
            "linear attention", "softmax attention", "linear attention",
        ]  # fmt: skip
        assert all(bool((layer.residual < LIMIT).all()) for layer in cap.values())


def test_minimax_in_half_precision_and_a_batch_of_one() -> None:
    ids = torch.arange(21).view(1, 21) * 5 % 32
    cap = capture(minimax(8), input_ids=ids, attention_mask=torch.ones_like(ids))
    assert all(bool((layer.residual < LIMIT).all()) for layer in cap.values())
    cap = capture(minimax(8).bfloat16(), input_ids=ids)
    assert all(bool((layer.residual < 1e-2).all()) for layer in cap.values())


def test_minimax_with_another_slope_exceeds_the_limit() -> None:
    model = minimax(8)
    ids = torch.arange(42).view(2, 21) * 5 % 32
    with torch.no_grad():
        model.model.layers[0].self_attn.slope_rate *= 1.05  # its tables of decays stay
    assert bool((capture(model, ids)[0].residual > 1e-3).any())


def test_minimax_in_a_generation_loop_is_left_out() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm = minimax(8)

        def forward(self, ids: Tensor) -> Tensor:
            out = self.lm(ids, use_cache=True)
            more = self.lm(ids[:, :3], past_key_values=out.past_key_values, use_cache=True)
            logits: Tensor = more.logits
            return logits

    cap = capture(Loop(), torch.arange(42).view(2, 21) * 5 % 32)
    assert list(cap)[:3] == [f"lm.model.layers.{i}.self_attn" for i in range(3)]
    assert "earlier state" in cap.skipped["lm.model.layers.0.self_attn"]
    assert all(bool((layer.residual < LIMIT).all()) for layer in cap.values())
