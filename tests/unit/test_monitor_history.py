"""The monitor's history: files that survive a killed process, restarts, checkpoints, TensorBoard."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from training_models import Tiny, probe, train

from ess_widgets.learn import History, LayerMeasurement, Measurement, Monitor


def watch(path: Path | None, steps: int, model: Tiny | None = None, **options: Any) -> Monitor:
    model = model or Tiny()
    monitor = Monitor(model, probe(), **{"every": 2, "path": path, **options})
    for loss in train(model, steps):
        monitor.step(loss=loss)
    monitor.close()
    return monitor


def same(a: History, b: History, rtol: float = 1e-5) -> None:
    assert a.steps == b.steps and a.metrics.keys() == b.metrics.keys()
    for name in a.metrics:
        np.testing.assert_allclose(a.metrics[name], b.metrics[name], rtol=rtol)
    assert [m.step for m in a.measurements] == [m.step for m in b.measurements]
    for one, other in zip(a.measurements, b.measurements, strict=True):
        assert one.failed == other.failed and one.layers.keys() == other.layers.keys()
        for name, layer in one.layers.items():
            there = other.layers[name]
            assert (layer.family, layer.group, layer.groups, layer.of, layer.positions) == (
                (there.family, there.group, there.groups, there.of, there.positions)
            )
            for what in ("ess", "of_state_size", "of_ceiling", "residual"):
                np.testing.assert_allclose(getattr(layer, what), getattr(there, what), rtol=rtol)
            np.testing.assert_allclose(layer.spectra, there.spectra, rtol=1e-3)


def test_a_new_monitor_continues(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.jsonl"
    first = watch(path, 5)
    again = Monitor(Tiny(), probe(), every=2, path=path)
    same(first.history, again.history)
    assert again.steps == 5 and [m.step for m in again.history.measurements] == [0, 2, 4]
    again.step(loss=0.25)
    again.close()
    third = Monitor(Tiny(), probe(), path=path)
    same(again.history, third.history)
    assert third.steps == 6 and third.history.metrics["loss"][-1] == 0.25


def test_an_earlier_step_supersedes_what_is_later(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    watch(path, 9)
    again = Monitor(Tiny(), probe(), every=2, path=path)
    again.step(step=5, loss=7.0)
    assert [m.step for m in again.history.measurements] == [0, 2, 4]
    again.step(loss=8.0)
    again.close()
    third = Monitor(Tiny(), probe(), path=path).history
    assert list(third.steps) == [1, 2, 3, 4, 5, 6] and list(third.metrics["loss"])[-2:] == [7.0, 8.0]
    assert [m.step for m in third.measurements] == [0, 2, 4, 6]


def test_the_last_step_again_completes_its_metrics(tmp_path: Path) -> None:
    monitor = Monitor(Tiny(), probe(), every=2, path=tmp_path / "h")
    monitor.step(step=1)
    monitor.step(step=2)
    monitor.step(step=2, loss=0.5)
    monitor.flush()
    monitor.step(step=2, accuracy=0.75)
    monitor.close()
    for history in (monitor.history, Monitor(Tiny(), probe(), path=tmp_path / "h").history):
        assert list(history.steps) == [1, 2]
        assert history.metrics["loss"][1] == 0.5 and history.metrics["accuracy"][1] == 0.75
        assert math.isnan(history.metrics["loss"][0])
        assert [m.step for m in history.measurements] == [0, 2]


CHILD = """
import sys, torch
sys.path.insert(0, {tests!r})
from training_models import Tiny, probe, train
from ess_widgets.learn import Monitor
torch.manual_seed(0)
model = Tiny()
monitor = Monitor(model, probe(), every=1, path={path!r})
for loss in train(model, 10_000):
    monitor.step(loss=loss)
    print(monitor.steps, flush=True)
