"""Which mixers a model runs, told from its modules by plain hooks: nothing of ``ess_widgets`` is asked."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["KINDS", "Expected", "expected_mixers", "kind_of_class"]

# The first pattern that fits a class's name tells what kind of mixer it is.
_CLASSES = (
    ("cross-attention", r"Cross\w*Attention$|CrossAttn$"),
    ("convolution", r"(ShortConv|ShortConvolution|CausalConv1d)$"),
    ("delta rule", r"(DeltaNet|DeltaAttention)$"),
    ("linear attention", r"Lightning\w*Attention$|(?<!Kimi)LinearAttention$"),
    ("RWKV", r"^Rwkv\w*Attention$"),
    ("linear recurrence", r"RecurrentBlock$"),
    ("mLSTM", r"^xLSTMLayer$"),
    ("SSM", r"(Mamba|Bamba|FalconH1)\w*(Mixer|MambaLayer)$|MambaLayer$"),
    ("attention", r"(Attention|Attn|MLA)\d*$"),
)
# What capture calls each kind.
KINDS: dict[str, str] = {
    "attention": r"^(?!.*linear).*attention",
    "linear attention": r"linear attention",
    "convolution": r"convolution",
    "delta rule": r"delta rule",
    "RWKV": r"RWKV",
    "linear recurrence": r"gated linear recurrence",
    "mLSTM": r"mLSTM",
    "SSM": r"selective SSM",
}


@dataclass
class Expected:
    """A module that mixes tokens: its path, its class, and how many operators of which kind it must give."""

    path: str
    module: nn.Module
    operators: Counter[str]

    def __str__(self) -> str:
        kinds = " + ".join(f"{n} {kind}" for kind, n in self.operators.items())
        return f"{self.path} ({type(self.module).__name__}): {kinds}"


def kind_of_class(name: str) -> str | None:
    """The kind of mixer that a class's name tells, or None."""
    return next((kind for kind, pattern in _CLASSES if re.search(pattern, name)), None)


def expected_mixers(model: nn.Module, call: dict[str, Any]) -> tuple[list[Expected], Any]:
    """The mixers that ``model(**call)`` runs, in the order of their first call, and what the model returns.

    Each call of a module counts. A wrapper around a mixer of its own kind does not; a causal ``nn.Conv1d`` with more
    than one tap is a convolution of the mixer that holds it. Cross-attention is left out.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    calls: Counter[int] = Counter()
    ran: dict[int, nn.Module] = {}

    def saw(module: nn.Module, args: Any) -> None:
        ran.setdefault(id(module), module)
        calls[id(module)] += 1

    handles = [module.register_forward_pre_hook(saw) for module in model.modules()]
    try:
        with torch.no_grad():
            output = model(**call)
    finally:
        for handle in handles:
            handle.remove()
    kinds = {key: kind_of_class(type(module).__name__) for key, module in ran.items()}
    mixers = {
        key: kind
        for key, kind in kinds.items()
        if kind not in (None, "cross-attention") and not _wraps(ran[key], kind, kinds)
    }
    found = []
    for key, kind in mixers.items():
        operators = Counter({kind: calls[key]})
        if kind != "convolution":
            taps = sum(1 for conv in _convolutions(ran[key], mixers) if paths[id(conv)])
            if taps:
                operators["convolution"] += taps * calls[key]
        found.append(Expected(paths[key], ran[key], operators))
    return found, output


def _wraps(module: nn.Module, kind: str | None, kinds: dict[int, str | None]) -> bool:
    inside = (m for m in module.modules() if m is not module)
    return any(kinds.get(id(m)) == kind or kinds.get(id(m)) == "cross-attention" for m in inside)


def _convolutions(module: nn.Module, mixers: dict[int, Any]) -> list[nn.Conv1d]:
    """``nn.Conv1d`` below a mixer, but not below another mixer inside it."""
    found: list[nn.Conv1d] = []
    for child in module.children():
        if id(child) in mixers:
            continue
        if isinstance(child, nn.Conv1d) and child.kernel_size[0] > 1:
            found.append(child)
        found += _convolutions(child, mixers)
    return found
