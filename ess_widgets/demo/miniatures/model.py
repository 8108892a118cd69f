"""The frame that all miniatures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm

from ess_widgets.demo.miniatures.mixers import MIXERS
from ess_widgets.tasks.base import whole

__all__ = ["Block", "Miniature"]


class Block(nn.Module):
    """A mixer and a feed-forward network, each on the normalised residual stream."""

    def __init__(self, mixer: nn.Module, width: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(rms_norm(x, x.shape[-1:]))
        return x + self.down(gelu(self.up(rms_norm(x, x.shape[-1:]))))  # type: ignore[no-any-return]


class Miniature(nn.Module):
    """A small sequence model whose mixers are chosen by name, layer for layer.

    ``model(input_ids)`` takes ``(batch, L)`` integers and returns logits ``(batch, L, vocab)``;
    ``model.features(input_ids)`` what stands before them, ``(batch, L, width)``.

    Parameters
    ----------
    mixers : sequence of str
        One name for each layer, of ``MIXERS``: "SA", "LA", "WLA", "GLA", "GLA-S6", "S6", "GDN". Mixed ones make hybrids.
    vocab : int
        Number of tokens.
    width : int
        Channels of the residual stream.
    heads : int
        Heads of a mixer; S6 has an operator for each channel instead.
    state : int
        Key features per head, the state-size of a recurrent head.
    options : dict, optional
        By the mixer's name, further arguments, ``{"GLA-S6": {"alpha": 64}}``.

    Raises
    ------
    TypeError, ValueError
        If a mixer is unknown or the sizes do not fit.

    Examples
    --------
    >>> import torch
    >>> model = Miniature(("GLA", "SA"), vocab=32)
    >>> model(torch.arange(8)[None]).shape
    torch.Size([1, 8, 32])
    """

    def __init__(
        self,
        mixers: Sequence[str],
        *,
        vocab: int,
        width: int = 64,
        heads: int = 4,
        state: int = 16,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        names = (mixers,) if isinstance(mixers, str) else tuple(mixers)
        unknown = [name for name in (*names, *(options or {})) if name not in MIXERS]
        if unknown or not names:
            raise ValueError(
                f"mixers must be of {', '.join(MIXERS)}, but they are {', '.join(names) or 'none'}"
            )
        vocab, width = whole(vocab, "vocab", 1), whole(width, "width", 1)
        heads, state = whole(heads, "heads", 1), whole(state, "state", 1)
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        if state % 2 and {"SA", "LA"} & set(names):
            raise ValueError(f"state must be even where positions rotate pairs (SA, LA), but it is {state}")
        options = {name: dict(given) for name, given in (options or {}).items()}
        self.config: dict[str, Any] = {
            "mixers": list(names),
            "vocab": vocab,
            "width": width,
            "heads": heads,
            "state": state,
            "options": options,
        }
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(
            Block(MIXERS[name](width, heads, state, **options.get(name, {})), width) for name in names
        )
        self.head = nn.Linear(width, vocab, bias=False)

    def features(self, input_ids: Tensor) -> Tensor:
        """The normalised residual stream after the last layer, ``(batch, L, width)``."""
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return rms_norm(x, x.shape[-1:])

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.features(input_ids))  # type: ignore[no-any-return]
