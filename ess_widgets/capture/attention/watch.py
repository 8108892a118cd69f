"""Watches for attention: calls that are attention by themselves, and products of scores with values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ess_widgets.capture.attention import dot_product, flex, multihead
from ess_widgets.capture.attention.dot_product import DotProduct
from ess_widgets.capture.attention.flex import Flex, Mods
from ess_widgets.capture.attention.layout import Layout, contraction, sizes_of
from ess_widgets.capture.attention.merged import SplitWatcher
from ess_widgets.capture.attention.rescaled import RowWatcher
from ess_widgets.capture.attention.weights import Weights, is_causal, is_distribution
from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.tape import Ref, Tape
from ess_widgets.capture.record import Record

__all__ = ["FORMS", "OUTER", "AttentionWatch"]

# Calls that are attention by themselves, and those that make scores of queries and keys without a matrix product.
FORMS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention"})
OUTER = frozenset({"add", "sub", "mul", "__add__", "__sub__", "__mul__", "cdist"})


class AttentionWatch:
    """Follows scores from queries and keys to the product with the values, through whatever is done to them.

    Parameters
    ----------
    record : Record
        Where layers are added.
    is_weight : callable
        Whether a tensor is one of the model's weights.
    live : bool
        Whether dropout takes place.
    """

    def __init__(self, record: Record, is_weight: Callable[[Tensor], bool], *, live: bool = False) -> None:
        self._live = live
        self._record, self._leaves, self._is_weight = record, record.leaves, is_weight
        self._tape = Tape(self._leaves)
        self._splits = SplitWatcher()
        self._scalings = RowWatcher(self._tape, self._leaves)
        self._mods = Mods(self._leaves)
        self._joins = record.joins
        self.forms = {
            "scaled_dot_product_attention": self._sdpa,
            "multi_head_attention_forward": self._multi_head,
            "flex_attention": self._flex,
        }

    @property
    def active(self) -> bool:
        """Whether some result of attention is followed."""
        return self._splits.active or self._joins.active

    def knows(self, args: Any, kwargs: Any) -> bool:
        """Whether some argument came from scores."""
        return self._tape.any_known(args, kwargs)

    def looked_through(self, source: Tensor, call: Callable[[], Tensor]) -> Tensor:
        """Do a call whose result is to be taken for what it was given."""
        ref = self._tape.ref(source)
        result = call()
        if ref is not None:
            self._tape.same(result, ref)
        return result

    def drop(self, tensor: Tensor) -> None:
        """A tensor was given other values."""
        self._tape.drop(tensor)

    def forget(self) -> None:
        """Let go of what only the run needed."""
        self._tape.forget()
        self._splits.forget()
        self._scalings.forget()
        self._mods.forget()
        self._joins.forget()

    def see(self, func: Any, name: str, args: Any, kwargs: Any, result: Any, known: bool) -> None:
        """Look at a call and its result."""
        if name in calls.PRODUCTS:
            self._product(func, name, args, kwargs, result, known)
        elif known:
            self._follow(func, name, args, kwargs, result)
        elif name in calls.EXPONENTIALS and name != "exp" and isinstance(result, Tensor):
            self._record.seen.calls["softmax"] += 1
            self._tape.start(func, name, args, kwargs, result)
        elif name in OUTER and isinstance(result, Tensor):
            self._outer(func, name, args, kwargs, result)

    def see_use(self, func: Any, name: str, args: Any, kwargs: Any, result: Any, known: bool) -> None:
        """Look at what is done to the results of attention."""
        if self._splits.active:
            self._splits.see(name, args, kwargs, result)
        if known and self._scalings.active:
            self._scalings.see(name, args, result)
        if self._joins.active:
            for tags, mixer in self._joins.see(func, name, args, kwargs, result):
                self._record.join(tags, mixer)

    def see_attribute(self, func: Any, args: Any, result: Any) -> None:
        """Look at an attribute of a tensor that was read."""
        if isinstance(result, Tensor) and self._tape.any_known(args, {}):
            if func in calls.TRANSPOSES:
                self._tape.follow(func, "transpose", args, {}, result)
            elif func == calls.DATA:
                self._tape.drop(args[0])

    def _follow(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if "softmax" in name:
            self._record.seen.calls["softmax"] += 1
        if name == "linear" and isinstance(result, Tensor):
            self._mixed_by_weight(func, name, args, kwargs, result)
        elif name in calls.REPEATABLE:
            self._tape.follow(func, name, args, kwargs, result)
        elif name not in calls.BARRIERS and isinstance(result, Tensor) and result.is_floating_point():
            node = self._tape.node(args[0]) if args else None
            if node is not None and (node.weights or (node.scored and node.shape == result.shape)):
                self._tape.given(result, node)

    # Products -------------------------------------------------------------------------------------------------

    def _product(self, func: Any, name: str, args: Any, kwargs: Any, result: Any, known: bool) -> None:
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return
        found = contraction(name, args, kwargs)
        if found is None:
            if known:
                self._mixed_by_weight(func, name, args, kwargs, result)
            return
        left, right, axes = found
        if known:
            for weights, values, oriented in ((left, right, axes), (right, left, axes.flipped())):
                if self._mixes(name, kwargs, weights, values, oriented, result):
                    return
        if self._is_weight(left) or self._is_weight(right):
            if known:
                self._mixed_by_weight(func, name, args, kwargs, result)
        elif known and self._mixes_heads(left, right):
            self._mixed_by_weight(func, name, args, kwargs, result)
        elif left.shape[-1] != 1 or name == "einsum":
            # (An outer product, as of positions and frequencies, starts nothing.)
            self._tape.start(func, name, args, kwargs, result)

    def _mixes(
        self, name: str, kwargs: Any, weights: Tensor, values: Tensor, axes: Any, result: Tensor
    ) -> bool:
        """Whether this is a product of attention weights with values; it is captured then."""
        ref = self._tape.ref(weights)
        if ref is None or not (ref.node.weights or ref.node.scored) or self._is_weight(values):
            return False
        if name in ("baddbmm", "addmm") and (kwargs.get("beta", 1) != 0 or kwargs.get("alpha", 1) != 1):
            return False
        sizes = sizes_of(((weights, axes.left), (values, axes.right)))
        roles = axes.roles(sizes)
        if roles is None:
            return False
        queries, keys = sizes[roles.query], sizes[roles.key]
        seen = roles.weights(weights, axes.left)
        if ref.node.weights and is_distribution(seen):
            if not ref.node.paired and (queries != keys or _reads_future(seen)):
                return False  # a softmax over features or experts, not over keys
        elif queries != keys or not self._unlike_softmax(ref, values, seen):
            return False
        self._record.seen.calls["softmax, then a product"] += 1
        layout = Layout.of((sizes[a] for a in roles.lead), self._record.batch(keys))
        mixer = Weights(
            self._leaves, layout, roles, axes, sizes, ref=ref, weights=weights, values=values, output=result
        )
        if queries != keys:
            mixer.settle()
            self._record.rectangle(queries, keys, mixer, result)
            return True
        name_, wanted = self._record.next()
        self._record.add(name_, mixer if wanted else None, family=mixer.family)
        mixer.settle()
        if wanted:
            self._splits.add(result, mixer)
            self._scalings.add(result, mixer)
            self._joins.add(result, mixer, self._record.found[-1])
        return True

    def _unlike_softmax(self, ref: Ref, values: Tensor, seen: Tensor) -> bool:
        """Whether weights that are no distribution mix the sequence: scores, causal over all of its length."""
        node, length = self._tape.node(values), seen.shape[-1]
        own = node is None or not node.paired
        return (
            ref.node.scored
            and own
            and length > 1
            and self._record.batch(length) is not None
            and is_causal(seen)
        )

    def _mixes_heads(self, left: Tensor, right: Tensor) -> bool:
        """Whether one of them is scores, and the other a small matrix that knows nothing of the sequence."""
        for scores, matrix in ((left, right), (right, left)):
            node = self._tape.node(scores)
            if (
                node is not None
                and node.paired
                and matrix.ndim == 2
                and not {*node.shape[-2:]} & {*matrix.shape}
            ):
                return True
        return False

    def _mixed_by_weight(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        """Follow scores that a learned matrix mixes across heads or features: every pair of tokens is still there."""
        shape = next((n.shape for n in map(self._tape.node, args) if n is not None), torch.Size())
        heads = len(shape) >= 3 and Counter(shape[-2:]) <= Counter(result.shape[-3:])
        features = len(shape) >= 4 and result.shape[: len(shape) - 1] == shape[:-1] and _has_pair(shape[:-1])
        if heads or features:
            self._tape.follow(func, name, args, kwargs, result)

    def _outer(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        """Scores as a sum or product of every query with every key, without a matrix product."""
        operands = [item for item in args if isinstance(item, Tensor) and item.is_floating_point()]
        grows = len(operands) == 2 and result.ndim >= 3 and result.numel() > max(t.numel() for t in operands)
        # (Positions by frequencies, of a rotary embedding, have no two dimensions alike.)
        if grows and _has_pair(result.shape) and not any(self._is_weight(item) for item in operands):
            self._tape.start(func, name, args, kwargs, result)

    # Calls that are attention by themselves -------------------------------------------------------------------

    def _sdpa(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._record.seen.calls["scaled_dot_product_attention"] += 1
        call = dot_product.arguments(args, kwargs)
        if call.get("dropout_p") and not self._live:
            call["dropout_p"] = 0.0
        result = func(**call)
        query, key, value = call["query"], call["key"], call["value"]
        queries, keys = query.shape[-2], key.shape[-2]
        layout = Layout.of(query.shape[:-2], self._record.batch(queries))
        mixer = DotProduct(
            self._leaves,
            layout,
            query=query,
            key=key,
            value=value,
            output=result,
            mask=call.get("attn_mask"),
            is_causal=bool(call.get("is_causal", False)),
            scale=call.get("scale"),
        )
        if queries != keys:
            self._record.rectangle(queries, keys, mixer, result)
            return result
        name, wanted = self._record.next()
        self._record.add(name, mixer if wanted else None)
        if wanted:
            self._joins.add(result, mixer, self._record.found[-1])
        return result

    def _flex(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._record.seen.calls["flex_attention"] += 1
        call = flex.arguments(args, kwargs)
        result = func(**call)
        queries, keys = call["query"].shape[-2], call["key"].shape[-2]
        if queries != keys:
            self._record.rectangle(queries, keys, None, result[0])
            return result
        name, wanted = self._record.next()
        if not wanted:
            self._record.add(name, None)
            return result
        output, lse = result[:2]
        mixer = Flex(self._leaves, self._mods, call, output)
        self._record.add(name, mixer)
        # Attention sinks are applied afterwards, as a factor made from the second result.
        self._tape.start(mixer.logsumexp(), "logsumexp", (call["query"], call["key"]), {}, lse)
        self._scalings.add(output, mixer)
        self._joins.add(output, mixer, self._record.found[-1])
        return result

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._record.seen.calls["multi_head_attention_forward"] += 1
        call = multihead.arguments(args, kwargs)
        call = call if self._live else {**call, "training": False}
        result = func(**call)
        reason = multihead.why_not(call)
        if reason is not None:
            self._record.skip(reason)
            return result
        name, wanted = self._record.next()
        if not wanted:
            self._record.add(name, None)
            return result
        mixer = multihead.capture_heads(func, call, self._leaves)
        self._record.add(name, mixer, multihead.own_tokens(call), crosses=multihead.crosses(call))
        return result


def _reads_future(weights: Tensor) -> bool:
    return bool(weights.triu(1).ne(0).any())


def _has_pair(shape: torch.Size) -> bool:
    return any(count > 1 and size > 1 for size, count in Counter(shape).items())
