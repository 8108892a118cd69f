"""The playground: toy operators whose parameters are dragged, drawn in the explorer's linked views."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t

from ess_widgets.operators import Operator

from ..analysis import Measure
from ..measured import Measured
from ..requests import answer
from ..selection import Extent, Selection
from ..tokens import indexed
from ..view import View
from ..worker import Worker
from .measured import LAYER, Setup, menu
from .parameters import Whole
from .poles import Pole
from .toys import find

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Parameters", "Playground", "playground"]

SHORTEST, LONGEST = 2, 256
_length = Whole("length", "length", SHORTEST, lambda _: LONGEST, lambda _: 64)


class Parameters(dict[str, Any]):
    """Parameters of the toy by name; setting one sets it in the playground."""

    _owner: Playground | None = None

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def update(self, *others: Any, **values: Any) -> None:
        """Set several at once."""
        changed = dict(*others, **values)
        if self._owner is None:
            dict.update(self, changed)
            return
        self._owner.parameters = changed
        dict.update(self, self._owner.parameters)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("A toy always has all of its parameters: they can be set, not removed.")

    __delitem__ = clear = pop = popitem = _refuse


class Playground(View, Measured):
    """Toy operators: their picture, profile and singular values while their parameters are dragged.

    See :func:`playground`.

    Attributes
    ----------
    toy : str
        Which operator; settable. Each toy keeps its parameters until it is chosen again.
    length : int
        ``L``; settable, 2 to 256.
    parameters : dict
        Parameters of the toy by name. ``pg.parameters = {"k": 5}`` and ``pg.parameters["k"] = 5`` set some and
        leave the others.
    poles : list of Pole
        Those of the toy "poles", complex numbers with an ``order``, a conjugate pair once; setting them shows that toy.
        ``pg.poles = [0.9, 0.5 + 0.3j, (0.7, 2)]`` has a Jordan pair at the end.
    operator : Operator
        The toy as an operator, ``(L, L)``.
    ess : numpy.ndarray
        What is measured, by ``kind``, ``tol`` and ``relative``, ``(L,)``, float64.
    closed_form : numpy.ndarray
        The rank of every ``H_i`` in exact arithmetic, ``(L,)``, int64.
    formula, warnings : str, list of str
        The closed form in words, and what is unusual about the parameters.
    selection : Selection
        What is brushed; ``pg.selection = {"position": 5}`` sets fields of it.
    """

    _view = t.Unicode("Playground").tag(sync=True)

    toy = t.Unicode()
    length = t.Int()
    parameters = t.Dict()
    scale = t.Enum(["log", "linear"], "log").tag(sync=True, echo_update=False)

    menu = t.List(t.Dict()).tag(sync=True)
    tokens = t.Dict(None, allow_none=True).tag(sync=True)
    layers = t.List(t.Dict()).tag(sync=True)
    toy_data = t.Dict().tag(sync=True)
    operator_data = t.Dict().tag(sync=True)
    spectrum_data = t.Dict().tag(sync=True)
    profile_data = t.Dict().tag(sync=True)
    status = t.Dict({"phase": "idle", "message": "", "progress": None}).tag(sync=True)

    def __init__(
        self,
        toy: str = "delay",
        length: int = 64,
        *,
        selection: Selection | None = None,
        options: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> None:
        chosen, length = find(toy), _length.check(length, LONGEST)
        self._lock = threading.RLock()
        self._mirroring = threading.local()
        self._remembered: dict[str, Mapping[str, Any]] = {}
        self._setup = Setup(chosen, length, chosen.check(parameters, length))
        self._shown: tuple[Setup, Measure] | None = None
        self._requests: dict[str, Mapping[str, Any]] = {}
        self._error: BaseException | None = None
        self._worker: Worker | None = None
        super().__init__(selection=selection, menu=menu(), title="Playground", **(options or {}))
        if self.selection.position is None:
            self.selection.position = length // 2
        self._change(self._setup)
        self._show()
        self.on_msg(self._on_message)
        self.selection.observe(self._on_selection)
        self._worker = Worker(self._step, self._fail, "ess_widgets playground")

    # What the user asks for

    @property
    def poles(self) -> list[Pole]:
        with self._lock:
            values = self._values("poles", self._setup.length)
        return list(values["poles"])

    @poles.setter
    def poles(self, poles: Iterable[Any]) -> None:
        self._set("poles", None, {"poles": poles})

    @property
    def operator(self) -> Operator:
        return self._setup.operator

    @property
    def ess(self) -> np.ndarray:
        return self._setup.ess(self.measure)

    @property
    def closed_form(self) -> np.ndarray:
        ranks: np.ndarray = self._setup.closed_form.copy()
        return ranks

    @property
    def formula(self) -> str:
        setup = self._setup
        return setup.toy.formula(setup.length, setup.values)

    @property
    def warnings(self) -> list[str]:
        setup = self._setup
        return setup.toy.warnings(setup.length, setup.values)

    def wait(self, timeout: float | None = 60.0) -> Awaitable[None] | None:
        """Return when the views have been sent what was set last.

        ``ess``, ``closed_form`` and ``operator`` need no waiting. Blocks in a plain script; where an event loop is
        running (a notebook) it returns an awaitable.

        Raises
        ------
        TimeoutError
            The views are not up to date in time.
        Exception
            Whatever the computation raised.
        """
        assert self._worker is not None
        later = self._worker.wait(timeout)
        if later is None:
            self._raise_error()
            return None

        async def wait() -> None:
            await later
            self._raise_error()

        return wait()

    def close(self) -> None:
        """Stop computing and close the widget."""
        worker = getattr(self, "_worker", None)  # None if the arguments were refused
        if worker is not None:
            worker.close()
        super().close()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "selection" and isinstance(value, Mapping):
            self.selection.update(**value)
        else:
            super().__setattr__(name, value)

    # Setting: every way in ends in `_change`, which replaces the setup as a whole

    def _values(self, toy: str, length: int) -> dict[str, Any]:
        """Present parameters of a toy, also of one that is not shown, as they are at this length."""
        setup = self._setup
        known = setup.values if setup.toy.name == toy else self._remembered.get(toy, {})
        chosen = find(toy)
        return chosen.fit(known, length) if length != setup.length or toy != setup.toy.name else dict(known)

    def _set(self, toy: str, length: int | None, values: Mapping[str, Any]) -> None:
        with self._lock:
            chosen, present = find(toy), self._setup
            size = present.length if length is None else _length.check(length, LONGEST)
            checked = chosen.check({**self._values(toy, size), **values}, size)
            self._change(Setup(chosen, size, checked))

    def _change(self, setup: Setup) -> None:
        with self._lock:
            old, self._setup = self._setup, setup
            self._remembered[old.toy.name] = old.values
            self._error = None
            parameters = Parameters(setup.values)
            parameters._owner = self
            self._mirroring.now = True
            try:
                self.toy, self.length, self.parameters = setup.toy.name, setup.length, parameters
            finally:
                self._mirroring.now = False
            if not self._fits(setup.length):
                extent = Extent([LAYER], {LAYER: 1}, setup.length)
                self.selection._fit(extent, layer=LAYER)
                self._fitted = self.selection, setup.length
        self._wake()

    def _fits(self, length: int) -> bool:
        """Whether the selection has been told of this length."""
        return getattr(self, "_fitted", None) == (self.selection, length)

    def _is_mirroring(self) -> bool:
        return bool(getattr(self._mirroring, "now", False))

    @t.validate("toy")
    def _check_toy(self, proposal: Any) -> str:
        return find(proposal.value).name

    @t.validate("length")
    def _check_length(self, proposal: Any) -> int:
        length = _length.check(proposal.value, LONGEST)
        if not self._is_mirroring():
            self._setup.toy.check(self._setup.values, length)
        return length

    @t.validate("parameters")
    def _check_parameters(self, proposal: Any) -> dict[str, Any]:
        if self._is_mirroring():
            return proposal.value  # type: ignore[no-any-return]
        setup = self._setup
        checked = Parameters(setup.toy.check({**setup.values, **proposal.value}, setup.length))
        checked._owner = self
        return checked

    @t.observe("toy", "length", "parameters")
    def _on_set(self, change: Any) -> None:
        if self._is_mirroring() or not hasattr(self, "_setup"):
            return
        if change.name == "toy":
            self._set(change.new, None, {})
        elif change.name == "length":
            self._set(self._setup.toy.name, change.new, {})
        else:
            self._set(self._setup.toy.name, None, change.new)

    @t.observe("kind", "tol", "relative")
    def _on_measure(self, change: Any) -> None:
        self._wake()

    @t.observe("selection")
    def _on_new_selection(self, change: Any) -> None:
        if isinstance(change.old, Selection):
            change.old.unobserve(self._on_selection)
            self.selection.observe(self._on_selection)
            self.selection._fit(Extent([LAYER], {LAYER: 1}, self._setup.length), layer=LAYER)
            self._fitted = self.selection, self._setup.length

    def _on_selection(self, change: Any) -> None:
        # Whoever observes the playground's selection hears of its fields; the browser needs no second message.
        changed = t.Bunch(name="selection", old=None, new=self.selection, owner=self, type="change")
        t.HasTraits.notify_change(self, changed)

    def _on_message(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        if content.get("type") == "toy":
            self._take(content)
        elif content.get("type") in ("vectors", "detail"):
            self._requests[content["type"]] = content
            self._wake()

    def _take(self, wish: Mapping[str, Any]) -> None:
        """What the browser asks for. It may be a moment behind: what does not fit is fitted, not refused."""
        with self._lock:
            present = self._setup
            try:
                toy = find(wish.get("toy", present.toy.name))
                length = _length.check(wish.get("length", present.length), LONGEST)
                given = wish.get("parameters", {})
                values = self._values(toy.name, length)
                for parameter in toy.parameters:
                    if parameter.name in given:
                        value = parameter.from_wire(given[parameter.name])
                        values[parameter.name] = parameter.fit(value, length)
                checked = toy.check(values, length)
            except (TypeError, ValueError) as error:
                self._publish(status=_status("error", str(error)))
                return
            self._change(Setup(toy, length, checked, int(wish.get("stamp", 0))))

    # Showing, on the worker's thread

    def _wake(self) -> None:
        if self._worker is not None:
            self._worker.wake()

    def _step(self) -> bool:
        setup, measure = self._setup, self.measure
        if self._shown is None or self._shown[0] is not setup or self._shown[1] != measure:
            self._show()
            return True
        if self._requests:
            message = answer(setup.operator, LAYER, 0, self._requests.popitem()[1])
            if message is not None:
                self.send(*message)
            return True
        return False

    def _show(self) -> None:
        setup, measure = self._setup, self.measure
        if self._shown is not None and self._shown[0] is setup:
            traits: dict[str, Any] = {"profile_data": setup.profile(measure)}
        else:
            traits = {**setup.traits(measure), "status": _status("ready", "up to date")}
            if not self.tokens or len(self.tokens["labels"]) != setup.length:
                traits["tokens"] = indexed(setup.length)
        self._shown = setup, measure
        self._publish(**traits)

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._publish(status=_status("error", f"{type(error).__name__}: {error}"))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _status(phase: str, message: str) -> dict[str, Any]:
    return {"phase": phase, "message": message, "progress": None}


def playground(
    toy: str = "delay",
    length: int = 64,
    *,
    kind: str = "tolerance",
    tol: float = 1e-6,
    relative: bool = False,
    scale: str = "log",
    against: str = "ceiling",
    selection: Selection | None = None,
    **parameters: Any,
) -> Playground:
    """Toy operators whose memory is known: drag a parameter, and see closed form and measurement answer.

    Parameters
    ----------
    toy : str
        ``"diagonal"``, ``"sums"`` (``rows`` "sum", "mean" or "first"), ``"delay"`` (``k``), ``"fir"`` (``k``, ``taps``
        "random" or "equal", ``seed``), ``"poles"`` (``poles``), ``"dense"`` (``seed``), ``"softmax"``
        (``temperature``, 0 for hard and infinity for uniform; ``seed``), ``"linear_attention"`` (``d_k``, ``seed``),
        ``"delta_rule"`` (``beta``, ``d_k``, ``seed``), ``"gated"`` (``reset``, ``leak``, ``gate``, ``state``,
        ``seed``), ``"documents"`` (``boundary``, ``leak``, ``seed``), ``"combined"`` (``operation`` "sum" or
        "product", ``first``, ``second``, ``seed``).
    length : int
        ``L``, 2 to 256. Everything is computed again with every step of a drag: 64 is quick, 256 takes 0.2 s.
    kind, tol, relative
        Which ESS is measured, as in :func:`ess_widgets.ess`. The closed form is a rank: compare it with a small ``tol``.
    scale : {"log", "linear"}
        Colour scale of the operator.
    against : {"ceiling", "state_size"}
        What utilisation is taken against.
    selection : Selection, optional
        Shared with other views.
    **parameters
        Of the toy, by name; those left out have defaults.

    Returns
    -------
    Playground
        Displayed at the end of a notebook cell; usable from Python without a browser too.

    Raises
    ------
    TypeError
        The toy has no such parameter, or it has another type.
    ValueError
        There is no such toy, or a parameter is out of range.

    Examples
    --------
    >>> pg = playground("delay", length=12, k=3)
    >>> pg.ess
    array([0., 1., 2., 3., 3., 3., 3., 3., 3., 3., 2., 1.])
    >>> pg.parameters["k"] = 10
    >>> pg.closed_form
    array([0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1])
    >>> pg.poles = [0.9, 0.9, 0.4 + 0.3j]
    >>> pg.toy, int(pg.closed_form.max()), pg.formula
    ('poles', 3, 'ESSᵢ = min(n, i, L − i) with n = 3 different modes of the state of 4')
    >>> pg.close()
    """
    options = {"kind": kind, "tol": tol, "relative": relative, "scale": scale, "against": against}
    return Playground(toy, length, selection=selection, options=options, **parameters)
