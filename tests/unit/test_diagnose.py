"""Models broken on purpose: each fault is found at its layer and head, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from broken_models import DIM, GLA, HEADS, WIDTH, Attention, Model, ids, on_first, on_itself, on_previous
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import Cancelled, CaptureError
from ess_widgets.learn import Thresholds, diagnose


def signs(diagnosis: Any) -> list[tuple[str, str, int]]:
    return [(f.sign, f.layer, f.head) for f in diagnosis.findings]


@pytest.fixture
def softmax() -> Model:
    return Model(Attention)


@pytest.fixture
def gla() -> Model:
    return Model(GLA)


@pytest.mark.parametrize("kind", ["entropy", "tolerance"])
@pytest.mark.parametrize("mixer", [Attention, GLA])
def test_nothing_is_said_of_sound_models(kind: Any, mixer: type[nn.Module]) -> None:
    found = diagnose(Model(mixer), ids(), kind=kind, failing=False)
    assert signs(found) == []
    assert len(found.table) == 8 and found.notes == []


def test_output_projection_of_zero(softmax: Model, gla: Model) -> None:
    for model in (softmax, gla):
        with torch.no_grad():
            model.layers[1].out.weight[:, 2 * WIDTH : 3 * WIDTH] = 0
        found = diagnose(model, ids(), failing=False)
        assert signs(found) == [("dead", "layers.1", 2)]
        assert found.findings[0].value == 0 and found.findings[0].severity == "warning"


def test_head_whose_values_are_zero(softmax: Model) -> None:
    with torch.no_grad():
        softmax.layers[0].qkv.weight[2 * DIM + 3 * WIDTH :] = 0
    assert signs(diagnose(softmax, ids())) == [("dead", "layers.0", 3)]


def test_all_heads_of_a_layer_are_dead(softmax: Model) -> None:
    with torch.no_grad():
        softmax.layers[0].out.weight.zero_()
    assert signs(diagnose(softmax, ids())) == [("dead", "layers.0", head) for head in range(HEADS)]


def test_weak_heads_are_not_dead(softmax: Model) -> None:
    with torch.no_grad():
        softmax.layers[1].out.weight[:, :WIDTH] *= 0.1
    found = diagnose(softmax, ids())
    assert signs(found) == []
    weak, *others = found.table.query("layer == 'layers.1'").sort_values("head")["written"]
    assert weak < 0.15 and min(others) > 0.8


def test_equal_keys(softmax: Model) -> None:
    with torch.no_grad():
        softmax.layers[0].qkv.weight[DIM + WIDTH : DIM + 2 * WIDTH] = 0
    found = diagnose(softmax, ids())
    assert signs(found) == [("uniform", "layers.0", 1)]
    assert found.of("layers.0", 1)[0].value < 1e-6


@pytest.mark.parametrize(
    ("bias", "sign", "severity"),
    [(on_first, "sink", "notice"), (on_previous, "local", "info"), (on_itself, "diagonal", "notice")],
)
def test_where_a_head_looks(softmax: Model, bias: Any, sign: str, severity: str) -> None:
    softmax.layers[1].bias[2] = bias
    first = diagnose(softmax, ids(batch=1)).findings
    assert [(f.sign, f.severity, f.layer, f.head) for f in first] == [(sign, severity, "layers.1", 2)]
    assert first[0].value > 0.999


def test_a_head_that_does_not_depend_on_its_input(softmax: Model) -> None:
    softmax.layers[0].bias[0] = lambda L: 1e6 * torch.rand(L, L, generator=torch.Generator().manual_seed(0))
    assert signs(diagnose(softmax, ids(batch=1))) == []  # one sample cannot tell
    assert signs(diagnose(softmax, ids(batch=2))) == [("constant", "layers.0", 0)]
    assert signs(diagnose(softmax, ids(batch=1).repeat(3, 1))) == []  # nor can the same sample thrice


def test_contribution_of_a_sink(softmax: Model) -> None:
    softmax.layers[1].bias[2] = on_first
    row = diagnose(softmax, ids(batch=1)).table.query("layer == 'layers.1' and head == 2").iloc[0]
    # By hand: what token 0 adds to each output through this head, along the layer's own output.
    cap = ew.capture(softmax, ids(batch=1))["layers.1"]
    W = softmax.layers[1].out.weight.detach().double()
    y = cap.outputs[0].double()
    out = y.transpose(0, 1).reshape(y.shape[1], -1) @ W.T
    part = cap.inputs[0, 2].double()[0] @ W[:, 2 * WIDTH : 3 * WIDTH].T
    share = (out @ part) / out.square().sum(-1)
    assert row["sink_contribution"] == pytest.approx(float(share[15:].mean()), rel=1e-4)
    assert diagnose(softmax, ids(batch=1)).table.groupby("layer")[
        "contribution"
    ].sum().tolist() == pytest.approx([1, 1])


def test_a_copied_head(softmax: Model) -> None:
    with torch.no_grad():
        for part in range(3):
            weight = softmax.layers[1].qkv.weight[part * DIM : (part + 1) * DIM]
            weight[3 * WIDTH :] = weight[WIDTH : 2 * WIDTH]
    found = diagnose(softmax, ids())
    assert signs(found) == [("copy", "layers.1", 3)]
    assert "head 1" in found.findings[0].why


@pytest.mark.parametrize("kind", ["entropy", "tolerance"])
def test_gates_that_close(gla: Model, kind: Any) -> None:
    gla.layers[1].gate = torch.tensor([0.0, 0.0, -12.0, 0.0])
    found = diagnose(gla, ids(), kind=kind, failing=False)
    assert signs(found) == [("collapse", "layers.1", 2)]
    assert kind in found.findings[0].number and "Paper" in str(found.findings[0].advice)
    assert found.findings[0].evidence["forgets"] > 0.99


def test_a_gate_that_is_not_applied(gla: Model) -> None:
    gla.layers[0].scale_gate = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert signs(diagnose(gla, ids(), failing=False)) == [("undecayed", "layers.0", 1)]


class Leak(nn.Module):
    """One recurrence for each head: ``s = a s + u``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.tensor([0.9, 0.95, 1.1, 0.8])

    def forward(self, x: Tensor) -> Tensor:
        state, rows = torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            state = state * self.a.repeat_interleave(WIDTH) + row
            rows.append(state)
        return torch.stack(rows, 1)


