"""The copy that is run in the model's place: compiled, wrapped, patched and otherwise unusual models."""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from ess_widgets import capture
from ess_widgets.capture.interception.replica import replicate
from tests.unit.models import Fused, Heads, InPlace, TinyLM, forbidden, tokens
from tests.unit.test_capture_untouched import unchanged

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


def good(model: nn.Module, *args: Any, count: int | None = None) -> Any:
    args = args or (X,)
    with unchanged(model):
        cap = capture(model, *args)
    assert count is None or len(cap) == count
    assert max(layer.residual.max() for layer in cap.values()) < 1e-6
    return cap


class Counting:
    """A backend that counts how often it is asked to compile."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend() -> Counting:
    torch._dynamo.reset()
    return Counting()


@functools.lru_cache
def _attend(backend: Any) -> Any:
    return torch.compile(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), backend=backend
    )


def whole(model: TinyLM, backend: Any) -> nn.Module:
    return torch.compile(model, backend=backend)


def in_place(model: TinyLM, backend: Any) -> nn.Module:
    model.compile(backend=backend)
    return model


def submodule(model: TinyLM, backend: Any) -> nn.Module:
    model.blocks[0] = torch.compile(model.blocks[0], backend=backend)
    model.blocks[1].attn.compile(backend=backend)
    return model


def method_of_an_instance(model: TinyLM, backend: Any) -> nn.Module:
    model.blocks[0].attn.forward = torch.compile(model.blocks[0].attn.forward, backend=backend)
    return model


def function_outside(model: TinyLM, backend: Any) -> nn.Module:
    attend = _attend(backend)

    class Outside(Heads):
        def forward(self, x: Tensor) -> Tensor:
            return self.merge(ATTEND[0](*self.split(x)))

    ATTEND[:] = [attend]
    model.blocks[0].attn = Outside()
    return model


def method_of_the_class(model: TinyLM, backend: Any) -> nn.Module:
    class Decorated(Heads):
        @torch.compile(backend=backend)
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.split(x)
            return self.merge((q @ k.mT).masked_fill(forbidden(x.shape[1]), -torch.inf).softmax(-1) @ v)

    model.blocks[0].attn = Decorated()
    return model


ATTEND: list[Any] = []


@pytest.mark.parametrize(
    "way", [whole, in_place, submodule, method_of_an_instance, method_of_the_class, function_outside],
    ids=lambda way: way.__name__,
)  # fmt: skip
def test_compiled_models(way: Any, backend: Counting) -> None:
    torch.manual_seed(0)
    model = way(TinyLM(Fused(), InPlace()), backend).eval()
    model(tokens())
    compiled = backend.graphs
    assert compiled > 0
    for _ in range(12):  # more often than dynamo is ready to recompile
        cap = good(model, tokens(), count=2)
    assert list(cap) == ["blocks.0.attn", "blocks.1.attn"]
    model(tokens())
    assert backend.graphs == compiled


def test_data_parallel_is_unwrapped() -> None:
    assert list(good(nn.DataParallel(TinyLM()), tokens())) == ["blocks.0.attn", "blocks.1.attn"]


def test_names_of_shared_and_repeated_modules() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Fused()
            self.second = self.first
            self.many = nn.ModuleList([self.first] * 2)
            self.again = InPlace()

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x))
            x = self.again(self.again(x))
            y = F.scaled_dot_product_attention(x, x, x, is_causal=True)
            return y + F.scaled_dot_product_attention(x, y, y, is_causal=True)

    cap = good(Twice())
    assert list(cap) == ["first", "second", "again", "again#1", "Twice", "Twice#1"]
    parameters = list(replicate(Twice()).model.parameters())
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(Twice().parameters()))


def test_a_module_without_a_call_of_its_own_belongs_to_the_one_around_it() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Fused()

        def forward(self, x: Tensor) -> Tensor:
            return self.attn.forward(x)

    assert list(good(Direct())) == ["Direct"]


def test_handwritten_checkpointing() -> None:
    class Checkpointed(TinyLM):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            for n, block in enumerate(self.blocks):
                x = checkpoint(block, x, use_reentrant=bool(n))
            return self.head(x)

    assert list(good(Checkpointed(), tokens())) == ["blocks.0.attn", "blocks.1.attn"]


@pytest.mark.parametrize(
    "normalise",
    [
        torch.nn.utils.weight_norm,
        parametrizations.weight_norm,
        torch.nn.utils.spectral_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        functools.partial(prune.random_unstructured, name="weight", amount=0.5),
    ],
    ids=["old weight_norm", "weight_norm", "old spectral_norm", "spectral_norm", "orthogonal", "pruning"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_computed_weights(normalise: Any) -> None:
    torch.manual_seed(0)
    model = InPlace()
    normalise(model.qkv)
    model(X)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv" in name:
                parameter.mul_(1.5)  # as a step of the optimiser would: what was computed before is stale
    cap = good(model)
    with torch.no_grad():
        torch.testing.assert_close(cap.output, model.eval()(X))


def wrapped(module: nn.Module, old: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        assert not module.training
        return old(*args, **kwargs)

    return forward


def patched_with_a_closure(model: TinyLM) -> None:
    for block in model.blocks:
        block.attn.forward = wrapped(block.attn, block.attn.forward)


def patched_with_a_partial(model: TinyLM) -> None:
    for block in model.blocks:
        block.attn._old_forward = block.attn.forward
        block.attn.forward = functools.partial(lambda module, x: module._old_forward(x), block.attn)


def patched_with_a_bound_method(model: TinyLM) -> None:
    model.blocks[0].attn.forward = types.MethodType(
        lambda self, x: InPlace.forward(self, x), model.blocks[0].attn
    )


def patched_by_accelerate(model: TinyLM) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    for module in (model, *model.blocks):
        add_hook_to_module(module, ModelHook())


@pytest.mark.parametrize(
    "patch", [patched_with_a_closure, patched_with_a_partial, patched_with_a_bound_method, patched_by_accelerate],
    ids=lambda patch: patch.__name__,
)  # fmt: skip
def test_patched_methods_follow_the_copy(patch: Any) -> None:
    model = TinyLM().train()
    patch(model)
    assert len(good(model, tokens())) == 2


class Helper:
    """An object beside the module that refers to it, in ways that a structural copy must follow."""

    __slots__ = ("__dict__", "__weakref__", "slot")

    def __init__(self, owner: Heads) -> None:
        self.slot = owner.qkv
        self.weak = weakref.ref(owner)
        self.inside = {"list": [owner], "tuple": (owner.out, 1)}
        self.calls = 0

    def split(self, x: Tensor) -> Any:
        self.calls += 1
        owner = self.weak()
        assert owner is self.inside["list"][0] and not owner.training
        assert not self.slot.training and not self.inside["tuple"][0].training
        return owner.split(x)


Pair = namedtuple("Pair", "module value")


class Unusual(Heads):
    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper(self)
        self.lock = threading.Lock()
        self.pair = Pair(self.out, 3)
        self.kinds = OrderedDict(a=defaultdict(list, b=[self.out]), c=deque([self.out]), d={1, 2})
        self.function = lambda x, out=self.out: out(x)
        self.__dict__["itself"] = self
        self.loose = [nn.Parameter(torch.randn(16))]

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            q, k, v = self.helper.split(x)
        for module in (self.pair.module, self.kinds["a"]["b"][0], self.kinds["c"][0], self.itself):
            assert not module.training
        self.kinds["a"]["new"].append(1)
        self.kinds["c"].append(2)
        self.kinds["d"].add(3)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.function(y.transpose(1, 2).flatten(2)) * self.loose[0]


def test_everything_a_module_may_hold() -> None:
    model = Unusual().train()
    good(model, X)
    assert model.helper.calls == 0
    assert set(model.kinds["a"]) == {"b"} and len(model.kinds["c"]) == 1 and model.kinds["d"] == {1, 2}


REGISTRY: dict[str, nn.Module] = {}


class Hidden(nn.Module):
    """Finds its attention where no copy can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = InPlace()
        self.register_buffer("seen", torch.zeros(()))
        REGISTRY["attn"] = self.attn

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return REGISTRY["attn"](x)


