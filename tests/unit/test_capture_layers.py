"""Which layers are kept, what they are called, and what keeping them costs."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import CaptureError, UnknownLayerError, run
from tests.unit.models import Einsum, Fused, InPlace, TinyLM, tokens

NAMES = [f"blocks.{i}.attn" for i in range(4)]


@pytest.fixture(scope="module")
def model() -> TinyLM:
    torch.manual_seed(0)
    return TinyLM(Fused(), InPlace(), Einsum(), Fused())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("blocks.2.attn", [2]),
        ("blocks.[13].*", [1, 3]),
        ("blocks.3", [3]),
        ("blocks.[02]", [0, 2]),
        ("blocks", [0, 1, 2, 3]),
        (["blocks.3.attn", "blocks.0.attn"], [0, 3]),
        (1, [1]),
        (-1, [3]),
        ([0, -2], [0, 2]),
        (range(1, 3), [1, 2]),
        (torch.arange(2).tolist(), [0, 1]),
        (lambda name: "2" in name, [2]),
        (("blocks.0.*", 3, lambda name: "1" in name), [0, 1, 3]),
        ({"blocks.1.attn"}, [1]),
    ],
)
def test_layers_argument(model: TinyLM, layers: Any, expected: list[int]) -> None:
    cap = ew.capture(model, tokens(), layers=layers)
    assert list(cap) == [NAMES[i] for i in expected]
    assert all(layer.residual.max() < 1e-6 for layer in cap.values())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("blocks.2.atn", r"no layer is called 'blocks\.2\.atn'.*closest first: 'blocks\.2\.attn'"),
        ("blocks.3.mlp", r"none lies inside.*closest first: 'blocks\.3\.attn'"),
        ("block", "no layer is called"),
        ("h.*", "no layer is called"),
        (4, "layer index 4 is out of range: this run has 4 layers"),
        (-5, "layer index -5 is out of range"),
        (["blocks.0.attn", "nothing"], "no layer is called 'nothing'"),
        (lambda name: False, "predicate"),
    ],
)
def test_unknown_layers(model: TinyLM, layers: Any, message: str) -> None:
    with pytest.raises(UnknownLayerError, match=message):
        ew.capture(model, tokens(), layers=layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda name, module: True, "called with one argument, a layer's name: missing a required argument"),
        (lambda: True, "called with one argument"),
        (nn.MultiheadAttention, "the class MultiheadAttention, .*pass the name"),
        ([nn.Linear(1, 1)], "a module, Linear, .*pass the name"),
    ],
)
def test_wrong_predicates(model: TinyLM, layers: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ew.capture(model, tokens(), layers=layers)


def test_a_predicate_is_asked_once_for_each_layer(model: TinyLM) -> None:
    asked: list[str] = []

    def every_other(name: str) -> bool:
        asked.append(name)
        return len(asked) % 2 == 0

    assert list(ew.capture(model, tokens(), layers=every_other)) == [NAMES[1], NAMES[3]]
    assert asked == NAMES
    assert list(ew.capture(model, tokens(), layers=[str.isascii])) == NAMES


def test_a_name_means_its_layer_before_what_lies_inside() -> None:
    class Outer(Fused):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Fused()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.inner(x))

    model, x = nn.Sequential(Outer()), torch.randn(1, 5, 16)
    assert list(ew.capture(model, x)) == ["0.inner", "0"]
    assert list(ew.capture(model, x, layers="0")) == ["0"]
    assert list(ew.capture(model, x, layers="0.*")) == ["0.inner"]


@pytest.mark.parametrize("layers", [1.5, [None], object(), b"blocks", torch.arange(2)])
def test_wrong_kinds_of_layers(model: TinyLM, layers: Any) -> None:
    with pytest.raises(TypeError, match="layers must be names"):
        ew.capture(model, tokens(), layers=layers)
    with pytest.raises(ValueError, match="layers is empty"):
        ew.capture(model, tokens(), layers=[])


def test_an_ordered_mapping(model: TinyLM) -> None:
    cap = ew.capture(model, tokens())
    assert isinstance(cap, Mapping)
    assert len(cap) == 4 and list(cap) == list(cap.keys()) == NAMES
    assert cap[3] is cap[-1] is cap["blocks.3.attn"]
    assert "blocks.0.attn" in cap and "blocks.9.attn" not in cap
    assert [layer.name for layer in cap.values()] == NAMES
    assert cap[0].family == "softmax attention"
    assert repr(cap).splitlines()[0] == "Capture of 4 layers"
    assert "blocks.1.attn" in repr(cap)
    with pytest.raises(KeyError, match=r"closest first: 'blocks\.1\.attn'"):
        cap["blocks.1.attm"]
    with pytest.raises(KeyError, match="out of range"):
        cap[4]
    with pytest.raises(TypeError):
        cap[1.0]


def test_output_and_callbacks(model: TinyLM) -> None:
    seen: list[tuple[str, int]] = []
    cap = run(model, (tokens(),), {}, layers=2, on_layer=lambda name, index: seen.append((name, index)))
    assert seen == list(zip(NAMES, range(4), strict=True))
    assert cap.output.shape == (2, 12, 61)
    assert run(model, (), {"ids": tokens()}, layers=2, keep_output=False).output is None


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, but is function"):
        ew.capture(lambda x: x, tokens())  # type: ignore[arg-type]


class Pool(nn.Module):
    """Mixes, in a way that nothing recognises."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cummax(1).values