def read_leak(module: Any, call: Any) -> Any:
    batch, L, _ = call.args[0].shape
    one = torch.ones(batch, HEADS, L, 1)
    return ew.operators.Recurrence(module.a.expand(batch, -1)[..., None, None] * one, one, one)


def test_a_recurrence_that_explodes() -> None:
    with ew.register(Leak, read_leak):
        found = diagnose(Model(Leak), ids(64), failing=False)
    assert signs(found) == [
        ("exploding", f"layers.{i}", 2) for i in range(2)
    ]  # and its neighbours are not dead
    first = found.findings[0]
    assert first.severity == "critical"
    # A single mode: distances from 32 to 47 against those from 0 to 15.
    assert first.value == pytest.approx(1.1**32, rel=1e-3)


def test_gates_above_one_make_no_operator(gla: Model) -> None:
    gla.layers[1].gate = torch.tensor([0.0, 0.0, 0.0, 0.3])
    found = diagnose(gla, ids(), failing=False)
    assert signs(found) == [("unreadable", "layers.1", head) for head in range(HEADS)]
    assert "at most 0" in found.findings[0].why and len(found.of("layers.0")) == 0
    with pytest.raises(ValueError, match="nothing to explore"):
        found.explore(("layers.1", 0))


@pytest.mark.parametrize(("closed", "severity"), [(1, "info"), (2, "warning")])
def test_channels_count_together(closed: int, severity: str) -> None:
    """One collapsed channel is no loss; half of a layer is."""
    from ess_widgets.learn.diagnosis.findings import judge
    from ess_widgets.learn.diagnosis.rows import Row

    usual = {
        "finite": 1.0,
        "residual": 0.0,
        "gain": 1.0,
        "state_size": 16.0,
        "utilisation_with_room": 0.5,
        "growth": 0.1,
    }
    rows = [
        Row(
            "ssm",
            n,
            "selective SSM",
            "channel",
            "bounded",
            usual | {"ess_with_room": 1.0 if n < closed else 8.0},
        )
        for n in range(4)
    ]
    found = judge(rows, Thresholds(), "entropy", "entropy-ESS", None)
    assert [(f.sign, f.severity, f.head) for f in found] == [("collapse", severity, n) for n in range(closed)]


