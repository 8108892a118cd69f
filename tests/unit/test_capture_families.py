"""Model classes from transformers, small and with random weights, through the calls that they make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import NotCausalError

VOCAB = 97
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_FULL = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}
_GPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

CONFIGS: dict[str, Any] = {
    "GPT2": lambda: tf.GPT2Config(**_GPT),
    "GPTBigCode": lambda: tf.GPTBigCodeConfig(**_GPT),
    "GPTJ": lambda: tf.GPTJConfig(**_GPT, rotary_dim=4),
    "CodeGen": lambda: tf.CodeGenConfig(**_GPT, rotary_dim=4),
    "GPTNeo": lambda: tf.GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64, window_size=6, **_ENDS,
    ),
    "GPTNeoX": lambda: tf.GPTNeoXConfig(**_FULL),
    "Llama": lambda: tf.LlamaConfig(**_LLAMA),
    "Mistral": lambda: tf.MistralConfig(**_LLAMA, sliding_window=6),
    "Mixtral": lambda: tf.MixtralConfig(**_LLAMA, num_local_experts=2),
    "Qwen2": lambda: tf.Qwen2Config(**_LLAMA),
    "Qwen3": lambda: tf.Qwen3Config(**_LLAMA, head_dim=8),
    "Phi": lambda: tf.PhiConfig(**_LLAMA),
    "Phi3": lambda: tf.Phi3Config(**_LLAMA),
    "Falcon": lambda: tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **_ENDS
    ),
    "FalconAlibi": lambda: tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, multi_query=False,
        parallel_attn=False, **_ENDS,
    ),
    "Bloom": lambda: tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **_ENDS),
    "Mpt": lambda: tf.MptConfig(vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "OPT": lambda: tf.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, **_ENDS,
    ),
    "Gemma2": lambda: tf.Gemma2Config(**_LLAMA, head_dim=8, sliding_window=6),
    "Gemma3": lambda: tf.Gemma3TextConfig(**_LLAMA, head_dim=8, sliding_window=6),
    "GptOss": lambda: tf.GptOssConfig(
        **_LLAMA, head_dim=8, sliding_window=6, num_local_experts=2, num_experts_per_tok=1
    ),
    "Starcoder2": lambda: tf.Starcoder2Config(**_LLAMA),
    "Olmo2": lambda: tf.Olmo2Config(**_LLAMA),
    "Cohere": lambda: tf.CohereConfig(**_LLAMA),
    "StableLm": lambda: tf.StableLmConfig(**_LLAMA),
    "DeepseekV3": lambda: tf.DeepseekV3Config(
        **{**_LLAMA, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=12, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
        first_k_dense_replace=1, moe_intermediate_size=16,
    ),
    "BioGpt": lambda: tf.BioGptConfig(**_FULL),
    "CTRL": lambda: tf.CTRLConfig(**_GPT, dff=48),
    "XGLM": lambda: tf.XGLMConfig(
        vocab_size=VOCAB, d_model=32, num_layers=2, attention_heads=4, ffn_dim=48, max_position_embeddings=64, **_ENDS
    ),
}  # fmt: skip
# transformers itself refuses sdpa for these.
EAGER_ONLY = {"GPTJ", "CodeGen", "GPTNeo", "Bloom", "Mpt", "Gemma2", "GptOss", "XGLM"}
WINDOWS = {"Mistral": (6, 6), "GPTNeo": (None, 6), "Gemma2": (6, None), "Gemma3": (6, 6), "GptOss": (6, None)}
CASES = [
    (name, attention)
    for name in CONFIGS
    for attention in ("eager", "sdpa")
    if attention == "eager" or name not in EAGER_ONLY
]


def build(name: str, attention: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)  # the usual 0.02 makes every row of T almost uniform
    return model.to(dtype)


def ids(batch: int = 2, length: int = 20) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_every_layer_and_its_operator(name: str, attention: str) -> None:
    model = build(name, attention)
    cap = ew.capture(model, ids())
    assert len(cap) == 2
    paths = dict(model.named_modules())
    assert all(layer in paths for layer in cap)
    for layer in cap.values():
        T = layer.operator.matrix()
        assert T.shape == (2, 4, 20, 20)
        assert T.dtype is torch.float32
        assert torch.equal(T, T.tril())
        rows = T.sum(-1)
        assert (rows <= 1 + 1e-5).all()
        if name != "GptOss":
            torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-5, rtol=0)
        assert layer.residual.shape == (2, 4)
        assert layer.residual.max() <= 1e-5
        assert layer.valid is None
    with torch.no_grad():
        torch.testing.assert_close(cap.output.logits, model.eval()(ids()).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_state_size_is_what_the_mask_allows(name: str, attention: str) -> None:
    cap = ew.capture(build(name, attention), ids())
    for layer, window in zip(cap.values(), WINDOWS.get(name, (None, None)), strict=True):
        expected = torch.arange(20) if window is None else torch.arange(20).clamp(max=window - 1)
        size = layer.state_size
        torch.testing.assert_close(size, expected.expand_as(size), check_dtype=False)


@pytest.mark.parametrize(
    ("name", "attention"), [case for case in CASES if case[0] in ("Llama", "Bloom", "GptOss")]
)
def test_ess_is_numpys_count(name: str, attention: str) -> None:
    cap = ew.capture(build(name, attention), ids(1, 16))
    for layer in cap.values():
        T = layer.operator.matrix()[0].double().numpy()
        tolerance = ew.ess(layer.operator, kind="tolerance", tol=1e-2)[0].numpy()
        entropy = ew.ess(layer.operator, kind="entropy")[0].numpy()
        for head in range(4):
            for i in range(1, 16):
                sigma = np.linalg.svd(T[head, i:, :i], compute_uv=False)
                p = sigma / sigma.sum()
                assert tolerance[head, i] == (sigma > 1e-2).sum()
                assert entropy[head, i] == pytest.approx(
                    np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()), rel=1e-3
                )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_half_precision_weights(name: str, attention: str, dtype: torch.dtype) -> None:
    cap = ew.capture(build(name, attention, dtype), ids())
    assert len(cap) == 2
    for layer in cap.values():
        assert layer.operator.dtype is torch.float32
        assert not layer.rounded
        assert layer.residual.max() <= 1e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cache_and_recorded_outputs_do_not_matter(attention: str) -> None:
    model = build("Llama", attention)
    plain = ew.capture(model, ids(), use_cache=False)
    cached = ew.capture(model, ids(), use_cache=True)
    assert cached.output.past_key_values.get_seq_length() == 20
    assert torch.equal(plain[1].operator.matrix(), cached[1].operator.matrix())
    if attention == "eager":
        with torch.no_grad():
            model.eval()(ids(), output_attentions=True)  # leaves hooks of transformers' own on the model
        recorded = ew.capture(model, ids(), output_attentions=True)
        torch.testing.assert_close(recorded.output.attentions[1], recorded[1].operator.matrix())


def test_a_filled_cache_is_refused() -> None:
    model = build("Llama", "sdpa").eval()
    with torch.no_grad():
        past = model(ids(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="full sequence"):
        ew.capture(model, ids(), past_key_values=past)
    assert past.get_seq_length() == 20


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_an_empty_cache_stays_empty(kind: str) -> None:
    model = build("Llama", "sdpa").eval()
    static = kind == "static"
    cache = (
        tf.StaticCache(config=model.config, max_cache_len=32)
        if static
        else tf.DynamicCache(config=model.config)
    )
    cap = ew.capture(model, ids(), past_key_values=cache)
    assert int(cache.get_seq_length()) == 0
    assert max(layer.residual.max() for layer in cap.values()) < 1e-5


def test_gradient_checkpointing() -> None:
    model = build("Llama", "sdpa")
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.train()
    cap = ew.capture(model, ids())
    assert len(cap) == 2
    assert max(layer.residual.max() for layer in cap.values()) < 1e-5
    assert model.training
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_a_tokenizers_mapping_is_unpacked() -> None:
    model = build("GPT2", "sdpa")
    batch = tf.BatchEncoding(
        {"input_ids": ids(), "attention_mask": torch.ones(2, 20, dtype=torch.long), "offsets": 1}
    )
    a, b = ew.capture(model, batch), ew.capture(model, ids())
    assert torch.equal(a[0].operator.matrix(), b[0].operator.matrix())


def test_encoders_are_refused_with_layer_and_entry() -> None:
    config = tf.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    for attention in ("eager", "sdpa"):
        model = tf.AutoModel.from_config(config, attn_implementation=attention)
        with pytest.raises(NotCausalError) as error:
            ew.capture(model, ids())
        assert "encoder.layer.0.attention" in str(error.value)
        assert "output 0 reads the later input 1" in str(error.value)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("source", [20, 13])
def test_encoder_and_decoder(attention: str, source: int) -> None:
    config = tf.BartConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
    )  # fmt: skip
    model = tf.AutoModelForSeq2SeqLM.from_config(config, attn_implementation=attention)
    call = {"input_ids": ids(2, source), "decoder_input_ids": ids(2, 20)}
    with pytest.raises(ValueError, match=r"encoder\.layers\.0\.self_attn.*not causal"):
        ew.capture(model, **call)
    cap = ew.capture(model, **call, layers="model.decoder.*")
    assert list(cap) == ["model.decoder.layers.0.self_attn", "model.decoder.layers.1.self_attn"]
    assert max(layer.residual.max() for layer in cap.values()) < 1e-5
    assert any("encoder_attn" in name for name in cap.skipped)
    assert "left out" in repr(cap)
