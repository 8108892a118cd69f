"""A tape of how attention weights came about, so that they can be computed again, in full precision, on demand.

Products of two activations (queries and keys) start it; what happens to their result, up to the product with the
values, is recorded call by call. Only what the products were made from is kept, which grows with the length and
not with its square, and masks and biases, which layers share.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ess_widgets.capture.interception import calls

__all__ = [
    "Leaf",
    "Leaves",
    "Node",
    "Ref",
    "Tape",
    "device_of",
    "dtype_of",
    "flat",
    "given_again",
    "map_tree",
]

# Beyond this many calls after the last product it is no longer attention that is followed.
_MAX_DEPTH = 64
# Calls that may make scores of queries and keys, at the root of a tape.
_SCORES = calls.PRODUCTS | {"mul", "__mul__"}


class Leaf:
    """A tensor that the tape starts from; a private copy is made before anybody writes to its memory."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Leaves:
    """All leaves of a run, by the memory they lie in.

    Parameters
    ----------
    foreign : dict
        Memory that outlives the run and may be written to later.
    differentiable : bool
        Whether tensors are kept with the graph that they came from.
    """

    def __init__(self, foreign: dict[int, str], differentiable: bool = False) -> None:
        self._foreign = foreign
        self.differentiable = differentiable
        self._by_storage: dict[int, weakref.WeakSet[Leaf]] = {}
        # One copy serves all layers that are given the same tensor, a mask for example.
        self._copies: weakref.WeakValueDictionary[Any, Leaf] = weakref.WeakValueDictionary()

    def keep(self, tensor: Tensor) -> Leaf:
        """Refer to a tensor's present values; copy it if its memory outlives the run and may change later."""
        alias = tensor.view_as(tensor) if self.differentiable else tensor.detach()
        where = calls.storage(alias)
        if where is not None and where in self._foreign:
            key = (
                where,
                alias.storage_offset(),
                alias.shape,
                alias.stride(),
                alias.dtype,
                calls.version(alias),
            )
            leaf = self._copies.get(key)
            if leaf is None:
                leaf = self._copies[key] = Leaf(alias.clone())
            return leaf
        leaf = Leaf(alias)
        if where is not None:
            self._by_storage.setdefault(where, weakref.WeakSet()).add(leaf)
        return leaf

    def before_write(self, tensor: Tensor) -> None:
        """Called before a call writes to ``tensor``."""
        where = calls.storage(tensor)
        leaves = self._by_storage.pop(where, None) if where is not None else None
        for leaf in leaves or ():
            leaf.tensor = leaf.tensor.clone()


class Ref:
    """One result of a recorded call."""

    __slots__ = ("index", "node")

    def __init__(self, node: Node, index: int | None) -> None:
        self.node = node
        self.index = index


class Node:
    """One recorded call.

    Attributes
    ----------
    weights : bool
        Whether an exponential lies behind: the result may be attention weights.
    paired : bool
        Whether a product of two activations lies behind: every query has met every key.
    scored : bool
        Whether that was a matrix product, of queries with keys.
    soft : bool
        Whether a softmax, or an exponential of such scores, lies behind.
    curved : bool
        Whether scores went through another function that is not linear.
    wide : bool
        Whether something was computed in float64.
    rounded : bool
        Whether a half-precision value that could not be traced back to queries and keys lies behind.
    """

    __slots__ = (
        "args",
        "curved",
        "depth",
        "func",
        "kwargs",
        "name",
        "paired",
        "root",
        "rounded",
        "scored",
        "shape",
        "soft",
        "weights",
        "wide",
        "writes",
    )

    def __init__(
        self,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        *,
        name: str,
        shape: torch.Size,
        root: bool = False,
        writes: bool = False,
        rounded: bool = False,
    ) -> None:
        self.func, self.args, self.kwargs, self.name = func, args, kwargs, name
        self.shape, self.root, self.writes = shape, root, writes
        parents = list(self.parents())
        self.depth: int = 1 + max((parent.depth for parent in parents), default=0)
        self.weights: bool = name in calls.EXPONENTIALS or any(parent.weights for parent in parents)
        self.wide: bool = name == "double" or any(_is_wide(item) for item in flat((args, kwargs)))
        self.paired: bool = any(parent.paired for parent in parents)
        self.rounded: bool = rounded or any(parent.rounded for parent in parents)
        self.scored: bool = (root and name in _SCORES) or any(parent.scored for parent in parents)
        self.soft: bool = "softm" in name or any(
            parent.soft or (parent.scored and name in calls.EXPONENTIALS) for parent in parents
        )
        # (Functions of a row's sum, a normaliser, have a last dimension of 1.)
        bends = name in calls.CURVES and shape[-1:] != (1,)
        self.curved: bool = any(parent.curved or (bends and parent.scored) for parent in parents)

    def parents(self) -> Iterator[Node]:
        for item in flat((self.args, self.kwargs)):
            if isinstance(item, Ref):
                yield item.node


