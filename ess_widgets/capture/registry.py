"""Operators of a user's own layers: a function from a module and its call, registered once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.reading import ModuleCall, ModuleRecogniser, Reading
from ess_widgets.operators import Dense, Operator

__all__ = ["MODULES", "ReadingFailed", "Registration", "register", "unregister"]

Reader = Callable[[Any, ModuleCall], Any]
F = TypeVar("F", bound=Reader)


class ReadingFailed(Exception):
    """A registered function raised, or returned something that is no operator of its call."""


class Registration:
    """What :func:`register` returns: a decorator where the function is still missing, and a context manager.

    Leaving the context takes the registration back.
    """

    def __init__(self, kind: Any, read: Reader | None, family: str) -> None:
        self._kind, self._family = kind, family
        self.read = read
        self._recogniser: ModuleRecogniser | None = None
        if read is not None:
            self._add(read)

    def __call__(self, read: F) -> F:
        if self._recogniser is not None:
            raise TypeError("this registration has its function already.")
        if not callable(read):
            raise TypeError(f"register decorates a function of a module and its call, not {read!r}.")
        self._add(read)
        return read

    def __enter__(self) -> None:
        if self._recogniser is None:
            raise TypeError("with register(kind, function): the function is missing.")

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take it back; nothing happens where that was done before."""
        global MODULES, _known
        _known = tuple(entry for entry in _known if entry is not self)
        MODULES = tuple(entry._recogniser for entry in _known if entry._recogniser is not None)

    def _add(self, read: Reader) -> None:
        global MODULES, _known
        self.read = read
        fits, told = _fits(self._kind)
        self._recogniser = ModuleRecogniser(
            fits, lambda call: _reading(read, call, self._family, told), exclusive=True
        )
        _known = (self, *_known)
        MODULES = (self._recogniser, *MODULES)

    def stands_for(self, what: Any) -> bool:
        """Whether ``what`` is its function or what it was registered for."""
        return (
            what is self
            or what is self.read
            or what is self._kind
            or (isinstance(what, str) and what == self._kind)
        )


# The newest first; replaced as a whole, so that a capture in another thread goes through one or the other.
MODULES: tuple[ModuleRecogniser, ...] = ()
_known: tuple[Registration, ...] = ()


def register(kind: Any, read: Reader | None = None, *, family: str = "custom") -> Registration:
    """Tell :func:`ess_widgets.capture` how to read a layer of your own.

    Parameters
    ----------
    kind : type, str or callable
        Which modules: a class, the name of one, or a function of a module that returns whether it is one.
    read : callable, optional
        ``read(module, call)``, called whenever such a module has run, with ``call.args``, ``call.kwargs``,
        ``call.result`` and the calls of the modules inside it, ``call.children["name"].output``. Without it, ``register``
        decorates the function. It returns one of

        * an operator with leading dimensions ``(batch, groups)``, or none where it is the same for all samples and
          channels: ``u`` is then the first floating tensor that the module was given, ``y`` the one it returned;
        * ``(operator, u, y)``, with ``u`` and ``y`` ``(batch, L, width)`` or ``(batch, groups, L, width)``;
        * None where this module is to be left alone, or a str that says why it cannot be read.
    family : str
        What the layers are called in ``LayerCapture.family``.

    Returns
    -------
    Registration
        To be used as a decorator, or in a ``with`` statement, which takes it back at the end.

    Notes
    -----
    Registered functions go before everything that is recognised otherwise, the newest first. Inside a registered module
    nothing else is captured. ``residual`` proves the function right: it compares ``T u`` with ``y``.

    Examples
    --------
    >>> import torch, ess_widgets as ew
    >>> class Mean(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
    >>> @ew.register(Mean)
    ... def mean(module, call):
    ...     n = torch.arange(1, call.args[0].shape[1] + 1)
    ...     return ew.operators.Dense((1 / n[:, None]).expand(-1, len(n)).tril(), state_size=1)
    >>> cap = ew.capture(Mean(), torch.randn(2, 5, 3))
    >>> bool(cap[0].residual.max() < 1e-6)
    True
    >>> ew.unregister(Mean)
    """
    _fits(kind)
    if read is not None and not callable(read):
        raise TypeError(f"read must be a function of a module and its call, but is {read!r}.")
    return Registration(kind, read, family)


def unregister(what: Any) -> None:
    """Take registrations back: all for a class, name or predicate, or those of a function.

    Raises
    ------
    KeyError
        Where there are none.
    """
    found = [entry for entry in _known if entry.stands_for(what)]
    if not found:
        raise KeyError(f"nothing is registered for {what!r}.")
    for entry in found:
        entry.remove()