def test_saturation_takes_a_failing_task() -> None:
    model = Model(GLA)
    for layer in model.layers:
        layer.scale_gate = torch.full((HEADS,), 1e-3)
    everywhere = [(f"layers.{i}", head) for i in range(2) for head in range(HEADS)]
    inputs = ids(64, batch=1)
    for failing, sign, severity in ((True, "saturation", "warning"), (None, "full", "info")):
        found = diagnose(model, inputs, failing=failing, kind="tolerance")
        assert sorted((f.layer, f.head) for f in found.findings) == everywhere
        assert {(f.sign, f.severity) for f in found.findings} == {(sign, severity)}
    assert diagnose(model, inputs, failing=False, kind="tolerance").findings == []
    short = diagnose(model, ids(12, batch=1), failing=True, kind="tolerance")
    assert short.findings == [] and any("too short" in note for note in short.notes)


def test_softmax_is_not_saturated_by_its_shape(softmax: Model) -> None:
    found = diagnose(softmax, ids(), kind="tolerance", tol=1e-6, failing=True)
    assert (
        found.table["utilisation_of_ceiling"].min() > 0.9 and found.table["utilisation_of_state"].max() < 0.55
    )
    assert found.findings == []


def test_an_operator_that_is_not_the_layers(softmax: Model) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    def wrong(module: nn.Module, call: Any) -> Any:
        L = call.args[0].shape[1]
        return ew.operators.Dense(torch.eye(L))

    model = nn.Sequential(softmax, Mean())
    with ew.register(Mean, wrong):
        found = diagnose(model, ids())
    assert signs(found) == [("unverified", "1", 0)]
    assert found.findings[0].severity == "critical" and found.findings[0].value > 0.1


def test_weights_that_are_nan(softmax: Model) -> None:
    with torch.no_grad():
        softmax.layers[1].qkv.weight[2 * DIM + WIDTH] = torch.nan
    found = diagnose(softmax, ids())
    assert signs(found) == [("non-finite", "layers.1", 1)]
    assert found.layers == ["layers.0", "layers.1"]
    assert len(found.table) == 8 and found.table.query("layer == 'layers.0'")["ess"].min() > 0
    with pytest.raises(ValueError, match="nothing to explore"):
        found.findings[0].explore()


def test_nan_in_the_first_layer_leaves_nothing_behind_it(softmax: Model) -> None:
    with torch.no_grad():
        softmax.layers[0].qkv.weight[2 * DIM] = torch.nan
    found = diagnose(softmax, ids())
    assert signs(found) == [("non-finite", "layers.0", 0)]
    assert "layers.0" in found.notes[0] and str(found)


def test_short_convolutions_are_local_by_design() -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(DIM, DIM, 3, groups=DIM)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pad(x.mT, (2, 0))).mT  # type: ignore[no-any-return]

    found = diagnose(Model(Short), ids(), failing=True)
    assert found.findings == [] and "by design" in found.notes[0]


def test_padding_is_not_looked_at(softmax: Model) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = softmax

        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            keep = attention_mask.bool()[:, None, None, :]
            original = F.scaled_dot_product_attention
            x = self.model.embed(ids)
            for layer in self.model.layers:
                batch, L, _ = x.shape
                q, k, v = (
                    layer.qkv(F.rms_norm(x, x.shape[-1:]))
                    .view(batch, L, 3, HEADS, WIDTH)
                    .permute(2, 0, 3, 1, 4)
                )
                causal = torch.ones(L, L).tril().bool() & (keep | torch.eye(L).bool())
                x = x + layer.out(original(q, k, v, attn_mask=causal).transpose(1, 2).reshape(batch, L, DIM))
            return x

    inputs = ids(40, batch=1)
    alone = diagnose(softmax, inputs).table
    padded = torch.cat([torch.zeros(1, 24, dtype=torch.long), inputs], dim=1)
    mask = (torch.arange(64) >= 24).long()[None]
    beside = diagnose(Padded(), {"ids": padded, "attention_mask": mask}).table
    for name in ("ess", "local", "sink", "selectivity", "utilisation_of_ceiling", "written"):
        assert beside[name].tolist() == pytest.approx(alone[name].tolist(), rel=1e-3), name


