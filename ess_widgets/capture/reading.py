"""What a recogniser makes of a call or of a module: an operator, what it mixed and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.interception.tape import Leaf, Leaves, flat, map_tree
from ess_widgets.capture.linearisation.linearised import Linearised
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.operators import Operator

__all__ = [
    "Call",
    "Constructed",
    "ModuleCall",
    "ModuleRecogniser",
    "Reading",
    "Recogniser",
    "first_tensor",
    "without",
]


@dataclass(frozen=True)
class Call:
    """A call of a function that mixes tokens.

    Attributes
    ----------
    name : str
        The function's name.
    arguments : dict
        By the function's own parameter names, ``**kwargs`` merged in. Tensors are as they were when the call began.
    result
        What it returned.
    again : callable
        Calls the function once more, all arguments by name: for outputs without a skip or gate that the function
        fuses with the mixing, where undoing these would lose digits.
    module : nn.Module or None
        The innermost module that was running.
    """

    name: str
    arguments: Mapping[str, Any]
    result: Any
    again: Callable[..., Any]
    module: nn.Module | None = None

    def first(self, *names: str, default: Any = None) -> Any:
        """The first argument that is there under one of several names, and is not None."""
        return next((v for n in names if (v := self.arguments.get(n)) is not None), default)

    @property
    def output(self) -> Tensor | None:
        """The tensor that was returned, the first of a tuple."""
        return first_tensor(self.result)


@dataclass(frozen=True)
class ModuleCall:
    """A call of a module that mixes tokens.

    Attributes
    ----------
    module : nn.Module
        The module, of the copy that is run.
    args, kwargs
        What it was called with.
    result
        What it returned.
    children : dict
        Calls of the modules inside it, by their path within it; of several calls the last.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    children: Mapping[str, ChildCall] = field(default_factory=dict)

    @property
    def output(self) -> Tensor | None:
        """The tensor that was returned, the first of a tuple."""
        return first_tensor(self.result)


