"""The playground in Python: setting, reading, waiting, what is sent, what the browser asks for."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import traitlets as t

import ess_widgets as ew
from ess_widgets.metrics import reference
from ess_widgets.widgets.playground import Playground, Pole


@pytest.fixture
def pg() -> Iterator[Playground]:
    playground = ew.playground("delay", length=16, k=4)
    yield playground
    playground.close()


def floats(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")


def ask(pg: Playground, **wish: Any) -> None:
    """A message as the browser sends it, through JSON."""
    pg._handle_custom_msg(json.loads(json.dumps({"type": "toy", **wish})), [])


def test_what_is_read(pg: Playground) -> None:
    assert pg.toy == "delay" and pg.length == 16 and pg.parameters == {"k": 4}
    assert pg.operator.shape == (16, 16)
    assert pg.ess.tolist() == pg.closed_form.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 3, 2, 1]
    assert "k = 4" in pg.formula and pg.warnings == []
    assert pg.selection.position == 8


def test_setting_answers_at_once_and_wait_sends_it(pg: Playground) -> None:
    pg.parameters["k"] = 6
    assert pg.parameters == {"k": 6} and pg.ess.max() == 6
    pg.parameters = {"k": 3}
    assert pg.ess.max() == 3
    pg.toy = "linear_attention"
    pg.parameters = {"d_k": 5}
    assert pg.parameters["seed"] == 0 and pg.ess.max() == 5
    pg.parameters |= {"d_k": 2}
    pg.wait()
    assert pg.toy_data["toy"] == "linear_attention"
    assert floats(pg.toy_data["closed_form"]).tolist() == pg.closed_form.tolist()
    assert floats(pg.profile_data["ess"]).tolist() == pg.ess.tolist()
    pg.toy = "delay"
    assert pg.parameters == {"k": 3}, "a toy keeps its parameters"


def test_poles(pg: Playground) -> None:
    pg.poles = [0.9, 0.3 - 0.4j, (0.5, 2)]
    assert pg.toy == "poles"
    assert pg.poles == [0.9, 0.3 + 0.4j, Pole(0.5, 2)]
    assert [pole.size for pole in pg.poles] == [1, 2, 2]
    assert pg.closed_form.max() == 5
    again = copy.deepcopy(pg.poles[2])
    assert again.order == 2 and again == Pole(0.5, 2) != Pole(0.5)
    assert repr(again) == "Pole(0.5, order=2)"
    pg.poles = []
    assert pg.ess.max() == 0


def test_lengths(pg: Playground) -> None:
    pg.length = 24
    assert pg.operator.length == 24 and pg.parameters == {"k": 4}
    pg.wait()
    assert len(pg.tokens["labels"]) == 24
    pg.selection.position = 23
    pg.length = 12
    assert pg.selection.position == 11
    with pytest.raises(t.TraitError, match="0 … 11"):
        pg.selection.position = 12


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("toy", "dealy", ValueError, "those known are"),
        ("length", 1, ValueError, "from 2 to 256"),
        ("length", 3, ValueError, "k must be"),
        ("parameters", {"k": 17}, ValueError, "from 0 to 16"),
        ("parameters", {"d_k": 2}, TypeError, "no parameter 'd_k'"),
        ("poles", [float("nan")], ValueError, "finite"),
        ("tol", -1.0, t.TraitError, "above 0"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(
    pg: Playground, name: str, value: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        setattr(pg, name, value)
    assert (pg.toy, pg.length, dict(pg.parameters)) == ("delay", 16, {"k": 4})
    assert pg.ess.max() == 4


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="no toy 'x'"):
        ew.playground("x")
    with pytest.raises(TypeError, match="no parameter 'q'"):
        ew.playground("delay", q=3)
    with pytest.raises(ValueError, match="from 0 to 64"):
        ew.playground("delay", k=65)
    with pytest.raises(t.TraitError):
        ew.playground(kind="rank")


def test_parameters_cannot_be_removed(pg: Playground) -> None:
    for remove in (lambda: pg.parameters.pop("k"), lambda: pg.parameters.clear()):
        with pytest.raises(TypeError, match="not removed"):
            remove()
    assert pg.parameters == {"k": 4}


def test_other_measures(pg: Playground) -> None:
    pg.toy = "softmax"
    for kind, tol, relative in (
        ("entropy", 1e-3, False),
        ("tolerance", 0.1, True),
        ("tolerance", 0.3, False),
    ):
        pg.kind, pg.tol, pg.relative = kind, tol, relative
        expected = reference.ess(pg.operator, kind, tol=tol, relative=relative)
        assert np.allclose(pg.ess, expected.numpy())
        pg.wait()
        assert np.allclose(floats(pg.profile_data["ess"]), expected.numpy(), rtol=1e-6)
        assert pg.profile_data["kind"] == kind


def test_the_browser_asks(pg: Playground) -> None:
    ask(pg, toy="delay", length=16, parameters={"k": 7}, stamp=5)
    assert pg.parameters == {"k": 7}
    pg.wait()
    assert pg.toy_data["stamp"] == 5
    assert pg.toy_data["controls"][0]["value"] == 7
    ask(pg, toy="poles", length=16, parameters={"poles": [[0.5, 0.25, 2], [0.1, 0, 1]]}, stamp=6)
    assert pg.poles == [Pole(0.5 + 0.25j, 2), 0.1]
    ask(pg, toy="softmax", length=16, parameters={"temperature": "inf"}, stamp=7)
    assert pg.ess.max() == 1
    pg.wait()
    assert pg.toy_data["controls"][0]["value"] == "inf"
    json.dumps(pg.toy_data["controls"], allow_nan=False)


def test_a_browser_that_is_behind_is_fitted(pg: Playground) -> None:
    ask(pg, toy="delay", length=8, parameters={"k": 12}, stamp=1)
    assert pg.length == 8 and pg.parameters == {"k": 8}
    ask(pg, toy="nothing", length=8, parameters={}, stamp=2)
    assert pg.status["phase"] == "error" and "no toy" in pg.status["message"]
    ask(pg, toy="delay", length=16, parameters={"k": 3}, stamp=3)
    pg.wait()
    assert pg.status["phase"] == "ready" and pg.toy_data["stamp"] == 3


def test_the_newest_wish_wins(pg: Playground) -> None:
    for stamp in range(200):
        ask(pg, toy="delay", length=16, parameters={"k": stamp % 17}, stamp=stamp)
    pg.wait()
    assert pg.toy_data["stamp"] == 199 and pg.parameters == {"k": 199 % 17}
    assert floats(pg.toy_data["closed_form"]).tolist() == pg.closed_form.tolist()


def test_observers_hear_of_parameters_and_selection(pg: Playground) -> None:
    heard: list[Any] = []
    pg.observe(lambda change: heard.append(dict(change.new)), "parameters")
    pg.observe(lambda change: heard.append(change.new.position), "selection")
    pg.parameters["k"] = 5
    pg.selection = {"position": 3}
    ask(pg, toy="delay", length=16, parameters={"k": 6}, stamp=1)
    assert heard == [{"k": 5}, 3, {"k": 6}]


def test_vectors_on_request(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(pg, "send", lambda content, buffers=None: sent.append((content, buffers)))
    pg._handle_custom_msg({"type": "vectors", "position": 5}, [])
    pg.wait()
    content, buffers = sent[0]
    assert content["position"] == 5
    assert floats(buffers[0]).reshape(content["count"], 5).shape[0] == content["count"]


def test_a_shared_selection() -> None:
    selection = ew.Selection(position=40)
    pg = ew.playground(length=32, selection=selection)
    assert selection.position == 31, "moved to what there is"
    pg.close()


def test_waiting_in_an_event_loop(pg: Playground) -> None:
    async def run() -> int:
        pg.parameters["k"] = 2
        later = pg.wait()
        assert later is not None
        await later
        return int(floats(pg.toy_data["closed_form"]).max())

    assert asyncio.run(run()) == 2


def test_the_state_holds_all_that_a_page_without_a_kernel_draws(pg: Playground) -> None:
    pg.wait()
    state = pg.get_state()
    for key in ("toy_data", "operator_data", "spectrum_data", "profile_data", "menu", "tokens", "layers"):
        assert state[key], key
    assert {entry["name"] for entry in state["menu"]} >= {"delay", "poles", "documents"}
