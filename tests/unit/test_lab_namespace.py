"""What the panel lists of a namespace; nothing of the user's may be run for it."""

from __future__ import annotations

import codecs
import gc
import json
import time
from collections import UserDict
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ess_widgets.demo.small import ByteTokenizer, SmallConfig, SmallLM
from ess_widgets.lab import static
from ess_widgets.lab.errors import LabError
from ess_widgets.lab.listing import entries, find
from ess_widgets.lab.namespace import survey

CALLS: list[str] = []


def refuse(what: str) -> Any:
    def method(*args: Any, **kwargs: Any) -> NoReturn:
        CALLS.append(what)
        raise SystemExit(what)

    return method


class Meta(type):
    """A metaclass that answers nothing."""

    __eq__ = refuse("meta ==")
    __hash__ = refuse("meta hash")  # type: ignore[assignment]
    __instancecheck__ = refuse("meta instancecheck")
    __subclasscheck__ = refuse("meta subclasscheck")
    __getattribute__ = refuse("meta getattribute")  # type: ignore[assignment]
    __repr__ = refuse("meta repr")  # type: ignore[assignment]


HOSTILE = {
    name: refuse(name)
    for name in (
        "__getattribute__", "__getattr__", "__repr__", "__str__", "__eq__", "__hash__", "__len__", "__iter__",
        "__bool__", "__getitem__", "__contains__", "__dir__", "__torch_function__",
    )
} | {
    name: property(refuse(name)) for name in ("__class__", "model", "encode", "config", "shape", "training")
}  # fmt: skip


class Sleeps:
    """Whoever reads a property of this waits for ever."""

    @property
    def model(self) -> Any:
        CALLS.append("slept")
        while True:
            time.sleep(1)

    __dict__ = model  # type: ignore[assignment]
    __class__ = model  # type: ignore[assignment]


def hostile(*bases: type, **more: Any) -> Any:
    # torch itself does not survive such a metaclass on a class of tensors.
    kind = type(Tensor) if Tensor in bases else Meta
    return kind("Hostile", bases, {**HOSTILE, **more})


@pytest.fixture(autouse=True)
def nothing_was_called() -> Any:
    CALLS.clear()
    yield
    assert CALLS == []


def names(found: dict[str, Any], what: str = "models") -> list[str]:
    assert json.loads(json.dumps(found)) == found
    return [entry["name"] for entry in found[what]]


def made(kind: Any) -> Any:
    return object.__new__(kind)


def test_a_model_in_numbers() -> None:
    model = SmallLM(SmallConfig(vocab=16, width=8, layers=2, heads=2)).eval()
    (entry,) = survey({"model": model})["models"]
    assert entry == {
        "name": "model", "id": static.identity(model), "kind": "SmallLM", "module": "ess_widgets.demo.small",
        "parameters": sum(p.numel() for p in model.parameters()), "complete": True, "device": "cpu",
        "dtype": "float32", "training": False, "language": True, "aliases": [], "mixers": None,
    }  # fmt: skip
    (entry,) = survey({"model": model}, expanded=["model"])["models"]
    assert [row["path"] for row in entry["mixers"]] == ["layers.0.attention", "layers.1.attention"]


def test_shared_mixed_meta_lazy_and_empty_models() -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    space = {
        "tied": tied,
        "mixed": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float16, device="meta")),
        "lazy": nn.LazyLinear(4),
        "empty": nn.Identity(),
    }
    found = {entry["name"]: entry for entry in survey(space)["models"]}
    assert found["tied"]["parameters"] == 9
    assert (found["mixed"]["device"], found["mixed"]["dtype"]) == ("mixed", "mixed")
    assert found["lazy"]["parameters"] == 0
    assert (found["empty"]["device"], found["empty"]["dtype"], found["empty"]["complete"]) == ("", "", True)


