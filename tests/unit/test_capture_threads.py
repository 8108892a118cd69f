"""Captures in several threads at once, of one model and of different ones; and what a capture imports."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ess_widgets import capture
from tests.unit.models import UNSEEN, Fused, InPlace, TinyLM, tokens
from tests.unit.test_capture_untouched import unchanged

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
REGISTRY: dict[int, nn.Module] = {}


class Hidden(nn.Module):
    """Run in place: a copy does not find its attention. It counts its calls."""

    def __init__(self, key: int) -> None:
        super().__init__()
        self.key = key
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.attn = REGISTRY[key] = InPlace()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return REGISTRY[self.key](x)


def at_once(*jobs: Callable[[], Any], times: int = 8) -> list[list[Any]]:
    """What each job returned each time, all jobs in threads of their own; what one raised is raised."""
    results: list[list[Any]] = [[] for _ in jobs]
    errors: list[BaseException] = []
    ready = threading.Barrier(len(jobs))

    def work(job: Callable[[], Any], found: list[Any]) -> None:
        try:
            ready.wait()
            for _ in range(times):
                found.append(job())
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(jobs, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def agree(found: list[Any], alone: Any) -> None:
    for cap in found:
        assert list(cap) == list(alone)
        for layer, other in zip(cap.values(), alone.values(), strict=True):
            assert torch.equal(layer.outputs, other.outputs)
            assert torch.equal(layer.operator.matrix(), other.operator.matrix())
            assert layer.residual.max() < 1e-6


@pytest.mark.parametrize("kind", ["copied", "in place"])
def test_of_one_model(kind: str) -> None:
    model = nn.Sequential(Hidden(0) if kind == "in place" else TinyLM(InPlace()).blocks[0]).eval()
    alone = capture(model, X)
    with unchanged(model):
        for found in at_once(*[lambda: capture(model, X)] * 3):
            agree(found, alone)


def test_of_different_models_with_different_inputs() -> None:
    models = [TinyLM(kind(), kind()).eval() for kind in UNSEEN[:4]]
    inputs = [tokens(1 + n, 8 + n) for n in range(4)]
    alone = [capture(model, x) for model, x in zip(models, inputs, strict=True)]
    jobs = [lambda model=model, x=x: capture(model, x) for model, x in zip(models, inputs, strict=True)]
    for found, reference in zip(at_once(*jobs), alone, strict=True):
        agree(found, reference)


def test_in_place_beside_a_copy_and_beside_plain_calls() -> None:
    hidden, copied = nn.Sequential(Hidden(1)).eval(), nn.Sequential(InPlace(), Fused()).eval()
    alone = [capture(hidden, X), capture(copied, X)]
    with torch.no_grad():
        expected = copied[0](X)
    in_place, on_a_copy, plain = at_once(
        lambda: capture(hidden, X), lambda: capture(copied, X), lambda: copied[0](X).detach()
    )
    agree(in_place, alone[0])
    agree(on_a_copy, alone[1])
    assert all(torch.equal(y, expected) for y in plain)
    assert hidden[0].seen == 0


def test_a_capture_inside_a_capture() -> None:
    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.other = Fused(), nn.Sequential(InPlace())

        def forward(self, x: Tensor) -> Tensor:
            FOUND.append(capture(self.other, x))
            return self.attn(x)

    FOUND.clear()
    model = Curious()
    with unchanged(model):
        cap = capture(model, X)
    # What the inner one runs, the outer one sees too: it runs inside the model.
    assert list(cap) == ["Curious", "attn"] and list(FOUND[0]) == ["0"]
    assert torch.equal(cap[0].outputs, FOUND[0][0].outputs)
    assert max(layer.residual.max() for layer in (*cap.values(), *FOUND[0].values())) < 1e-6


FOUND: list[Any] = []

SCRIPT = """
import sys
import torch
import ess_widgets as ew
from torch import nn

class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.rnn, self.conv = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True), nn.Conv1d(8, 8, 3)

    def forward(self, x):
        x = self.rnn(self.linear(x))[0]
        x = self.conv(nn.functional.pad(x.mT, (2, 0))).mT
        y = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return (y @ x.mT).masked_fill(mask, -torch.inf).softmax(-1) @ x

model, x = nn.Sequential(Mixer(), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), torch.randn(1, 5, 8)
mask = nn.Transformer.generate_square_subsequent_mask(5)
model[1](model[0](x), src_mask=mask, is_causal=True)
before = set(sys.modules)
for cap in (ew.capture(model[0], x), ew.capture(model[1], x, src_mask=mask, is_causal=True)):
    print(len(cap), *{str(layer.family) for layer in cap.values()})
    for layer in cap.values():
        if layer.family != "jacobian":  # torch.func imports torch's compiler when it is used
            layer.operator.matrix(), layer.residual, layer.state_size
print("new:", *sorted(set(sys.modules) - before))
heavy = "transformers accelerate peft fla triton IPython matplotlib anywidget ipywidgets pandas scipy sklearn"
print("heavy:", *[name for name in heavy.split() if name in sys.modules])
"""


def test_nothing_is_imported_that_the_user_has_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(family in lines[0] for family in ("softmax attention", "convolution", "jacobian"))
    assert lines[-2:] == ["new:", "heavy:"], done.stdout
