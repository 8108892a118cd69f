"""Selective state-space models in live models: the operator is the true one, and a wrong one is noticed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.families import mamba_ssm, selective_ssm
from ess_widgets.operators import Diagonal, Recurrence
from tests.unit import hybrids
from tests.unit import selective as reference

B, CH, L, N, H, P = 2, 4, 11, 3, 4, 2
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Calls(nn.Module):
    """A model that calls a function with tensors of its own and gives one result back."""

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        super().__init__()
        self.function, self.arguments = function, arguments

    def forward(self, u: Tensor) -> Tensor:
        result = self.function(u, **self.arguments)
        return result[0] if isinstance(result, tuple) else result


def only(cap: Any, family: str = "selective SSM") -> Any:
    found = [layer for layer in cap.values() if layer.family == family]
    assert len(found) == 1
    return found[0]


def impulses(layer: Any, respond: Callable[[Tensor], Tensor], shape: tuple[int, ...], along: int) -> None:
    """Compare every column of ``T`` with the function's response to an impulse at that position."""
    T = layer.operator.matrix()
    for j in range(L):
        u = torch.zeros(shape)
        u.select(along, j).fill_(1.0)
        torch.testing.assert_close(T[..., j].float(), respond(u), atol=2e-6, rtol=1e-4)


def s6_arguments(layout: str = "shared") -> dict[str, Any]:
    A: Tensor = -torch.rand(CH, N) - 0.1
    shapes: dict[str, tuple[int, ...]] = {
        "fixed": (CH, N), "shared": (B, N, L), "groups": (B, 2, N, L), "paired": (B, N, 2 * L),
        "paired groups": (B, 2, N, 2 * L),
    }  # fmt: skip
    vectors = [torch.randn(shapes.get(layout, (CH, N))) for _ in range(2)]
    if layout.startswith("paired") or layout == "complex":
        A = torch.complex(A, torch.randn(CH, N))
    if layout == "complex":
        vectors = [torch.complex(v, torch.randn_like(v)) for v in vectors]
    return {
        "delta": torch.randn(B, CH, L), "A": A, "B": vectors[0], "C": vectors[1],
        "delta_bias": torch.randn(CH), "delta_softplus": True,
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["fixed", "shared", "groups", "complex", "paired", "paired groups"])
def test_selective_scan_in_every_layout(layout: str) -> None:
    given, u = s6_arguments(layout), torch.randn(B, CH, L)
    extra = {"D": torch.randn(CH), "z": torch.randn(B, CH, L)}
    layer = only(ew.capture(Calls(reference.selective_scan_fn, **given, **extra), u))
    assert layer.operator.shape == (B, CH, L, L) and layer.group == "channel"
    assert layer.residual.max() < 1e-6
    impulses(layer, lambda e: reference.selective_scan_fn(e, **given), (B, CH, L), 2)


@pytest.mark.parametrize("extra", [{}, {"D": torch.ones(CH)}, {"z": torch.ones(B, CH, L)}])
@pytest.mark.parametrize("state", [False, True])
def test_skip_gate_and_last_state_are_left_out(extra: dict[str, Tensor], state: bool) -> None:
    given, u = s6_arguments(), torch.randn(B, CH, L)
    layer = only(ew.capture(Calls(reference.selective_scan_fn, **given, **extra, return_last_state=state), u))
    torch.testing.assert_close(layer.outputs[..., 0], reference.selective_scan_fn(u, **given))
    assert layer.residual.max() < 1e-6


def test_documents_of_a_packed_sequence_are_kept_apart() -> None:
    given, u = s6_arguments(), torch.randn(B, CH, L)
    layer = only(
        ew.capture(Calls(reference.selective_scan_fn, **given, cu_seqlens=torch.tensor([0, 4, L])), u)
    )
    assert layer.residual.max() < 1e-6
    assert not layer.operator.matrix()[..., 4:, :4].any()
    assert ew.ess(layer.operator, kind="tolerance", tol=1e-9)[..., 4].eq(0).all()
    seq_idx = torch.tensor([[0] * 5 + [1] * (L - 5), [3] * L])
    layer = only(
        ew.capture(Calls(reference.mamba_chunk_scan_combined, **ssd_arguments(), seq_idx=seq_idx), values())
    )
    assert layer.residual.max() < 1e-6
    T = layer.operator.matrix()
    assert not T[0, :, 5:, :5].any() and T[1, :, 5:, :5].all()


