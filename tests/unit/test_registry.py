"""Layers of the user's own, by registration."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import CaptureError, registry
from ess_widgets.capture.reading import ModuleCall, Reading
from tests.unit.models import Fused

DOCS = Path(__file__).parents[2] / "docs"


class Mean(nn.Module):
    """The mean of all inputs so far, times two."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4, bias=False)
        self.twice.weight.data = 2 * torch.eye(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Better(Mean):
    pass


def means(L: int) -> Tensor:
    return (1 / torch.arange(1.0, L + 1)[:, None]).expand(L, L).tril()


def read(module: nn.Module, call: ModuleCall) -> Any:
    return ew.operators.Dense(2 * means(call.args[0].shape[1]), state_size=1)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    assert not registry.MODULES
    yield
    for entry in registry._known:
        entry.remove()


X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))


def test_decorator_and_unregister() -> None:
    with pytest.raises(CaptureError):
        ew.capture(Mean(), X)
    assert ew.register(Mean)(read) is read
    layer = ew.capture(Mean(), X)["Mean"]
    assert layer.family == "custom" and layer.residual.max() < 1e-6
    assert layer.operator.shape == (2, 1, 5, 5) and layer.state_size.tolist() == [0, 1, 1, 1, 1]
    assert layer.inputs.shape == layer.outputs.shape == (2, 1, 5, 4)
    ew.unregister(Mean)
    with pytest.raises(CaptureError):
        ew.capture(Mean(), X)
    with pytest.raises(KeyError, match="nothing is registered"):
        ew.unregister(Mean)


@pytest.mark.parametrize(
    "kind",
    [Mean, "Mean", f"{Mean.__module__}.Mean", lambda module: hasattr(module, "twice")],
    ids=["class", "name", "qualified name", "predicate"],
)
@pytest.mark.parametrize("model", [Mean, Better])
def test_kinds_and_context(kind: Any, model: type[nn.Module]) -> None:
    with ew.register(kind, read, family="mean"):
        cap = ew.capture(nn.Sequential(nn.Linear(4, 4), model(), model()), X)
        assert list(cap) == ["1", "2"] and cap[0].family == "mean"
        assert max(layer.residual.max() for layer in cap.values()) < 1e-6
    assert not registry.MODULES


def test_the_context_is_left_when_something_raises() -> None:
    with contextlib.suppress(RuntimeError), ew.register(Mean, read):
        raise RuntimeError
    assert not registry.MODULES


def test_the_newest_goes_first_and_before_what_is_built_in() -> None:
    model = nn.Sequential(nn.LSTM(4, 4, batch_first=True))
    attention = Fused()
    x = torch.randn(1, 6, 16)
    with ew.register(nn.LSTM, lambda m, c: "of no interest"):
        with pytest.raises(CaptureError, match="LSTM: of no interest"):
            ew.capture(model, X)
        with ew.register(
            "LSTM", lambda m, c: (ew.operators.Dense(torch.eye(5)), c.args[0], c.result[0]), family="mine"
        ):
            assert ew.capture(model, X)[0].family == "mine"
    assert ew.capture(model, X)[0].family == "jacobian"
    whole = ew.operators.Dense(torch.eye(6))
    with ew.register(Fused, lambda m, c: whole, family="all of it"):
        cap = ew.capture(attention, x)
        assert [layer.family for layer in cap.values()] == ["all of it"]
    with ew.register(Fused, lambda m, c: None), pytest.raises(CaptureError):
        ew.capture(attention, x)


def test_a_wrong_function_shows_in_the_residual() -> None:
    with ew.register(Mean, lambda m, c: ew.operators.Dense(means(5))):  # the factor 2 is forgotten
        assert ew.capture(Mean(), X)[0].residual.min() > 0.4


