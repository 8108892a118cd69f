"""RWKV by the names of its kernels: version 4 per channel, 6 and 7 with a state for each head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.capture import Capture, CaptureError, capture
from tests.unit.kernel_calls import Draw, Net, called, fla, kernel
from tests.unit.recurrent import randomise

D, V = 4, 5
LIMIT = 1e-5
PACKED = torch.tensor([0, 4, 5, 17, 21])


def only(cap: Capture, groups: int = 3, length: int = 21) -> Any:
    """The one layer, which must be true."""
    (layer,) = cap.values()
    assert layer.family == "RWKV"
    assert layer.operator.shape[1:] == (groups, length, length)
    assert bool((layer.residual < LIMIT).all()), layer.residual
    return layer


def borders_of(a: dict[str, Any]) -> set[int]:
    return set() if a.get("cu_seqlens") is None else set(a["cu_seqlens"].tolist())


def six(a: dict[str, Any], fault: str = "") -> Any:
    """``y_t = r_tᵀ (S + Diag(u) k_t v_tᵀ)``, then ``S = Diag(w_t) S + k_t v_tᵀ``."""
    r, k, v, w, u = (a[name] for name in "rkvwu")
    scale = r.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
    state = r.new_zeros(r.shape[0], r.shape[2], r.shape[3], v.shape[-1])
    rows = []
    for t in range(r.shape[1]):
        state = state * 0 if t in borders_of(a) else state
        written = k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        after = state * w[:, t].exp().unsqueeze(-1) + written
        bonus = after if fault == "read after" else state + u.unsqueeze(-1) * written
        rows.append((scale * r[:, t].unsqueeze(-1) * bonus).sum(-2))
        state = after
    return torch.stack(rows, dim=1), None


def seven(a: dict[str, Any], fault: str = "") -> Any:
    """``S = Diag(w_t) S + b_t (a_tᵀ S) + k_t v_tᵀ``, then ``y_t = r_tᵀ S``."""
    r, w, k, v = (a[name] for name in "rwkv")
    x, b = (-a["kk"], a["kk"] * a["a"]) if "kk" in a else (a["a"], a["b"])
    scale = r.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
    state = r.new_zeros(r.shape[0], r.shape[2], r.shape[3], v.shape[-1])
    rows = []
    for t in range(r.shape[1]):
        state = state * 0 if t in borders_of(a) else state
        read = (x[:, t].unsqueeze(-1) * state).sum(-2, keepdim=True)
        read = read * 0 if fault == "no erase" else read
        state = state * w[:, t].exp().unsqueeze(-1) + b[:, t].unsqueeze(-1) * read
        state = state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        rows.append((scale * r[:, t].unsqueeze(-1) * state).sum(-2))
    return torch.stack(rows, dim=1), None


def arguments(version: int, **sizes: int) -> dict[str, Tensor]:
    x = Draw(version, **sizes)
    given = {"r": x.normal(D), "k": x.normal(D), "v": x.normal(V), "w": -x.normal(D).exp()}
    if version == 6:
        return given | {"u": x.normal(D)[0, 0]}
    key, rate = x.unit(D), x.gate(D)
    return given | {"a": -key, "b": key * rate, "w": 0.6 * given["w"].clamp(min=-1)}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["chunk_rwkv6", "fused_recurrent_rwkv6"])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_rwkv6(name: str, scale: float | None, packed: bool) -> None:
    more = {"cu_seqlens": PACKED} if packed else {}
    given = arguments(6, batch=1 if packed else 2)
    layer = only(called(kernel("rwkv6", name, six), given, scale=scale, **more))
    if packed:
        T = layer.operator.matrix()
        assert not T[..., 5:, :5].any() and bool(T[..., 6, 5].any())


def test_rwkv6_reference() -> None:
    given = {name: item.transpose(1, 2) if item.ndim == 4 else item for name, item in arguments(6).items()}
    given["q"] = given.pop("r")
    only(called(fla("rwkv6.recurrent_naive", "naive_recurrent_rwkv6"), given))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["chunk_rwkv7", "fused_recurrent_rwkv7"])
@pytest.mark.parametrize("options", [{}, {"scale": 0.4}])
def test_rwkv7(name: str, options: dict[str, Any], packed: bool) -> None:
    options = options | {"cu_seqlens": PACKED} if packed else options
    given = arguments(7, batch=1 if packed else 2)
    only(called(kernel("rwkv7", name, seven), given, **options))


@pytest.mark.parametrize("packed", [False, True])
def test_rwkv7_by_removal_keys(packed: bool) -> None:
    more = {"cu_seqlens": PACKED} if packed else {}
    x, given = Draw(1, batch=1 if packed else 2), arguments(7, batch=1 if packed else 2)
    del given["b"]
    given |= {"kk": x.unit(D), "a": x.gate(D)}
    only(called(kernel("rwkv7", "fused_mul_recurrent_rwkv7", seven), given, **more))


@pytest.mark.parametrize(("version", "fault"), [(6, "read after"), (7, "no erase")])
def test_planted_faults_exceed_the_limit(version: int, fault: str) -> None:
    compute = six if version == 6 else seven
    function = kernel(f"rwkv{version}", f"chunk_rwkv{version}", lambda a: compute(a, fault))
    (layer,) = called(function, arguments(version)).values()
    assert bool((layer.residual > 1e-2).all())


class Seven(nn.Module):
    """The core of RWKV-7's time mixing."""

    def __init__(self, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.proj = nn.ModuleDict({name: nn.Linear(width, width) for name in ("r", "w", "k", "v", "a")})
        self.k_k, self.k_a = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        r, w, k, v, a = (f(x) for f in self.proj.values())
        w, a = -0.6065306597126334 * w.sigmoid(), a.sigmoid()
        kk = F.normalize((k * self.k_k).unflatten(-1, (self.heads, -1)), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        r, w, k, v, a = (item.unflatten(-1, (self.heads, -1)) for item in (r, w, k, v, a))
        o = kernel("rwkv7", "chunk_rwkv7", seven)(r=r, w=w, k=k, v=v, a=-kk, b=kk * a)[0]
        y: Tensor = self.out(o.flatten(2))
        return y


def test_a_layer_of_rwkv7() -> None:
    model = randomise(Net(Seven()), scale=0.5)
    layer = only(capture(model, torch.randn(2, 19, 8, generator=torch.Generator().manual_seed(3))), 2, 19)
    assert layer.state_size.tolist() == [min(4, i) for i in range(19)]


# RWKV-4


def four(given: dict[str, Any]) -> Any:
    """The means as transformers computes them."""
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    return rwkv_linear_attention_cpu(given["w"], given["u"], given["k"], given["v"], None, True)


def test_rwkv4_kernel() -> None:
    x = Draw(heads=7)
    given = {"w": x.normal()[0, 0], "u": x.normal()[0, 1], "k": 3 * x.normal(), "v": x.normal()}
    empty = torch.cat([torch.zeros(2, 2, 1, 7), torch.full((2, 1, 1, 7), -1e38)], dim=1)
    function = kernel("rwkv4", "fused_recurrent_rwkv4", four)
    layer = only(called(function, given, state=empty), 7)
    torch.testing.assert_close(layer.operator.matrix().sum(-1), torch.ones(2, 7, 21, dtype=torch.float64))
    with pytest.raises(CaptureError, match="earlier state"):
        called(function, given, state=torch.ones_like(empty))


def rwkv(layers: int = 2) -> nn.Module:
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(
        vocab_size=32, context_length=64, hidden_size=8, num_hidden_layers=layers, intermediate_size=8,
        rescale_every=1,
    )  # fmt: skip
    return randomise(RwkvForCausalLM(config), scale=0.5)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_transformers(use_cache: bool, side: str) -> None:
    """The model does not look at its mask: padding on the left is read, and the operator says so."""
    ids = torch.arange(46).view(2, 23) * 5 % 32
    mask = torch.ones_like(ids)
    if side != "none":
        mask[0, slice(0, 4) if side == "left" else slice(-4, None)] = 0
    cap = capture(rwkv(), input_ids=ids, attention_mask=mask, use_cache=use_cache)
    assert list(cap) == ["rwkv.blocks.0.attention", "rwkv.blocks.1.attention"]
    for layer in cap.values():
        assert layer.family == "RWKV"
        assert layer.operator.shape == (2, 8, 23, 23)
        assert bool((layer.residual < LIMIT).all())
        assert (layer.valid is None) == (side != "right")


def test_transformers_in_half_precision() -> None:
    cap = capture(rwkv().bfloat16(), torch.arange(46).view(2, 23) * 5 % 32)
    assert all(bool((layer.residual < 1e-2).all()) for layer in cap.values())


def test_another_decay_exceeds_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.rwkv import modeling_rwkv as modeling

    true = modeling.rwkv_linear_attention_cpu

    def faster(time_decay: Tensor, *rest: Any, **more: Any) -> Any:
        return true(time_decay + 0.1, *rest, **more)

    monkeypatch.setattr(modeling, "rwkv_linear_attention_cpu", faster)
    (layer, *_) = capture(rwkv(), torch.arange(46).view(2, 23) * 5 % 32).values()
    assert bool((layer.residual > 1e-4).any())
