"""What is measured: questions put to operators, and the least that is demanded of the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

import ess_widgets as ew
from ess_widgets.metrics import profile
from ess_widgets.operators import Operator

from . import checks, inputs
from .baseline import Loop


@dataclass(frozen=True)
class Ask:
    """A question as users put it."""

    kind: Literal["tolerance", "entropy", "spectrum"]
    tol: float = 1e-3
    relative: bool = False
    certify: bool = False

    def answer(self, op: Operator | Tensor) -> Tensor:
        if self.kind == "spectrum":
            return ew.spectrum(op)
        return ew.ess(op, self.kind, self.tol, self.relative, certify=self.certify)

    def check(self, op: Operator | Tensor, loop: Loop) -> checks.Verdict:
        """Answer once, with the error that is promised, and compare."""
        if self.kind == "spectrum":
            return checks.spectra(self.answer(op).cpu(), loop)
        told = profile(op, self.kind, self.tol, self.relative, certify=self.certify)
        values, error = told.values.cpu(), told.error.cpu()
        if self.kind == "entropy":
            return checks.entropies(values, error, loop)
        return checks.counts(values, error, loop, self.tol, self.relative)


@dataclass(frozen=True)
class Case:
    """``ask`` of ``make(length, heads)``: ``minimum`` times faster than the loop, or within ``limit`` seconds."""

    name: str
    title: str
    ask: Ask
    make: Callable[[int, int], Operator | Tensor]
    length: int
    heads: int = 1
    minimum: float | None = None
    limit: float | None = None
    gpu_only: bool = False

    @property
    def operator(self) -> tuple[Callable[[int, int], Operator | Tensor], int, int]:
        """Cases of the same operator share one loop."""
        return self.make, self.length, self.heads

    def quick(self) -> Case:
        """The same in a fraction of a second, for tests: nothing is learnt from its time."""
        return replace(self, length=96, heads=min(self.heads, 3))


class Operators:
    """The operator of a case, and parts of it as matrices."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self._case, self._device = case, device

    @cached_property
    def whole(self) -> Operator | Tensor:
        return self._case.make(self._case.length, self._case.heads).to(self._device)

    def matrices(self, heads: list[int]) -> Tensor:
        part = self.whole[torch.tensor(heads, device=self._device)]
        return part if isinstance(part, Tensor) else part.matrix()


_TOLERANCE, _ENTROPY, _SPECTRUM = Ask("tolerance"), Ask("entropy"), Ask("spectrum")

DEMANDED = [
    Case("tolerance-512", "tolerance, a head of 512", _TOLERANCE, inputs.softmax, 512, minimum=40),
    Case("tolerance-1024", "tolerance, a head of 1,024", _TOLERANCE, inputs.softmax, 1024, minimum=180),
    Case("entropy-1024", "entropy, a head of 1,024", _ENTROPY, inputs.softmax, 1024, minimum=20),
    Case("tolerance-2048", "tolerance, a head of 2,048", _TOLERANCE, inputs.softmax, 2048, minimum=500),
    Case("entropy-2048", "entropy, a head of 2,048", _ENTROPY, inputs.softmax, 2048, minimum=45),
    Case("tolerance-270", "tolerance, 270 heads of 128", _TOLERANCE, inputs.softmax, 128, 270, minimum=6),
    Case("entropy-270", "entropy, 270 heads of 128", _ENTROPY, inputs.softmax, 128, 270, minimum=5),
    Case(
        "recurrence-16",
        "recurrence, n = 16, 64 channels of 1,024, spectra",
        _SPECTRUM,
        inputs.mamba,
        1024,
        64,
        minimum=350,
    ),
    Case(
        "delta-tolerance",
        "delta rule, d_k = 64, 8 heads of 1,024, tolerance",
        _TOLERANCE,
        inputs.delta,
        1024,
        8,
        minimum=60,
    ),
    Case(
        "delta-spectra",
        "delta rule, d_k = 64, 8 heads of 1,024, spectra",
        _SPECTRUM,
        inputs.delta,
        1024,
        8,
        minimum=20,
    ),
    Case(
        "layer-tolerance",
        "tolerance, a layer: 32 heads of 1,024",
        _TOLERANCE,
        inputs.softmax,
        1024,
        32,
        limit=1.0,
        gpu_only=True,
    ),
    Case(
        "layer-entropy",
        "entropy, a layer: 32 heads of 1,024",
        _ENTROPY,
        inputs.softmax,
        1024,
        32,
        limit=3.0,
        gpu_only=True,
    ),
]

FURTHER = [
    Case(
        "middle-1024",
        "tolerance 1e-2, amid the singular values, a head of 1,024",
        Ask("tolerance", 1e-2),
        inputs.softmax,
        1024,
    ),
    Case(
        "certified-1024",
        "tolerance, certified at both edges, a head of 1,024",
        Ask("tolerance", certify=True),
        inputs.softmax,
        1024,
    ),
    Case(
        "relative-1024",
        "relative tolerance 1e-2, a head of 1,024",
        Ask("tolerance", 1e-2, True),
        inputs.softmax,
        1024,
    ),
    Case("ties-1024", "ties: a permutation of 1,024, τ = 1", Ask("tolerance", 1.0), inputs.permutation, 1024),
    Case("huge-1024", "σ₁/τ = 1e12, a head of 1,024, tolerance", _TOLERANCE, inputs.huge, 1024),
    Case("window-tolerance", "window of 64, a head of 2,048, tolerance", _TOLERANCE, inputs.window, 2048),
    Case("window-entropy", "window of 64, a head of 2,048, entropy", _ENTROPY, inputs.window, 2048),
    Case("convolution", "four taps, 64 channels of 2,048, entropy", _ENTROPY, inputs.convolution, 2048, 64),
    Case("rank-entropy", "rank 16, a dense head of 1,024, entropy", _ENTROPY, inputs.low_rank, 1024),
    Case("rank-spectra", "rank 16, a dense head of 1,024, spectra", _SPECTRUM, inputs.low_rank, 1024),
    Case(
        "mamba", "a Mamba layer: 1,536 channels of 256, n = 16, spectra", _SPECTRUM, inputs.mamba, 256, 1536
    ),
]
