"""Questions of the panel, answered by the kernel."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.demo.small import ByteTokenizer, SmallConfig, SmallLM
from ess_widgets.lab import opened, service, shown
from ess_widgets.lab.code import line
from ess_widgets.lab.errors import LabError
from ess_widgets.lab.source import arguments
from ess_widgets.lab.tasks import Task

TEXT = "To be, or not to be, that is the question."
READS = {"tokenizer": "tokenizer", "text": TEXT}


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The namespace of a kernel; nothing may be written to it."""
    found: dict[str, Any] = {
        "model": SmallLM(SmallConfig(width=16, layers=2, heads=2)),
        "tokenizer": ByteTokenizer(),
        "ids": torch.randint(0, 256, (1, 20)),
        "batch": {"input_ids": torch.randint(0, 256, (1, 20))},
        "<b>": {"it's": SmallLM(SmallConfig(width=16, layers=1, heads=2))},
        "torch": torch,
    }
    before = dict(found)
    shell = SimpleNamespace(user_ns=found, user_ns_hidden={})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    yield found
    for key in list(shown._shown):
        shown.close(key)
    assert found == before or "gone" in found


class Channel:
    """What a comm's messages went out as."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed = threading.Event()
        self.gone: Any = None

    def send(self, data: Any) -> None:
        assert not self.closed.is_set()
        self.sent.append(json.loads(json.dumps(data, allow_nan=False)))

    def on_close(self, call: Any) -> None:
        self.gone = call

    def close(self) -> None:
        self.closed.set()


def ask(what: str, /, **rest: Any) -> Any:
    channel = Channel()
    service._on_open(channel, {"content": {"data": {"ask": what, **rest}}})
    assert channel.closed.wait(60)
    *progress, reply = channel.sent
    assert all(set(word) == {"progress"} for word in progress)
    return reply


def value(what: str, /, **rest: Any) -> Any:
    reply = ask(what, **rest)
    assert reply["ok"], reply
    return reply["value"]


def test_models(space: dict[str, Any]) -> None:
    found = value("models", expanded=["model"])
    assert [m["name"] for m in found["models"]] == ["model", '<b>["it\'s"]']
    assert len(found["models"][0]["mixers"]) == 2 and found["models"][1]["mixers"] is None
    assert [t["name"] for t in found["tokenizers"]] == ["tokenizer"]
    assert [i["name"] for i in found["inputs"]] == ["ids", "batch"]


@pytest.mark.parametrize(
    "source", [READS, {"inputs": "ids"}, {"inputs": "batch"}, {"expression": "ids[:, :9]"}]
)
def test_explore_and_close(space: dict[str, Any], source: dict[str, Any]) -> None:
    options = {"kind": "tolerance", "tol": 0.01, "max_tokens": 99, "groups": 4, "scale": "linear"}
    found = value("explore", name="model", source=source, options=options, layer="layers.1.attention")
    explorer = opened()
    assert opened("model") is explorer
    assert found == {"model_id": explorer.model_id}
    explorer.wait()
    assert (explorer.kind, explorer.tol, explorer.scale) == ("tolerance", 0.01, "linear")
    assert explorer.selection.layer == "layers.1.attention"
    assert value("close", model_id=found["model_id"]) is None
    assert value("close", model_id=found["model_id"]) is None
    with pytest.raises(KeyError, match="no explorer of `model` open"):
        opened("model")


def test_opened_gives_the_newest_that_is_still_open(space: dict[str, Any]) -> None:
    for name in ("model", '<b>["it\'s"]', "model"):
        value("explore", name=name, source=READS, options={})
    newest = opened()
    assert opened('<b>["it\'s"]') is not newest
    newest.close()
    assert opened("model") is not newest


def test_diagnose(space: dict[str, Any]) -> None:
    found = value("diagnose", name="model", source=READS, options={})
    view = shown.find(found["model_id"]).view
    assert len(view._diagnosis.layers) == 2
    again = value("diagnose", name="model", source={"inputs": "ids"}, options={}, replaces=found["model_id"])
    assert view.comm is None and shown.find(found["model_id"]) is None and shown.find(again["model_id"])
    refused = ask("diagnose", name="model", source=READS, options={"max_tokens": 5})
    assert refused["error"]["kind"] == "ValueError" and "limit is 5" in refused["error"]["message"]


def test_scan(space: dict[str, Any]) -> None:
    found = value("scan", name="model", source=READS, options={})
    assert [layer["path"] for layer in found["layers"]] == ["layers.0.attention", "layers.1.attention"]
    for layer in found["layers"]:
        assert (layer["count"], layer["state"], layer["grows"]) == (2, len(TEXT) - 1, True)
        assert layer["verified"] and layer["residual"] <= layer["limit"] == 1e-5
    assert found["skipped"] == {}


class Slow(nn.Module):
    """A model that can be stopped from outside between two of its layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.inner = SmallLM(SmallConfig(width=16, layers=layers, heads=2))
        self.reached, self.go_on = threading.Event(), threading.Event()

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.inner(ids)
        self.reached.set()
        assert self.go_on.wait(60)
        return torch.relu(logits)