"""


def test_a_killed_process_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    code = CHILD.format(tests=str(Path(__file__).parent), path=str(path))
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 6:
            break
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdout.close()
    again = Monitor(Tiny(), probe(), every=1, path=path)
    assert again.steps >= 6
    assert [m.step for m in again.history.good] == list(range(again.steps + 1))
    assert list(again.history.steps) == list(range(1, again.steps + 1))


@given(cut=st.integers(1, 4000))
@example(cut=10_000)  # one byte is left of the first line
@settings(max_examples=25, deadline=None)
def test_a_torn_file_loses_its_last_line_at_most(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("torn") / "history.jsonl"
    model = Tiny()
    for _ in range(2):  # the second run finds what the first has left
        monitor = Monitor(model, probe(), every=1, path=path)
        monitor.step(loss=1.0)
        monitor.close()
    raw = path.read_bytes()
    path.write_bytes(raw[: max(1, len(raw) - cut)])
    whole = path.read_bytes().count(b"\n")
    again = Monitor(model, probe(), every=1, path=path)
    again.step(loss=2.0)
    again.close()
    lines = path.read_bytes().splitlines()
    for line in lines:
        json.loads(line)
    assert len(lines) >= whole
    assert lines[:whole] == raw.splitlines()[:whole]
    same(again.history, Monitor(model, probe(), path=path).history)


def test_a_history_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    watch(path, 2)
    before = path.read_bytes()
    for model, inputs, options, told in (
        (Tiny(width=12), probe(), {}, "differs in model"),
        (Tiny(), probe(seed=8), {}, "differs in probe inputs"),
        (Tiny(), probe(), {"kind": "tolerance"}, r"differs in measure \('entropy, all positions' there"),
        (Tiny(), probe(), {"positions": [3]}, "differs in measure"),
    ):
        with pytest.raises(ValueError, match=told + ".*another path"):
            Monitor(model, inputs, path=path, **options)
    assert path.read_bytes() == before
    compiled = torch.compile(Tiny(), backend="eager")
    assert Monitor(compiled, probe(), path=path).steps == 2


@pytest.mark.parametrize(
    "content", ["a poem\nof two lines\n", "[1, 2]\n", '{"format": "else"}\n', "half a line"]
)
def test_other_files_are_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "poem.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no training history"):
        Monitor(Tiny(), probe(), path=path)
    assert path.read_text() == content


def test_checkpoints() -> None:
    model = Tiny()
    monitor = watch(None, 4, model)
    state = json.loads(json.dumps(monitor.state_dict()))  # plain values
    later = Monitor(Tiny(), probe(), every=2, start=False)
    later.load_state_dict(state)
    same(monitor.history, later.history)
    assert later.steps == 4
    later.step(loss=1.0)
    assert list(later.history.steps) == [1, 2, 3, 4] and later.steps == 5
    with pytest.raises(ValueError, match=r"this checkpoint holds.*differs in model"):
        Monitor(Tiny(width=4), probe()).load_state_dict(state)


def test_a_checkpoint_supersedes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    model = Tiny()
    monitor = Monitor(model, probe(), every=2, path=path)
    states = []
    for loss in train(model, 8):
        monitor.step(loss=loss)
        states.append(monitor.state_dict())
    monitor.close()
    again = Monitor(Tiny(), probe(), every=2, path=path)
    again.load_state_dict(states[4])
    assert again.steps == 5 and list(again.history.steps) == [1, 2, 3, 4, 5]
    again.step(loss=3.0)
    again.close()
    third = Monitor(Tiny(), probe(), path=path)
    same(again.history, third.history)
    assert [m.step for m in third.history.measurements] == [0, 2, 4, 6]
    # A file that was lost is written anew from the checkpoint.
    other = Monitor(Tiny(), probe(), every=2, path=tmp_path / "new.jsonl", start=False)
    other.load_state_dict(states[4])
    same(other.history, Monitor(Tiny(), probe(), path=tmp_path / "new.jsonl").history)


finite_or_not = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(
    steps=st.lists(st.integers(0, 300), max_size=30, unique=True),
    values=st.lists(finite_or_not, min_size=30, max_size=30),
    back=st.integers(-1, 320),
)
@settings(max_examples=40, deadline=None)
def test_histories_survive_their_file_format(steps: list[int], values: list[float], back: int) -> None:
    steps = sorted(steps)
    history = History()
    if steps:
        history.log(steps, {"loss": values[: len(steps)]})
    for step in steps[::3]:
        layer = LayerMeasurement(
            "softmax attention", "head", (0, 3), 4, np.array(values[:2]), np.array(values[2:4]), np.array(values[4:6]),
            values[6], 1e-5, (2,), np.abs(np.array(values[:6])).reshape(2, 1, 3),
        )  # fmt: skip
        history.add(Measurement(step, 0.5, {"a": layer}))
    there = History()
    for line in json.loads(json.dumps(history.to_json(), allow_nan=False)):
        there.apply(line)
    same(history, there)
    there.rewind(back)
    assert all(step <= back for step in there.steps)
    assert all(m.step <= back for m in there.measurements)
    assert len(there.steps) == sum(step <= back for step in steps)
    assert len(there.measurements) == sum(step <= back for step in steps[::3])
    assert all(len(column) == len(there.steps) for column in there.metrics.values())


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard(tmp_path: Path) -> None:
    monitor = watch(tmp_path / "history.jsonl", 4, tensorboard=tmp_path / "board")
    found = scalars(tmp_path / "board")
    for name in ("blocks.0", "blocks.1"):
        for tag, what in (
            ("ess", "ess"),
            ("utilisation_of_ceiling", "of_ceiling"),
            ("utilisation_of_state_size", "of_state_size"),
        ):
            wanted = [
                (m.step, pytest.approx(getattr(m.layers[name], what).mean())) for m in monitor.history.good
            ]
            assert found[f"{tag}/{name}"] == wanted
        assert len(found[f"residual/{name}"]) == 3
    assert [step for step, _ in found["metrics/loss"]] == [2, 4]
    assert [step for step, _ in found["monitor/overhead"]] == [2, 4]
    # Going on from step 3 takes back what was written for step 4.
    again = Monitor(Tiny(), probe(), every=2, path=tmp_path / "history.jsonl", start=False)
    again.step(step=3)
    again.close()
    watch(tmp_path / "history.jsonl", 0, tensorboard=tmp_path / "board").step()
    assert [step for step, _ in scalars(tmp_path / "board")["ess/blocks.0"]] == [0, 2, 4]


def test_a_writer_of_ones_own_stays_open(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))  # type: ignore[no-untyped-call]
    monitor = watch(None, 2, tensorboard=writer)
    writer.add_scalar("mine", 1.0, 5)  # type: ignore[no-untyped-call]
    writer.close()  # type: ignore[no-untyped-call]
    found = scalars(tmp_path)
    assert found["mine"] == [(5, 1.0)] and len(found["ess/blocks.0"]) == len(monitor.history.good)


def test_a_writer_that_fails_does_not_end_the_training() -> None:
    class Full:
        def add_scalar(self, *_: object) -> None:
            raise OSError("no space left on the device")

    with pytest.warns(RuntimeWarning, match="no space left"):
        monitor = watch(None, 4, tensorboard=Full())
    assert len(monitor.history.good) == 3
