"""Reads the functions and modules that are recognised by their names and attributes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture import registry
from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.families import MODULES, OPEN
from ess_widgets.capture.interception.tape import Leaf, map_tree
from ess_widgets.capture.linearisation.linearised import Linearised
from ess_widgets.capture.reading import Call, ModuleCall, ModuleRecogniser, Reading
from ess_widgets.capture.recognition.functions import FunctionWatcher, Transparent
from ess_widgets.capture.recognition.names import mixes, recogniser, sounds_known, suits, unknown
from ess_widgets.capture.record import Record

__all__ = ["Recognition"]


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


class Recognition:
    """Looks at functions and modules that mix tokens where torch's calls alone would not tell.

    Parameters
    ----------
    record : Record
        Where layers are added.
    owner : callable
        The path of the module that holds a weight.
    chosen : collection of nn.Module
        Modules that are captured by their Jacobians.

    Attributes
    ----------
    exclusive : int
        How many modules are running inside which nothing else is captured.
    """

    def __init__(
        self, record: Record, owner: Callable[[Tensor], str | None], chosen: Collection[nn.Module]
    ) -> None:
        self._record, self._owner, self._chosen = record, owner, chosen
        self.exclusive = 0
        self.functions = FunctionWatcher(sounds_known, self._function_begins, self._function_ends)

    @property
    def active(self) -> bool:
        """Whether what runs now is captured as a whole."""
        return self.functions.inside or self.exclusive > 0

    def reveal(self) -> None:
        """Attention begins: no function that is known by its name calls it, so it is another one of that name."""
        if not self.exclusive:
            self.functions.reveal()

    def recogniser(self, module: nn.Module) -> ModuleRecogniser | None:
        """What reads a module of this kind."""
        if isinstance(module, nn.RNNBase) and module in self._chosen:
            return None
        built_in = () if type(module) in _SIMPLE else MODULES
        registered = next((known for known in registry.MODULES if known.fits(module)), None)
        return registered or next((known for known in built_in if _fits(known, module)), None)

    def module_begins(self, recogniser: ModuleRecogniser) -> int:
        """Note what was captured before."""
        self.exclusive += recogniser.exclusive
        return len(self._record.found)

    def module_ends(self, recogniser: ModuleRecogniser, before: int, call: ModuleCall | None) -> None:
        """Read a module, unless what is inside it has told already."""
        self.exclusive -= recogniser.exclusive
        inside = any(found.family != "convolution" for found in self._record.found[before:])
        if call is not None and not self.active and not inside:
            what = type(call.module).__name__
            try:
                registered = recogniser in registry.MODULES
                with torch.set_grad_enabled(self._record.leaves.differentiable):
                    reading = recogniser.read(call) if registered else _attempt(recogniser.read, call)
            except registry.ReadingFailed as failed:
                raise CaptureError(
                    f"layer {self._record.tracker.path_of(call.module, what)!r}: {failed}"
                ) from failed
            if isinstance(reading, tuple) and len(self._record.found) > before:
                reading = tuple(
                    part for part in reading if part.family != "convolution"
                )  # it was seen itself
            if isinstance(reading, Reading) and reading.family == "convolution":
                del self._record.found[before:]  # the same without its gates
            self._read(what, reading)

    def _function_begins(self, name: str, arguments: dict[str, Any], again: Callable[..., Any]) -> Any:
        if self.exclusive:
            return None
        if suits(name, arguments) is None:
            return _Unknown(name, self._record.noted) if mixes(name, arguments) else None
        with torch._C.DisableTorchFunction():
            kept = map_tree(
                arguments, lambda item: self._record.keep(item) if isinstance(item, Tensor) else item
            )
            if name not in OPEN:
                return name, kept, again
            weight = arguments.get("weight")
            path = self._owner(weight) if isinstance(weight, Tensor) else None
            return _Open(name, kept, again, self._record.noted, path)

    def _function_ends(self, token: Any, result: Any) -> None:
        if result is None:
            return  # it raised, or does not do it here
        if isinstance(token, _Unknown):
            if self._record.noted == token.before:
                self._read(token.name, unknown(token.name))
            return
        path = None
        if isinstance(token, _Open):
            if self._record.noted != token.before:
                return
            path = token.path
            token = token.name, token.arguments, token.again
        name, kept, again = token
        with torch._C.DisableTorchFunction():
            arguments = map_tree(kept, lambda item: item.tensor if isinstance(item, Leaf) else item)
            module = self._record.tracker.frames[-1].module if self._record.tracker.frames else None
            read = recogniser(name)
            assert read is not None
            self._read(name, _attempt(read, Call(name, arguments, result, again, module)), path)

    def _read(
        self, what: str, reading: Reading | tuple[Reading, ...] | Linearised | str, path: str | None = None
    ) -> None:
        self._record.seen.calls[what] += 1
        if isinstance(reading, str):
            if reading:
                self._record.skip(f"{what}: {reading}", path)
            return
        if isinstance(reading, tuple):
            for part in reading:
                self._read(what, part)
            return
        if not isinstance(reading, Reading):
            reading.hold(self._record.leaves)
            name, wanted = self._record.next()
            reading.name = name
            self._record.add(
                name, reading if wanted else None, reading.own_tokens, crosses=False, family=reading.family
            )
            return
        self._record.constructed(reading, path or self._inside(reading.name))

    def _inside(self, name: str | None) -> str | None:
        """A name that begins with a dot belongs to something inside the running module."""
        if name is None or not name.startswith("."):
            return name
        path = self._record.tracker.frames[-1].path if self._record.tracker.frames else ""
        return path + name if path else name[1:]


def _fits(known: ModuleRecogniser, module: nn.Module) -> bool:
    """Whether a module has the attributes of a kind; some object to being asked, and are of none."""
    try:
        return known.fits(module)
    except Exception:  # noqa: BLE001 - whatever the user's properties raise
        return False


def _attempt(read: Callable[[Any], Any], call: Call | ModuleCall) -> Any:
    """What a recogniser makes of a call; a call that it cannot cope with is left out and does not end the run."""
    try:
        return read(call)
    except Exception as error:  # noqa: BLE001 - whatever arguments of another meaning lead to
        return f"it could not be read ({type(error).__name__}: {error}); ew.register teaches it"


# Asking a module for an attribute that it lacks is slow, and most modules are of these kinds.
_SIMPLE = frozenset(
    {
        nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Dropout, nn.SiLU, nn.GELU, nn.ReLU, nn.Identity,
        nn.ModuleList, nn.ModuleDict,
    }
)  # fmt: skip
