"""Tiny random models of transformers with state-space layers, alone and beside attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VOCAB, LENGTH = 64, 21
_BASE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
_MLP: dict[str, Any] = {**_BASE, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
_HEADS: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": {**_BASE, "state_size": 4, "time_step_rank": 3},
    "falcon_mamba": {**_BASE, "state_size": 4, "time_step_rank": 3},
    "mamba2": {**_BASE, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "jamba": {
        **_MLP, "num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "num_experts": 2,
        "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 3,
    },
    "bamba": {**_MLP, **_HEADS, "attn_layer_indices": [1], "mamba_chunk_size": 8},
    "zamba": {
        **_MLP, "num_key_value_heads": 4, "num_hidden_layers": 4, "n_mamba_heads": 2, "mamba_d_state": 4,
        "mamba_dt_rank": 3, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        **_MLP, "num_key_value_heads": 4, "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"],
        "hybrid_layer_ids": [1], "num_mem_blocks": 1, "mamba_d_state": 4, "n_mamba_heads": 4, "mamba_headdim": 8,
        "mamba_ngroups": 2, "chunk_size": 8,
    },
    "falcon_h1": {**_MLP, **_HEADS, "head_dim": 4, "mamba_d_ssm": 32, "mamba_chunk_size": 8},
    "granitemoehybrid": {
        **_MLP, **_HEADS, "layers_block_type": ["mamba", "attention"], "layer_types": ["mamba", "attention"],
        "mamba_chunk_size": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 24,
    },
    "nemotron_h": {
        **_MLP, "num_hidden_layers": 3, "layers_block_type": ["mamba", "attention", "mlp"], "head_dim": 4,
        "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 4, "chunk_size": 8,
    },
    "recurrent_gemma": {
        **_MLP, "num_key_value_heads": 1, "num_hidden_layers": 3, "lru_width": 16, "head_dim": 4,
        "attention_window_size": 64, "block_types": ["recurrent", "recurrent", "attention"],
    },
}  # fmt: skip
# Which modules mix by a state, and how many operators each has.
MIXERS: dict[str, dict[str, int]] = {
    "mamba": {"backbone.layers.0.mixer": 1, "backbone.layers.1.mixer": 1},
    "falcon_mamba": {"backbone.layers.0.mixer": 1, "backbone.layers.1.mixer": 1},
    "mamba2": {"backbone.layers.0.mixer": 1, "backbone.layers.1.mixer": 1},
    "jamba": {f"model.layers.{i}.mamba": 1 for i in (0, 1, 3)},
    "bamba": {"model.layers.0.mamba": 1},
    "zamba": {
        f"model.layers.{i}.{path}": 2
        for i, path in enumerate(("mamba", "mamba_decoder.mamba", "mamba", "mamba_decoder.mamba"))
    },
    "zamba2": {
        "model.layers.0.mamba": 1,
        "model.layers.1.mamba_decoder.mamba": 1,
        "model.layers.2.mamba": 1,
    },
    "falcon_h1": {"model.layers.0.mamba": 1, "model.layers.1.mamba": 1},
    "granitemoehybrid": {"model.layers.0.mamba": 1},
    "nemotron_h": {"model.layers.0.mixer": 1},
    "recurrent_gemma": {f"model.layers.{i}.temporal_block.rg_lru": 1 for i in (0, 1)},
}
ATTENTION = {
    "jamba": 1,
    "bamba": 1,
    "zamba": 2,
    "zamba2": 1,
    "falcon_h1": 2,
    "granitemoehybrid": 1,
    "nemotron_h": 1,
}
_KEEP = ("A_log", "dt_bias", "dt_proj_bias", "dt_proj.bias", "recurrent_param")


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose weights are large enough that every part of it matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **CONFIGS[name]))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if not path.endswith(_KEEP):
                scale = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 1
                weight += 0.3 * scale * torch.randn_like(weight)
    return model.to(dtype).eval()


def tokens() -> Tensor:
    return torch.randint(1, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def padding(where: str) -> Tensor:
    """A mask that leaves the second sample whole."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, {"left": slice(0, 5), "right": slice(-5, None), "hole": slice(7, 10)}[where]] = 0
    return mask
