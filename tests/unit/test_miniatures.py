"""Miniatures: their scans against plain loops, their operators against their outputs, their weights against the records."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ess_widgets as ew
from ess_widgets import demo
from ess_widgets.demo import weights
from ess_widgets.demo.miniatures import MIXERS, Miniature, scans
from ess_widgets.demo.training.bytes import held_out_loss
from ess_widgets.demo.training.fit import evaluate, fit
from ess_widgets.tasks import MQAR

FAMILY = {
    "SA": "softmax attention",
    "LA": "linear attention",
    "WLA": "gated linear attention",
    "GLA": "gated linear attention",
    "GLA-S6": "gated linear attention",
    "S6": "selective SSM",
    "GDN": "delta rule",
}


def gla_by_loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> Tensor:
    S = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    rows = []
    for t in range(q.shape[1]):
        S = S * g[:, t].exp().unsqueeze(-1) + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        rows.append(scale * (q[:, t].unsqueeze(-1) * S).sum(-2))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("L", [1, 5, 8, 29, 32])
@pytest.mark.parametrize("strength", [0.0, 0.1, 60.0])
def test_the_chunked_scan_is_the_plain_one(L: int, strength: float) -> None:
    q, k = (torch.randn(2, L, 3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    v = torch.randn(2, L, 3, 4, dtype=torch.float64, requires_grad=True)
    g = (-strength * torch.rand(2, L, 3, 6, dtype=torch.float64)).requires_grad_()
    fast, slow = scans.chunk_gla(q, k, v, g, 0.5), gla_by_loop(q, k, v, g, 0.5)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    for one, two in zip(
        torch.autograd.grad((fast * weight).sum(), (q, k, v, g)),
        torch.autograd.grad((slow * weight).sum(), (q, k, v, g)),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_is_captured_as_what_it_is(name: str) -> None:
    other = "SA" if name != "SA" else "GDN"
    model = Miniature((name, other), vocab=64, width=32, heads=2, state=8)
    ids = torch.randint(64, (2, 40))
    cap = ew.capture(model, ids)
    assert list(cap) == ["layers.0.mixer", "layers.1.mixer"] and not cap.skipped
    first = cap["layers.0.mixer"]
    assert first.family == FAMILY[name]
    assert first.operator.shape[1] == (32 if name == "S6" else 2)
    assert all(float(layer.residual.max()) < 1e-5 for layer in cap.values())
    assert int(first.operator.state_size[-1]) == (39 if name == "SA" else 8)


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_is_causal(name: str) -> None:
    model = Miniature((name, name), vocab=64, width=32, heads=2, state=8)
    ids = torch.randint(64, (1, 21))
    other = ids.clone()
    other[:, 12:] = torch.randint(64, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[:, :12], model(other)[:, :12])


def test_bad_sizes_are_said() -> None:
    with pytest.raises(ValueError, match="mixers must be of SA, LA"):
        Miniature(("GLA", "Mamba"), vocab=8)
    with pytest.raises(ValueError, match="none"):
        Miniature((), vocab=8)
    with pytest.raises(ValueError, match="multiple of heads"):
        Miniature(("GLA",), vocab=8, width=30)
    with pytest.raises(ValueError, match="even"):
        Miniature(("LA",), vocab=8, state=7)
    with pytest.raises(ValueError, match="heads must be at least 1"):
        Miniature(("GLA",), vocab=8, heads=0)
    with pytest.raises(ValueError, match="vocab must be at least 1"):
        Miniature(("GLA",), vocab=0)
    with pytest.raises(TypeError, match="state must be an integer"):
        Miniature(("GLA",), vocab=8, state=2.5)
    for name, option in (
        ("GLA-S6", "alpha"),
        ("S6", "alpha"),
        ("GLA", "beta"),
        ("WLA", "beta"),
        ("LA", "base"),
    ):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{option} must be positive"):
                Miniature((name,), vocab=8, options={name: {option: value}})
    with pytest.raises(ValueError, match="no miniature is called"):
        weights.record("bytes-RNN")


def test_a_miniature_learns_to_recall_and_does_so_again_from_the_same_seed() -> None:
    task = MQAR(2, 16, 16)

    def trained() -> Miniature:
        torch.manual_seed(0)
        model = Miniature(("SA", "SA"), vocab=16, width=32, heads=2, state=16)
        fit(model, task, steps=350, batch=32, rate=8e-3)
        return model

    one, two = trained(), trained()
    assert evaluate(one, task) > 0.9
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in weights.names() if name.startswith("bytes-")])
def test_the_byte_level_models_have_the_losses_that_are_recorded(name: str) -> None:
    model, tokenizer = demo.load(name)
    facts = weights.record(name)
    assert held_out_loss(model) == pytest.approx(facts["held_out_loss"], abs=5e-3)
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
    cap = ew.capture(model, torch.tensor([tokenizer.encode("To be, or not to be. <|endoftext|>That is it.")]))
    assert len(cap) == len(facts["config"]["mixers"])
    assert all(float(layer.residual.max()) < 1e-5 for layer in cap.values())


def test_the_byte_level_models_were_trained_alike() -> None:
    facts = [weights.record(f"bytes-{family}") for family in ("SA", "GLA", "WLA", "LA")]
    assert len({(f["command"].replace(f["config"]["mixers"][0], "")) for f in facts}) == 1
    assert len({tuple((k, str(v)) for k, v in f["config"].items() if k != "mixers") for f in facts}) == 1


@pytest.mark.parametrize("name", [name for name in weights.names() if name.startswith("mqar-")])
def test_the_recall_models_have_the_accuracy_that_is_recorded(name: str) -> None:
    model, task = demo.load(name)
    assert evaluate(model, task, samples=1024) == pytest.approx(weights.record(name)["accuracy"], abs=5e-3)


def test_the_recall_models_show_success_saturation_and_collapse() -> None:
    share, reached = {}, {}
    for name in ("success", "saturation", "collapse"):
        model, task = demo.load(f"mqar-{name}")
        second = ew.capture(model, task.held_out().batch(16)[0])["layers.1.mixer"].operator
        share[name] = float(ew.ess(second).sum() / (second.state_size.sum() * 16 * second.shape[1]))
        reached[name] = evaluate(model, task)
    assert reached["success"] > 0.9 and max(reached["saturation"], reached["collapse"]) < 0.7
    assert share["saturation"] > 0.6 > 2 * share["collapse"]


def test_the_weights_are_small() -> None:
    sizes = [path.stat().st_size for path in weights.WEIGHTS.glob("*.safetensors")]
    assert len(sizes) == 8 and max(sizes) <= 3e6 and sum(sizes) <= 20e6
