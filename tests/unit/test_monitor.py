"""The monitor in a plain loop: what it measures, that it leaves training alone, what it costs, how it fails."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_models import Clock, Tiny, probe, train

import ess_widgets as ew
from ess_widgets.capture import UnknownLayerError
from ess_widgets.learn import Monitor
from ess_widgets.learn import monitor as module
from ess_widgets.learn.pacing import Pace
from ess_widgets.learn.snapshots import LayerSnapshot, Snapshots
from ess_widgets.metrics import aggregate


def run(model: nn.Module, steps: int, **options: Any) -> Monitor:
    monitor = Monitor(model, probe(), **options)
    for loss in train(model, steps):
        monitor.step(loss=loss)
    return monitor


# What is measured


@pytest.mark.parametrize(("kind", "tol"), [("entropy", 1e-3), ("tolerance", 1e-2)])
def test_numbers_are_those_of_a_capture(kind: str, tol: float) -> None:
    model = Tiny().eval()
    found = Monitor(model, probe(), kind=kind, tol=tol).history.measurements[0]
    captured = ew.capture(model, probe())
    assert list(found.layers) == list(captured) == ["blocks.0", "blocks.1"]
    profiles = {name: ew.ess(layer.operator, kind, tol) for name, layer in captured.items()}  # type: ignore[arg-type]
    wanted = aggregate(profiles, operators={name: layer.operator for name, layer in captured.items()})
    for name, layer in found.layers.items():
        np.testing.assert_allclose(layer.ess, wanted.per_head[name], rtol=1e-9)
        np.testing.assert_allclose(layer.of_state_size, wanted.utilisation_of_state_size[name], rtol=1e-9)
        np.testing.assert_allclose(layer.of_ceiling, wanted.utilisation_of_ceiling[name], rtol=1e-9)
        assert layer.residual == pytest.approx(float(captured[name].residual.max())) and layer.residual < 1e-5
        assert layer.positions == (2, 5, 7)
        T = captured[name].operator[0].matrix().double()
        for h in range(2):
            for k, i in enumerate(layer.positions):
                sigma = torch.linalg.svdvals(T[h, i:, :i]).numpy()
                np.testing.assert_allclose(layer.spectra[h, k, : len(sigma)], sigma, rtol=1e-5, atol=1e-7)
                assert not layer.spectra[h, k, len(sigma) :].any()


def test_padding_does_not_count() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 6, 8)
    padded = torch.zeros(2, 6, dtype=torch.bool)
    padded[1, 4:] = True
    inputs = {
        "src": x,
        "src_mask": torch.ones(6, 6).triu(1).bool(),
        "src_key_padding_mask": padded,
        "is_causal": True,
    }
    found = Monitor(layer, inputs).history.measurements[0].layers["self_attn"]
    captured = ew.capture(layer, **inputs)["self_attn"]
    wanted = aggregate({"a": ew.ess(captured.operator)}, operators={"a": captured.operator})
    np.testing.assert_allclose(found.ess, wanted.per_head["a"], rtol=1e-9)
    whole = [ew.ess(captured.operator[0]).mean(-1), ew.ess(captured.operator[1])[:, :4].mean(-1)]
    np.testing.assert_allclose(found.ess, (6 * whole[0] + 4 * whole[1]) / 10, rtol=1e-9)


def test_some_positions_some_groups_some_layers() -> None:
    model = Tiny(width=12, heads=6).eval()
    monitor = Monitor(model, probe(), positions=[7, 3, 3], spectra=(), groups=3, layers="blocks.1")
    found = monitor.history.measurements[0].layers
    assert list(found) == ["blocks.1"]
    layer = found["blocks.1"]
    operator = ew.capture(model, probe())["blocks.1"].operator[:, [0, 2, 4]]
    values = ew.ess(operator, positions=[3, 7])
    assert layer.groups == (0, 2, 4) and layer.of == 6 and layer.spectra.shape == (3, 0, 0)
    np.testing.assert_allclose(layer.ess, values.mean((0, 2)), rtol=1e-9)
    np.testing.assert_allclose(layer.of_state_size, (values.sum(-1) / 10).mean(0), rtol=1e-9)
    np.testing.assert_allclose(layer.of_ceiling, (values.sum(-1) / 6).mean(0), rtol=1e-9)


def test_the_probe_is_kept_as_it_was() -> None:
    model, inputs = Tiny(), probe()
    monitor = Monitor(model, inputs)
    before = monitor.history.measurements[0].layers["blocks.0"].ess
    inputs.zero_()
    np.testing.assert_array_equal(monitor.measure().layers["blocks.0"].ess, before)


def test_arrays_and_tuples_are_inputs_too() -> None:
    model = Tiny()
    numbers = [
        Monitor(model, inputs).history.measurements[0].layers["blocks.1"].ess
        for inputs in (probe(), probe().numpy(), (probe(),), {"ids": probe()})
    ]
    for other in numbers[1:]:
        np.testing.assert_array_equal(other, numbers[0])


# Training is left alone


def test_training_is_bitwise_the_same() -> None:
    plain = Tiny()
    watched = copy.deepcopy(plain)
    results = []
    for model, monitored in ((plain, False), (watched, True)):
        torch.manual_seed(3)
        monitor = Monitor(model, probe(), every=2) if monitored else None
        losses = []
        for loss in train(model, 7):
            losses.append(loss.detach())
            if monitor is not None:
                before = {name: p.grad for name, p in model.named_parameters()}
                monitor.step(loss=loss)
                assert all(p.grad is before[name] for name, p in model.named_parameters())
                assert all(part.training for part in model.modules())
        assert monitor is None or (len(monitor.history.good) == 4 and not monitor.failures)
        results.append((torch.stack(losses), torch.get_rng_state(), model.state_dict()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    for name, value in results[0][2].items():
        assert torch.equal(value, results[1][2][name]), name


def test_a_partly_frozen_model_in_eval_mode_stays_so() -> None:
    model = Tiny()
    model.blocks[0].eval()
    model.embed.weight.requires_grad_(False)
    modes = [part.training for part in model.modules()]
    hooks = [dict(part._forward_hooks) for part in model.modules()]
    Monitor(model, probe()).measure()
    assert [part.training for part in model.modules()] == modes
    assert [dict(part._forward_hooks) for part in model.modules()] == hooks
    assert not model.embed.weight.requires_grad and model.out.weight.requires_grad


def test_metrics_do_not_keep_the_graph() -> None:
    monitor = Monitor(Tiny(), probe(), every=100)
    weight = torch.randn(1, requires_grad=True)
    monitor.step(loss=(weight**2).sum(), accuracy=0.5, other=np.float32(2.0))
    table = monitor.metrics()
    assert table.to_dict("list") == {
        "step": [1],
        "loss": [pytest.approx(weight.item() ** 2)],
        "accuracy": [0.5],
        "other": [2.0],
    }


def test_tensors_elsewhere_are_read_together_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with the road that tensors of a GPU take."""
    monkeypatch.setattr(module, "scalar", lambda name, value: value.detach().clone())
    monitor = Monitor(Tiny(), probe(), every=100)
    running = torch.zeros(())
    for k in range(5):
        running += 1
        monitor.step(loss=running, **({"late": torch.tensor(0.25)} if k == 3 else {}))
    assert len(monitor._waiting) == 5 and not monitor.history.steps
    table = monitor.metrics()
    assert table["loss"].tolist() == [1, 2, 3, 4, 5]
    assert table["late"].isna().tolist() == [True, True, True, False, True]


