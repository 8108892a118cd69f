"""Wall-clock time of a call, on the CPU or on a GPU that works behind its back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def seconds(call: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds until the call's result is there, and the result."""
    _wait(device)
    began = time.perf_counter()
    result = call()
    _wait(device)
    return time.perf_counter() - began, result


def repeated(
    call: Callable[[], object], device: torch.device, repeat: int, budget: float = 10.0
) -> list[float]:
    """Seconds of each of ``repeat`` calls, or of as many, at least one, as start within ``budget`` seconds."""
    times: list[float] = []
    while len(times) < repeat and (not times or sum(times) + times[-1] <= budget):
        times.append(seconds(call, device)[0])
    return times


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def figure(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