class Tape:
    """Records calls while a model runs. Entries die with the tensors they describe."""

    def __init__(self, leaves: Leaves) -> None:
        self._leaves = leaves
        # By id, which is many times faster than a dictionary with weak keys: this is asked at every call.
        self._known: dict[int, tuple[weakref.ref[Tensor], Ref, int]] = {}

    def ref(self, tensor: Any) -> Ref | None:
        """How a tensor came about, if that is known and it has not been overwritten behind our back."""
        entry = self._known.get(id(tensor))
        if entry is None or not isinstance(tensor, Tensor) or entry[0]() is not tensor:
            return None
        if entry[2] != calls.version(tensor):
            del self._known[id(tensor)]
            return None
        return entry[1]

    def node(self, tensor: Any) -> Node | None:
        ref = self.ref(tensor)
        return None if ref is None else ref.node

    @property
    def active(self) -> bool:
        """Whether a tensor that is known is alive."""
        return bool(self._known)

    def remembers(self, tensor: Tensor) -> bool:
        """Whether a tensor is known, even if it has just been written to."""
        entry = self._known.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def any_known(self, args: Any, kwargs: Any) -> bool:
        if not self._known:
            return False
        known = self._known
        for item in (*args, *kwargs.values()) if kwargs else args:
            if id(item) in known and self.ref(item) is not None:
                return True
            if type(item) in (tuple, list):
                for part in item:
                    if id(part) in known and self.ref(part) is not None:
                        return True
        return False

    def start(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        """Begin with a product of activations, or with a softmax whose input came about in an unknown way."""
        rounded = name in calls.EXPONENTIALS and _is_half(args, kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        node = self._make(func, name, args, kwargs, result.shape, root=True, rounded=rounded, follow=False)
        node.paired = name not in calls.EXPONENTIALS
        self._set(result, Ref(node, None))

    def given(self, result: Tensor, source: Node) -> None:
        """Begin with weights that cannot be computed again, made from ``source`` by an unknown call."""
        leaf = self._leaves.keep(result)
        rounded = result.dtype in calls.HALF
        node = Node(given_again, (leaf,), {}, name="exp", shape=result.shape, root=True, rounded=rounded)
        node.paired, node.scored = source.paired, source.scored
        node.soft, node.curved = source.soft, source.scored
        self._set(result, Ref(node, None))

    def given_result(self, result: Tensor) -> None:
        """Begin with a tensor whose values will not be asked for."""
        node = Node(given_again, (), {}, name="result", shape=result.shape, root=True)
        self._set(result, Ref(node, None))

    def same(self, result: Tensor, ref: Ref) -> None:
        """Take a tensor for another one."""
        self._set(result, ref)

    def follow(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Record a call with a known argument."""
        if name == "__setitem__":
            target: Any = args[0]
            self._write(func, name, args, kwargs, target)
        elif calls.writes(name, kwargs):
            out = kwargs.get("out")
            if out is not None:
                self._record(func, name, args, {k: v for k, v in kwargs.items() if k != "out"}, out)
            else:
                self._write(func, name, args, kwargs, args[0] if args else kwargs.get("input"))
        else:
            self._record(func, name, args, kwargs, result)

    def drop(self, tensor: Any) -> None:
        """Forget how a tensor came about: it may change without a trace."""
        self._known.pop(id(tensor), None)

    def forget(self) -> None:
        self._known.clear()

    def _write(self, func: Any, name: str, args: Any, kwargs: Any, target: Any) -> None:
        if not isinstance(target, Tensor) or not target.is_floating_point():
            return
        if id(target) not in self._known:
            return  # something known was written into something unknown
        # The values before the call, whatever their version is now.
        node = self._make(func, name, args, kwargs, target.shape, writes=True, before=target)
        self._set(target, Ref(node, None))

    def _record(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            if result.is_floating_point() and self.ref(result) is None:
                node = self._make(func, name, args, kwargs, result.shape)
                if node.depth <= _MAX_DEPTH:
                    self._set(result, Ref(node, None))
        elif isinstance(result, tuple | list) and any(isinstance(item, Tensor) for item in result):
            node = self._make(func, name, args, kwargs, torch.Size())
            for index, item in enumerate(result):
                if isinstance(item, Tensor) and item.is_floating_point() and node.depth <= _MAX_DEPTH:
                    self._set(item, Ref(node, index))

    def _set(self, tensor: Tensor, ref: Ref) -> None:
        key = id(tensor)

        def gone(reference: weakref.ref[Tensor]) -> None:
            entry = self._known.get(key)
            if entry is not None and entry[0] is reference:
                del self._known[key]

        self._known[key] = (weakref.ref(tensor, gone), ref, calls.version(tensor))

    def _make(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        shape: torch.Size,
        *,
        root: bool = False,
        writes: bool = False,
        rounded: bool = False,
        follow: bool = True,
        before: Tensor | None = None,
    ) -> Node:
        def keep(item: Any) -> Any:
            if not isinstance(item, Tensor):
                return item
            if item is before:
                return self._known[id(item)][1]
            ref = self.ref(item) if follow else None
            return self._leaves.keep(item) if ref is None else ref

        args, kwargs = map_tree(args, keep), map_tree(kwargs, keep)
        if name in ("baddbmm", "addmm") and kwargs.get("beta") == 0:
            # Its first argument is ignored and may be uninitialised memory, as large as the result.
            blank = Leaf(torch.zeros((1,) * len(shape), dtype=dtype_of(args), device=device_of(args)))
            args = (blank, *args[1:]) if args else args
            if "input" in kwargs:
                kwargs["input"] = blank
        return Node(func, args, kwargs, name=name, shape=shape, root=root, writes=writes, rounded=rounded)


def _is_wide(item: Any) -> bool:
    if isinstance(item, Ref):
        return item.node.wide
    return item is torch.float64 or (isinstance(item, Leaf) and item.tensor.dtype is torch.float64)


def given_again(tensor: Tensor) -> Tensor:
    return tensor


def map_tree(tree: Any, f: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: map_tree(item, f) for key, item in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(map_tree(item, f) for item in tree)
    return f(tree)


def flat(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        for item in tree.values():
            yield from flat(item)
    elif type(tree) in (tuple, list):
        for item in tree:
            yield from flat(item)
    else:
        yield tree


def _tensors(*trees: Any) -> Iterator[Tensor]:
    for item in flat(trees):
        if isinstance(item, Leaf):
            yield item.tensor
        elif isinstance(item, Tensor):
            yield item


def device_of(tree: Any) -> torch.device:
    return next((tensor.device for tensor in _tensors(tree)), torch.device("cpu"))


def dtype_of(tree: Any) -> torch.dtype:
    return next((t.dtype for t in _tensors(tree) if t.is_floating_point()), torch.float32)


def _is_half(*trees: Any) -> bool:
    return any(tensor.dtype in calls.HALF for tensor in _tensors(*trees))