# When


def test_every() -> None:
    monitor = run(Tiny(), 7, every=3)
    assert [m.step for m in monitor.history.measurements] == [0, 3, 6]
    assert monitor.steps == 7 and list(monitor.history.steps) == [1, 2, 3, 4, 5, 6]
    assert len(monitor.metrics()) == 7


def test_start_can_be_left_out() -> None:
    monitor = Monitor(Tiny(), probe(), every=2, start=False)
    assert not monitor.history.measurements and math.isnan(monitor.overhead)
    monitor.step()
    monitor.step()
    assert [m.step for m in monitor.history.measurements] == [2]


class Costly:
    """Stands for a measurement that takes so long by a clock; the numbers are those of the real one."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.clock, self.cost = clock, cost
        real = module.measure

        def measure(*args: Any) -> Any:
            clock.now += self.cost
            return real(*args)

        monkeypatch.setattr(module, "measure", measure)


@pytest.mark.parametrize("overhead", [0.05, 0.2])
def test_the_interval_adapts_to_the_overhead(overhead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    costly = Costly(clock, monkeypatch, 1.0)
    monitor = Monitor(Tiny(), probe(), overhead=overhead, clock=clock)
    shares = []
    for step in range(1, 2001):
        clock.now += 0.1
        costly.cost = 1.0 if step < 1000 else 4.0
        before = len(monitor.history.measurements)
        monitor.step(loss=0.0)
        if len(monitor.history.measurements) > before:
            shares.append((step, monitor.overhead))
    # Only the measurement that is the first to cost four times as much may go beyond, and by no more than it cost.
    beyond = [(step, share) for step, share in shares if share > overhead + 1e-12]
    assert len(beyond) <= 1
    assert all(step >= 1000 and share < overhead + 4 / (0.1 * step) for step, share in beyond)
    assert monitor.overhead <= overhead
    wanted = overhead * 0.1 * (1000 / 1.0 + 1000 / 4.0)
    assert 0.6 * wanted <= len(monitor.history.measurements) <= wanted + 1
    assert monitor._pace.training == pytest.approx(199.9)


def test_a_pause_is_no_reason_to_measure_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    Costly(clock, monkeypatch, 0.1)
    monitor = Monitor(Tiny(), probe(), clock=clock)
    clock.now += 1000.0  # the user has lunch
    for _ in range(60):
        clock.now += 0.1
        monitor.step()
    assert len(monitor.history.measurements) <= 1 + 1 + 3


def test_long_runs_are_measured_ever_more_rarely() -> None:
    pace = Pace(None, 0.05)
    count = 0
    for step in range(100_000):
        pace.training += 1.0
        if pace.due(step):
            pace.measured(step, 0.0)
            count += 1
    assert 500 < count < 500 * (2 + math.log(100_000 / 500))


@given(
    costs=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=40),
    times=st.lists(st.floats(0.001, 0.5), min_size=5, max_size=200),
    limit=st.floats(0.01, 0.5),
)
@settings(max_examples=100, deadline=None)
def test_a_measurement_is_made_only_where_its_expected_cost_fits(
    costs: list[float], times: list[float], limit: float
) -> None:
    pace = Pace(None, limit)
    pace.measured(0, costs[0])
    for step, time in enumerate(times, 1):
        pace.training += time
        if pace.due(step):
            cost = costs[step % len(costs)]
            expected = max([costs[0]] if step == 1 else list(pace._costs))
            assert pace.monitoring + expected <= limit * pace.training + 1e-9
            pace.measured(step, cost)


# What fails


def test_nan_weights_are_recorded_and_warned_of_once() -> None:
    model = Tiny()
    monitor = Monitor(model, probe(), every=1)
    with torch.no_grad():
        model.blocks[0].qkv.weight.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match="step 1, and says so only once: CaptureError"):
        monitor.step(loss=float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.step(loss=float("inf"))
    assert list(monitor.failures) == [1, 2] and "NaN" in monitor.failures[2]
    with torch.no_grad():
        model.blocks[0].qkv.weight.zero_()
    monitor.step()
    assert [m.step for m in monitor.history.good] == [0, 3]
    table = monitor.frame()
    assert table.loc[table["failed"].notna(), "step"].tolist() == [1, 2]


class Hungry(nn.Module):
    """Runs out of memory when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tiny()
        self.hungry = False

    def forward(self, ids: Tensor) -> Tensor:
        if self.hungry:
            torch.empty(2**60)
        out: Tensor = self.inner(ids)
        return out