def _fits(kind: Any) -> tuple[Callable[[nn.Module], bool], str]:
    """Whether a module is of a kind, and the kind in words."""
    if isinstance(kind, type):
        if not issubclass(kind, nn.Module):
            raise TypeError(f"register takes classes of modules, but {kind.__name__} is none.")
        return lambda module: isinstance(module, kind), kind.__name__
    if isinstance(kind, str):
        if not kind:
            raise ValueError("register takes the name of a class, but the name is empty.")
        return lambda module: any(
            kind in (c.__name__, f"{c.__module__}.{c.__qualname__}") for c in type(module).__mro__
        ), kind
    if isinstance(kind, nn.Module):
        raise TypeError(
            f"register takes a class, its name or a predicate, not one {type(kind).__name__}: capture runs a copy of the "
            f"model. Register type(module), or a predicate that tells it by its attributes."
        )
    if callable(kind):
        return lambda module: _asked(kind, module), getattr(kind, "__name__", repr(kind))
    raise TypeError(f"register takes a class, its name or a predicate, but was given {kind!r}.")


def _asked(predicate: Callable[[nn.Module], Any], module: nn.Module) -> bool:
    try:
        return bool(predicate(module))
    except Exception as error:
        raise CaptureError(
            f"the function registered to tell which modules are meant raised {type(error).__name__} for a "
            f"{type(module).__name__}: {error}. It is asked about every module of the model."
        ) from error


def _reading(read: Reader, call: ModuleCall, family: str, told: str) -> Reading | str:
    try:
        answer = read(call.module, call)
    except Exception as error:
        raise ReadingFailed(
            f"the function registered for {told} raised {type(error).__name__}: {error}"
        ) from error
    if answer is None:
        return ""
    if isinstance(answer, Reading | str):
        return answer
    if isinstance(answer, Operator):
        return _given(answer, _input(call, told), _output(call, told), family, told)
    if isinstance(answer, tuple) and len(answer) == 3 and isinstance(answer[0], Operator):
        return _given(*answer, family, told)
    raise ReadingFailed(
        f"the function registered for {told} returned {_words(answer)}; it must return an operator, (operator, u, y), "
        "None or the reason why there is none."
    )


def _given(operator: Operator, u: Any, y: Any, family: str, told: str) -> Reading:
    for name, value in (("u", u), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (3, 4):
            raise ReadingFailed(
                f"the function registered for {told} must give {name} as a floating tensor (batch, L, width) or (batch, "
                f"groups, L, width), but it is {_words(value)}."
            )
    lead, L, block = tuple(operator.shape[:-2]), operator.length, operator.block
    if len(lead) not in (0, 2):
        raise ReadingFailed(
            f"the function registered for {told} returned an operator with leading dimensions {lead}; they must be (batch, "
            "groups), a group being a head or a channel, or none at all."
        )
    batch, groups = lead or (u.shape[0], 1)
    shaped = [_grouped(value, name, batch, groups, L, block, told) for name, value in (("u", u), ("y", y))]
    if shaped[0].shape != shaped[1].shape:
        raise ReadingFailed(
            f"the function registered for {told} gave u and y of different shapes, {tuple(u.shape)} and {tuple(y.shape)}."
        )

    def whole(_: Mapping[str, Any]) -> Operator:
        if lead:
            return operator
        T, size = operator.matrix(), operator.state_size
        return Dense(T.expand(batch, 1, *T.shape), block=block, state_size=size)

    return Reading(
        family,
        (batch, groups, L),
        {"u": shaped[0], "y": shaped[1]},
        whole,
        lambda tensors: tensors["u"],
        lambda tensors: tensors["y"],
        group="layer" if block > 1 else "head",
    )


def _grouped(value: Tensor, name: str, batch: int, groups: int, L: int, block: int, told: str) -> Tensor:
    """As ``(batch, groups, L, width)``; ``(batch, groups, block * L, width)`` for blocks."""
    shape = tuple(value.shape)
    if value.ndim == 4 and shape[:3] == (batch, groups, block * L):
        return value
    if value.ndim == 3 and shape[:2] == (batch, L):
        if block > 1 and groups == 1 and shape[2] == block:
            return value.reshape(batch, 1, L * block, 1)
        if block == 1 and shape[2] % groups == 0:
            return value.reshape(batch, L, groups, shape[2] // groups).transpose(1, 2)
    wanted = f"(batch, groups, {'block * ' if block > 1 else ''}L, width) = ({batch}, {groups}, {block * L}, width)"
    raise ReadingFailed(
        f"the function registered for {told} gave {name} of shape {shape}, but its operator wants {wanted}, or (batch, L, "
        f"channels) = ({batch}, {L}, channels) with channels that {groups} groups share evenly."
    )


def _input(call: ModuleCall, told: str) -> Tensor:
    for value in (*call.args, *call.kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (3, 4):
            return value
    raise ReadingFailed(
        f"{told} was given no floating tensor (batch, L, width): return (operator, u, y) from the function registered "
        "for it."
    )


def _output(call: ModuleCall, told: str) -> Tensor:
    y = call.output
    if y is None:
        raise ReadingFailed(
            f"{told} returned no tensor: return (operator, u, y) from the function registered for it."
        )
    return y


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(item).__name__ for item in value)}"
    return f"{type(value).__name__}"
