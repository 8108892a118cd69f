"""An interrupt at any moment leaves the thread and the model as they were."""

from __future__ import annotations

import _thread
import dis
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ess_widgets import capture
from ess_widgets.capture.interception.inplace import ALONE
from tests.unit.models import Fused, InPlace, TinyLM, tokens
from tests.unit.test_capture_untouched import same, state

X = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
REGISTRY: dict[str, nn.Module] = {}


class Hidden(nn.Module):
    """Reaches its attention in a way that no copy follows: it is run in place."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = InPlace()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))
        REGISTRY["attn"] = self.attn

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return REGISTRY["attn"](x)


def thread_state() -> dict[str, Any]:
    nesting = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return {
        "modes": torch._C._len_torch_function_stack(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_cache_enabled(), nesting, torch.is_autocast_enabled("cpu")),
        "profile": sys.getprofile(),
        "tracing": torch._guards.TracingContext.try_get(),
        "random": (random.getstate(), np.random.get_state()[1].tolist()),
    }


def is_free(lock: Any) -> bool:
    """Whether another thread could take the lock."""
    answers: list[bool] = []

    def try_it() -> None:
        if answers.append(lock.acquire(blocking=False)) or answers[0]:
            lock.release()

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return answers[0]


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    before, thread = state(model), thread_state()
    yield
    assert thread_state() == thread
    after = state(model)
    assert [key for key in before if not same(before[key], after[key])] == []
    assert is_free(ALONE)


def interrupted(
    call: Callable[[], Any], at: int, where: Callable[[str], bool], last: bool = False
) -> str | None:
    """Interrupt where the ``at``-th function begins, of those in the files that ``where`` accepts.

    This is where the interpreter looks for signals, and behind calls of builtins: with ``last``, the interrupt comes
    at the function's last instruction. Returns the function, or None where there are fewer.
    """
    count, reached = 0, None

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count, reached
        if reached is not None or not where(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = last
        if event == ("opcode" if last else "call"):
            count += not last or dis.opname[frame.f_code.co_code[frame.f_lasti]] == "RETURN_VALUE"
            if count == at:
                reached = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
                sys.settrace(None)
                del frame  # a signal's handler would not keep it
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        assert reached is not None
    finally:
        sys.settrace(before)
    return reached


def ours(file: str) -> bool:
    return "ess_widgets" in file and "capture" in file and "tests" not in file


def around(file: str) -> bool:
    """The files whose functions change the thread or the model."""
    return file.endswith(
        ("session.py", "quiet.py", "inplace.py", "functions.py", "modules.py", "overrides.py")
    )


def anywhere(file: str) -> bool:
    return "torch" in file or ours(file)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("where", "step"), [(around, 1), (ours, 7), (anywhere, 31)], ids=["around", "ours", "anywhere"]
)
@pytest.mark.parametrize("kind", ["copied", "in place"])
def test_wherever_a_function_begins(kind: str, where: Callable[[str], bool], step: int) -> None:
    model: nn.Module = Hidden() if kind == "in place" else nn.Sequential(InPlace())
    model.train()
    reached = set()
    with left_alone(model):
        capture(model, X)
    for at in range(1, 20_000, step):
        with left_alone(model):
            found = interrupted(lambda: capture(model, X), at, where)
        if found is None:
            break
        reached.add(found)
    else:
        raise AssertionError("the capture never ended")
    assert len(reached) > 8, reached


def test_between_entering_a_context_and_its_body() -> None:
    """What a context manager puts back, it puts back at once, and not when somebody lets go of the exception."""
    model = nn.Sequential(InPlace())
    for at in range(1, 2_000):
        with left_alone(model):
            if (
                interrupted(lambda: capture(model, X), at, lambda f: f.endswith("contextlib.py"), last=True)
                is None
            ):
                break
    assert at > 4


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_in_the_users_own_mode(context: Any) -> None:
    model = nn.Sequential(InPlace())
    with context():
        for at in range(1, 20_000):
            with left_alone(model):
                if interrupted(lambda: capture(model, X), at, around) is None:
                    break
        assert at > 20


class Slow(nn.Module):
    """Runs until it is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Fused()
        self.started = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        while True:
            x = self.attn(x)
            self.started.set()


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.01, 0.02])
def test_from_another_thread(delay: float) -> None:
    model = Slow()

    def interrupt() -> None:
        model.started.wait(60)
        time.sleep(delay)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    started = model.started
    with left_alone(model), pytest.raises(KeyboardInterrupt):
        thread.start()
        capture(model, X)
    thread.join()
    assert model.started is started


def test_at_any_time() -> None:
    model, delays, hit = TinyLM(Hidden(), Fused()), random.Random(0), 0
    capture(model, tokens())
    began = time.perf_counter()
    capture(model, tokens())
    takes = time.perf_counter() - began
    for _ in range(60):
        with left_alone(model):
            timer = threading.Timer(1.2 * takes * delays.random(), _thread.interrupt_main)
            ended = False
            try:
                timer.start()
                capture(model, tokens())
                ended = True
                timer.join()
            except KeyboardInterrupt:
                hit += not ended
    assert hit > 20


class Interrupts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


class FromAHook(nn.Module):
    """A hook that a forward registers itself, so that the copy runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Fused()

    def forward(self, x: Tensor) -> Tensor:
        def stop(*args: Any) -> None:
            raise KeyboardInterrupt

        self.attn.register_forward_hook(stop)
        return self.attn(x)


@pytest.mark.parametrize("inner", [Interrupts, FromAHook])
@pytest.mark.parametrize("outer", [nn.Sequential, nn.DataParallel])
def test_by_the_model_itself(inner: Any, outer: Any) -> None:
    model = outer(inner())
    with left_alone(model), pytest.raises(KeyboardInterrupt):
        capture(model, X)


def test_a_callback_that_interrupts() -> None:
    from ess_widgets.capture import run

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    model = TinyLM()
    for callback in ({"on_layer": stop}, {"should_stop": stop}):
        with left_alone(model), pytest.raises(KeyboardInterrupt):
            run(model, (tokens(),), {}, **callback)
    with left_alone(model), pytest.raises(KeyboardInterrupt):
        capture(model, tokens(), layers=lambda name: stop())


def test_the_next_capture_is_unharmed() -> None:
    model = Hidden()
    for at in range(1, 400, 7):
        interrupted(lambda: capture(model, X), at, around)
    cap = capture(model, X)
    assert list(cap) == ["attn"] and cap[0].residual.max() < 1e-6