def values() -> Tensor:
    return torch.randn(B, L, H, P, generator=torch.Generator().manual_seed(5))


def ssd_arguments(groups: int = 2) -> dict[str, Any]:
    return {
        "dt": torch.randn(B, L, H), "A": -torch.rand(H) - 0.1, "B": torch.randn(B, L, groups, N),
        "C": torch.randn(B, L, groups, N), "chunk_size": 4, "dt_bias": torch.randn(H), "dt_softplus": True,
    }  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("skip", [None, (H,), (H, P)])
@pytest.mark.parametrize("limits", [(0.0, math.inf), (0.3, 0.9)])
def test_chunk_scan(groups: int, skip: tuple[int, ...] | None, limits: tuple[float, float]) -> None:
    given = {**ssd_arguments(groups), "dt_limit": limits}
    extra = {} if skip is None else {"D": torch.randn(skip), "z": torch.randn(B, L, H, P)}
    layer = only(ew.capture(Calls(reference.mamba_chunk_scan_combined, **given, **extra), values()))
    assert layer.operator.shape == (B, H, L, L) and layer.inputs.shape == (B, H, L, P)
    assert layer.group == "head" and layer.residual.max() < 1e-6

    def respond(e: Tensor) -> Tensor:
        return reference.mamba_chunk_scan_combined(e, **given).transpose(1, 2)[..., 0]

    impulses(layer, respond, (B, L, H, P), 1)


def test_a_state_from_before() -> None:
    given = {**ssd_arguments(), "initial_states": torch.zeros(B, H, P, N)}
    assert (
        only(ew.capture(Calls(reference.mamba_chunk_scan_combined, **given), values())).residual.max() < 1e-6
    )
    given["initial_states"] = torch.ones(B, H, P, N)
    with pytest.raises(CaptureError, match="state that is not zero; pass the full sequence without a cache"):
        ew.capture(Calls(reference.mamba_chunk_scan_combined, **given), values())


def test_one_step_of_generation_says_why_it_is_left_out() -> None:
    def selective_state_update(x: Tensor, state: Tensor) -> Tensor:
        return state.mul(0.5).add(x[:, 0]).unsqueeze(1)

    with pytest.raises(
        CaptureError, match="one token is added to the state in a cache; pass the full sequence"
    ):
        ew.capture(Calls(selective_state_update, state=torch.ones(1, 4)), torch.randn(1, 1, 4))


