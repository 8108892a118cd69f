"""Which tokens are a sample's own: from what the model was given, else from what its masks say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["infer", "own_rows", "stated"]

# Names whose true or positive entries mark own tokens, and names whose true entries mark padding.
_OWN = ("decoder_attention_mask", "attention_mask")
_PADDED = ("tgt_key_padding_mask", "key_padding_mask", "src_key_padding_mask")
_BLOCKED = -1e4


def stated(arguments: Mapping[str, Any], accepts: Mapping[str, Any]) -> list[Tensor]:
    """Masks ``(batch, L)``, True for own tokens, among a model's arguments.

    Parameters
    ----------
    arguments : mapping
        The arguments by name.
    accepts : mapping
        The names that the model's forward knows. Where it knows both a decoder's mask and another one, the
        other one belongs to the encoder.
    """
    found = []
    for name in _OWN:
        mask = arguments.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            found.append(_own(mask))
        if name in accepts and name == "decoder_attention_mask":
            break
    found += [
        ~_padded(mask)
        for name in _PADDED
        if isinstance(mask := arguments.get(name), Tensor) and mask.ndim == 2
    ]
    return found


def infer(allowed: Tensor) -> Tensor | None:
    """Padding from which output may read which input: ``(batch, L, L)`` bool to ``(batch, L)``, or None.

    A key that no proper row may read, not even its own, is padding. Rows that may read nothing, or that were
    opened to the future because everything was masked, are not proper. Other tokens must read themselves.
    """
    row_open = torch.triu(allowed, 1).any(-1) | ~allowed.any(-1)
    read = (allowed & ~row_open.unsqueeze(-1)).any(-2)
    diagonal = allowed.diagonal(dim1=-2, dim2=-1)
    fits = (~row_open | ~read) & (diagonal | ~read)
    if bool(read.all()) or not bool(fits.all()) or not bool(read.any(-1).all()):
        return None
    return read


def own_rows(tensor: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the rows ``(batch, groups, L, ...)`` that are padding, whatever they hold."""
    if valid is None:
        return tensor
    keep = valid[:, None, :, None]
    return torch.where(keep, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))


def _own(mask: Tensor) -> Tensor:
    if mask.is_floating_point() and bool((mask < 0).any()):
        return mask > _BLOCKED  # additive
    return mask != 0


def _padded(mask: Tensor) -> Tensor:
    return mask <= _BLOCKED if mask.is_floating_point() else mask != 0
