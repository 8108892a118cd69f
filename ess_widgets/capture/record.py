"""What a run brings to light: the layers found, in their order, what was left out, and whose tokens are padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ess_widgets.capture.attention.joined import Chunks, Joins, Rows
from ess_widgets.capture.attention.layout import batch_size
from ess_widgets.capture.attention.weights import Weights
from ess_widgets.capture.interception import padding
from ess_widgets.capture.interception.tape import Leaf, Leaves
from ess_widgets.capture.linearisation.linearised import Linearised
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.capture.names import PathTracker, Selector
from ess_widgets.capture.reading import Constructed, Reading

__all__ = ["Found", "Record", "Seen"]


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


class Record:
    """The layers of one run.

    Parameters
    ----------
    tracker : PathTracker
        Knows the module in which a call happens.
    selector : Selector
        Which layers to keep.
    leaves : Leaves
        References to tensors as they are now.
    inputs : list of Tensor
        What the model was given; tells the batch size.
    stated : list of Tensor
        Padding masks that the model was given, ``(batch, L)``, True for own tokens.
    on_layer : callable, optional
        Called with the name and index of each layer.
    """

    def __init__(
        self,
        tracker: PathTracker,
        selector: Selector,
        leaves: Leaves,
        inputs: list[Tensor],
        stated: list[Tensor],
        on_layer: Callable[[str, int], None] | None = None,
    ) -> None:
        self.found: list[Found] = []
        self.seen = Seen()
        self.tracker, self.leaves = tracker, leaves
        self.joins = Joins(leaves)
        self._selector, self._on_layer = selector, on_layer
        self._inputs, self._stated = inputs, stated
        self._names: Counter[str] = Counter()
        self._rectangles: dict[str, list[tuple[int, int]]] = {}
        self._inferred: dict[tuple[int, int], Tensor | None] = {}

    def keep(self, tensor: Tensor) -> Leaf:
        """A reference to a tensor's present values."""
        return self.leaves.keep(tensor)

    @property
    def noted(self) -> int:
        """How many layers have been captured or left out."""
        return len(self.found) + len(self.seen.skipped)

    def constructed(self, reading: Reading, path: str | None = None) -> None:
        """Add what a recogniser read."""
        name, wanted = self.next(path)
        self.add(name, Constructed(self.leaves, reading) if wanted else None, family=reading.family)

    def linearised(self, path: str, mixer: Linearised) -> None:
        """Add a module that is captured by its Jacobian because the user asked for it."""
        mixer.hold(self.leaves)
        name, _ = self.next(path)
        self.add(name, mixer, mixer.own_tokens, crosses=False, family=mixer.family)
        self.found[-1].asked = True
        for inside in [p for p in self.seen.skipped if p == path or p.startswith(path + ".")]:
            if self.seen.skipped[inside] == _STEPS:
                del self.seen.skipped[inside]

    def cell(self, name: str) -> None:
        """A recurrent cell took one step."""
        self.seen.calls[name] += 1
        self.seen.skipped.setdefault(self.tracker.path, _STEPS)

    def next(self, name: str | None = None) -> tuple[str, bool]:
        """The name of the next layer at a path, the running module's by default, and whether it is to be kept."""
        path = name or self.tracker.path
        count = self._names[path]
        self._names[path] += 1
        name = f"{path}#{count}" if count else path
        return name, self._selector.keep(name, len(self.found))

    def add(
        self,
        name: str,
        mixer: Mixer | None,
        valid: Tensor | None = None,
        crosses: bool | None = None,
        family: str = Mixer.family,
    ) -> None:
        """Add a layer; without ``valid`` its own tokens are those of the run."""
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

    def rectangle(self, queries: int, keys: int, piece: Rows | None, result: Tensor) -> None:
        """Some queries that read other keys than their own, or more: perhaps a chunk of something square."""
        path = self.tracker.path
        self._rectangles.setdefault(path, []).append((queries, keys))
        self._tell_rectangles(path)
        if piece is not None and self._selector.keep(path, len(self.found)):
            self.joins.add(result, piece, path)

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

    def join(self, tags: list[Any], mixer: Mixer) -> None:
        """Let one layer take the place of the results that it joins."""
        founds = [tag for tag in tags if isinstance(tag, Found)]
        for path in (tag for tag in tags if isinstance(tag, str)):
            self._rectangles[path].pop()
            self._tell_rectangles(path)
        if not founds:
            name, wanted = self.next(next(tag for tag in tags if isinstance(tag, str)))
            self.add(name, mixer if wanted else None, family=mixer.family)
            return
        first = founds[0]
        first.mixer, first.family = mixer, mixer.family
        if isinstance(mixer, Chunks):
            first.valid = self._own_tokens(mixer)
            first.future = mixer.future(first.valid)
        else:
            first.future = next((found.future for found in founds if found.future is not None), None)
        self.found = [found for found in self.found if found is first or all(found is not f for f in founds)]

    def skip(self, reason: str, path: str | None = None) -> None:
        """Note why a layer is left out; a second one at the same path beside the first."""
        path = path or self.tracker.path
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

    def batch(self, length: int) -> int | None:
        """The batch size of sequences of this length."""
        if self._stated and self._stated[0].shape[1] == length:
            return self._stated[0].shape[0]
        frames = (tensor for frame in reversed(self.tracker.frames) for tensor in frame.tensors)
        return batch_size((*self._inputs, *frames), length)

    def _other_source(self, length: int) -> bool:
        """Whether the module that is running was given a second sequence of this length to read."""
        for frame in reversed(self.tracker.frames):
            given = [t for t in frame.tensors if t.ndim == 3 and t.is_floating_point()]
            if given:
                return len({id(t) for t in given if length in t.shape[:2]}) > 1
        return False


_STEPS = "recurrent cells run one step at a time: capture the module that loops by capture(..., jacobian=...)"
