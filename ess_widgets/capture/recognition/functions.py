"""Sees calls of Python functions by their names, wherever they are called from, without patching anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

__all__ = ["FunctionWatcher", "Transparent"]

# From 3.12 on, switching a profile function on and off makes the interpreter revisit all code: it stays on.
_CHEAP_SWITCH = sys.version_info < (3, 12)


class Transparent:
    """What ``begin`` of a :class:`FunctionWatcher` returns for a call inside which others are looked at."""


class FunctionWatcher:
    """A profile function of one thread.

    Parameters
    ----------
    is_known : callable
        Whether calls of functions of this name are looked at; asked once for each name.
    begin : callable
        Given the name of such a call, its arguments, and a function that does it again with arguments by name; what
        it returns is handed to ``end``. None: not interested.
    end : callable
        Given that and the result; calls inside are not looked at, unless what ``begin`` returned is a
        :class:`Transparent`. Where the function raised, the result is None.

    Attributes
    ----------
    inside : bool
        Whether a known function is running.
    """

    def __init__(
        self,
        is_known: Callable[[str], bool],
        begin: Callable[[str, dict[str, Any], Callable[..., Any]], Any],
        end: Callable[[Any, Any], None],
    ) -> None:
        self._is_known, self._begin, self._end = is_known, begin, end
        self._names: dict[str, bool] = {}
        self.inside = False
        self._frame: FrameType | None = None
        self._token: Any = None
        self._open: dict[FrameType, Transparent] = {}
        self._before: Any = None
        self._profile = self._see

    def __enter__(self) -> None:
        self._before = sys.getprofile()
        if hasattr(self._before, "disable"):  # a cProfile.Profile: it cannot be set again by sys.setprofile
            self._before.disable()
        sys.setprofile(self._profile)

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        self._frame = self._token = None
        self.inside = False
        self._open.clear()
        before, self._before = self._before, None
        if hasattr(before, "enable"):
            before.enable()
        elif before is not None:
            sys.setprofile(before)

    def reveal(self) -> None:
        """Look inside the known function that is running: it turned out to be another one."""
        self._frame = self._token = None
        self.inside = False

    def pause(self) -> None:
        """Look away while the package's own code runs."""
        if _CHEAP_SWITCH:
            sys.setprofile(None)

    def resume(self) -> None:
        """Look again."""
        if _CHEAP_SWITCH:
            sys.setprofile(self._profile)

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            if self._frame is not None:
                return
            name = frame.f_code.co_name
            known = self._names.get(name)
            if known is None:
                known = self._names[name] = self._is_known(name)
            if known:
                token = self._begin(name, arguments(frame), again(frame))
                if isinstance(token, Transparent):
                    self._open[frame] = token
                elif token is not None:
                    self._frame, self._token, self.inside = frame, token, True
        elif event == "return" and frame is self._frame:
            token, self._frame, self._token, self.inside = self._token, None, None, False
            self._end(token, arg)
        elif event == "return" and self._open and frame in self._open:
            self._end(self._open.pop(frame), arg)


def arguments(frame: FrameType) -> dict[str, Any]:
    """The arguments of a call that begins, by parameter name, ``**kwargs`` merged in."""
    code: CodeType = frame.f_code
    local = frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount
    found = {name: local[name] for name in code.co_varnames[:count] if name in local}
    if code.co_flags & CO_VARARGS:
        name = code.co_varnames[count]
        found[name] = local.get(name, ())
        count += 1
    if code.co_flags & CO_VARKEYWORDS:
        found.update(local.get(code.co_varnames[count], {}))
    return found


def again(frame: FrameType) -> Callable[..., Any]:
    """The function whose call begins, to be called with all of its arguments by name."""
    code, local = frame.f_code, frame.f_locals
    cells = tuple(CellType(local[name]) if name in local else CellType() for name in code.co_freevars)
    function = FunctionType(code, frame.f_globals, code.co_name, None, cells)
    positional = code.co_varnames[: code.co_argcount]
    rest = code.co_varnames[len(positional) + code.co_kwonlyargcount] if code.co_flags & CO_VARARGS else None

    def call(**given: Any) -> Any:
        values = [given.pop(name) for name in positional]
        values += given.pop(rest, ()) if rest is not None else ()
        return function(*values, **given)

    return call
