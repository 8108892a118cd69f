"""Interception: sees every torch call that a model makes in this thread, and picks out the mixing of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ess_widgets.capture import calls, dot_product, flex, multihead, padding, registry
from ess_widgets.capture.convolutions import find_conv1d, find_fourier, owner
from ess_widgets.capture.cuts import Cuts
from ess_widgets.capture.dot_product import DotProduct
from ess_widgets.capture.errors import Cancelled, CaptureError
from ess_widgets.capture.families import MODULES, OPEN
from ess_widgets.capture.families.convolution import Window, future_steps
from ess_widgets.capture.families.fft_convolution import FourierConvolution
from ess_widgets.capture.flex import Flex, Mods
from ess_widgets.capture.functions import FunctionWatcher, Transparent
from ess_widgets.capture.guard import Guard
from ess_widgets.capture.joined import Chunks, Joins, Rows
from ess_widgets.capture.layout import Layout, batch_size, contraction, sizes_of
from ess_widgets.capture.linearised import Linearised
from ess_widgets.capture.merged import SplitWatcher
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.capture.names import PathTracker, Selector
from ess_widgets.capture.randomness import PrivateRandom
from ess_widgets.capture.reading import Call, Constructed, ModuleCall, ModuleRecogniser, Reading
from ess_widgets.capture.recognise import mixes, recogniser, sounds_known
from ess_widgets.capture.rescaled import RowWatcher
from ess_widgets.capture.sequences import Sequences
from ess_widgets.capture.spectra import Product, Spectra
from ess_widgets.capture.tape import Leaf, Leaves, Ref, Tape, map_tree
from ess_widgets.capture.weights import Weights, is_causal, is_distribution

__all__ = ["CaptureMode", "Found", "Seen"]


@dataclass
class Found:
    """A layer that mixes tokens, in the order of the run; ``mixer`` is None where it was not asked for."""

    name: str
    mixer: Mixer | None
    valid: Tensor | None = None
    future: Future | None = None
    crosses: bool = False
    asked: bool = False
    family: str = "softmax attention"


@dataclass
class Seen:
    """What passed by, for the error where nothing could be captured."""

    calls: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Unknown(Transparent):
    """A call of a function with the name of a kernel that is none of those known."""

    name: str
    before: int


@dataclass(frozen=True)
class _Open(Transparent):
    """A call of a function that is read only if nothing inside it was."""

    name: str
    arguments: dict[str, Any]
    again: Callable[..., Any]
    before: int
    path: str | None


class CaptureMode(TorchFunctionMode):
    """Collects the layers of one run.

    Parameters
    ----------
    tracker : PathTracker
        Knows the module in which a call happens.
    selector : Selector
        Which layers to keep.
    inputs : list of Tensor
        What the model was given; tells the batch size.
    stated : list of Tensor
        Padding masks that the model was given, ``(batch, L)``, True for own tokens.
    weights : dict
        Memory of the model's weights, to their names.
    foreign : dict
        Other memory that outlives the run and may be written to later.
    is_original : callable
        Whether a parameter belongs to the original model although a copy is running.
    """

    def __init__(
        self,
        tracker: PathTracker,
        selector: Selector,
        *,
        inputs: list[Tensor],
        stated: list[Tensor],
        weights: dict[int, str],
        foreign: dict[int, str],
        is_original: Callable[[object], bool] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_layer: Callable[[str, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.found: list[Found] = []
        self.seen = Seen()
        self._tracker, self._selector = tracker, selector
        self._inputs, self._stated = inputs, stated
        self._should_stop, self._on_layer = should_stop, on_layer
        self._leaves = Leaves({**foreign, **weights})
        self._guard = Guard(weights, self._leaves, is_original)
        self._is_weight = self._guard.is_weight
        self._tape = Tape(self._leaves)
        self._random = PrivateRandom()
        self._names: Counter[str] = Counter()
        self._splits = SplitWatcher()
        self._scalings = RowWatcher(self._tape, self._leaves)
        self._mods = Mods(self._leaves)
        self._joins = Joins(self._leaves)
        self._rectangles: dict[str, list[tuple[int, int]]] = {}
        self._sequences, self._cuts = Sequences(inputs), Cuts()
        self._spectra = Spectra(self.keep, self._fourier)
        self._inferred: dict[tuple[int, int], Tensor | None] = {}
        self.functions = FunctionWatcher(sounds_known, self._function_begins, self._function_ends)
        self._exclusive = 0
        self.chosen: Mapping[nn.Module, Any] = {}

    def __exit__(self, *exc: object) -> None:
        # An interrupt may have come while torch had this mode off its stack; what is on top is another one then.
        top = torch._C._len_torch_function_stack() - 1
        if top >= 0 and torch._C._get_function_stack_at(top) is self:
            super().__exit__(*exc)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.pause()
        try:
            return self._intercept(func, args, kwargs or {})
        finally:
            self.functions.resume()

    def _intercept(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._should_stop is not None and self._should_stop():
            raise Cancelled("a newer request took over")
        name = getattr(func, "__name__", "").partition(".")[0]
        if name == "__get__":
            return self._attribute(func, args)
        if name == "__set__":
            self._tape.drop(args[0])
        self._guard.check(args, kwargs)
        if name in _FORMS and not self._muted:
            return getattr(self, _FORMS[name])(func, args, kwargs)
        if name in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if name in calls.RANDOM:
            self._guard.before_write(name, args, kwargs)
            return self._random(func, name, args, kwargs)
        return self._ordinary(func, name, args, kwargs)

    def finish(self) -> None:
        """Let go of what only the run needed."""
        self._tape.forget()
        self._splits.forget()
        self._scalings.forget()
        self._mods.forget()
        self._joins.forget()
        self._cuts.forget()
        self._spectra.forget()
        for found in self.found:
            if found.mixer is not None:
                found.mixer.settle()

    @property
    def _muted(self) -> bool:
        """Whether what runs now is captured as a whole."""
        return self._exclusive > 0 or self.functions.inside

    def _ordinary(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        known = self._tape.any_known(args, kwargs)
        if calls.writes(name, kwargs) or name in ("embedding", "embedding_bag"):
            self._guard.before_write(name, args, kwargs)
        result = func(*args, **kwargs)
        if self._muted:
            return result
        if name in calls.PRODUCTS:
            self._product(func, name, args, kwargs, result, known)
        elif known:
            self._follow(func, name, args, kwargs, result)
        elif name in calls.EXPONENTIALS and name != "exp" and isinstance(result, Tensor):
            self.seen.calls["softmax"] += 1
            self._tape.start(func, name, args, kwargs, result)
        elif name in _OUTER and isinstance(result, Tensor):
            self._outer(func, name, args, kwargs, result)
        if self._splits.active:
            self._splits.see(name, args, kwargs, result)
        if self._cuts.active:
            self._cuts.see(name, args, kwargs, result)
        if self._spectra.active or name.startswith("fft_"):
            self._spectra.see(func, name, args, kwargs, result)
        if known and self._scalings.active:
            self._scalings.see(name, args, result)
        if self._joins.active:
            for tags, mixer in self._joins.see(func, name, args, kwargs, result):
                self._join(tags, mixer)
        return result

    def _follow(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if "softmax" in name:
            self.seen.calls["softmax"] += 1
        if name == "linear" and isinstance(result, Tensor):
            self._mixed_by_weight(func, name, args, kwargs, result)
        elif name in calls.REPEATABLE:
            self._tape.follow(func, name, args, kwargs, result)
        elif name not in calls.BARRIERS and isinstance(result, Tensor) and result.is_floating_point():
            node = self._tape.node(args[0]) if args else None
            if node is not None and (node.weights or (node.scored and node.shape == result.shape)):
                self._tape.given(result, node)

    def _attribute(self, func: Any, args: Any) -> Any:
        result = func(*args)
        if isinstance(result, Tensor) and self._tape.any_known(args, {}):
            if func in calls.TRANSPOSES:
                self._tape.follow(func, "transpose", args, {}, result)
            elif func == calls.DATA:
                self._tape.drop(args[0])
        return result

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
        self.seen.calls["softmax, then a product"] += 1
        layout = Layout.of((sizes[a] for a in roles.lead), self._batch(keys))
        mixer = Weights(
            self._leaves, layout, roles, axes, sizes, ref=ref, weights=weights, values=values, output=result
        )
        if queries != keys:
            mixer.settle()
            self._rectangle(queries, keys, mixer, result)
            return True
        name_, wanted = self._next()
        self._add(name_, mixer if wanted else None, family=mixer.family)
        mixer.settle()
        if wanted:
            self._splits.add(result, mixer)
            self._scalings.add(result, mixer)
            self._joins.add(result, mixer, self.found[-1])
        return True

    def _unlike_softmax(self, ref: Ref, values: Tensor, seen: Tensor) -> bool:
        """Whether weights that are no distribution mix the sequence: scores, causal over all of its length."""
        node, length = self._tape.node(values), seen.shape[-1]
        own = node is None or not node.paired
        return ref.node.scored and own and length > 1 and self._batch(length) is not None and is_causal(seen)

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
        self.seen.calls["scaled_dot_product_attention"] += 1
        call = dot_product.arguments(args, kwargs)
        if call.get("dropout_p"):
            call["dropout_p"] = 0.0
        result = func(**call)
        query, key, value = call["query"], call["key"], call["value"]
        queries, keys = query.shape[-2], key.shape[-2]
        layout = Layout.of(query.shape[:-2], self._batch(queries))
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
            self._rectangle(queries, keys, mixer, result)
            return result
        name, wanted = self._next()
        self._add(name, mixer if wanted else None)
        if wanted:
            self._joins.add(result, mixer, self.found[-1])
        return result

    def _flex(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.seen.calls["flex_attention"] += 1
        call = flex.arguments(args, kwargs)
        result = func(**call)
        queries, keys = call["query"].shape[-2], call["key"].shape[-2]
        if queries != keys:
            self._rectangle(queries, keys, None, result[0])
            return result
        name, wanted = self._next()
        if not wanted:
            self._add(name, None)
            return result
        output, lse = result[:2]
        mixer = Flex(self._leaves, self._mods, call, output)
        self._add(name, mixer)
        # Attention sinks are applied afterwards, as a factor made from the second result.
        self._tape.start(mixer.logsumexp(), "logsumexp", (call["query"], call["key"]), {}, lse)
        self._scalings.add(output, mixer)
        self._joins.add(output, mixer, self.found[-1])
        return result

    def _cell(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.seen.calls[func.__name__] += 1
        self.seen.skipped.setdefault(self._tracker.path, _STEPS)
        return func(*args, **kwargs)

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.seen.calls["multi_head_attention_forward"] += 1
        call = {**multihead.arguments(args, kwargs), "training": False}
        result = func(**call)
        reason = multihead.why_not(call)
        if reason is not None:
            self._skip(reason)
            return result
        name, wanted = self._next()
        if not wanted:
            self._add(name, None)
            return result
        mixer = multihead.capture_heads(func, call, self._leaves)
        self._add(name, mixer, multihead.own_tokens(call), crosses=multihead.crosses(call))
        return result

    # Convolutions ---------------------------------------------------------------------------------------------

    def _conv1d(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = self._ordinary(func, "conv1d", args, kwargs)
        frames = self._tracker.frames
        reading = find_conv1d(
            args, kwargs, result, sequences=self._sequences, frames=frames, cuts=self._cuts, batch=self._batch
        )
        if reading is not None:
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            self._convolved(reading, self._owner(weight), result, -1)
        return result

    def _fourier(self, product: Product, name: str, given: dict[str, Any], result: Tensor) -> None:
        """A product of spectra was transformed back."""
        call = FourierConvolution(product, name, given, result, self._is_weight)
        reading = find_fourier(
            call, sequences=self._sequences, frames=self._tracker.frames, batch=self._batch
        )
        if reading is not None:
            self._convolved(reading, None, result, call.dim)

    def _convolved(
        self, reading: tuple[Reading, Window] | str, path: str | None, result: Tensor, dim: int
    ) -> None:
        """Add a convolution; what the model keeps of its result may show later that it is late, or not causal."""
        self.seen.calls["convolution"] += 1
        if isinstance(reading, str):
            self._skip(reading, path)
            return
        read, window = reading
        name, wanted = self._next(path)
        self._add(name, Constructed(self._leaves, read) if wanted else None, family=read.family)
        found, length = self.found[-1], read.length

        def decide(first: int) -> None:
            window.delay = window.start - first
            window.start = first
            if window.delay < 0 and found in self.found:
                self.found.remove(found)
                self.seen.skipped[name] = future_steps(-window.delay)

        if result.shape[dim] > length:
            self._cuts.add(result, dim, length, window.start, decide)

    def _owner(self, weight: Tensor) -> str | None:
        return owner(weight, self._tracker.frames) if self._is_weight(weight) else None

    # Functions and modules that are recognised -----------------------------------------------------------------

    def recogniser(self, module: nn.Module) -> ModuleRecogniser | None:
        """What reads a module of this kind."""
        if isinstance(module, nn.RNNBase) and module in self.chosen:
            return None
        # (Asking a module for an attribute that it lacks is slow, and most modules are of these kinds.)
        built_in = () if type(module) in _SIMPLE else MODULES
        return next((known for known in (*registry.MODULES, *built_in) if known.fits(module)), None)

    def linearised(self, path: str, mixer: Linearised) -> None:
        """Add a module that is captured by its Jacobian because the user asked for it."""
        mixer.hold(self._leaves)
        name, _ = self._next(path)
        self._add(name, mixer, mixer.own_tokens, crosses=False, family=mixer.family)
        self.found[-1].asked = True
        for inside in [p for p in self.seen.skipped if p == path or p.startswith(path + ".")]:
            if self.seen.skipped[inside] == _STEPS:
                del self.seen.skipped[inside]

    def skipped(self, path: str, reason: str) -> None:
        """Note why a layer is left out."""
        self.seen.skipped[path] = reason

    def keep(self, tensor: Tensor) -> Leaf:
        """A reference to a tensor's present values."""
        return self._leaves.keep(tensor)

    def module_begins(self, recogniser: ModuleRecogniser) -> int:
        """Note what was captured before."""
        self._exclusive += recogniser.exclusive
        return len(self.found)

    def module_ends(self, recogniser: ModuleRecogniser, before: int, call: ModuleCall | None) -> None:
        """Read a module, unless what is inside it has told already."""
        self._exclusive -= recogniser.exclusive
        inside = any(found.family != "convolution" for found in self.found[before:])
        if call is not None and not self._muted and not inside:
            what = type(call.module).__name__
            try:
                reading = recogniser.read(call)
            except registry.ReadingFailed as failed:
                raise CaptureError(
                    f"layer {self._tracker.path_of(call.module, what)!r}: {failed}"
                ) from failed
            if isinstance(reading, tuple) and len(self.found) > before:
                reading = tuple(
                    part for part in reading if part.family != "convolution"
                )  # it was seen itself
            if isinstance(reading, Reading) and reading.family == "convolution":
                del self.found[before:]  # the same without its gates
            self._read(what, reading)

    def _function_begins(self, name: str, arguments: dict[str, Any], again: Callable[..., Any]) -> Any:
        if self._exclusive or not mixes(name, arguments):
            return None
        if recogniser(name) is None:
            return _Unknown(name, self._noted)
        with torch._C.DisableTorchFunction():
            kept = map_tree(arguments, lambda item: self.keep(item) if isinstance(item, Tensor) else item)
            if name not in OPEN:
                return name, kept, again
            weight = arguments.get("weight")
            path = self._owner(weight) if isinstance(weight, Tensor) else None
            return _Open(name, kept, again, self._noted, path)

    def _function_ends(self, token: Any, result: Any) -> None:
        if result is None:
            return  # it raised, or does not do it here
        if isinstance(token, _Unknown):
            if self._noted == token.before:
                self._read(token.name, "it is not known; ew.register teaches it")
            return
        path = None
        if isinstance(token, _Open):
            if self._noted != token.before:
                return
            path = token.path
            token = token.name, token.arguments, token.again
        name, kept, again = token
        with torch._C.DisableTorchFunction():
            arguments = map_tree(kept, lambda item: item.tensor if isinstance(item, Leaf) else item)
            module = self._tracker.frames[-1].module if self._tracker.frames else None
            read = recogniser(name)
            assert read is not None
            self._read(name, read(Call(name, arguments, result, again, module)), path)

    @property
    def _noted(self) -> int:
        """How many layers have been captured or left out."""
        return len(self.found) + len(self.seen.skipped)

    def _read(
        self, what: str, reading: Reading | tuple[Reading, ...] | Linearised | str, path: str | None = None
    ) -> None:
        self.seen.calls[what] += 1
        if isinstance(reading, str):
            if reading:
                self._skip(f"{what}: {reading}", path)
            return
        if isinstance(reading, tuple):
            for part in reading:
                self._read(what, part)
            return
        if not isinstance(reading, Reading):
            reading.hold(self._leaves)
            name, wanted = self._next()
            reading.name = name
            self._add(
                name, reading if wanted else None, reading.own_tokens, crosses=False, family=reading.family
            )
            return
        name, wanted = self._next(path or self._inside(reading.name))
        self._add(name, Constructed(self._leaves, reading) if wanted else None, family=reading.family)

    def _inside(self, name: str | None) -> str | None:
        """A name that begins with a dot belongs to something inside the running module."""
        if name is None or not name.startswith("."):
            return name
        path = self._tracker.frames[-1].path if self._tracker.frames else ""
        return path + name if path else name[1:]

    # Bookkeeping ----------------------------------------------------------------------------------------------

    def _next(self, name: str | None = None) -> tuple[str, bool]:
        path = name or self._tracker.path
        count = self._names[path]
        self._names[path] += 1
        name = f"{path}#{count}" if count else path
        return name, self._selector.keep(name, len(self.found))

    def _add(
        self,
        name: str,
        mixer: Mixer | None,
        valid: Tensor | None = None,
        crosses: bool | None = None,
        family: str = Mixer.family,
    ) -> None:
        found = Found(name, mixer, valid, family=family)
        self.found.append(found)
        if mixer is not None:
            if valid is None:
                found.valid = self._own_tokens(mixer)
                if found.valid is not None and isinstance(mixer, Constructed) and mixer.reads(~found.valid):
                    found.valid = None  # to the model it is no padding
            found.future = mixer.future(found.valid)
            if found.future is not None:
                found.crosses = self._other_source(mixer.shape[-1]) if crosses is None else crosses
        if self._on_layer is not None:
            self._on_layer(name, len(self.found) - 1)

    def _rectangle(self, queries: int, keys: int, piece: Rows | None, result: Tensor) -> None:
        """Some queries that read other keys than their own, or more: perhaps a chunk of something square."""
        path = self._tracker.path
        self._rectangles.setdefault(path, []).append((queries, keys))
        self._tell_rectangles(path)
        if piece is not None and self._selector.keep(path, len(self.found)):
            self._joins.add(result, piece, path)

    def _tell_rectangles(self, path: str) -> None:
        calls_ = self._rectangles[path]
        if not calls_:
            self.seen.skipped.pop(path, None)
            return
        told = [
            str(a) if a == b else f"{a} to {b}"
            for a, b in ((min(n), max(n)) for n in zip(*calls_, strict=True))
        ]
        times = f"{len(calls_)} times, " if len(calls_) > 1 else ""
        self.seen.skipped[path] = f"{times}{told[0]} queries read {told[1]} keys"

    def _join(self, tags: list[Any], mixer: Mixer) -> None:
        """Let one layer take the place of the results that it joins."""
        founds = [tag for tag in tags if isinstance(tag, Found)]
        for path in (tag for tag in tags if isinstance(tag, str)):
            self._rectangles[path].pop()
            self._tell_rectangles(path)
        if not founds:
            name, wanted = self._next(next(tag for tag in tags if isinstance(tag, str)))
            self._add(name, mixer if wanted else None, family=mixer.family)
            return
        first = founds[0]
        first.mixer, first.family = mixer, mixer.family
        if isinstance(mixer, Chunks):
            first.valid = self._own_tokens(mixer)
            first.future = mixer.future(first.valid)
        else:
            first.future = next((found.future for found in founds if found.future is not None), None)
        self.found = [found for found in self.found if found is first or all(found is not f for f in founds)]

    def _skip(self, reason: str, path: str | None = None) -> None:
        path = path or self._tracker.path
        count = sum(1 for known in self.seen.skipped if known.partition("#")[0] == path)
        self.seen.skipped[f"{path}#{count}" if count else path] = reason

    def _own_tokens(self, mixer: Mixer) -> Tensor | None:
        batch, _, length = mixer.shape
        for mask in self._stated:
            if tuple(mask.shape) == (batch, length):
                return None if bool(mask.all()) or mixer.reads_beyond(mask) else mask
        key = (batch, length)
        if key not in self._inferred:
            if isinstance(mixer, Constructed):
                return None  # it has no mask to tell; attention that follows may have one
            self._inferred[key] = self._infer(mixer)
        return self._inferred[key]

    def _infer(self, mixer: Mixer) -> Tensor | None:
        if isinstance(mixer, Weights) and not mixer.unread() and mixer.future(None) is None:
            return None
        allowed = mixer.allowed()
        if allowed is None:
            return None
        batch, _, length = mixer.shape
        return padding.infer(allowed.any(1).expand(batch, length, length))

    def _batch(self, length: int) -> int | None:
        if self._stated and self._stated[0].shape[1] == length:
            return self._stated[0].shape[0]
        frames = (tensor for frame in reversed(self._tracker.frames) for tensor in frame.tensors)
        return batch_size((*self._inputs, *frames), length)

    def _other_source(self, length: int) -> bool:
        """Whether the module that is running was given a second sequence of this length to read."""
        for frame in reversed(self._tracker.frames):
            given = [t for t in frame.tensors if t.ndim == 3 and t.is_floating_point()]
            if given:
                return len({id(t) for t in given if length in t.shape[:2]}) > 1
        return False


_SIMPLE = frozenset(
    {
        nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Dropout, nn.SiLU, nn.GELU, nn.ReLU, nn.Identity,
        nn.ModuleList, nn.ModuleDict,
    }
)  # fmt: skip
_FORMS = {
    "scaled_dot_product_attention": "_sdpa",
    "multi_head_attention_forward": "_multi_head",
    "flex_attention": "_flex",
    "conv1d": "_conv1d",
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), "_cell"),
}
_STEPS = "recurrent cells run one step at a time: capture the module that loops by capture(..., jacobian=...)"
_OUTER = frozenset({"add", "sub", "mul", "__add__", "__sub__", "__mul__", "cdist"})
_DROPOUTS = frozenset(
    f"{kind}dropout{suffix}"
    for kind in ("", "alpha_", "feature_", "feature_alpha_")
    for suffix in ("", "_", "1d", "2d", "3d")
)


def _reads_future(weights: Tensor) -> bool:
    return bool(weights.triu(1).ne(0).any())


def _has_pair(shape: torch.Size) -> bool:
    return any(count > 1 and size > 1 for size, count in Counter(shape).items())