def test_what_a_function_may_return() -> None:
    T = 2 * means(5)
    heads = T.expand(2, 2, 5, 5)
    answers: list[tuple[Any, tuple[int, ...]]] = [
        (lambda m, c: ew.operators.Dense(heads), (2, 2, 5, 2)),
        (lambda m, c: (ew.operators.Dense(heads), X, c.output), (2, 2, 5, 2)),
        (lambda m, c: (ew.operators.Dense(T.expand(2, 4, 5, 5)), X, c.output), (2, 4, 5, 1)),
        (
            lambda m, c: (
                ew.operators.Dense(heads),
                X.unflatten(2, (2, 2)).transpose(1, 2),
                c.children["twice"].output.unflatten(2, (2, 2)).transpose(1, 2),
            ),
            (2, 2, 5, 2),
        ),
        (lambda m, c: ew.operators.Dense(torch.kron(T, torch.eye(4)).expand(2, 1, 20, 20), block=4), (2, 1, 20, 1)),
        (
            lambda m, c: Reading(
                "mine", (2, 1, 5), {"x": X, "y": c.output}, lambda t: ew.operators.Dense(T.expand(2, 1, 5, 5)),
                lambda t: t["x"].unsqueeze(1), lambda t: t["y"].unsqueeze(1),
            ),
            (2, 1, 5, 4),
        ),
    ]  # fmt: skip
    for answer, shape in answers:
        with ew.register(Mean, answer):
            layer = ew.capture(Mean(), X)[0]
        assert layer.inputs.shape == layer.outputs.shape == shape
        assert layer.residual.max() < 1e-6


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda m, c: 1 / 0, "layer '1': the function registered for Mean raised ZeroDivisionError"),
        (lambda m, c: c.kwargs["mask"], "raised KeyError: 'mask'"),
        (lambda m, c: torch.eye(5), "returned a tensor of torch.float32 and shape"),
        (lambda m, c: (ew.operators.Dense(torch.eye(5)), X), "returned a tuple of Dense, Tensor"),
        (lambda m, c: ew.operators.Dense(torch.eye(5).expand(2, 5, 5)), r"leading dimensions \(2,\)"),
        (
            lambda m, c: ew.operators.Dense(torch.eye(6)),
            r"u of shape \(2, 5, 4\), but its operator wants .* \(2, 1, 6,",
        ),
        (lambda m, c: ew.operators.Dense(torch.eye(5).expand(2, 3, 5, 5)), "channels that 3 groups share"),
        (lambda m, c: (ew.operators.Dense(torch.eye(5)), X, X[0]), r"must give y as .*shape \(5, 4\)"),
        (lambda m, c: (ew.operators.Dense(torch.eye(5)), X, X[..., :2]), "different shapes"),
        (lambda m, c: (ew.operators.Dense(torch.eye(5)), X.long(), X), "must give u as a floating tensor"),
    ],
)
def test_errors_name_the_layer(answer: Any, says: str) -> None:
    with ew.register(Mean, answer), pytest.raises(CaptureError, match=says) as error:
        ew.capture(nn.Sequential(nn.Linear(4, 4), Mean()), X)
    assert "layer '1'" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((int,), TypeError, "classes of modules"),
        (("",), ValueError, "empty"),
        ((nn.Linear(2, 2),), TypeError, "not one Linear"),
        ((3,), TypeError, "class, its name or a predicate"),
        ((nn.Linear, 3), TypeError, "must be a function"),
    ],
)
def test_what_cannot_be_registered(arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ew.register(*arguments)
    with pytest.raises(TypeError, match="function is missing"), ew.register(Mean):
        pass
    assert not registry.MODULES


def test_what_the_model_writes_later_does_not_reach_the_capture() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = Mean()

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            y = self.mean(x)
            kept = y.clone()
            x *= 0
            y += 5
            return kept

    with ew.register(Mean, read):
        layer = ew.capture(Residual(), X)[0]
    assert layer.residual.max() < 1e-6


def test_the_example_in_the_docs(tmp_path: Path) -> None:
    text = (DOCS / "your-own-layer.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks[0].splitlines()) <= 45  # it fits on a screen
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names = runpy.run_path(str(script))
    assert "LayerCapture('1', custom, batch=2, groups=4, L=32)" in printed.getvalue()
    cap: Any = names["cap"]
    assert cap["1"].residual.max() < 1e-5 and cap["1#1"].residual.max() < 1e-8
