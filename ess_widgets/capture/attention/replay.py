"""Computing recorded calls again: their values in full precision, or what their masks allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.tape import Leaf, Node, Ref, device_of, dtype_of, given_again, map_tree

__all__ = ["BLOCKED", "evaluate", "pattern", "replay", "structure"]

# An additive mask at or below this forbids; -1e4, -1e9, finfo.min and -inf are all in use.
BLOCKED = -9e3
_GOLDEN = (5**0.5 - 1) / 2


def replay(ref: Ref, dtype: torch.dtype) -> Tensor:
    """Compute a recorded tensor again, in float32 or float64, casts to lower precision left out."""
    work = torch.float64 if ref.node.wide else dtype
    again = evaluate(
        ref, lambda node, args, kwargs: calls.repeat(node.func, node.name, args, kwargs, work), work
    )
    return again.to(dtype)


def structure(ref: Ref) -> Tensor:
    """Which query may read which key by the masks alone, whatever the scores are: a boolean tensor."""
    result = pattern(ref)
    return (result != 0) & ~torch.isnan(result)


def pattern(ref: Ref) -> Tensor:
    """The weights if every query fitted every key alike: all scores 1, exponentials constant where not masked."""
    work = torch.float64 if ref.node.wide else torch.float32
    exponentials = 0

    def step(node: Node, args: Any, kwargs: Any) -> Any:
        nonlocal exponentials
        if node.name in calls.EXPONENTIALS and node.func is not given_again:
            scores = args[0] if args else kwargs["input"]
            exponentials += 1
            # A constant of its own for each, so that a difference of two softmaxes does not vanish.
            return (scores > BLOCKED).to(work) * (0.5 + exponentials * _GOLDEN % 1)
        if node.root and node.func is not given_again:
            return _without_scores(node, args, kwargs)
        return calls.repeat(node.func, node.name, args, kwargs, work)

    return evaluate(ref, step, work)


def _without_scores(node: Node, args: Any, kwargs: Any) -> Tensor:
    device = device_of(args if args else kwargs)
    plain = torch.ones(node.shape, dtype=dtype_of(args if args else kwargs), device=device)
    if node.name not in ("baddbmm", "addmm"):
        return plain
    bias: Tensor = kwargs["input"] if "input" in kwargs else args[0]
    return torch.add(plain, bias, alpha=kwargs.get("beta", 1))


def evaluate(
    ref: Ref,
    step: Callable[[Node, Any, Any], Any],
    dtype: torch.dtype,
    leaf: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Run the recorded calls that lead to ``ref`` in order; results are dropped after their last use.

    Parameters
    ----------
    ref : Ref
        What to compute.
    step : callable
        Does one recorded call: the node, its arguments, its keyword arguments.
    dtype : torch.dtype
        That of the float tensors which the calls start from.
    leaf : callable, optional
        What to take in their place.
    """
    order: list[Node] = []
    uses: dict[Node, int] = {}

    def visit(node: Node) -> None:
        for parent in node.parents():
            if parent not in uses:
                uses[parent] = 0
                visit(parent)
            uses[parent] += 1
        order.append(node)

    uses[ref.node] = 1
    visit(ref.node)
    done: dict[Node, Any] = {}

    def load(item: Any) -> Any:
        if isinstance(item, Leaf):
            if not item.tensor.is_floating_point():
                return item.tensor
            return item.tensor.to(dtype) if leaf is None else leaf(item.tensor)
        if isinstance(item, Ref):
            return done[item.node] if item.index is None else done[item.node][item.index]
        return item

    device = next((device_of((node.args, node.kwargs)) for node in order if node.root), torch.device("cpu"))
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        for node in order:
            args, kwargs = map_tree(node.args, load), map_tree(node.kwargs, load)
            if node.writes and args:
                args = (args[0].clone(), *args[1:])
            result = step(node, args, kwargs)
            done[node] = args[0] if node.name == "__setitem__" else result
            del args, kwargs, result
            for parent in node.parents():
                uses[parent] -= 1
                if not uses[parent]:
                    done.pop(parent, None)
        return done[ref.node] if ref.index is None else done[ref.node][ref.index]  # type: ignore[no-any-return]
