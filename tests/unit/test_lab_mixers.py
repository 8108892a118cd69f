"""Mixers that are guessed from modules, against what capture finds in a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.demo.miniatures.mixers import MIXERS
from ess_widgets.demo.small import SmallConfig, SmallLM
from ess_widgets.lab.families import AHEAD
from ess_widgets.lab.mixers import causal_part, guess
from tests.survey.models import build, call
from tests.unit.hidden_kernels import plain

FAMILIES = [
    "llama", "gpt2", "gpt_neox", "gpt_neo", "gptj", "codegen", "opt", "bloom", "falcon", "mpt", "mistral", "mixtral",
    "phi3", "gemma2", "gemma3_text", "gpt_oss", "cohere2", "llama4_text", "deepseek_v3", "bart", "xglm", "bert",
    "mamba", "mamba2", "falcon_mamba", "falcon_h1", "bamba", "jamba", "zamba", "zamba2", "nemotron_h",
    "granitemoehybrid", "recurrent_gemma", "lfm2", "rwkv", "minimax", "xlstm", "doge",
]  # fmt: skip


def agree(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The same paths, families and states; groups too where every call of a module has them all."""
    rows = {row["path"]: row for row in guess(model)}
    captured = ew.capture(model, *args, **kwargs)
    found = {path: layer for path, layer in captured.items() if "#" not in path}
    assert {path: row["family"] for path, row in rows.items()} == {
        p: layer.family for p, layer in found.items()
    }
    again = {path.partition("#")[0] for path in captured if "#" in path}
    for path, layer in found.items():
        row, size = rows[path], int(layer.state_size.max())
        assert row["group"] == layer.group, path
        if path not in again:
            assert row["count"] == layer.outputs.shape[1], path
        assert size == layer.outputs.shape[2] - 1 if row["grows"] else row["state"] in (size, None), (
            row,
            size,
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_transformers(name: str) -> None:
    agree(build(name, "eager", torch.float32), **call(name))


def test_gated_delta_nets_of_transformers() -> None:
    modeling = plain("qwen3_next")
    config = modeling.Qwen3NextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=4, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, layer_types=["linear_attention", "linear_attention", "full_attention"],
    )  # fmt: skip
    model = modeling.Qwen3NextForCausalLM(config)
    agree(model, torch.randint(0, 64, (1, 12)))
    row = next(row for row in guess(model) if row["family"] == "delta rule")
    assert (row["count"], row["state"], row["grows"]) == (4, 8, False)


@pytest.mark.parametrize("name", ["olmo_hybrid", "kimi_linear", "qwen3_5_text"])
def test_delta_rules_that_need_kernels_here(name: str) -> None:
    families = [row["family"] for row in guess(build(name, "eager", torch.float32))]
    assert set(families) == {"delta rule", "convolution", "softmax attention"}


@pytest.mark.parametrize("name", MIXERS)
def test_miniatures(name: str) -> None:
    agree(nn.Sequential(MIXERS[name](16, 2, 4)), torch.randn(1, 12, 16))


def test_own_language_model() -> None:
    model = SmallLM(SmallConfig(vocab=16, width=8, layers=2, heads=2))
    agree(model, torch.randint(0, 16, (1, 9)))
    assert guess(model)[1] == {
        "path": "layers.1.attention", "kind": "Attention", "family": "softmax attention", "group": "head", "count": 2,
        "state": None, "grows": True,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_layers(kind: Any, layers: int) -> None:
    agree(kind(6, 5, layers, batch_first=True), torch.randn(1, 15, 6))
    assert guess(kind(6, 5, bidirectional=True)) == []


def test_torch_layers_and_cross_attention() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    agree(layer, src=torch.randn(1, 6, 8), src_mask=mask)
    assert [row["path"] for row in guess(nn.TransformerDecoderLayer(8, 2, 16))] == ["self_attn"]


class Shifted(nn.Module):
    """A causal convolution written as most are: padded on both sides, and cut."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mT)[..., : x.shape[1]].mT


def test_convolutions() -> None:
    agree(Shifted(padding=2, groups=4), torch.randn(1, 9, 4))
    agree(Shifted(padding=4, groups=4, dilation=2), torch.randn(1, 9, 4))
    assert [row["family"] for row in guess(Shifted(padding=2))] == ["convolution"]
    assert guess(Shifted(padding=1)) == guess(Shifted(padding="same")) == guess(nn.Conv1d(4, 4, 1)) == []


def test_registered_classes_count_and_predicates_are_not_asked() -> None:
    class Mine(nn.Module):
        pass

    def asked(module: nn.Module) -> bool:
        raise AssertionError("a predicate was called")

    model = nn.Sequential(Mine(), nn.Linear(2, 2))
    assert guess(model) == []
    with (
        ew.register(asked, lambda module, call: None),
        ew.register(Mine, lambda module, call: None, family="mine"),
    ):
        assert [(row["path"], row["family"], row["state"]) for row in guess(model)] == [("0", "mine", None)]
    with ew.register("Mine", lambda module, call: None):
        assert [row["family"] for row in guess(model)] == ["custom"]


def test_what_mixes_nothing_has_no_mixers() -> None:
    assert guess(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 3, padding=2), nn.LayerNorm(2))) == []


def test_broken_modules_are_survived() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            self.__dict__["_modules"] = {"self": self, "text": "no module", "net": nn.LSTM(2, 3)}

    assert [row["path"] for row in guess(Half())] == ["net"]
    with torch.device("meta"):
        assert guess(nn.MultiheadAttention(4, 2))[0]["count"] == 2
    assert guess(nn.Sequential(nn.LazyConv1d(4, 3, padding=2))) != []


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([("encoder.0.a", AHEAD), ("decoder.0.a", "x"), ("decoder.1.a", "x")], "decoder"),
        ([("encoder.0.a", AHEAD)], None),
        ([("layers.0.a", "x"), ("layers.1.a", "x")], None),
        ([("layers.0.a", AHEAD), ("layers.1.a", "x"), ("layers.2.a", "x")], None),
        ([("layers.0.a", AHEAD), ("layers.0b.a", "x")], "layers.0b"),
        ([("enc.a", AHEAD), ("a", "x")], None),
        ([], None),
    ],
)
def test_the_causal_part(rows: list[tuple[str, str]], part: str | None) -> None:
    assert causal_part([{"path": path, "family": family} for path, family in rows]) == part


def test_encoders_read_ahead() -> None:
    from transformers import BertConfig, BertLMHeadModel, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    (row,) = guess(BertModel(BertConfig(**sizes, vocab_size=50)))
    assert (row["family"], row["count"], row["state"], row["grows"]) == (AHEAD, 2, None, False)
    (row,) = guess(BertLMHeadModel(BertConfig(**sizes, vocab_size=50, is_decoder=True)))
    assert (row["family"], row["grows"]) == ("softmax attention", True)