def test_in_place_where_no_copy_can_follow() -> None:
    model = Hidden().train()
    model.attn.drop.eval()
    model.attn.register_forward_hook(lambda *a: None)
    cap = good(model, X)
    assert list(cap) == ["attn"]
    with torch.no_grad():
        torch.testing.assert_close(cap.output, model.eval()(X))


class Stubborn(Tensor):
    """A tensor that refuses to be copied."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clone:
            raise RuntimeError("this tensor is not to be copied")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_an_attribute_that_refuses_to_be_copied() -> None:
    model = TinyLM().train()
    model.blocks[1].attn.secret = torch.ones(3).as_subclass(Stubborn)
    assert len(good(model, tokens())) == 2  # in place, from the main thread
    outcome: list[BaseException] = []

    def explore() -> None:
        try:
            capture(model, tokens())
        except ValueError as error:
            outcome.append(error)

    thread = threading.Thread(target=explore)
    thread.start()
    thread.join()
    (refusal,) = outcome
    assert "attribute 'secret' of blocks.1.attn (InPlace) cannot be copied" in str(refusal)


def test_in_place_is_refused_where_a_training_could_be_going_on() -> None:
    model = Hidden().train()
    outcome: list[Any] = []

    def explore() -> None:
        try:
            outcome.append(capture(model, X))
        except ValueError as error:
            outcome.append(error)

    for training in (True, False):
        model.train(training)
        with unchanged(model):
            thread = threading.Thread(target=explore)
            thread.start()
            thread.join()
    refused, captured = outcome
    assert "'attn.qkv.weight'" in str(refused) and "model.eval()" in str(refused)
    assert captured["attn"].residual.max() < 1e-6


def test_a_copy_is_cheap_in_memory() -> None:
    model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)])
    for faithful in (False, True):
        copied = replicate(model, faithful=faithful).model
        for a, b in zip(model.parameters(), copied.parameters(), strict=True):
            assert a is not b and a.data_ptr() == b.data_ptr()
            assert b.requires_grad == faithful and b.is_leaf


@pytest.mark.parametrize("frozen", [False, True])
def test_the_output_is_that_of_the_model_to_the_last_bit(frozen: bool) -> None:
    """Which product torch takes depends on whether a weight requires gradients, even without gradients."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 12))
            self.recurrent = nn.GRU(12, 12, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.recurrent(x @ self.weight)[0]
            return y

    for seed in range(4):
        torch.manual_seed(seed)
        model, x = Product().requires_grad_(not frozen).eval(), torch.randn(3, 9, 12)
        with torch.no_grad():
            expected = model(x)
        assert torch.equal(capture(model, x).output, expected)