@pytest.mark.parametrize("what", ["scan", "diagnose"])
def test_a_closed_comm_cancels(space: dict[str, Any], what: str) -> None:
    space["gone"] = model = Slow(2)
    channel = Channel()
    question = {"ask": what, "name": "gone", "source": {"inputs": "ids"}, "options": {}}
    service._on_open(
        channel, {"content": {"data": question}}
    )  # returns at once: other questions are not kept waiting
    assert model.reached.wait(60) and not channel.sent
    channel.gone({})
    model.go_on.set()
    assert channel.closed.wait(60)
    (reply,) = channel.sent
    assert not reply["ok"] and reply["error"]["kind"] == "Cancelled"
    assert not shown._shown
    space["gone"] = None


@pytest.mark.parametrize("what", ["scan", "diagnose"])
def test_cancelled_between_layers(space: dict[str, Any], what: str) -> None:
    heard: list[dict[str, int]] = []

    def say(word: dict[str, int]) -> None:
        heard.append(word)
        task.cancel()

    task = Task(say)
    reply = service.answer({"ask": what, "name": "model", "source": READS}, task)
    assert heard == [{"done": 0, "of": 2}] and reply["error"]["kind"] == "Cancelled"


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.05, 10.11, 10.2, 10.3])
    monkeypatch.setattr("ess_widgets.lab.tasks.time.perf_counter", lambda: next(clock))
    heard: list[int] = []
    task = Task(lambda word: heard.append(word["done"]))
    for done in range(5):
        task.progress(done, 5)
    assert heard == [0, 2, 4]


def test_what_a_view_is_of(space: dict[str, Any]) -> None:
    model, key = SmallLM(SmallConfig(width=16, layers=2, heads=2)), {"name": "gone", "source": READS}
    space["gone"] = model
    shows = value("explore", **key)
    explorer = opened("gone")
    explorer.wait()
    before = explorer.captured
    assert value("check", **shows) == {"state": "current"}
    with torch.no_grad():
        model.layers[1].attention.qkv.weight.mul_(2)
    assert value("check", **shows) == {"state": "changed"}
    assert value("refresh", **shows) is None
    explorer.wait()
    assert value("check", **shows) == {"state": "current"}
    assert not torch.equal(
        before["layers.1.attention"].outputs, explorer.captured["layers.1.attention"].outputs
    )

    # What the user has set goes on with the new object of the name.
    explorer.text, explorer.kind, explorer.scale = "Another text.", "tolerance", "linear"
    explorer.selection.update(layer="layers.0.attention", head=1, position=3, pinned=True)
    space["gone"] = SmallLM(SmallConfig(width=16, layers=1, heads=2))
    assert value("check", **shows) == {"state": "another"}
    again = value("explore", **key, replaces=shows["model_id"])
    assert explorer.comm is None and ask("check", **shows)["error"]["kind"] == "LabError"
    explorer = opened("gone")
    explorer.wait()
    chosen = explorer.selection
    assert (explorer.text, explorer.kind, explorer.scale) == ("Another text.", "tolerance", "linear")
    assert (chosen.layer, chosen.head, chosen.position, chosen.pinned) == ("layers.0.attention", 1, 3, True)
    assert list(explorer.captured) == ["layers.0.attention"]
    space["gone"] = None
    assert value("check", **again) == {"state": "gone"}
    assert "closed in the kernel" in ask("refresh", model_id="nothing")["error"]["message"]


