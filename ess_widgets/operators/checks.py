"""Checks that operators share: on tensors, causality, masks of valid tokens, and indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "as_tensor",
    "broadcast_valid",
    "check_block",
    "check_finite_causal",
    "drop_padding",
    "leading_index",
    "require_float",
]

# How far above the diagonal rounding may reach, in units of eps * max|T|.
_CAUSAL_SLACK = 8.0


def as_tensor(value: Any, name: str) -> Tensor:
    """Take a tensor or a numeric numpy array as a tensor, sharing memory where that is safe."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc" or value.dtype.itemsize > (16 if value.dtype.kind == "c" else 8):
            raise TypeError(
                f"{name} must hold numbers of at most 64 bits, but its numpy dtype is {value.dtype}."
            )
        array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
        value = torch.from_numpy(array if array.flags.writeable else array.copy())
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch tensor or a numpy array, but is {_a(type(value).__name__)}; "
            f"convert it first, for example with torch.tensor(...)."
        )
    if value.layout is not torch.strided or value.is_quantized:
        raise TypeError(f"{name} must be a dense tensor; call .to_dense() or .dequantize() first.")
    if value.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values; load the weights first.")
    return value


def require_float(value: Tensor, name: str) -> Tensor:
    """Return float32 and float64 as they are and integers as float32; refuse the rest."""
    if value.dtype in (torch.float32, torch.float64):
        return value
    if value.is_complex():
        raise ValueError(
            f"{name} is complex ({value.dtype}); effective state-size is defined here for real operators. "
            "Pass the real matrix, with a complex state written as two real ones."
        )
    if value.is_floating_point():
        raise ValueError(
            f"{name} is {value.dtype}: an operator rounded to half precision has hundreds of spurious "
            "singular values. Compute it in float32 or float64, from queries, keys or gates cast up "
            "first; casting the finished matrix up does not bring the digits back."
        )
    return value.to(torch.float32)


def check_block(block: Any, size: int, name: str = "T") -> int:
    """Rows of ``T`` per position: a positive integer that divides their number."""
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a positive integer, but is {block!r}.")
    if size % block:
        raise ValueError(
            f"{name} has {size} rows, which are no whole number of positions of block={block} rows each."
        )
    return block


def check_finite_causal(T: Tensor, name: str = "T", block: int = 1) -> Tensor:
    """Refuse NaN, infinities and entries above the diagonal; return ``T`` exactly lower triangular.

    An entry above the diagonal counts as rounding up to 8 eps times the largest magnitude in its own matrix.
    With ``block`` rows per position the diagonal consists of blocks, and these may be full.
    """
    # A finite sum has finite terms; where a sum of finite ones overflows, a closer look tells.
    if not bool(torch.isfinite(T.detach().sum())) and not bool(torch.isfinite(T).all()):
        bad = ~torch.isfinite(T)
        where = _first(bad)
        raise ValueError(
            f"{name} is not finite: {int(bad.sum())} of {T.numel()} entries are NaN or infinite, the first "
            f"is {name}{list(where)} = {T[where].item()}. Check the inputs and the scale it was made from."
        )
    if not _reads_ahead(T, block):
        return T
    above = T.masked_fill(_allowed(T, block), 0.0).abs()
    largest = T.abs().amax(dim=(-2, -1), keepdim=True)
    excess = above - _CAUSAL_SLACK * torch.finfo(T.dtype).eps * largest
    worst = np.unravel_index(int(excess.argmax()), T.shape)
    if excess[worst] > 0:
        where = tuple(int(i) for i in worst)
        row, column = where[-2] // block, where[-1] // block
        blocks = "" if block == 1 else f" block by block (block={block})"
        raise ValueError(
            f"{name} is not causal: {name}{list(where)} = {T[where].item():.6g} lets output {row} read "
            f"the later input {column}. Effective state-size needs a lower triangular operator{blocks}, with "
            "rows for outputs: apply the causal mask, or transpose if rows are inputs."
        )
    return T.tril() if block == 1 else T.masked_fill(~_allowed(T, block), 0.0)


def _reads_ahead(T: Tensor, block: int) -> bool:
    """Whether any entry lies above the diagonal (blocks); a strip of rows at a time, so that little is copied."""
    N = T.shape[-1]
    step = block * max(1, 256 // block)
    for start in range(0, N, step):
        stop = min(start + step, N)
        corner = T[..., start:stop, start:stop]
        if bool(T[..., start:stop, stop:].any()) or bool(
            corner.masked_fill(_allowed(corner, block), 0.0).any()
        ):
            return True
    return False


def _allowed(T: Tensor, block: int) -> Tensor:
    """Where a block lower triangular matrix may have entries."""
    position = torch.arange(T.shape[-1], device=T.device) // block
    return position.unsqueeze(-1) >= position


def drop_padding(T: Tensor, valid: Tensor | None, block: int = 1) -> Tensor:
    """``T`` with the rows and columns of padding set to zero; ``valid`` has one flag per position."""
    if valid is None:
        return T
    own = valid if block == 1 else valid.repeat_interleave(block, dim=-1)
    return T.masked_fill(~(own.unsqueeze(-1) & own.unsqueeze(-2)), 0.0)


def broadcast_valid(valid: Any, shape: torch.Size, device: torch.device) -> Tensor | None:
    """Check a mask of valid positions against ``(..., L)`` and expand it, without copying."""
    if valid is None:
        return None
    valid = as_tensor(valid, "valid")
    if valid.dtype is not torch.bool:
        raise TypeError(
            "valid must be boolean (True for a sample's own tokens), "
            f"but its dtype is {valid.dtype}; use valid.bool()."
        )
    try:
        expanded: Tensor = valid.to(device).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"valid of shape {tuple(valid.shape)} does not broadcast to (..., L) = {tuple(shape)}."
        ) from None
    return expanded


def leading_index(index: Any, leading: int) -> tuple[Any, ...]:
    """Write ``index`` out over all ``leading`` dimensions: then it means the same whatever follows them."""
    entries = list(index) if isinstance(index, tuple) else [index]
    ellipses = [n for n, entry in enumerate(entries) if entry is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("an index can hold only one ellipsis ('...').")
    taken = sum(_width(entry) for entry in entries)
    if taken > leading:
        raise IndexError(
            f"index {index!r} uses {taken} dimensions, but the operator has {leading} leading ones; "
            "its last two are outputs and inputs: take .matrix() first to index into them."
        )
    at = ellipses[0] if ellipses else len(entries)
    fill = [slice(None)] * (leading - taken)
    return tuple(entries[:at] + fill + entries[at + len(ellipses) :])


def _width(entry: Any) -> int:
    """How many dimensions one entry of an index consumes."""
    if entry is None or entry is Ellipsis:
        return 0
    if isinstance(entry, Tensor | np.ndarray) and entry.dtype in (torch.bool, np.bool_):
        return entry.ndim
    return 0 if isinstance(entry, bool) else 1


def _first(flags: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(flags.flatten().to(torch.uint8).argmax()), flags.shape))


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"
