"""One model type under one implementation in one precision: captured, and judged."""

from __future__ import annotations

import math
import re
import time
import traceback
from collections import Counter
from typing import Any

import torch
from torch import nn

import ess_widgets as ew
from ess_widgets.capture import CaptureError
from ess_widgets.capture.core import LayerCapture
from tests.survey import models
from tests.survey.expected import KINDS, Expected, expected_mixers
from tests.survey.hooked import watching
from tests.survey.mixing import unlisted

__all__ = ["LIMITS", "attempt", "judge"]

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
# The model's own forward pass, run again, must agree with capture's output to rounding.
_OUTPUT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def attempt(
    model_type: str, implementation: str, dtype: torch.dtype, padding: bool = False
) -> dict[str, Any]:
    """A row: ``stage`` is how far it came ("build", "forward", "captured"), ``verdict`` "whole" or what is wrong."""
    row: dict[str, Any] = {
        "implementation": implementation,
        "dtype": str(dtype).removeprefix("torch."),
        "padding": padding,
        "stage": "build",
    }
    start = time.process_time()
    try:
        model = models.build(model_type, implementation, dtype)
        row["class"] = type(model).__name__
        row["stage"] = "forward"
        call: dict[str, Any] | None = models.call(model_type)
        if padding:
            call = models.padded(call or {})
            if call is None:
                return {**row, "verdict": "no padding", "reason": "its inputs know no padding"}
        torch.manual_seed(2)
        expected, output = expected_mixers(model, call or {})
        row["stage"] = "captured"
        if not padding and models.reads_the_future(model, call or {}, output):
            why = "its earlier outputs change with its last token"
            return {**row, "verdict": "not causal", "reason": why, "answer": _answer(model, call or {})}
        row.update(judge(model, call or {}, expected, output, dtype))
        if implementation == "eager" and dtype is torch.float32 and not padding:
            row["unlisted"] = unlisted(model, call or {}, models.LENGTH, expected)
            row["hooked"] = _hooked(model, call or {}, expected)
    except Exception as error:  # noqa: BLE001 - whatever a model raises is a row
        refused = "refused" if "residual" not in row else "failed"
        row["verdict"] = refused if row["stage"] == "captured" else "not built"
        row["reason"] = _told(error)
    row["seconds"] = round(time.process_time() - start, 2)
    return row


def judge(
    model: nn.Module, call: dict[str, Any], expected: list[Expected], output: Any, dtype: torch.dtype
) -> dict[str, Any]:
    """Capture a model and compare with what was expected of it and with what it computes by itself."""
    total: Counter[str] = sum((mixer.operators for mixer in expected), Counter())
    row: dict[str, Any] = {
        "mixers": len(expected),
        "expected": dict(total),
    }
    if not expected:
        return {**row, "verdict": "nothing expected", "reason": "no module that ran is known as a mixer"}
    torch.manual_seed(2)
    capture = ew.capture(model, **call)
    layers: list[dict[str, Any]] = [
        {"name": name, "family": layer.family, "residual": float(layer.residual.max())}
        for name, layer in capture.items()
    ]
    row["families"] = dict(Counter(str(layer["family"]) for layer in layers))
    row["residual"] = _worst(layer["residual"] for layer in layers)
    missing, extra, whole = _compare(model, expected, layers)
    row.update(found=whole, missing=missing, extra=extra)
    row["output_error"] = _difference(output, capture.output)
    bad = [layer for layer in layers if not layer["residual"] <= LIMITS[dtype]]
    odd = [why for name, layer in capture.items() if (why := _odd(name, layer))]
    reasons = odd[:1]
    if missing:
        reasons.append(
            f"missing {'; '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if missing[3:] else "")
        )
    if bad:
        reasons.append(f"residual {bad[0]['residual']:.1e} in {bad[0]['name']} and {len(bad) - 1} more")
    if not row["output_error"] <= _OUTPUT[dtype]:
        reasons.append(f"output differs from the model's own by {row['output_error']:.1e}")
    return {**row, "verdict": "failed" if reasons else "whole", "reason": ". ".join(reasons)}


def _odd(name: str, layer: LayerCapture) -> str:
    """What a residual does not show."""
    T, position = layer.operator.matrix(), torch.arange(layer.operator.length)
    position = position.repeat_interleave(layer.operator.block)  # of each row and column
    if bool(T[..., position[None] > position[:, None]].any()):
        return f"the operator of {name} reads the future"
    if not bool(layer.outputs.any()):
        return f"{name} has zeros alone as outputs, which prove nothing"
    return ""


def _answer(model: nn.Module, call: dict[str, Any]) -> str:
    """What capture says of a model that is not causal: it should refuse."""
    try:
        return f"captured {len(ew.capture(model, **call))} layers"
    except CaptureError as error:
        return _told(error)


def _hooked(model: nn.Module, call: dict[str, Any], expected: list[Expected]) -> list[int]:
    """For how many captured operators plain hooks saw the same output, and of how many."""
    torch.manual_seed(2)
    with torch.no_grad(), watching(mixer.module for mixer in expected) as seen:
        model(**call)
    torch.manual_seed(2)
    outputs = [layer.outputs for layer in ew.capture(model, **call).values()]
    return [sum(seen.holds(y) for y in outputs), len(outputs)]


def _compare(
    model: nn.Module, expected: list[Expected], layers: list[dict[str, Any]]
) -> tuple[list[str], list[str], int]:
    """What is missing, what was found beyond, and how many mixers are whole."""
    open_: dict[int, Counter[str]] = {id(mixer.module): Counter(mixer.operators) for mixer in expected}
    extra = []
    for layer in layers:
        owner = _owner(model, layer["name"].partition("#")[0], open_)
        kind = next((k for k, pattern in KINDS.items() if re.search(pattern, layer["family"])), None)
        if owner is None or kind is None or open_[owner][kind] <= 0:
            extra.append(f"{layer['name']}: {layer['family']}")
        else:
            open_[owner][kind] -= 1
    missing, whole = [], 0
    for mixer in expected:
        left = {kind: n for kind, n in open_[id(mixer.module)].items() if n > 0}
        whole += not left
        if left:
            lacks = ", ".join(f"{n} {kind}" for kind, n in left.items())
            missing.append(f"{lacks} in {mixer.path} ({type(mixer.module).__name__})")
    return missing, extra, whole


def _owner(model: nn.Module, path: str, known: dict[int, Any]) -> int | None:
    """The innermost expected mixer around a path."""
    while path:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            return None
        if id(module) in known:
            return id(module)
        path = path.rpartition(".")[0]
    return None


def _worst(values: Any) -> float:
    values = list(values)
    return float("nan") if any(map(math.isnan, values)) else max(values, default=0.0)


def _difference(ours: Any, theirs: Any) -> float:
    """The largest difference of logits, relative to the largest logit."""
    a, b = models.logits(ours), models.logits(theirs)
    if a.shape != b.shape:
        return float("inf")
    scale = a.abs().max().clamp_min(1e-30)
    return float((a.double() - b.double()).abs().max() / scale)


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]} ({last.filename.rpartition('/')[2]}, {last.name})"