def test_scan_of_a_window_that_is_longer_than_the_text(space: dict[str, Any]) -> None:
    from tests.survey.models import build

    space["gone"] = build("mistral", "eager", torch.float32)
    (first, _) = value("scan", name="gone", source={"expression": "ids[:, :5] % 97"})["layers"]
    assert (first["state"], first["grows"]) == (4, False)


def test_of_an_encoder_and_a_decoder_the_decoder_is_looked_at(space: dict[str, Any]) -> None:
    from transformers import T5Config, T5Model

    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
    space["gone"] = T5Model(config).eval()
    key = {"name": "gone", "source": {"expression": '{"input_ids": ids % 50, "decoder_input_ids": ids % 50}'}}
    decoder = [f"decoder.block.{k}.layer.0.SelfAttention" for k in range(2)]
    found = value("scan", **key)
    assert [layer["path"] for layer in found["layers"]] == decoder
    assert all(layer["verified"] for layer in found["layers"])
    assert found["skipped"]["encoder.block.1.layer.0.SelfAttention"].startswith("reads ahead")
    value("explore", **key)
    explorer = opened("gone")
    explorer.wait()
    assert list(explorer.captured) == decoder
    assert shown.find(value("diagnose", **key)["model_id"]).view._diagnosis.layers == decoder
    done = dict(space)
    exec(value("code", what="capture", **key)["code"], done)  # noqa: S102
    assert list(done["captured"]) == decoder
    space["gone"] = None


@pytest.mark.parametrize(
    ("question", "kind", "words"),
    [
        (
            {"ask": "explore", "name": "gone", "source": READS},
            "LabError",
            "`gone` is no longer in the kernel's namesp",
        ),
        ({"ask": "explore", "name": "model", "source": {"inputs": "x"}}, "LabError", "`x` is no longer"),
        (
            {"ask": "scan", "name": "model", "source": {"expression": "1 +"}},
            "LabError",
            "`1 +` gives no inputs: Syn",
        ),
        ({"ask": "scan", "name": "model", "source": {"expression": "None"}}, "LabError", "is None"),
        ({"ask": "scan", "name": "model", "source": {}}, "LabError", "Say what the model reads"),
        ({"ask": "scan", "name": "model", "source": {**READS, "text": " "}}, "LabError", "text is empty"),
        ({"ask": "nothing"}, "ValueError", "does not know the question 'nothing'"),
        ({}, "ValueError", "does not know the question None"),
        ({"ask": "explore"}, "KeyError", "name"),
    ],
)
def test_errors_are_answers(space: dict[str, Any], question: dict[str, Any], kind: str, words: str) -> None:
    reply = service.answer(question)
    assert not reply["ok"] and reply["error"]["kind"] == kind
    assert words in reply["error"]["message"]


def test_what_a_model_raises_is_an_answer(space: dict[str, Any]) -> None:
    class Silent(BaseException):
        def __str__(self) -> str:
            raise ValueError

    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise self.error

    space["gone"] = model = Raises()
    for error, words in ((Silent(), "cannot be put in words"), (KeyboardInterrupt("stop \ud800"), "stop ?")):
        model.error = error
        reply = ask("scan", name="gone", source={"inputs": "ids"})
        assert words in reply["error"]["message"]


def test_expressions_do_not_write(space: dict[str, Any]) -> None:
    found = arguments(space["model"], {"expression": "(y := ids[:, :3])"}, space)
    assert found[0][0].shape == (1, 3)
    with pytest.raises(LabError, match="ZeroDivisionError"):
        arguments(space["model"], {"expression": "1 / 0"}, space)


