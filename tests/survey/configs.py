"""A tiny configuration of any model type: sizes are set by the names of the attributes."""

from __future__ import annotations

from typing import Any

from tests.survey.overrides import OVERRIDES

__all__ = ["VOCAB", "tiny"]

VOCAB = 97

_BY_NAME: dict[str, Any] = {}


def _sizes(value: Any, names: str) -> None:
    _BY_NAME.update(dict.fromkeys(names.split(), value))


_sizes(VOCAB, "vocab_size vocab_size_per_layer_input src_vocab_size tgt_vocab_size n_vocab")
_sizes(
    32,
    "hidden_size d_model n_embd embed_dim dim word_embed_proj_dim embedding_size lru_width"
    " hidden_dim n_embed emb_dim embedding_dim backbone_hidden_size attention_hidden_size model_dim",
)
_sizes(
    48,
    "intermediate_size ffn_dim d_ff dff n_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim"
    " shared_intermediate_size moe_intermediate_size moe_shared_expert_intermediate_size"
    " shared_expert_intermediate_size intermediate_size_mlp expert_ffn_hidden_size dense_intermediate_size"
    " attention_ffn_hidden_size mlp_hidden_size expert_intermediate_size feed_forward_size block_ff_dim d_inner"
    " shared_experts_intermediate_size",
)
_sizes(
    2,
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers"
    " num_decoder_layers depth",
)
_sizes(
    4,
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
    " num_encoder_attention_heads num_decoder_attention_heads attention_heads swa_num_attention_heads"
    " num_attention_heads_swa linear_num_value_heads linear_num_heads",
)
_sizes(
    2,
    "num_key_value_heads kv_n_heads num_kv_heads swa_num_key_value_heads num_global_key_value_heads"
    " linear_num_key_heads",
)
_sizes(
    8,
    "head_dim attention_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim kv_channels d_kv global_head_dim"
    " swa_head_dim swa_v_head_dim linear_key_head_dim linear_value_head_dim index_head_dim d_head attention_head_size"
    " mamba_d_head mamba_head_dim mamba_headdim linear_head_dim rotary_dim mamba_n_heads n_mamba_heads",
)
_sizes(16, "q_lora_rank kv_lora_rank o_lora_rank qk_head_dim hidden_size_per_layer_input")
_sizes(
    2,
    "num_experts_per_tok num_experts_per_token moe_k moe_topk top_k moe_num_experts_per_tok num_selected_experts",
)
_sizes(
    4,
    "num_local_experts num_experts n_routed_experts moe_num_experts num_routed_experts num_moe_experts index_n_heads"
    " zero_expert_num time_step_rank",
)
_sizes(2, "mamba_n_groups mamba_ngroups n_groups mamba_num_groups")
_sizes(1, "n_group num_expert_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts")
_sizes(
    64,
    "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx max_target_positions max_source_positions"
    " context_length seq_length max_seq_length original_max_position_embeddings",
)
_sizes(
    6,
    "sliding_window sliding_window_size attention_chunk_size window_size attention_window_size local_window_size",
)
_sizes(
    8,
    "state_size mamba_d_state ssm_state_size mamba_state_dim d_state index_topk chunk_size mamba_chunk_size",
)
_sizes(0, "pad_token_id padding_idx")
_sizes(1, "bos_token_id")
_sizes(2, "eos_token_id decoder_start_token_id forced_eos_token_id")

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EVEN_IF_NONE = {
    *("pad_token_id", "bos_token_id", "eos_token_id", "head_dim", "num_key_value_heads"),
    *("n_routed_experts", "n_shared_experts", "num_experts_per_tok"),
}


def tiny(model_type: str) -> Any:
    """A configuration of ``model_type`` with every kind of layer of the family, small enough for any CPU."""
    import transformers

    config_class = transformers.CONFIG_MAPPING[model_type]
    return config_class(**_arguments(config_class, OVERRIDES.get(model_type, {})))


def _arguments(config_class: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    try:
        default = config_class()
    except Exception:  # noqa: BLE001 - a few defaults refuse themselves, in errors of several kinds
        default = config_class(**overrides)
    known = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    parts = getattr(config_class, "sub_configs", {})
    arguments: dict[str, Any] = {}
    for name, value in known.items():
        if name in parts:
            if hasattr(value, "to_dict"):
                inner = _arguments(type(value), overrides.get(name, {}))
                arguments[name] = {**inner, "model_type": value.model_type}
        elif (
            name in _BY_NAME
            and (value is not None or name in _EVEN_IF_NONE)
            and not isinstance(value, list | dict)
        ):
            arguments[name] = _BY_NAME[name]
    if "is_decoder" in known:
        arguments["is_decoder"] = True
    if "kv_lora_rank" in arguments and "num_key_value_heads" in arguments:
        arguments["num_key_value_heads"] = arguments["num_attention_heads"]
    arguments.update(_layers(known))
    arguments.update({name: value for name, value in overrides.items() if name not in parts})
    return arguments


def _layers(known: dict[str, Any]) -> dict[str, Any]:
    """Lists with an entry per layer: one layer of each kind that the default has, and two at least."""
    counts = [name for name in _LAYERS if isinstance(known.get(name), int)]
    if not counts:
        return {}
    lists = {k: v for k, v in known.items() if isinstance(v, list) and v and len(v) == known[counts[0]]}
    lists = {k: v for k, v in lists.items() if len(set(map(str, v))) < len(v)}  # not the layers' numbers
    if not lists:
        return {}
    kinds = list(dict.fromkeys(zip(*lists.values(), strict=True)))
    kinds = kinds * 2 if len(kinds) == 1 else kinds
    return {
        **dict.fromkeys(counts, len(kinds)),
        **{k: [kind[i] for kind in kinds] for i, k in enumerate(lists)},
    }