def test_minimal_versions() -> None:
    def ssd_minimal_discrete(
        X: Tensor, A: Tensor, B: Tensor, C: Tensor, block_len: int
    ) -> tuple[Tensor, Tensor]:
        # Δ is in X and A already: 1 here.
        one = torch.ones(X.shape[:3])
        B, C = (v.repeat_interleave(X.shape[2] // v.shape[2], 2) for v in (B, C))
        decays = (A.cumsum(1)[:, :, None] - A.cumsum(1)[:, None]).exp() * torch.ones(L, L).tril()[
            None, :, :, None
        ]
        scores = torch.einsum("bihn,bjhn->bijh", C, B) * decays
        return torch.einsum("bijh,bjhp->bihp", scores, X), one

    given = ssd_arguments()
    decay = -torch.rand(B, L, H)
    layer = only(
        ew.capture(Calls(ssd_minimal_discrete, A=decay, B=given["B"], C=given["C"], block_len=4), values())
    )
    assert layer.operator.shape == (B, H, L, L) and layer.residual.max() < 1e-6

    def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return reference.unnamed_scan(u.mT, delta.mT, A, B.mT, C.mT, D).mT

    u, delta, A = torch.randn(B, L, CH), torch.rand(B, L, CH), -torch.rand(CH, N)
    vectors = {"B": torch.randn(B, L, N), "C": torch.randn(B, L, N)}
    layer = only(ew.capture(Calls(selective_scan, delta=delta, A=A, **vectors, D=torch.randn(CH)), u))
    assert layer.operator.shape == (B, CH, L, L) and layer.residual.max() < 1e-6


def test_other_functions_of_these_names_are_left_alone() -> None:
    def ssd(x: Tensor, y: Tensor) -> Tensor:
        """Sum of squared differences."""
        return (x - y).square()

    with pytest.raises(CaptureError, match=r"Calls shows no|nothing"):
        ew.capture(Calls(ssd, y=torch.ones(1)), torch.randn(2, 5, 4))


# Models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(LIMIT), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", [n for n in hybrids.CONFIGS if n != "recurrent_gemma"])
def test_every_mixer_of_every_hybrid(name: str, dtype: torch.dtype) -> None:
    model, ids = hybrids.build(name, dtype), hybrids.tokens()
    for given in (
        {},
        {"use_cache": False},
        *({"attention_mask": hybrids.padding(w)} for w in ("left", "right")),
    ):
        cap = ew.capture(model, ids, **given)
        layers = {key: layer for key, layer in cap.items() if layer.family == "selective SSM"}
        paths = hybrids.MIXERS[name]
        for path, count in paths.items():
            assert sum(key.partition("#")[0] == path for key in layers) == count
        assert len(layers) == sum(paths.values()) and not cap.skipped
        attention = [layer for layer in cap.values() if layer.family == "softmax attention"]
        assert len(attention) == hybrids.ATTENTION.get(name, 0)
        for layer in layers.values():
            assert layer.residual.max() < LIMIT[dtype], (given, layer)
            assert (layer.valid is None) == ("attention_mask" not in given)


@pytest.mark.parametrize("name", ["mamba2", "bamba", "nemotron_h", "zamba2"])
def test_double_precision_that_the_model_rounds_on_its_way(name: str) -> None:
    model = hybrids.build(name, torch.float64)
    with torch.no_grad():  # a skip that is large beside what is mixed
        for path, parameter in model.named_parameters():
            if path.endswith(".D"):
                parameter.mul_(1e4)
    for layer in ew.capture(model, hybrids.tokens()).values():
        assert layer.residual.max() < 1e-6, layer


@pytest.mark.parametrize("name", ["mamba", "mamba2", "bamba"])
def test_padding_between_own_tokens_lets_the_state_decay(name: str) -> None:
    cap = ew.capture(hybrids.build(name), hybrids.tokens(), attention_mask=hybrids.padding("hole"))
    for layer in (item for item in cap.values() if item.family == "selective SSM"):
        assert layer.residual.max() < 1e-5
        assert not layer.operator.matrix()[0, :, 7:10].any()


def test_against_a_hook_on_the_output_projection() -> None:
    model, ids, seen = hybrids.build("mamba"), hybrids.tokens(), {}
    mixer = model.backbone.layers[1].mixer
    mixer.in_proj.register_forward_hook(lambda m, args, out: seen.update(gate=out.chunk(2, -1)[1]))
    mixer.out_proj.register_forward_pre_hook(lambda m, args: seen.update(y=args[0]))
    with torch.no_grad():
        model(ids)
    layer = next(
        v for k, v in ew.capture(model, ids, layers="backbone.layers.1.mixer*").items() if "SSM" in v.family
    )
    y = layer.operator.matrix() @ layer.inputs.double() + mixer.D[:, None, None] * layer.inputs
    torch.testing.assert_close(
        (y.squeeze(-1).mT * F.silu(seen["gate"])).float(), seen["y"], atol=1e-6, rtol=1e-5
    )
    assert torch.equal(layer.state_size, torch.arange(hybrids.LENGTH).clamp(max=4))


def test_against_a_hook_on_the_norm() -> None:
    model, ids, seen = hybrids.build("mamba2"), hybrids.tokens(), {}
    mixer = model.backbone.layers[0].mixer
    mixer.norm.register_forward_pre_hook(lambda m, args: seen.update(y=args[0]))
    with torch.no_grad():
        model(ids)
    layer = next(v for v in ew.capture(model, ids).values() if v.family == "selective SSM")
    y = layer.operator.matrix() @ layer.inputs.double() + mixer.D[:, None, None] * layer.inputs
    torch.testing.assert_close(y.transpose(1, 2).flatten(2).float(), seen["y"], atol=1e-6, rtol=1e-5)


def test_generation_is_left_out_with_its_reason() -> None:
    model = hybrids.build("mamba")
    with torch.no_grad():
        cache = model(hybrids.tokens(), use_cache=True).cache_params
    with pytest.raises(CaptureError, match="pass the full sequence without a cache"):
        ew.capture(model, hybrids.tokens()[:, :1], cache_params=cache, use_cache=True, layers="*")


# mamba_ssm ------------------------------------------------------------------------------------------------------


def mamba_inner_fn(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Any, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Any, A: Tensor, B: Any = None, C: Any = None, D: Any = None,
    delta_bias: Any = None, B_proj_bias: Any = None, C_proj_bias: Any = None, delta_softplus: bool = True,
) -> Tensor:  # fmt: skip
    """In place of the kernel of this name."""
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias)
    return reference.inner(
        xz, *weights, A, B, C, D, delta_bias, delta_softplus, scan=reference.unnamed_scan
    )  # fmt: skip


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor, conv1d_weight: Tensor, conv1d_bias: Any, dt_bias: Tensor, A: Tensor, D: Tensor, chunk_size: int,
    initial_states: Any = None, seq_idx: Any = None, dt_limit: Any = (0.0, math.inf), activation: str = "silu",
    rmsnorm_weight: Any = None, rmsnorm_eps: float = 1e-6, outproj_weight: Any = None, outproj_bias: Any = None,
    headdim: Any = None, ngroups: int = 1, norm_before_gate: bool = True,
) -> Tensor:  # fmt: skip
    """In place of the kernel of this name."""
    return reference.split_scan(**locals(), scan=reference.steps_inline)


