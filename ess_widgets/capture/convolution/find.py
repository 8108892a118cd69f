"""Finds the convolutions that run along a model's sequence, among its calls of ``conv1d`` and its transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.convolution.cuts import Cuts
from ess_widgets.capture.convolution.sequences import Sequences
from ess_widgets.capture.families.convolution import Conv1d, Window, read_conv1d
from ess_widgets.capture.families.fft_convolution import FourierConvolution
from ess_widgets.capture.interception import calls
from ess_widgets.capture.names import Frame
from ess_widgets.capture.reading import Reading

__all__ = ["find_conv1d", "find_fourier", "owner"]


def find_conv1d(
    args: Any,
    kwargs: Any,
    result: Tensor,
    *,
    sequences: Sequences,
    frames: Sequence[Frame],
    cuts: Cuts,
    batch: Callable[[int], int | None],
) -> tuple[Reading, Window] | str | None:
    """Read a call of ``conv1d``.

    Returns
    -------
    (Reading, Window), str or None
        The reading and the part of the result it takes; the reason why a convolution along the sequence is left out;
        None for other convolutions, and those of a single tap.
    """
    if not _has_values(result):
        return None
    call = Conv1d.of(args, kwargs)
    if (
        call is None
        or result.is_complex()
        or call.weight.ndim != 3
        or call.weight.shape[-1] == 1
        or 0 in result.shape
    ):
        return None
    positions, channels = call.x.shape[-1], call.x.shape[-2]
    # The convolution's own input does not tell the length, only what was given to the modules around it.
    frames = [frame for frame in frames if all(t is not call.x for t in frame.tensors)]
    reasons: list[str] = []
    for front, stated in sequences.leading(positions, channels, 2 * call.reach, frames):
        length = positions - front
        if length < 2:
            continue
        if front and not _empty(call.x, front, cuts):
            if stated:
                reasons.append(
                    f"{front} positions before the sequence hold values: earlier tokens, or a padding of its own"
                )
            continue
        reason = call.why_not(result, front, length)
        if reason is None:
            window = Window(max(call.start(front), 0))
            samples = batch(length) or sequences.batch(length, frames)
            return read_conv1d(call, result, front, length, samples, window), window
        if stated:
            reasons.append(reason)
    return reasons[0] if reasons else None


def find_fourier(
    call: FourierConvolution,
    *,
    sequences: Sequences,
    frames: Sequence[Frame],
    batch: Callable[[int], int | None],
) -> tuple[Reading, Window] | str | None:
    """Read a product of spectra that is transformed back; returns as :func:`find_conv1d`."""
    if call.positions is None or not _has_values(call.result):
        return None
    for behind, stated in sequences.leading(call.positions, 0, call.positions // 2, frames):
        length = call.positions - behind
        if length < 2 or (behind and not call.empty_behind(length)):
            continue
        reason = call.why_not(length)
        if reason is None:
            window = Window(0)
            samples = batch(length) or sequences.batch(length, frames)
            return call.read(length, samples, window), window
        if stated:
            return reason
    return None


def owner(weight: Tensor, frames: Sequence[Frame]) -> str | None:
    """The path of the module that holds a weight, or a view of it; the one that is running, where several do."""
    where = calls.storage(weight)
    if where is None:
        return None
    for frame in reversed(frames):
        for path, module in frame.module.named_modules():
            if _holds(module, where, weight.data_ptr()):
                return ".".join(part for part in (frame.path, path) if part) or None
    return None


def _has_values(tensor: Tensor) -> bool:
    """Whether a tensor's values can be looked at: not inside ``torch.func.vmap``, nor on the meta device."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not wrapped and not tensor.is_meta


def _holds(module: nn.Module, where: int, pointer: int) -> bool:
    for parameter in module._parameters.values():
        if parameter is not None and calls.storage(parameter) == where:
            start = parameter.data_ptr()
            if start <= pointer < start + max(parameter.numel(), 1) * parameter.element_size():
                return True
    return False


def _empty(x: Tensor, front: int, cuts: Cuts) -> bool:
    """Whether what stands before the sequence does not depend on it: zeros, or what zeros became."""
    return cuts.in_front(x) == front or not bool(x[..., :front].any())