def test_containers_pipelines_and_aliases() -> None:
    net, other, third = (nn.Linear(1, 1) for _ in range(3))
    space = {
        "models": {"GLA": net, 3: other, ("a",): third},
        "pipe": SimpleNamespace(model=other),
        "net": net,
        "same": net,
        "nets": [1, third],
        "pair": (third,),
        "deep": [[nn.Linear(1, 1)]],
        "long": [nn.Linear(1, 1)] * 65,
        "_private": nn.Linear(1, 1),
    }
    found = survey(space)
    assert [(m["name"], m["aliases"]) for m in found["models"]] == [
        ("net", ["same", "models['GLA']"]),
        ("models[3]", ["pipe.model"]),
        ("nets[1]", ["pair[0]"]),
    ]
    assert find(space, "pipe.model", "model").value is other
    assert find(space, "models['GLA']", "model").expression == "models['GLA']"


def test_names_that_are_no_identifiers() -> None:
    name = "<img src=x onerror=alert(1)>"
    space: dict[Any, Any] = {
        name: nn.Linear(1, 1),
        7: nn.Linear(1, 1),
        "x" * 999: nn.Linear(1, 1),
        "\ud800": nn.ReLU(),
    }
    space['it\'s "q"'] = [nn.ReLU()]
    assert names(survey(space)) == [name, "x" * 200, "?", 'it\'s "q"[0]']
    for listed in names(survey(space)):
        entry = find(space, listed, "model")
        assert eval(entry.expression, space.copy()) is entry.value
    assert find(space, name, "model").expression == f"globals()[{name!r}]"


def test_hidden_names() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    space = {"exit": first, "model": second}
    assert names(survey(space, hidden={"exit": first})) == ["model"]
    assert names(survey(space, hidden={"exit": 3})) == ["exit", "model"]  # the user's own by now
    assert names(survey(space, hidden=["model"])) == ["exit"]


def test_tokenizers() -> None:
    class Autoencoder(nn.Module):
        encode = decode = lambda self: None

    space = {
        "tokenizer": ByteTokenizer(), "ByteTokenizer": ByteTokenizer, "text": "a", "data": b"a", "json": json,
        "codec": codecs.Codec(), "array": np.char.array(["a"]), "autoencoder": Autoencoder(), "lone": json.JSONEncoder(),
    }  # fmt: skip
    found = survey(space)
    assert found["tokenizers"] == [{"name": "tokenizer", "kind": "ByteTokenizer"}]


def test_inputs() -> None:
    class Wrapped(Tensor):
        @classmethod
        def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
            return refuse("dispatch")()

    class Encoding(UserDict):  # type: ignore[type-arg]
        pass

    space = {
        "x": torch.zeros(2, 3, dtype=torch.int64), "scalar": torch.tensor(1.0), "weight": nn.Parameter(torch.zeros(2)),
        "batch": {"input_ids": torch.zeros(1, 2), "n": 3}, "numbers": {"a": 1}, "odd": {1: torch.zeros(2)},
        "encoded": Encoding({"ids": torch.zeros(2)}), "wrapped": Tensor._make_subclass(Wrapped, torch.zeros(2)),
    }  # fmt: skip
    found = survey(space)
    assert found["inputs"] == [
        {"name": "x", "kind": "Tensor", "shape": [2, 3], "dtype": "int64"},
        {"name": "batch", "kind": "dict", "shape": None, "dtype": None},
        {"name": "encoded", "kind": "Encoding", "shape": None, "dtype": None},
    ]


def test_hostile_objects_are_left_alone() -> None:
    plain = nn.Linear(2, 3)
    holder = made(hostile(object))
    space: dict[str, Any] = {
        "a": holder,
        "b": hostile(object),
        "c": made(hostile(object, __slots__=())),
        "d": object.__new__(Sleeps),
        "e": [made(hostile(object))],
        "f": {"k": object.__new__(Sleeps)},
        "g": Tensor._make_subclass(hostile(Tensor), torch.zeros(2)),
        "model": plain,
    }
    CALLS.clear()  # torch asked, when the tensor was made
    found = survey(space, expanded=["model"])
    assert names(found) == ["model"]
    assert names(found, "inputs") == ["g"]
    with pytest.raises(LabError, match="no longer in the kernel's namespace; refresh"):
        find(space, "nothing", "model")