OPTIONS: list[dict[str, Any]] = [
    {}, {"norm_before_gate": True}, {"rmsnorm": False}, {"d_ssm": 8}, {"D_has_hdim": True}, {"ngroups": 1},
    {"dt_limit": (0.1, 0.5)},
]  # fmt: skip


def check_both(cap: Any, dtype: torch.dtype) -> None:
    convolution, ssm = only(cap, "convolution"), only(cap)
    assert ssm.residual.max() < LIMIT[dtype]
    assert convolution.residual.max() < LIMIT[dtype]
    assert next(iter(cap)) == "conv1d" and not cap.skipped


@pytest.mark.parametrize("dtype", list(LIMIT), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("how", ["inline", "raw", mamba_inner_fn])
def test_mamba_ssm_modules(how: Any, dtype: torch.dtype) -> None:
    model, x = reference.Mamba(how=how).to(dtype), torch.randn(B, L, 8, dtype=dtype)
    cap = ew.capture(model, x)
    check_both(cap, dtype)
    assert only(cap).operator.shape == (B, 16, L, L)
    xz = (x @ model.in_proj.weight.T).mT.chunk(2, 1)[0]
    u = reference.short_convolution(xz, model.conv1d.weight, model.conv1d.bias)
    torch.testing.assert_close(only(cap).inputs[..., 0], u)


@pytest.mark.parametrize("dtype", list(LIMIT), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("how", ["inline", "raw", mamba_split_conv1d_scan_combined])
def test_mamba2_modules(how: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    model, x = reference.Mamba2(how=how, **options).to(dtype), torch.randn(B, L, 8, dtype=dtype)
    cap = ew.capture(model, x)
    check_both(cap, dtype)
    assert only(cap).operator.shape == (B, model.nheads, L, L)


def test_functions_inside_modules_are_read_themselves() -> None:
    model = reference.Mamba(how=lambda *a, **k: reference.inner(*a, **k))
    layer = only(ew.capture(model, torch.randn(B, L, 8)))
    assert layer.residual.max() < 1e-6
    model = reference.Mamba2(how=lambda *a, **k: reference.split_scan(*a, **k))
    layer = only(ew.capture(model, torch.randn(B, L, 8)))
    assert layer.residual.max() < 1e-6


def test_packed_documents_in_a_fused_call() -> None:
    model = reference.Mamba2(how=mamba_split_conv1d_scan_combined)
    with pytest.raises(CaptureError, match="documents are packed into one sequence"):
        ew.capture(model, torch.randn(B, L, 8), seq_idx=torch.zeros(B, L, dtype=torch.int32))


# Planted faults -------------------------------------------------------------------------------------------------


def worst(model: nn.Module, *args: Any) -> float:
    cap = ew.capture(model, *args)
    return max(float(v.residual.max()) for v in cap.values() if v.family == "selective SSM")


def without_step(right: Any) -> Any:
    def wrong(step: Tensor, *args: Any, **kwargs: Any) -> Recurrence:
        op = right(step, *args, **kwargs)
        return Recurrence(op.A, op.B / step.double()[..., None], op.C)

    return wrong


def heads_without_step(step: Tensor, A: Tensor, B: Tensor, C: Tensor, valid: Any = None) -> Recurrence:
    decay = torch.exp(step.double() * A.double()[:, None])[..., None]
    return Recurrence(
        Diagonal(decay), *(v.double().repeat_interleave(len(A) // v.shape[1], 1) for v in (B, C))
    )


FAULTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "no step": ("selective_ssm", without_step),
    "A": ("selective_ssm", lambda right: lambda step, A, *rest, **k: right(step, 1.01 * A, *rest, **k)),
    "heads, no step": ("ssd", lambda right: heads_without_step),
    "heads, A": ("ssd", lambda right: lambda step, A, *rest, **k: right(step, 1.01 * A, *rest, **k)),
    "D": ("skipped", lambda right: lambda u, D: right(u, 1.01 * D)),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_wrong_operator_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, spoil = FAULTS[fault]
    models = ["mamba2"] if name == "ssd" else ["mamba"] if name == "selective_ssm" else ["mamba", "mamba2"]
    fused = {"ssd": reference.Mamba2, "selective_ssm": reference.Mamba}.get(name)
    x = torch.randn(B, L, 8)
    inline = [fused(how=how) for how in ("inline", "raw")] if fused else []
    assert all(worst(model, x) < 1e-6 for model in inline)
    monkeypatch.setattr(selective_ssm, name, spoil(getattr(selective_ssm, name)))
    for model in models:
        assert worst(hybrids.build(model), hybrids.tokens()) > 1e-4
    assert all(worst(model, x) > 1e-4 for model in inline)


# What is known from the calls of the modules inside needs no weights: the convolution's result, the last projection's input.
SPOILT = [
    (kind, how, weight)
    for kind in (reference.Mamba, reference.Mamba2)
    for how, weights in (("raw", "D A conv_weight out_weight"), ("inline", "D A"))
    for weight in weights.split()
] + [(reference.Mamba2, "inline", "conv_weight")]


@pytest.mark.parametrize(("kind", "how", "weight"), SPOILT)
def test_a_model_that_computes_something_else_is_noticed(
    kind: Any, how: str, weight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read from the module is not what it ran with: 1 % more of one weight."""
    model, x = kind(how=how), torch.randn(B, L, 8)
    for name in ("s6_readings", "ssd_readings"):
        right = getattr(mamba_ssm, name)
        monkeypatch.setattr(
            mamba_ssm, name, lambda kept, right=right: right({**kept, weight: 1.01 * kept[weight]})
        )
    assert worst(model, x) > 1e-4
