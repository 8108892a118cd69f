"""Routes on a matrix within a device's memory, and independent pieces on its threads."""

from __future__ import annotations

import threading
import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from ess_widgets.metrics._memory import within_memory
from ess_widgets.metrics._pool import in_parallel

CPU, GPU, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


class Elsewhere(Tensor):
    """A tensor that says it is on another device, as does what is computed from it."""

    place = GPU
    device = property(lambda self: self.place)  # type: ignore[assignment]

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Here)  # type: ignore[return-value]


class OnMps(Elsewhere):
    place = MPS


class Here(Tensor):
    """A tensor that can be sent there."""

    def to(self, target: Any, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if isinstance(target, torch.device) and target.type != "cpu":
            kind = OnMps if target == MPS else Elsewhere
            return super().to(*args, **kwargs).as_subclass(kind)  # type: ignore[return-value]
        return super().to(target, *args, **kwargs)


class Device:
    """Computes row sums, and knows what it was asked: fits ``room`` matrices where it is no CPU."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.seen: list[tuple[str, int, torch.dtype]] = []

    def __call__(self, T: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append((T.device.type, len(T), T.dtype))
        if T.device.type != "cpu" and len(T) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return T.sum(dim=-1), T.abs().amax(dim=-1)


def expected(T: Tensor) -> tuple[Tensor, Tensor]:
    return T.double().sum(dim=-1), T.double().abs().amax(dim=-1)


def assert_right(found: tuple[Tensor, Tensor], T: Tensor, dtype: torch.dtype = torch.float64) -> None:
    for part, right in zip(found, expected(T), strict=True):
        assert part.dtype is dtype
        torch.testing.assert_close(part.as_subclass(Tensor), right.to(dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_fits_is_computed_at_once_in_double(dtype: torch.dtype) -> None:
    T, device = torch.randn(5, 4, 4, dtype=dtype), Device(0)
    assert_right(within_memory(device, T), T)
    assert device.seen == [("cpu", 5, torch.float64)]


def test_a_batch_too_large_is_halved(recwarn: pytest.WarningsRecorder) -> None:
    T, device = torch.randn(7, 4, 4), Device(2)
    found = within_memory(device, T.as_subclass(Elsewhere))
    assert all(isinstance(part, Elsewhere) for part in found)
    assert_right(found, T)
    assert [(place, size) for place, size, _ in device.seen] == [("cuda", n) for n in (7, 3, 1, 2, 4, 2, 2)]
    assert not recwarn.list


def test_a_matrix_too_large_goes_to_the_cpu_and_comes_back() -> None:
    T, device = torch.randn(2, 6, 6), Device(0)
    with pytest.warns(RuntimeWarning, match="cuda has no memory left for one operator of 6 x 6"):
        found = within_memory(device, T.as_subclass(Elsewhere))
    assert all(isinstance(part, Elsewhere) for part in found)
    assert_right(found, T)
    assert [entry[:2] for entry in device.seen] == [
        ("cuda", 2),
        ("cuda", 1),
        ("cpu", 1),
        ("cuda", 1),
        ("cpu", 1),
    ]


def test_a_device_without_double_leaves_it_to_the_cpu() -> None:
    T, device = torch.randn(3, 4, 4), Device(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = within_memory(device, T.as_subclass(OnMps))
    assert all(isinstance(part, OnMps) for part in found)
    assert_right(found, T, torch.float32)
    assert device.seen == [("cpu", 3, torch.float64)]


def test_a_cpu_without_memory_says_so() -> None:
    def compute(T: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        within_memory(compute, torch.ones(2, 3, 3))


def test_other_errors_pass_through_at_once() -> None:
    device = Device(9)

    def compute(T: Tensor) -> tuple[Tensor, Tensor]:
        device(T)
        raise ValueError("too large to decompose")

    with pytest.raises(ValueError, match="too large to decompose"):
        within_memory(compute, torch.ones(4, 3, 3).as_subclass(Elsewhere))
    assert len(device.seen) == 1


@pytest.fixture
def threads() -> Any:
    """Sets torch's threads, here and for threads that start later; what was before is restored."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def in_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order(threads: Any, count: int) -> None:
    threads(count)

    def piece(k: int) -> int:
        time.sleep(0.01 * (5 - k))
        return k

    assert in_parallel([lambda k=k: piece(k) for k in range(5)], CPU) == list(range(5))
    assert in_parallel([], CPU) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_are_as_before(threads: Any, count: int) -> None:
    """Each piece has one; the caller, and threads that start later, what they had."""
    threads(count)
    assert in_new_thread() == count
    assert in_parallel([torch.get_num_threads] * 4, CPU) == [1] * 4
    assert torch.get_num_threads() == count
    assert in_new_thread() == count


def test_pieces_run_side_by_side(threads: Any) -> None:
    threads(2)
    together = threading.Barrier(2)
    assert sorted(in_parallel([lambda: together.wait(timeout=20)] * 2, CPU)) == [0, 1]


def test_a_gpu_gets_one_piece_after_the_other(threads: Any) -> None:
    threads(2)
    assert set(in_parallel([threading.get_ident] * 3, GPU)) == {threading.get_ident()}


@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("count", [1, 2])
def test_errors_in_a_piece_reach_the_caller(threads: Any, count: int, error: type[BaseException]) -> None:
    threads(count)
    others = set(threading.enumerate())
    ran = []

    def fail() -> None:
        raise error("of piece 1")

    with pytest.raises(error, match="of piece 1"):
        in_parallel([lambda: ran.append(0), fail, lambda: ran.append(2)], CPU)
    assert 0 in ran
    assert torch.get_num_threads() == count
    assert in_new_thread() == count
    assert not [t for t in threading.enumerate() if t.name.startswith("ess_widgets") and t not in others]


def test_pieces_within_pieces(threads: Any) -> None:
    threads(2)

    def outer() -> list[int]:
        return in_parallel([torch.get_num_threads] * 2, CPU)

    assert in_parallel([outer] * 2, CPU) == [[1, 1]] * 2


def test_gradients_are_not_followed_where_the_caller_does_not(threads: Any) -> None:
    """Grad mode belongs to a thread: pieces take the caller's."""
    threads(2)
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert not any(in_parallel([lambda: (2 * x).requires_grad] * 3, CPU))
