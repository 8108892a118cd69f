"""The user's model, random streams and training are left as they were, whatever happens."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets import capture
from ess_widgets.capture import Cancelled, run
from tests.unit.models import VOCAB, Fused, InPlace, TinyLM, tokens


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a run could have changed."""
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict(keep_vars=False).items()},
        "identity": [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()],
        "versions": [p._version for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "places": [(p.dtype, p.device) for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": [
            [(k, list(v.items() if isinstance(v, dict) else v)) for k, v in vars(m).items() if "hooks" in k]
            for m in model.modules()
        ],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),
        "grad mode": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        ),
        "default": (torch.get_default_dtype(), torch.get_num_threads()),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.layout == b.layout and torch.equal(a.to_dense(), b.to_dense())
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = state(model)
    yield
    after = state(model)
    assert [k for k in before if not same(before[k], after[k])] == []


@pytest.fixture
def model() -> TinyLM:
    """In the middle of training: gradients, a frozen weight, mixed modes, hooks of the user's own."""
    torch.manual_seed(0)
    model = TinyLM(Fused(), InPlace())
    F.cross_entropy(model(tokens()).flatten(0, 1), tokens().flatten()).backward()
    model.embed.weight.requires_grad_(False)
    model.blocks[1].attn.eval()
    model.calls = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        model.calls += 1

    model.blocks[0].register_forward_hook(count)
    model.blocks[0].attn.register_forward_pre_hook(lambda *a: None)
    return model


def test_after_a_capture(model: TinyLM) -> None:
    with unchanged(model):
        cap = capture(model, tokens())
        for layer in cap.values():
            layer.operator.matrix()
            assert layer.residual.max() < 1e-6
    assert model.calls == 0
    assert not cap.output.requires_grad
    # Nothing keeps the copy of the model from being used further by autograd.
    F.cross_entropy(model(tokens()).flatten(0, 1), tokens().flatten()).backward()


def test_eval_mode_is_what_is_captured(model: TinyLM) -> None:
    cap = capture(model, tokens())
    with torch.no_grad():
        # Fused drops even in eval mode; a capture does not.
        for block in model.blocks:
            if isinstance(block.attn, Fused):
                block.attn.forward = lambda x, a=block.attn: InPlace.merge(
                    a, F.scaled_dot_product_attention(*a.split(x), is_causal=True)
                )
        torch.testing.assert_close(cap.output, model.eval()(tokens()))