def hostile_module() -> Any:
    module = made(hostile(nn.Module))
    attributes = {
        "_modules": {"net": nn.Linear(2, 3)},
        "_parameters": {"w": None, "x": made(hostile(object))},
        "config": made(hostile(object)),
    }
    type.__dict__["__dict__"].__get__(nn.Module)["__dict__"].__get__(module).update(attributes)
    return module


def test_hostile_modules_are_listed_by_what_is_in_them() -> None:
    module = hostile_module()
    bare = made(type("Bare", (nn.Module,), {}))  # without super().__init__()
    odd = made(type("Odd", (nn.Module,), {}))
    odd.__dict__.update(_modules=3, _parameters=[nn.Parameter(torch.zeros(2))], training="yes")
    found = survey({"module": module, "bare": bare, "odd": odd}, expanded=["module", "bare", "odd"])
    assert [(m["name"], m["kind"], m["parameters"]) for m in found["models"]] == [
        ("module", "Hostile", 9), ("bare", "Bare", 0), ("odd", "Odd", 0),
    ]  # fmt: skip


def test_a_thousand_variables_and_a_hundred_models() -> None:
    class Counted:
        read = 0

        @property
        def anything(self) -> int:
            Counted.read += 1
            return 1

        model = encode = decode = shape = anything

    space: dict[str, Any] = {f"v{i}": Counted() for i in range(1000)}
    space.update({f"m{i}": nn.Linear(1, 1) for i in range(130)})
    found = survey(space, budget=60)
    assert Counted.read == 0
    assert (len(found["models"]), found["omitted"]) == (100, 30)
    assert found["seconds"] > 0


def test_the_budget_ends_the_count() -> None:
    (entry,) = survey({"model": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))}, budget=0)["models"]
    assert not entry["complete"] and entry["parameters"] < 12


def test_a_namespace_that_changes_meanwhile() -> None:
    class Changing(dict):  # type: ignore[type-arg]
        pass

    space = Changing(model=nn.Linear(1, 1))
    assert [entry.name for entry in entries(space)] == ["model"]


def test_modules_in_a_circle_end() -> None:
    module = nn.Linear(2, 2)
    module._modules["again"] = module
    (entry,) = survey({"module": module}, expanded=["module"])["models"]
    assert entry["parameters"] == 6


def test_the_stamp_of_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stamps = [static.stamp(model)]

    def differs() -> None:
        assert static.stamp(model) not in stamps
        stamps.append(static.stamp(model))

    assert static.stamp(model) == stamps[0]
    model.eval()
    model(torch.randn(5, 3)).sum().backward()
    assert static.stamp(model) == stamps[0]  # neither a run nor gradients write weights
    optimizer.step()
    differs()
    model.train()
    model(torch.randn(5, 3))  # running statistics
    differs()
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    differs()
    model[0].weight.data = torch.zeros(4, 3)
    differs()
    model[0].bias = None
    differs()
    model.append(nn.Linear(4, 4))
    differs()


def test_the_stamp_of_what_counts_no_writes() -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    with torch.device("meta"):
        hollow = nn.Linear(2, 2)
    for one in (model, hollow, nn.LazyLinear(2), nn.Module(), hostile_module()):
        assert static.stamp(one) == static.stamp(one)


def test_an_identity_is_never_given_twice() -> None:
    seen = set()
    for _ in range(50):
        module = nn.Linear(2, 2)
        word = static.identity(module)
        assert static.identity(module) == word and word not in seen
        seen.add(word)
        del module
    gc.collect()
    assert not seen & {word for _, word in static._known.values()}  # what is gone is forgotten
    hidden = hostile_module()
    assert static.identity(hidden) == static.identity(hidden)
