"""What a run changes in its thread, and putting it back whatever happens, an interrupt at any moment included."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import torch

__all__ = ["Quiet", "quietly"]

Result = TypeVar("Result")


def quietly(call: Callable[[Quiet], Result], *, gradients: bool = False) -> Result:
    """Call without inference mode, with gradients or without, autocast as it is but without its cache; then put
    everything back."""
    quiet = Quiet(gradients)
    interrupt = None
    try:
        quiet.begin()
        return call(quiet)
    finally:
        # Not a context manager: the interpreter delivers an interrupt where a function begins, thus at the first
        # line of an ``__exit__`` too. Here it meets a ``try``, and what it cut short is done once more.
        while True:
            try:
                quiet.end()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


class Quiet:
    """The state of this thread before a run.

    Attributes
    ----------
    afterwards : list of callable
        What else to do at the end, the last first; may be called more than once.
    """

    def __init__(self, gradients: bool = False) -> None:
        self._gradients = gradients
        self.afterwards: list[Callable[[], None]] = []
        self._modes = _function_modes()
        self._inference = torch.is_inference_mode_enabled()
        self._no_inference: Any = None
        self._grad = torch.is_grad_enabled()
        self._cache = torch.is_autocast_cache_enabled()
        self._nesting = _autocast_nesting()
        self._profile = sys.getprofile()
        # (Flex attention compiles itself, and imports the compiler, when it is first called.)
        self._guards: Any = sys.modules.get("torch._guards")
        self._tracing = getattr(self._guards._TLS, "tracing_context", None) if self._guards else None
        self._streams = _Streams() if threading.current_thread() is threading.main_thread() else None

    def begin(self) -> None:
        """Prepare the thread."""
        if self._inference:
            self._no_inference = torch._C._InferenceMode(False)
            self._no_inference.__enter__()
        torch._C._set_grad_enabled(self._gradients)
        # Autocast's cache is common to all threads, and it is emptied when the outermost region of any thread ends.
        torch.set_autocast_cache_enabled(False)
        torch.autocast_increment_nesting()
        if self._guards is not None:
            # A compiled function inside the model is run as it was written: tracing it under interception would add
            # to the recompilations of the user's own calls. torch runs it plainly in a thread whose tracing context
            # says that it is inside a kernel.
            self._guards._TLS.tracing_context = self._guards.TracingContext(_InsideKernel())

    def end(self) -> None:
        """Put everything back; may be called again where it was interrupted."""
        if sys.getprofile() is not self._profile:
            sys.setprofile(None)
            if self._profile is not None and hasattr(
                self._profile, "enable"
            ):  # a cProfile.Profile: sys.setprofile does not take it
                self._profile.enable()
            else:
                sys.setprofile(self._profile)
        _finish_contexts(sys.exc_info()[2])
        if _function_modes() != self._modes:
            while torch._C._len_torch_function_stack():
                torch._C._pop_torch_function_stack()
            for mode in self._modes:
                torch._C._push_on_torch_function_stack(mode)
        while self.afterwards:
            self.afterwards[-1]()
            self.afterwards.pop()
        if self._guards is not None:
            self._guards._TLS.tracing_context = self._tracing
        while _autocast_nesting() > self._nesting:
            torch.autocast_decrement_nesting()
        torch.set_autocast_cache_enabled(self._cache)
        if torch.is_inference_mode_enabled() != self._inference:
            self._no_inference.__exit__(None, None, None)
        torch._C._set_grad_enabled(self._grad)
        if self._streams is not None:
            self._streams.put_back()


class _Streams:
    """Python's and numpy's random numbers; torch's own are never touched."""

    def __init__(self) -> None:
        self._python = random.getstate()
        # Where nobody has imported it, there is no stream that anybody relies on.
        self._random: Any = sys.modules.get("numpy.random")
        self._numpy = None if self._random is None else self._random.get_state(legacy=False)

    def put_back(self) -> None:
        if random.getstate() != self._python:
            random.setstate(self._python)
        if self._random is not None:
            self._random.set_state(self._numpy)


class _InsideKernel:
    in_kernel_invocation = True
    shape_env = None


def _function_modes() -> list[Any]:
    return [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]


def _finish_contexts(traceback: TracebackType | None) -> None:
    """End generators that an interrupt cut off between their ``yield`` and their ``with``.

    The traceback keeps them, and whatever they put back would be put back when somebody lets go of it.
    """
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if frame.f_code.co_filename == contextlib.__file__:
            with contextlib.suppress(RuntimeError):  # still running
                frame.clear()


def _autocast_nesting() -> int:
    try:
        return torch.autocast_increment_nesting() - 1
    finally:
        torch.autocast_decrement_nesting()