@pytest.mark.parametrize("what", ["explore", "diagnose", "capture"])
@pytest.mark.parametrize("name", ["model", '<b>["it\'s"]'])
@pytest.mark.parametrize(
    "source",
    [READS, {**READS, "text": None}, {"inputs": "batch"}, {"expression": "ids, "}, {"inputs": "ids"}],
)
def test_code_runs(space: dict[str, Any], what: str, name: str, source: dict[str, Any]) -> None:
    options = {"kind": "entropy", "tol": 0.01, "max_tokens": 2048, "groups": 32, "scale": "linear"}
    code = value("code", what=what, name=name, source=source, options=options)["code"]
    assert "kind" not in code and ("tol=0.01" in code) == (what != "capture")
    done = dict(space)
    exec(code, done)  # noqa: S102 - the line under test
    if what == "explore":
        done["explorer"].wait()
        done["explorer"].close()
    else:
        assert done[{"diagnose": "diagnosis", "capture": "captured"}[what]] is not None


def test_lines() -> None:
    assert line("explore", "model", {"inputs": "x"}, {}) == (
        "import ess_widgets as ew\n\nexplorer = ew.explore(model, inputs=x)\nexplorer"
    )
    assert '"it\'s"' in line("explore", "model", {"tokenizer": "t", "text": "it's"}, {})
    assert "'a \"b\" c\\n'" in line("explore", "model", {"tokenizer": "t", "text": 'a "b" c\n'}, {})


def test_registering_again_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import comm

    manager = comm.get_comm_manager()
    assert [service.register(), service.register()] == ["ready", "ready"]
    assert manager.targets[service.TARGET] is service._on_open
    manager.unregister_target(service.TARGET, service._on_open)


def test_a_kernels_flow(space: dict[str, Any]) -> None:
    """From the message of the browser to the messages that go back, through comm's own manager."""
    import comm
    from comm.base_comm import BaseComm

    sent: list[tuple[str, Any]] = []

    class Recorded(BaseComm):
        def publish_msg(
            self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
        ) -> None:
            sent.append((msg_type, data))

    manager = comm.get_comm_manager()
    service.register()
    old, comm.create_comm = comm.create_comm, lambda *args, **kwargs: Recorded(*args, **kwargs)
    try:
        content = {"comm_id": "1", "target_name": service.TARGET, "data": {"ask": "models", "expanded": []}}
        manager.comm_open(None, "", {"content": content})
    finally:
        comm.create_comm = old
        manager.unregister_target(service.TARGET, service._on_open)
    assert [kind for kind, _ in sent] == ["comm_msg", "comm_close"]
    assert sent[0][1]["ok"] and math.isfinite(sent[0][1]["value"]["seconds"])


def test_a_training_model_is_looked_at_without_a_trace(space: dict[str, Any]) -> None:
    """Losses are the same to the last bit with an explorer, a scan and a diagnosis of the model that is being trained."""

    def train(between: Any) -> list[float]:
        torch.manual_seed(0)
        model = SmallLM(SmallConfig(width=16, layers=2, heads=2)).train()
        space["gone"] = model
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        losses = []
        for step in range(40):
            ids = torch.randint(0, 256, (4, 32))
            logits = F.dropout(model(ids), 0.1)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            between(step)
            optimizer.step()
            losses.append(loss.item())
        assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        return losses

    alone = train(lambda step: None)
    channels = []
    views: list[Any] = []

    def look(step: int) -> None:
        if step == 3:
            value("explore", name="gone", source=READS)
            views.append(opened("gone"))
        elif step > 3:
            views[0].text = TEXT[: 10 + step]
        if step % 10 == 5:
            for what in ("scan", "diagnose"):
                channels.append(Channel())
                question = {"ask": what, "name": "gone", "source": READS, "options": {}}
                service._on_open(channels[-1], {"content": {"data": question}})

    assert train(look) == alone
    views[0].wait()
    assert views[0].text == TEXT[:49] and len(views[0].captured) == 2
    for channel in channels:
        assert channel.closed.wait(60) and channel.sent[-1]["ok"], channel.sent[-1]
    space["gone"] = None