class Raises(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.attn = Fused()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        self.attn(x)
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine"), Cancelled()], ids=repr)
def test_after_an_exception(error: BaseException) -> None:
    model, x = Raises(error), torch.randn(1, 4, 16)
    with unchanged(model), pytest.raises(type(error)):
        capture(model, x)


def test_after_a_wrong_input(model: TinyLM) -> None:
    with unchanged(model), pytest.raises(IndexError):
        capture(model, tokens() + VOCAB)
    with unchanged(model), pytest.raises(RuntimeError):
        capture(model, tokens().float())
    with unchanged(model), pytest.raises((RuntimeError, ValueError)):
        capture(model, tokens()[:, :0])
    with unchanged(model), pytest.raises(TypeError):
        capture(model, tokens(), no_such_argument=1)


def test_cancellation_within_one_call(model: TinyLM) -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 10

    with unchanged(model), pytest.raises(Cancelled):
        run(model, (tokens(),), {}, should_stop=should_stop)
    assert len(asked) == 10


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_under_the_users_own_grad_mode(model: TinyLM, context: Any) -> None:
    with context():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        cap = capture(model, tokens())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert cap[1].residual.max() < 1e-6
    x = cap[0].inputs
    assert not x.is_inference()


def test_autocast_is_respected_and_its_cache_left_alone(model: TinyLM) -> None:
    def gradients(between: Any) -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            between()
            loss = F.cross_entropy(model(tokens()).flatten(0, 1).float(), tokens().flatten())
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    norms = [b.clone() for b in model.buffers()]
    captured: list[Any] = []
    plain = gradients(lambda: None)
    for buffer, before in zip(model.buffers(), norms, strict=True):
        buffer.copy_(before)
    with_capture = gradients(lambda: captured.append(capture(model, tokens())))
    assert len(plain) == len(with_capture) > 10
    assert all(torch.equal(a, b) for a, b in zip(plain, with_capture, strict=True))
    layer = captured[0][0]
    assert layer.outputs.dtype is torch.bfloat16
    assert layer.operator.matrix().dtype is torch.float32
    assert layer.residual.max() < 1e-2


class Random(nn.Module):
    """Draws random numbers in every mode, in all ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Fused()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        x = (
            x
            + torch.randn(x.shape)
            + torch.rand_like(x)
            + torch.randn_like(x)
            + torch.empty_like(x).normal_()
        )
        x = x + torch.randint(0, 5, x.shape) + torch.randint_like(x, 3) + torch.randint_like(x, low=1, high=3)
        x = (
            x
            + torch.bernoulli(torch.full_like(x, 0.5))
            + torch.normal(0.0, 1.0, x.shape)
            + torch.zeros_like(x).uniform_()
        )
        x = x + F.gumbel_softmax(x, hard=True) + F.gumbel_softmax(x, 0.5) + F.rrelu(x, training=True)
        x = x[:, torch.randperm(x.shape[1])] + torch.rand(x.shape, generator=self.generator)
        x = (
            x
            + torch.multinomial(torch.ones(3), 1)
            + torch.poisson(torch.ones_like(x))
            + torch.zeros_like(x).exponential_()
        )
        x = (
            F.dropout(F.alpha_dropout(x, 0.1, training=True), 0.1, training=True)
            + random.random()
            + np.random.rand()
        )
        return self.attn(torch.nn.init.normal_(torch.empty_like(x)) + x)


def test_random_numbers_are_private_and_repeatable() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Random()
    generator = model.generator.get_state()
    with unchanged(model):
        a = capture(model, torch.zeros(2, 5, 16))
    assert torch.equal(model.generator.get_state(), generator)
    random.seed(0)
    np.random.seed(0)
    b = capture(model, torch.zeros(2, 5, 16))
    random.seed(0)
    np.random.seed(0)
    c = capture(model, torch.zeros(2, 5, 16))
    assert torch.equal(b[0].operator.matrix(), c[0].operator.matrix())
    assert a[0].residual.max() < 1e-6


class Writes(nn.Module):
    """A forward that writes: to a buffer, to plain tensors, to containers, to counters, and to its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Fused()
        self.embed = nn.Embedding(VOCAB, 16, max_norm=1.0)
        self.scale = nn.Parameter(torch.full((16,), 2.0))
        self.register_buffer("seen", torch.zeros(16))
        self.plain = torch.zeros(3)
        self.history: list[Any] = []
        self.table = {"calls": 0, "tensors": [torch.zeros(2)]}
        self.calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        with torch.no_grad():
            self.scale.clamp_(max=1.0)
        self.seen += x.mean((0, 1))
        self.plain.add_(1)
        self.table["tensors"][0].fill_(7)
        self.table["calls"] += 1
        self.history.append(x)
        self.calls += 1
        self.attn.note = "left by a forward"
        return self.attn(x * self.scale)


def test_what_a_forward_writes_stays_on_the_copy() -> None:
    model = Writes()
    with torch.no_grad():
        model.embed.weight.mul_(10)
    with unchanged(model):
        layer = capture(model, tokens())[0]
    assert layer.residual.max() < 1e-6
    assert model.calls == model.table["calls"] == 0 and not model.history
    assert not model.plain.any() and not model.table["tensors"][0].any()
    assert not hasattr(model.attn, "note")


def test_the_users_tensors_may_change_afterwards() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.randn(1, 1, 6, 4))
            self.bias = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = F.scaled_dot_product_attention(x, x, self.values, attn_mask=mask)
            return y + (x @ x.mT + self.bias + mask).softmax(-1) @ x

    model, x = Biased(), torch.randn(1, 1, 6, 4)
    mask = torch.full((6, 6), -torch.inf).triu(1)
    cap = capture(model, x, mask)
    before = [(layer.operator.matrix(), layer.inputs.clone()) for layer in cap.values()]
    with torch.no_grad():
        for tensor in (x, mask, model.values, model.bias):
            tensor.zero_()
    for layer, (T, u) in zip(cap.values(), before, strict=True):
        assert torch.equal(layer.operator.matrix(), T)
        assert torch.equal(layer.inputs, u)
        assert layer.residual.max() < 1e-6


def train(model: nn.Module, step: Any, steps: int) -> list[float]:
    torch.manual_seed(5)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, VOCAB, (4, 16))
        loss = F.cross_entropy(step(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_training_in_another_thread_is_bitwise_the_same(compiled: bool, autocast: bool) -> None:
    def fresh() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = TinyLM(Fused(), InPlace())
        called = torch.compile(model, backend="eager") if compiled else model

        def step(ids: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return called(ids).float()

        return called, step

    steps = 30
    alone = train(*fresh(), steps)
    model, step = fresh()
    stop, captures, errors = threading.Event(), [0], []

    def explore() -> None:
        try:
            while not stop.is_set():
                layer = capture(model, tokens())[1]
                layer.operator.matrix()
                captures[0] += 1
        except BaseException as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    thread = threading.Thread(target=explore)
    thread.start()
    try:
        while not captures[0] and not errors:
            stop.wait(0.01)
        watched = train(model, step, steps)
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert captures[0] > 3
    assert watched == alone
    assert all(module.training for module in model.modules())
