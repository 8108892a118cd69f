"""What to say where a run showed nothing to look at."""

from __future__ import annotations

from collections import Counter

from torch import nn

from ess_widgets.capture.families import FUNCTIONS, PREFIXES
from ess_widgets.capture.record import Seen

__all__ = ["nothing_found"]

_MOST = 8


def nothing_found(model: nn.Module, seen: Seen) -> str:
    """Why there is nothing to look at: what was looked at, and how to go on."""
    name = type(model).__name__
    if seen.skipped:
        reasons = "; ".join(f"{path!r}: {reason}" for path, reason in list(seen.skipped.items())[:_MOST])
        more = f" and {len(seen.skipped) - _MOST} more" if len(seen.skipped) > _MOST else ""
        unequal = any("queries" in reason for reason in seen.skipped.values())
        return (
            f"{name} mixes tokens, but nowhere as a square operator: {reasons}{more}. {_FULL if unequal else ''}"
            f"{_HOW_TO_GO_ON}"
        )
    saw = ", ".join(f"{count} x {call}" for call, count in seen.calls.items())
    functions = len(FUNCTIONS) + len(PREFIXES)
    some = ", ".join([f for f in _SOME if f in FUNCTIONS])
    return (
        f"{name} shows nothing in this run that mixes a sequence in a way that capture knows. Looked for attention "
        "(scaled_dot_product_attention, flex_attention, nn.MultiheadAttention, a softmax whose result is multiplied with "
        f"values), for {functions} functions by their names ({some}, ...), for convolutions, nn.LSTM, nn.GRU and nn.RNN, "
        f"and for modules with the attributes of known mixers; saw {saw or 'none of them'}. The modules: "
        f"{_modules(model)}. What runs in TorchScript or a fused kernel cannot be seen: choose the model's eager or sdpa "
        f"implementation. {_HOW_TO_GO_ON}"
    )


_SOME = ("selective_scan_fn", "mamba_chunk_scan_combined", "chunk_gla", "chunk_gated_delta_rule")
_FULL = "Run the full sequence in one call, without a key-value cache; cross-attention cannot be captured. "
_HOW_TO_GO_ON = "To teach capture a mixer of your own: ess_widgets.register. To linearise any causal module: ess_widgets.jacobian."


def _modules(model: nn.Module) -> str:
    """How many of each kind, the model's own kinds before torch's."""
    kinds = Counter(type(module) for module in model.modules())
    own = sorted(kinds, key=lambda kind: kind.__module__.startswith("torch."))
    shown = ", ".join(f"{kinds[kind]} x {kind.__name__}" for kind in own[:_MOST])
    return shown + (f" and {len(own) - _MOST} more kinds" if len(own) > _MOST else "")
