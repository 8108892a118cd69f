"""Modules in places that torch does not look at, calls in a loop, and exotic arguments and outputs."""

from __future__ import annotations

import dataclasses
from collections import ChainMap, OrderedDict, UserDict, namedtuple
from collections.abc import Iterator
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from ess_widgets import capture
from ess_widgets.capture import CaptureError
from tests.unit.models import Block, Fused, InPlace, TinyLM, tokens
from tests.unit.test_capture_untouched import unchanged

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


def good(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with unchanged(model):
        cap = capture(model, *args, **kwargs)
    assert max(layer.residual.max() for layer in cap.values()) < 1e-6
    return cap


# Where modules are held


@dataclasses.dataclass
class Options:
    encoder: nn.Module
    size: int = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    encoder: nn.Module


class Loose(nn.Module):
    """Its mixers are not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.items = [InPlace(), nn.Sequential(nn.Identity(), InPlace())]
        self.table = {"left": InPlace(), "deep": [{"right": Block(InPlace())}]}
        self.options, self.frozen = Options(InPlace()), Frozen(InPlace())
        self.space = SimpleNamespace(encoder=InPlace())
        self.registered = InPlace()
        self.again = [self.registered, self]

    def mixers(self) -> Iterator[nn.Module]:
        yield from self.items
        yield self.table["left"]
        yield self.table["deep"][0]["right"]
        yield from (self.options.encoder, self.frozen.encoder, self.space.encoder, self.again[0])

    def forward(self, x: Tensor) -> Tensor:
        for mixer in self.mixers():
            assert not mixer.training
            x = mixer(x)
        return x


def test_modules_that_are_not_registered_have_names() -> None:
    model = Loose().train()
    cap = good(nn.Sequential(model), X)
    assert list(cap) == [
        "0.items.0", "0.items.1.1", "0.table.left", "0.table.deep.0.right.attn", "0.options.encoder",
        "0.frozen.encoder", "0.space.encoder", "0.registered",
    ]  # fmt: skip
    assert all(mixer.training for mixer in model.mixers())
    assert list(capture(model, X, layers="table")) == ["table.left", "table.deep.0.right.attn"]


def test_registered_containers() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict(
                {"a": nn.ModuleList([Fused()]), "b": nn.Sequential(InPlace(), Block(Fused()))}
            )
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(16))])
            self.named = nn.ParameterDict({"x": nn.Parameter(torch.ones(16))})
            self.model = TinyLM(InPlace())

        def forward(self, x: Tensor) -> Tensor:
            x = self.parts["b"](self.parts["a"][0](x) * self.scales[0] * self.named["x"])
            return self.model(x.sum(-1).abs().long())

    assert list(good(Nested(), X)) == ["parts.a.0", "parts.b.0", "parts.b.1.attn", "model.blocks.0.attn"]


def test_a_shared_module_in_a_loop() -> None:
    class Universal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(InPlace())

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = self.block(x)
            return x

    cap = good(Universal(), X)
    assert list(cap) == ["block.attn", "block.attn#1", "block.attn#2", "block.attn#3"]
    assert not torch.equal(cap[0].inputs, cap[1].inputs)
    assert list(capture(Universal(), X, layers=["block.attn#2", 0])) == ["block.attn", "block.attn#2"]


class Generates(nn.Module):
    """A forward that generates."""

    def __init__(self, **options: Any) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        self.lm: Any = LlamaForCausalLM(LlamaConfig(vocab_size=61, pad_token_id=0, **sizes))
        self.options = {"max_new_tokens": 3, "min_new_tokens": 3, **options}

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm.generate(ids, attention_mask=torch.ones_like(ids), **self.options)


def test_generation_without_a_cache() -> None:
    cap = good(Generates(use_cache=False, do_sample=True), tokens())
    names = [f"lm.model.layers.{i}.self_attn" for i in range(2)]
    assert list(cap) == [*names, *(f"{name}#{step}" for step in (1, 2) for name in names)]
    assert [layer.operator.shape[-1] for layer in cap.values()] == [12, 12, 13, 13, 14, 14]


def test_generation_with_a_cache() -> None:
    cap = good(Generates(), tokens())
    assert list(cap) == [f"lm.model.layers.{i}.self_attn" for i in range(2)]
    assert all("queries read" in reason for reason in cap.skipped.values()) and len(cap.skipped) >= 2


# What a model is given and returns

Pair = namedtuple("Pair", "x label")


class Takes(nn.Module):
    """Unpacks its argument as told, and returns the same kind of thing."""

    def __init__(self, read: Any = None, wrap: Any = None) -> None:
        super().__init__()
        self.attn = InPlace()
        self.read, self.wrap = read or (lambda batch: batch["x"]), wrap or (lambda y: y)

    def forward(self, batch: Any) -> Any:
        return self.wrap(self.attn(self.read(batch)))


@pytest.mark.parametrize(
    "kind", [dict, OrderedDict, UserDict, MappingProxyType, ChainMap], ids=lambda kind: kind.__name__
)
def test_mappings(kind: Any) -> None:
    assert len(good(Takes(), kind({"x": X, "label": "a"}))) == 1
    assert len(good(TinyLM(), kind({"ids": tokens(), "unknown": 1}))) == 2  # unpacked


@dataclasses.dataclass
class Batch:
    x: Tensor
    seen: int = 0


def test_objects() -> None:
    def read(batch: Any) -> Tensor:
        return batch.x

    for batch in (Batch(X), Pair(X, "a"), SimpleNamespace(x=X)):
        assert len(good(Takes(read, lambda y: Pair(y, 1)), batch)) == 1
    output = good(Takes(read, lambda y: Batch(y)), Batch(X)).output
    assert isinstance(output, Batch) and output.x.shape == X.shape


def test_what_a_forward_does_to_its_arguments_stays_in_the_run() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = InPlace()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, batch: Any, table: Any, notes: list[str]) -> Tensor:
            batch.seen += 1
            notes.append("seen")
            x = table.pop("x")
            with torch.no_grad():
                self.scale.add_(1)  # the run begins anew, with a copy of this weight too
            return self.attn(x * self.scale)

    batch, notes = Batch(X), ["before"]
    for kind in (dict, UserDict):
        table = kind({"x": X})
        assert len(good(Writes(), batch, table, notes)) == 1
        assert set(table) == {"x"}
    assert batch.seen == 0 and batch.x is X and notes == ["before"]


def test_of_transformers() -> None:
    from transformers import BatchEncoding
    from transformers.feature_extraction_utils import BatchFeature
    from transformers.modeling_outputs import BaseModelOutput

    model = Generates().lm
    mask = torch.ones(2, 12, dtype=torch.long)
    for batch in (
        BatchEncoding({"input_ids": tokens(), "attention_mask": mask}),
        BatchFeature({"input_ids": tokens()}),
    ):
        assert len(good(model, batch)) == 2
    wraps = Takes(lambda o: o.last_hidden_state, lambda y: BaseModelOutput(last_hidden_state=y))
    assert good(wraps, BaseModelOutput(last_hidden_state=X)).output.last_hidden_state.shape == X.shape


class Steps(nn.Module):
    """Takes and yields its sequences one by one, and changes a weight while it does."""

    def __init__(self, yields: bool) -> None:
        super().__init__()
        self.attn = InPlace()
        self.yields = yields
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, sequences: Any) -> Any:
        with torch.no_grad():
            self.scale.add_(1)
        found = (self.attn(x) for x in sequences)
        return found if self.yields else list(found)


@pytest.mark.parametrize("yields", [False, True])
def test_generators(yields: bool) -> None:
    for sequences in ((X[:1, : 4 + i] for i in range(3)), iter([X] * 3), map(torch.relu, [X] * 3), [X] * 3):
        cap = good(Steps(yields), sequences)
        assert list(cap) == ["attn", "attn#1", "attn#2"]
        assert isinstance(cap.output, list) and len(cap.output) == 3


def test_packed_sequences() -> None:
    def read(packed: PackedSequence) -> Tensor:
        return pad_packed_sequence(packed, batch_first=True)[0]

    (layer,) = good(Takes(read), pack_sequence([X[0], X[1, :4]])).values()
    assert layer.operator.shape == (2, 4, 6, 6)


def test_no_tensors_at_all() -> None:
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = TinyLM()

        def forward(self, text: str = "abc", *, count: int = 5) -> Tensor:
            return self.model(torch.tensor([list(text.encode())]) % count)

    assert [good(Prompted(), *args, **kwargs)[0].operator.shape[-1] for args, kwargs in (
        ((), {}), (("abcdef",), {}), ((), {"text": "ab", "count": 7}),
    )] == [3, 6, 2]  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([X[0], X[1, :4]], layout=layout)
    with pytest.raises(CaptureError, match=r"nested tensor.*pad them to one length and pass attention_mask"):
        capture(nn.Sequential(Fused()), nested)


def test_positions_do_not_tell_the_batch() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            q = x.unflatten(-1, (4, 4)).transpose(1, 2) + positions[:, None]
            return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    cap = good(Positions(), x=X, positions=torch.arange(6))
    swapped = good(Positions(), positions=torch.arange(6), x=X)
    assert cap[0].operator.shape == swapped[0].operator.shape == (2, 4, 6, 6)


def test_mixers_that_are_recognised_by_their_attributes_may_be_held_anywhere() -> None:
    from ess_widgets import register
    from ess_widgets.operators import Dense

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [Sum()]

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[0](x)

    with register(Sum, lambda module, call: Dense(torch.ones(6, 6).tril())):
        assert list(good(Holds(), X)) == ["parts.0"]


@dataclasses.dataclass
class Guarded:
    """Settings that object to being read."""

    width: int = 8

    def __getattribute__(self, name: str) -> Any:
        if name == "width":
            raise RuntimeError("ask the layers for their width")
        return super().__getattribute__(name)


def test_settings_that_object_to_being_read_are_left_alone() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    layer.settings = Guarded()
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    cap = capture(layer, torch.randn(1, 5, 8), src_mask=mask, is_causal=True)
    assert list(cap) == ["self_attn"]