def test_thresholds_decide(softmax: Model) -> None:
    shares = diagnose(softmax, ids()).table["local"]
    found = diagnose(softmax, ids(), thresholds=Thresholds(local=float(shares.median())))
    assert {f.sign for f in found.findings} == {"local"} and len(found.findings) == 4
    assert all(f.threshold == pytest.approx(shares.median()) for f in found.findings)


def test_what_inputs_may_be(softmax: Model) -> None:
    whole = diagnose(softmax, ids(40))
    one_by_one = diagnose(softmax, [ids(40)[:1], {"ids": ids(40)[1:]}])
    assert one_by_one.table["ess"].tolist() == pytest.approx(whole.table["ess"].tolist())
    listed = diagnose(softmax, ids(40).tolist())
    assert listed.table["ess"].tolist() == pytest.approx(whole.table["ess"].tolist())
    first = diagnose(softmax, ids(40)[0].tolist())
    assert first.table["ess"].tolist() == pytest.approx(
        diagnose(softmax, (ids(40)[:1],)).table["ess"].tolist()
    )
    of_lengths = diagnose(softmax, [ids(40, 1), ids(20, 1)])
    assert len(of_lengths.rows[0].profile) == 40 and of_lengths.table["tokens"][0] == 30


def test_a_single_layer_on_a_tensor() -> None:
    torch.manual_seed(0)
    assert len(diagnose(Attention(), torch.randn(1, 24, DIM)).table) == HEADS


def test_bad_input(softmax: Model) -> None:
    tokenizer = ew.demo.small.ByteTokenizer()
    with pytest.raises(ValueError, match="one token"):
        diagnose(softmax, ids(1))
    with pytest.raises(ValueError, match="empty text"):
        diagnose(softmax, ["fine", "  "], tokenizer)
    with pytest.raises(ValueError, match="empty list"):
        diagnose(softmax, [])
    with pytest.raises(TypeError, match="tokenizer"):
        diagnose(softmax, "some text")
    with pytest.raises(TypeError, match="float"):
        diagnose(softmax, 1.5)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        diagnose("model", ids())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind"):
        diagnose(softmax, ids(), kind="rank")  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="mixes"):
        diagnose(nn.Linear(4, 4), torch.randn(1, 20, 4))
    with pytest.raises(KeyError, match=r"layers\.0"):
        diagnose(softmax, ids(), layers="layers.7")
    with pytest.raises(TypeError, match="sink"):
        Thresholds(sink="much")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sink_tokens"):
        Thresholds(sink_tokens=0)


def test_it_tells_how_far_it_is_and_can_be_stopped(softmax: Model) -> None:
    heard: list[tuple[int, int]] = []
    diagnose(softmax, [ids(40, 1), ids(20, 1)], on_progress=lambda *word: heard.append(word))
    layers = len(diagnose(softmax, ids(40, 1)).layers)
    assert layers > 1 and heard == [(done, 2 * layers) for done in range(2 * layers)]

    def stop(done: int, of: int) -> None:
        heard.append((done, of))

    heard.clear()
    with pytest.raises(Cancelled):
        diagnose(softmax, ids(40, 1), on_progress=stop, should_stop=lambda: len(heard) == 1)
    assert heard == [(0, layers)]
    with pytest.raises(Cancelled):  # in the model's own run
        diagnose(softmax, ids(40, 1), on_progress=stop, should_stop=lambda: True)
    assert len(heard) == 1 and not any(m._forward_hooks for m in softmax.modules())


def test_the_model_is_left_as_it_was(softmax: Model) -> None:
    softmax.train()
    before = {name: value.clone() for name, value in softmax.state_dict().items()}
    state = torch.get_rng_state()
    diagnose(softmax, ids())
    assert softmax.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in softmax.state_dict().items())
    assert all(p.grad is None and not p._backward_hooks for p in softmax.parameters())


def test_thresholds_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"thresholds must be ess_widgets\.learn\.Thresholds"):
        diagnose(Model(Attention), ids(), thresholds={"sink": 0.5})  # type: ignore[arg-type]
