"""From a module's call to its linearisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.linearisation.directions import choose
from ess_widgets.capture.linearisation.linearised import Linearised
from ess_widgets.capture.linearisation.program import (
    LAYOUTS,
    Place,
    Program,
    embedded,
    locate,
    without_caches,
)
from ess_widgets.capture.mixer import Future

__all__ = ["Options", "linearise"]


@dataclass(frozen=True)
class Options:
    """How to linearise; see :func:`ess_widgets.jacobian`."""

    inputs: Any = None
    outputs: Any = None
    channels: Any = None
    project: str = "random"
    layout: str | None = None
    state_size: Any = None
    chunk: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(
                f"layout must be one of {', '.join(map(repr, LAYOUTS))}, but is {self.layout!r}."
            )
        if self.chunk is not None and (not isinstance(self.chunk, int) or self.chunk < 1):
            raise ValueError(f"chunk must be a positive number of directions, but is {self.chunk!r}.")


def linearise(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
    options: Options,
    name: str,
    masks: Iterable[Tensor] = (),
) -> Linearised:
    """The linearisation of a module, of a copy, at a call that it has answered with ``result``.

    ``masks`` may mark own tokens, ``(batch, L)``.
    """
    if isinstance(module, nn.RNNBase) and args and isinstance(args[0], PackedSequence):
        return _packed(module, args, kwargs, result, options, name)
    args, kwargs = without_caches(module, args, kwargs)
    u, place = locate(module, args, kwargs, options.inputs)
    layout = options.layout or _layout(module)
    batched = u.ndim == (3 if place.ids is None else 2)
    program = Program(args, kwargs, place, layout=layout, outputs=options.outputs, batched=batched)
    if place.ids is not None:
        u = embedded(module, program, u)
    if u.ndim != (3 if batched else 2) or 0 in u.shape:
        raise CaptureError(
            f"the input of {name!r} has the shape {tuple(u.shape)}, but (batch, L, d) was expected, or (L, d), none of "
            "them 0. Name another argument with inputs=."
        )
    y = program.plain(program.output(result, u.shape))
    mask = next((m for m in masks if m.shape == y.shape[:2]), None)
    own = None if mask is None or bool(mask.all()) else mask
    return _linearised(module, program, program.plain(u), y, options, name, own)


def _linearised(
    module: nn.Module,
    program: Program,
    u: Tensor,
    y: Tensor,
    options: Options,
    name: str,
    own_tokens: Tensor | None,
) -> Linearised:
    channels = choose(options.channels, options.project, u.shape[-1], y.shape[-1], u.shape[1], options.seed)
    size = options.state_size
    if size is None and isinstance(module, nn.RNNBase):
        size = _stored(module)
    ahead = None
    if isinstance(module, nn.RNNBase) and module.bidirectional:
        ahead = Future((0, 0, 0, u.shape[1] - 1), None)
    return Linearised(
        module,
        program,
        u,
        y,
        directions=channels,
        state_size=size,
        chunk=options.chunk,
        name=name,
        own_tokens=own_tokens,
        ahead=ahead,
    )


def _layout(module: nn.Module) -> str:
    if isinstance(module, nn.Conv1d):
        return "bdl"
    first = getattr(module, "batch_first", None)
    if first is None:
        first = getattr(getattr(module, "self_attn", None), "batch_first", True)
    return "bld" if first else "lbd"


def _stored(module: nn.RNNBase) -> int:
    """Numbers that a recurrent layer stores from one position to the next."""
    hidden = module.proj_size or module.hidden_size
    cell = module.hidden_size if module.mode == "LSTM" else 0
    return module.num_layers * (hidden + cell)


class _Packed(Program):
    """A recurrent module that was given sequences of several lengths, packed."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], lengths: Tensor) -> None:
        super().__init__(args[1:], kwargs, Place())
        self._lengths = lengths

    def __call__(
        self, module: nn.Module, u: Tensor, convert: Callable[[Any], Any] = lambda tree: tree
    ) -> Tensor:
        packed = pack_padded_sequence(u, self._lengths, batch_first=True, enforce_sorted=False)
        result = module(packed, *convert(self.args), **convert(self.kwargs))
        return pad_packed_sequence(result[0], batch_first=True, total_length=u.shape[1])[0]


def _packed(
    module: nn.RNNBase,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
    options: Options,
    name: str,
) -> Linearised:
    u, lengths = pad_packed_sequence(args[0], batch_first=True)
    y = pad_packed_sequence(result[0], batch_first=True)[0]
    own = torch.arange(u.shape[1], device=u.device) < lengths.to(u.device)[:, None]
    program = _Packed(args, kwargs, lengths)
    return _linearised(module, program, u, y, options, name, None if bool(own.all()) else own)