def test_nothing_to_capture() -> None:
    with pytest.raises(CaptureError) as error:
        ew.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Pool()), torch.randn(2, 5, 4))
    message = str(error.value)
    assert message.startswith("Sequential shows nothing in this run that mixes a sequence")
    for looked_for in ("scaled_dot_product_attention", "selective_scan_fn", "nn.LSTM", "convolutions"):
        assert looked_for in message
    assert "saw none of them. The modules: 1 x Pool, 1 x Sequential, 1 x Linear, 1 x ReLU." in message
    assert "To teach capture a mixer of your own: ess_widgets.register." in message


def test_nothing_square_to_capture() -> None:
    class Cross(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            for _ in range(12):
                x = F.scaled_dot_product_attention(x, y, y)
            return x

    with pytest.raises(CaptureError) as error:
        ew.capture(Cross(), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4))
    assert "'Cross'" in str(error.value) and "3 queries read 5 keys" in str(error.value)
    assert "ess_widgets.register" in str(error.value)


def test_a_partial_of_a_model(model: TinyLM) -> None:
    cap = ew.capture(functools.partial(functools.partial(model, ids=tokens())), layers=0)  # type: ignore[arg-type]
    assert list(cap) == NAMES[:1]
    assert len(ew.capture(functools.partial(model), tokens())) == 4  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="but is function"):
        ew.capture(functools.partial(lambda x: x, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["weights", "input"])
def test_nan_is_reported_with_its_place(where: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Fused(), InPlace()), torch.randn(2, 6, 16)
    if where == "weights":
        with torch.no_grad():
            model[1].qkv.bias[40] = torch.inf
        expected = r"layer '1': sample 0, head 2"
    else:
        x[1, 4, 3] = torch.nan
        expected = r"layer '0': sample 1, head 0"
    with pytest.raises(CaptureError, match=expected):
        ew.capture(model, x)


class Reads(nn.Module):
    """Attention that reads what it is told to."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.by_hand:
            return (x @ x.mT + mask).softmax(-1) @ x
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_single_future_entry_is_named(by_hand: bool) -> None:
    x, mask = torch.randn(2, 3, 6, 4), torch.full((2, 3, 6, 6), -torch.inf).triu(1)
    ew.capture(Reads(by_hand), x, mask)
    mask[1, 2, 3, 5] = 0
    with pytest.raises(ValueError, match="in sample 1, head 2, output 3 reads the later input 5"):
        ew.capture(Reads(by_hand), x, mask)


def test_one_token_is_causal_whatever_the_mask() -> None:
    cap = ew.capture(Reads(True), torch.randn(1, 1, 1, 4), torch.zeros(1, 1))
    assert torch.equal(cap[0].operator.matrix(), torch.ones(1, 1, 1, 1))


def kept(cap: ew.Capture) -> int:
    """Bytes of the distinct memory that a capture refers to."""
    seen: set[int] = set()
    found: dict[int, int] = {}
    queue: list[Any] = list(cap.values())
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type | str) or type(item).__name__ == "module":
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        else:
            queue.extend(vars(item).values() if hasattr(item, "__dict__") else gc.get_referents(item))
    return sum(found.values())


@pytest.mark.parametrize("kind", [Fused, InPlace, Einsum])
def test_memory_grows_with_the_length_not_its_square(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = TinyLM(*[kind() for _ in range(6)])
    length, heads = 256, 4
    cap = run(model, (tokens(1, length),), {}, keep_output=False)
    assert len(cap) == 6
    quadratic = heads * length * length * 4
    per_layer = length * 16 * 4 * 4  # q, k, v and y
    # Each of these layers makes a boolean mask of its own, one of them a bias too: one for all heads.
    limit = 6 * (per_layer + length * length * (5 if kind is InPlace else 1))
    assert kept(cap) <= limit < 6 * quadratic / 2
    cap[0].operator.matrix()
    cap[0].residual  # noqa: B018
    gc.collect()
    assert kept(cap) <= limit + 1000


def test_a_mask_of_the_users_is_kept_once() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            for _ in range(10):
                x = F.scaled_dot_product_attention(x, x + 0, x, attn_mask=mask)
            return x

    x, mask = torch.randn(1, 2, 128, 4), torch.full((1, 1, 128, 128), -torch.inf).triu(1)
    cap = run(Masked(), (x, mask), {}, keep_output=False)
    assert len(cap) == 10
    assert kept(cap) < 2 * mask.nbytes + 10 * 4 * x.nbytes


def test_nothing_is_kept_of_other_layers() -> None:
    alive: list[weakref.ref[Tensor]] = []

    class Spied(Fused):
        def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = super().split(x)
            alive.extend(weakref.ref(t) for t in (q, k, v))
            return q, k, v

    cap = run(TinyLM(Spied(), Spied(), Spied()), (tokens(),), {}, layers=1, keep_output=False)
    everything = kept(run(TinyLM(Spied(), Spied(), Spied()), (tokens(),), {}, keep_output=False))
    gc.collect()
    assert list(cap) == ["blocks.1.attn"]
    assert not any(ref() is not None for ref in alive)  # what is kept are aliases of one layer's tensors
    assert kept(cap) <= everything / 3


def test_real_model(smollm2: tuple[nn.Module, Any]) -> None:
    model, tokenizer = smollm2
    batch = tokenizer("The capital of France is Paris. It lies on the Seine.", return_tensors="pt")
    cap = ew.capture(model, batch)
    assert list(cap) == [f"model.layers.{i}.self_attn" for i in range(30)]
    for layer in cap.values():
        assert layer.operator.shape[:2] == (1, 9)
        assert layer.residual.max() <= 1e-5