@dataclass(frozen=True)
class ChildCall:
    """What a module inside was given and returned."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    @property
    def input(self) -> Tensor | None:
        """The first tensor it was given."""
        return first_tensor((*self.args, *self.kwargs.values()))

    @property
    def output(self) -> Tensor | None:
        """The first tensor it returned."""
        return first_tensor(self.result)


@dataclass(frozen=True)
class Reading:
    """How to get ``T``, ``u`` and ``y`` from the tensors of a call; nothing is computed before it is asked for.

    Attributes
    ----------
    family : str
        As in :class:`~ess_widgets.capture.LayerCapture`.
    shape : tuple of int
        ``(batch, groups, L)``.
    tensors : dict
        What is kept, by name; values are as they are now, whatever the model writes later.
    operator : callable
        From ``tensors`` to the operator, leading dimensions ``(batch, groups)``. Where ``valid`` is among the
        function's parameters it is given ``(batch, 1, L)``, True for a sample's own tokens, or None.
    inputs, outputs : callable
        From ``tensors`` to ``u`` and ``y``, ``(batch, groups, L, width)``; with an operator of block ``d`` and
        groups ``(batch, groups)``, ``(batch, groups, d * L, width)``.
    name : str, optional
        The layer's name, where it is not the path of the running module; inside of that where it begins with a
        dot.
    group : str
        What a group is: "head", "channel", or "layer" where all channels are mixed together.
    computed : callable, optional
        From ``tensors`` to what shows NaN, ``(batch, groups or 1, L, width)``, where ``outputs`` does work for it.
    """

    family: str
    shape: tuple[int, int, int]
    tensors: Mapping[str, Any]
    operator: Callable[..., Operator]
    inputs: Callable[[Mapping[str, Any]], Tensor]
    outputs: Callable[[Mapping[str, Any]], Tensor]
    name: str | None = None
    group: str = "head"
    computed: Callable[[Mapping[str, Any]], Tensor] | None = None

    @property
    def length(self) -> int:
        """``L``."""
        return self.shape[-1]


# Several readings where one call mixes more than once. The reason where a call cannot be read; "" where the call is none of its business.
Recogniser = Callable[[Call], "Reading | tuple[Reading, ...] | str"]


@dataclass(frozen=True)
class ModuleRecogniser:
    """Reads modules that mix tokens inline or in a fused kernel.

    Attributes
    ----------
    fits : callable
        Whether a module is of the kind, by its attributes.
    read : callable
        From a :class:`ModuleCall` to a :class:`Reading`, or to the reason why not.
    exclusive : bool
        Whether nothing inside the module is captured by other means. Otherwise a reading is given up where
        something other than a convolution was captured inside.
    """

    fits: Callable[[nn.Module], bool]
    read: Callable[[ModuleCall], Reading | tuple[Reading, ...] | Linearised | str]
    exclusive: bool = False


class Constructed(Mixer):
    """An operator that one of the constructors builds from a reading's tensors."""

    def __init__(self, leaves: Leaves, reading: Reading) -> None:
        self.family, self.group = reading.family, reading.group
        self._shape = reading.shape
        self._reading, self._differentiable = reading, leaves.differentiable
        self._dtype = next(
            (t.dtype for t in flat(dict(reading.tensors)) if isinstance(t, Tensor) and t.is_floating_point()),
            torch.float32,
        )
        self._kept = map_tree(
            dict(reading.tensors), lambda item: leaves.keep(item) if isinstance(item, Tensor) else item
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def inputs(self) -> Tensor:
        with torch.set_grad_enabled(self._differentiable):
            return self._reading.inputs(self._tensors())

    def outputs(self) -> Tensor:
        with torch.set_grad_enabled(self._differentiable):
            return self._reading.outputs(self._tensors())

    def computed(self) -> Tensor:
        look = self._reading.computed or self._reading.outputs
        with torch.no_grad():
            return look(self._tensors())

    def dtype(self) -> torch.dtype:
        return self._dtype

    def allowed(self) -> Tensor | None:
        return None

    def future(self, valid: Tensor | None) -> Future | None:
        return None  # recurrences and causal convolutions cannot read it

    def operator(self, valid: Tensor | None) -> Operator:
        build = self._reading.operator
        with torch.set_grad_enabled(self._differentiable):
            if "valid" in build.__code__.co_varnames[: build.__code__.co_argcount]:
                return build(self._tensors(), valid=None if valid is None else valid.unsqueeze(1))
            return build(self._tensors())

    def settle(self) -> None:
        pass

    def reads(self, padding: Tensor) -> bool:
        """Whether there is something in padding ``(batch, L)`` before an own token, which finds it in the state."""
        before = padding & ((~padding).flip(-1).cumsum(-1).flip(-1) > 0)
        if not bool(before.any()):
            return False
        per_token = self.inputs().transpose(1, 2)
        per_token = per_token.reshape(*padding.shape, -1)
        return bool(per_token[before].any())

    def _tensors(self) -> dict[str, Any]:
        return map_tree(self._kept, lambda item: item.tensor if isinstance(item, Leaf) else item)  # type: ignore[no-any-return]


def without(y: Tensor, bare: Tensor, skip: Tensor | None, gate: Tensor | None) -> Tensor:
    """What was mixed, from ``y = (mixed + skip) gate`` as the model computed it.

    Parameters
    ----------
    y : Tensor
        The model's own result.
    bare : Tensor
        The same mixing by the model's own code, done once more without skip and gate. Where it agrees with ``y`` to
        the rounding of ``y``, it is the answer, with the digits that subtracting and dividing would have lost;
        elsewhere the difference is undone and added.
    skip, gate : Tensor, optional
        As the model adds and multiplies them.
    """
    whole = bare if skip is None else bare + skip
    whole = whole if gate is None else whole * gate
    size = whole.abs() if gate is None else (whole.abs() + gate.abs() * bare.abs())
    difference = (y - whole).double() if y.device.type != "mps" else (y - whole).float()
    rounding = 8 * torch.finfo(y.dtype).eps * (size + (0 if skip is None else skip.abs()))
    difference = torch.where(difference.abs() <= rounding, 0, difference)
    if gate is not None:
        difference = torch.where(difference == 0, 0, difference / gate)
    return (bare + difference).to(torch.promote_types(bare.dtype, torch.float32))


def first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((item for item in items if isinstance(item, Tensor)), None)
