"""A tiny random model of a type, and what to call it with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.survey.configs import VOCAB, tiny
from tests.survey.overrides import CALLS, PARTS

__all__ = ["LENGTH", "build", "call", "implementations", "logits", "padded", "reads_the_future"]

LENGTH = 24
BATCH = 2


def build(model_type: str, implementation: str, dtype: torch.dtype) -> nn.Module:
    """A model with random weights, its matrices scaled so that attention is not uniform."""
    import transformers

    torch.manual_seed(0)
    config, options = tiny(model_type), {"attn_implementation": implementation, "dtype": dtype}
    model: nn.Module
    if model_type in PARTS:
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model = kind._from_config(getattr(config, PARTS[model_type]), **options)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.is_floating_point():
                parameter.normal_(std=0.2)  # the usual 0.02 makes every row of T almost uniform
    return model.eval()


def call(model_type: str) -> dict[str, Any]:
    """The arguments of a forward pass over ``LENGTH`` tokens."""
    if model_type in CALLS:
        return dict(CALLS[model_type](BATCH, LENGTH))
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(3, VOCAB, (BATCH, LENGTH), generator=generator)}


def padded(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The same call with the first five tokens of its first sample as padding; None where that means nothing."""
    ids = arguments.get("input_ids")
    if ids is None or tuple(ids.shape) != (BATCH, LENGTH):
        return None
    ids, mask = ids.clone(), torch.ones(BATCH, LENGTH, dtype=torch.long)
    ids[0, :5] = mask[0, :5] = 0
    return {**arguments, "input_ids": ids, "attention_mask": mask}


def implementations() -> list[str]:
    """The attention implementations that need neither a GPU nor the engine of continuous batching (paged)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    others = set(ALL_ATTENTION_FUNCTIONS.valid_keys()) - {"eager"}
    return ["eager", *sorted(name for name in others if not name.startswith(("flash_", "paged|")))]


def reads_the_future(model: nn.Module, arguments: dict[str, Any], output: Any) -> bool | None:
    """Whether earlier outputs change with the last token; None where the call has no tokens."""
    ids = arguments.get("input_ids")
    if ids is None:
        return None
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] - 2) % (VOCAB - 3) + 3
    torch.manual_seed(2)
    with torch.no_grad():
        other = model(**{**arguments, "input_ids": changed})
    before, after = (logits(x)[:, :-1].double() for x in (output, other))
    return bool((before - after).abs().max() > 1e-3 * before.abs().max())


def logits(output: Any) -> Tensor:
    found: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return found
