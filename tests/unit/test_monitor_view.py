"""The live view of a training, as far as the kernel's side goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from hypothesis import given, settings
from hypothesis import strategies as st
from training_models import LENGTH, Tiny, probe, train

import ess_widgets as ew
from ess_widgets.learn import Monitor
from ess_widgets.widgets import Selection, TrainingView
from ess_widgets.widgets.training_data import buckets, evenly


def floats(data: bytes, *shape: int) -> np.ndarray:
    return np.frombuffer(data, dtype="<f4").reshape(shape)


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    model = Tiny()
    monitor = Monitor(model, probe(), every=2)
    for loss in train(model, 6):
        monitor.step(loss=loss, accuracy=0.5)
    yield monitor
    for view in list(monitor.views):
        view.close()


def until(condition: Any, seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_lines_are_the_history(monitor: Monitor) -> None:
    view = monitor.view()
    view.wait()
    data = view.training_data
    assert (data["names"], data["columns"], data["metrics"], data["points"], data["last"]) == (
        ["blocks.0", "blocks.1"], 4, ["loss", "accuracy"], 6, 6,
    )  # fmt: skip
    np.testing.assert_array_equal(floats(data["steps"], 4), [0, 2, 4, 6])
    for name, key in (("ess", "ess"), ("state_size", "of_state_size"), ("ceiling", "of_ceiling")):
        wanted = monitor.frame().pivot(index="layer", columns="step", values=key)
        np.testing.assert_allclose(floats(data[name], 2, 4), wanted, rtol=1e-6)
    for name in ("metric_mean", "metric_low", "metric_high"):
        np.testing.assert_allclose(floats(data[name], 2, 6)[0], monitor.metrics()["loss"], rtol=1e-6)
    assert [(layer["name"], layer["heads"], layer["of"]) for layer in view.layers] == [
        ("blocks.0", 2, 2),
        ("blocks.1", 2, 2),
    ]


def test_a_chosen_step_shows_its_operators(monitor: Monitor) -> None:
    view = monitor.view()
    view.step = 3
    assert view.step in (2, 4)  # the nearest measured one
    view.step = 2
    view.selection.update(layer="blocks.1", head=1, position=4)
    view.wait()
    picture = monitor.snapshots.at(2)
    assert picture is not None
    layer = picture["blocks.1"]
    assert (view.operator_data["layer"], view.operator_data["head"]) == ("blocks.1", 1)
    np.testing.assert_array_equal(floats(view.operator_data["matrix"], LENGTH, LENGTH), layer.matrix[1])
    np.testing.assert_allclose(floats(view.profile_data["ess"], 2, LENGTH), layer.ess)
    sigma = floats(view.spectrum_data["values"], LENGTH, LENGTH // 2)
    np.testing.assert_allclose(sigma, ew.spectrum(layer.matrix[1]), rtol=1e-5, atol=1e-7)
    assert view.status["message"] == "operators of step 2"
    view.step = None
    view.wait()
    newest = monitor.snapshots.at(6)
    assert newest is not None and view.status["message"] == "operators of step 6"
    np.testing.assert_array_equal(
        floats(view.operator_data["matrix"], LENGTH, LENGTH), newest["blocks.1"].matrix[1]
    )


def test_another_measure_is_computed_from_the_operators(monitor: Monitor) -> None:
    view = monitor.view(kind="tolerance", tol=0.05)
    view.wait()
    newest = monitor.snapshots.at(6)
    assert newest is not None
    wanted = ew.ess(newest["blocks.0"].matrix, "tolerance", 0.05)
    np.testing.assert_array_equal(floats(view.profile_data["ess"], 2, LENGTH), wanted)
    assert view.training_data["kind"] == "entropy"  # the lines are what was measured


def test_positions_that_were_not_measured_are_computed() -> None:
    model = Tiny()
    monitor = Monitor(model, probe(), positions=[5])
    view = monitor.view()
    view.wait()
    captured = ew.capture(model.eval(), probe())["blocks.0"]
    np.testing.assert_allclose(
        floats(view.profile_data["ess"], 2, LENGTH), ew.ess(captured.operator[0]), rtol=1e-5
    )
    view.close()


def test_the_view_follows_from_its_own_thread(monitor: Monitor) -> None:
    view = monitor.view()
    view.wait()
    messages: list[str] = []
    view.observe(lambda change: messages.append(threading.current_thread().name), "training_data")
    for step in range(7, 11):
        monitor.step(loss=1.0 / step)
    until(lambda: view.training_data["last"] == 10)
    until(lambda: view.status["message"] == "operators of step 10")
    assert threading.current_thread().name not in messages
    assert len(messages) <= 4


def test_many_steps_are_told_of_now_and_then(monitor: Monitor) -> None:
    """A loop that is faster than a screen costs a few messages a second, not one for each step."""
    view = monitor.view()
    view.wait()
    count = 0

    def told(_: Any) -> None:
        nonlocal count
        count += 1

    view.observe(told, "training_data")
    monitor._pace.every = 1_000_000
    began = time.monotonic()
    while time.monotonic() < began + 1.5:
        monitor.step(loss=1.0)
    assert 1 <= count <= 6
    until(lambda: view.training_data["last"] == monitor.steps)


def test_what_the_view_costs_counts_while_training_runs(monitor: Monitor) -> None:
    before = monitor._pace.monitoring
    view = monitor.view()
    view.wait()
    spent = monitor._pace.monitoring
    assert spent > before
    monitor._left -= 60.0  # the last step was a minute ago
    view.step = 2
    view.wait()
    assert monitor._pace.monitoring == spent


def test_steps_whose_operators_are_gone_show_the_nearest(monitor: Monitor) -> None:
    view = monitor.view()
    for step in (2, 6):
        del monitor.snapshots._kept[step]
    view.step = 6
    view.wait()
    assert view.step == 6
    assert view.status["message"] == "operators of step 4, the nearest that is kept"


def test_without_operators_or_measurements() -> None:
    model = Tiny()
    view = Monitor(model, probe(), snapshots=0).view()
    view.wait()
    assert view.operator_data == {} and view.status["message"] == "no operators are kept"
    view.close()
    view = Monitor(model, probe(), start=False).view()
    view.wait()
    assert view.training_data["columns"] == 0 and view.status["message"] == "nothing is measured yet"
    view.close()


def test_failures_are_told(monitor: Monitor) -> None:
    with torch.no_grad():
        for parameter in monitor.model.parameters():
            parameter.fill_(torch.nan)
    with pytest.warns(RuntimeWarning):
        monitor.measure()
    view = monitor.view()
    assert [f["step"] for f in view.training_data["failed"]] == [6]
    assert "NaN" in view.training_data["failed"][0]["reason"]


def test_going_back_takes_back_lines_and_operators(monitor: Monitor) -> None:
    view = monitor.view()
    view.step = 6
    view.wait()
    monitor.step(step=4, loss=0.5)
    view.wait()
    until(lambda: view.training_data["last"] == 4)
    np.testing.assert_array_equal(floats(view.training_data["steps"], 3), [0, 2, 4])
    assert view.status["message"] == "operators of step 4, the nearest that is kept"


def test_options(monitor: Monitor) -> None:
    selection = Selection(layer="blocks.1", head=1)
    labels = [f"token {i}" for i in range(LENGTH)]
    view = monitor.view(selection=selection, labels=labels, title="A run", shown="ceiling")
    view.wait()
    assert view.selection is selection and selection.position == LENGTH // 2
    assert view.tokens["labels"] == labels and view.title == "A run"
    assert view.operator_data["layer"] == "blocks.1"
    with pytest.raises(TypeError, match="has no option 'colour'"):
        monitor.view(colour="red")
    with pytest.raises(traitlets.TraitError):
        view.shown = "rank"
    with pytest.raises(traitlets.TraitError, match="no layer is called"):
        selection.layer = "blocks.9"


def test_closing_ends_the_thread(monitor: Monitor) -> None:
    view = monitor.view()
    view.wait()
    assert view._worker is not None
    thread = view._worker._thread
    view.close()
    thread.join(5)
    assert not thread.is_alive() and monitor.views == []
    monitor.step(loss=1.0)
    assert isinstance(view, TrainingView)


@given(
    values=st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=200),
    most=st.integers(1, 50),
)
@settings(max_examples=100, deadline=None)
def test_buckets_keep_extremes_and_means(values: list[float], most: int) -> None:
    steps = np.arange(1, len(values) + 1) * 3
    row = np.array([values])
    at, mean, low, high = buckets(steps, row, most)
    assert len(at) == min(len(values), most) == mean.shape[1] and at[-1] == steps[-1]
    assert np.all(np.diff(at) > 0)
    known = ~np.isnan(row)
    if known.any():
        assert np.nanmin(low) == np.nanmin(row) and np.nanmax(high) == np.nanmax(row)
    edge = 0
    for column, step in enumerate(at):
        inside = row[0, edge : step // 3]
        edge = step // 3
        finite = inside[~np.isnan(inside)]
        if len(finite):
            assert mean[0, column] == pytest.approx(finite.mean(), rel=1e-9, abs=1e-6)
        else:
            assert np.isnan(mean[0, column])


@given(count=st.integers(0, 3000), most=st.integers(2, 700))
@settings(max_examples=100, deadline=None)
def test_evenly(count: int, most: int) -> None:
    chosen = evenly(count, most)
    assert len(chosen) == len(set(chosen)) == min(count, most)
    if count:
        assert chosen[0] == 0 and chosen[-1] == count - 1
    gaps = np.diff(chosen)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