def test_running_out_of_memory_does_not_end_the_training() -> None:
    model = Hungry()
    monitor = Monitor(model, probe(), every=1)
    model.hungry = True
    with pytest.warns(RuntimeWarning, match="RuntimeError"):
        monitor.step()
    model.hungry = False
    monitor.step()
    assert list(monitor.failures) == [1] and [m.step for m in monitor.history.good] == [0, 2]


def test_a_model_in_which_nothing_can_be_captured_is_no_error() -> None:
    with pytest.warns(RuntimeWarning, match="CaptureError"):
        monitor = Monitor(nn.Linear(3, 3), torch.randn(2, 3))
    monitor.step(loss=1.0)
    assert list(monitor.failures) == [0]
    assert monitor.frame()["failed"].notna().all()


def test_a_disk_that_is_full_does_not_end_the_training(tmp_path: Path) -> None:
    monitor = Monitor(Tiny(), probe(), every=1, path=tmp_path / "run" / "history.jsonl")
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.warns(RuntimeWarning, match="kept in memory alone"):
        monitor.step(loss=1.0)
    monitor.step(loss=0.5)
    assert [m.step for m in monitor.history.good] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"every": 0}, ValueError, "every must be"),
        ({"every": 2.5}, ValueError, "every must be"),
        ({"overhead": 0.0}, ValueError, "overhead"),
        ({"kind": "rank"}, ValueError, "kind"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"positions": []}, ValueError, "positions"),
        ({"positions": [-1]}, ValueError, "positions"),
        ({"positions": [0.5]}, TypeError, "positions"),
        ({"positions": [10]}, ValueError, "position 10 does not exist: in layer 'blocks.0'"),
        ({"spectra": [99]}, ValueError, "position 99"),
        ({"groups": 0}, ValueError, "groups"),
        ({"groups": 1.5}, ValueError, "groups"),
        ({"snapshots": -1}, ValueError, "snapshots"),
        ({"snapshots": float("nan")}, ValueError, "snapshots"),
        ({"layers": "blocks.7"}, UnknownLayerError, "blocks.7"),
        ({"tensorboard": 3}, TypeError, "tensorboard"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Monitor(Tiny(), probe(), **options)


def test_wrong_models_and_metrics() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, not list"):
        Monitor([], probe())  # type: ignore[arg-type]
    monitor = Monitor(Tiny(), probe())
    with pytest.raises(ValueError, match=r"loss must be one number, but has the shape \(3,\)"):
        monitor.step(loss=torch.zeros(3))
    with pytest.raises(TypeError, match="loss must be a number"):
        monitor.step(loss="small")
    with pytest.raises(ValueError, match="step must be 0 or more"):
        monitor.step(step=-1)


# Tables, figures, operators


def test_tables() -> None:
    monitor = run(Tiny(), 4, every=2)
    table = monitor.frame()
    assert table["step"].tolist() == [0, 0, 2, 2, 4, 4]
    assert table["layer"].tolist() == ["blocks.0", "blocks.1"] * 3
    assert table["loss"].isna().tolist() == [True, True, False, False, False, False]
    heads = monitor.to_pandas(heads=True)
    assert heads.groupby(["step", "layer"])["head"].count().eq(2).all()
    means = heads.groupby(["step", "layer"])["ess"].mean()
    np.testing.assert_allclose(means, table.set_index(["step", "layer"])["ess"])
    assert "4 steps" in repr(monitor)


def test_a_metric_with_a_name_of_the_table_takes_no_measurement_away() -> None:
    monitor = run(Tiny(), 1, every=1)
    measured = monitor.frame()["ess"].tolist()
    monitor.step(step=1, ess=-5.0, failed=2.0)
    for heads in (False, True):
        table = monitor.frame(heads)
        assert table.columns.is_unique and (table["ess"] > 0).all() and table["failed"].isna().all()
        assert table.loc[table["step"] == 1, ["logged_ess", "logged_failed"]].eq([-5.0, 2.0]).all(axis=None)
    assert monitor.frame()["ess"].tolist() == measured


def test_figure() -> None:
    monitor = run(Tiny(), 4, every=2)
    monitor.step(accuracy=0.5)
    figure = monitor.figure()
    top, loss, accuracy = figure.axes
    assert [line.get_label() for line in top.lines] == ["blocks.0", "blocks.1"]
    frame = monitor.frame()
    np.testing.assert_allclose(top.lines[0].get_ydata(), frame.loc[frame["layer"] == "blocks.0", "ess"])
    assert loss.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert not any(label.get_text() for label in loss.get_yticklabels(minor=True))
    assert monitor.figure(log=False, of="ceiling").axes[1].get_yscale() == "linear"
    with pytest.raises(ValueError, match="of must be"):
        monitor.figure(of="rank")


def test_operators_of_steps_are_kept() -> None:
    model = Tiny()
    monitor = run(model, 4, every=2)
    model.eval()
    kept = monitor.snapshots.at(4)
    assert monitor.snapshots.steps == [0, 2, 4] and kept is not None
    captured = ew.capture(model, probe())
    for name, layer in kept.items():
        assert torch.equal(layer.matrix, captured[name].operator[0].matrix())
        np.testing.assert_allclose(layer.ess, ew.ess(captured[name].operator[0]), rtol=1e-6)
    assert Monitor(model, probe(), snapshots=0).snapshots.steps == []
    # The budget is for everything: where a step takes too much of it, heads are left out.
    small = Monitor(model, probe(), snapshots=8 * 2 * 520 / 1e6)
    assert {name: s.heads for name, s in (small.snapshots.at(0) or {}).items()} == {
        "blocks.0": (0,),
        "blocks.1": (0,),
    }


@given(
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    size=st.integers(1, 8),
    budget=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_snapshots_stay_within_their_budget(steps: list[int], size: int, budget: int) -> None:
    bytes_ = 4 * size * size
    kept = Snapshots(budget * bytes_ / 1e6)
    empty = np.zeros((1, 0))
    at = 0
    for gap in steps:
        at += gap
        kept.add(at, {"a": LayerSnapshot((0,), torch.zeros(1, size, size), None, 1, empty, empty, empty)})
        assert kept.nbytes <= kept.budget + 1e-6
        assert kept.steps[-1] == at
    assert len(kept.steps) == min(len(steps), budget)
    if budget > 1:
        assert kept.steps[0] == steps[0]
    assert kept.nearest(0) == kept.steps[0] and kept.nearest(math.inf) == at
