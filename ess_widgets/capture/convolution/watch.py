"""Watches for convolutions along the sequence: ``conv1d``, and products of spectra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ess_widgets.capture.convolution.cuts import Cuts
from ess_widgets.capture.convolution.find import find_conv1d, find_fourier, owner
from ess_widgets.capture.convolution.sequences import Sequences
from ess_widgets.capture.convolution.spectra import Product, Spectra
from ess_widgets.capture.families.convolution import Window, future_steps
from ess_widgets.capture.families.fft_convolution import FourierConvolution
from ess_widgets.capture.reading import Reading
from ess_widgets.capture.record import Record

__all__ = ["ConvolutionWatch"]


class ConvolutionWatch:
    """Finds convolutions, and what the model keeps of their results.

    Parameters
    ----------
    record : Record
        Where layers are added.
    inputs : list of Tensor
        What the model was given; tells the lengths of sequences.
    is_weight : callable
        Whether a tensor is one of the model's weights.
    """

    def __init__(self, record: Record, inputs: list[Tensor], is_weight: Callable[[Tensor], bool]) -> None:
        self._record, self._is_weight = record, is_weight
        self._sequences, self._cuts = Sequences(inputs), Cuts()
        self._spectra = Spectra(record.keep, self._fourier)

    def forget(self) -> None:
        """Let go of what only the run needed."""
        self._cuts.forget()
        self._spectra.forget()

    @property
    def active(self) -> bool:
        """Whether some result of a convolution, or some spectrum, is followed."""
        return self._cuts.active or self._spectra.active

    def see(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Look at a call and its result."""
        if self._cuts.active:
            self._cuts.see(name, args, kwargs, result)
        if self._spectra.active or name.startswith("fft_"):
            self._spectra.see(func, name, args, kwargs, result)
        if name == "conv1d":
            self._conv1d(args, kwargs, result)

    def owner(self, weight: Tensor) -> str | None:
        """The path of the module that holds a weight."""
        return owner(weight, self._record.tracker.frames) if self._is_weight(weight) else None

    def _conv1d(self, args: Any, kwargs: Any, result: Tensor) -> None:
        frames = self._record.tracker.frames
        reading = find_conv1d(
            args,
            kwargs,
            result,
            sequences=self._sequences,
            frames=frames,
            cuts=self._cuts,
            batch=self._record.batch,
        )
        if reading is not None:
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            self._convolved(reading, self.owner(weight), result, -1)

    def _fourier(self, product: Product, name: str, given: dict[str, Any], result: Tensor) -> None:
        """A product of spectra was transformed back."""
        call = FourierConvolution(product, name, given, result, self._is_weight)
        reading = find_fourier(
            call, sequences=self._sequences, frames=self._record.tracker.frames, batch=self._record.batch
        )
        if reading is not None:
            self._convolved(reading, None, result, call.dim)

    def _convolved(
        self, reading: tuple[Reading, Window] | str, path: str | None, result: Tensor, dim: int
    ) -> None:
        """Add a convolution; what the model keeps of its result may show later that it is late, or not causal."""
        self._record.seen.calls["convolution"] += 1
        if isinstance(reading, str):
            self._record.skip(reading, path)
            return
        read, window = reading
        self._record.constructed(read, path)
        found, length = self._record.found[-1], read.length

        def decide(first: int) -> None:
            window.delay = window.start - first
            window.start = first
            if window.delay < 0 and found in self._record.found:
                self._record.found.remove(found)
                self._record.seen.skipped[found.name] = future_steps(-window.delay)

        if result.shape[dim] > length:
            self._cuts.add(result, dim, length, window.start, decide)
