"""What travels to the browser: one dictionary for each view, arrays as float32 bytes, never as lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ess_widgets.metrics import vectors
from ess_widgets.operators import Operator

__all__ = [
    "detail_message",
    "grid_data",
    "operator_data",
    "pack",
    "profile_data",
    "spectrum_data",
    "vector_message",
]

# A heat map gains nothing from more cells than the screen has pixels for it.
MAX_SIDE = 512
# Nobody points at more singular values than this.
MAX_VECTORS = 64


def pack(values: ArrayLike) -> bytes:
    """Little-endian float32 bytes in C order."""
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def thumbnail(matrix: Tensor, side: int = MAX_SIDE) -> tuple[Tensor, int]:
    """At most ``side`` × ``side`` cells: in each block of the matrix the entry of largest magnitude.

    Returns the cells and the size of a block; the last blocks may be cut off by the edge.
    """
    block = max(-(-size // side) for size in matrix.shape)
    if block == 1:
        return matrix, 1
    rows, columns = (-(-size // block) for size in matrix.shape)
    padded = torch.nn.functional.pad(
        matrix, (0, columns * block - matrix.shape[1], 0, rows * block - matrix.shape[0])
    )
    blocks = padded.reshape(rows, block, columns, block).transpose(1, 2).reshape(rows, columns, -1)
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1), block


def entries(operator: Operator) -> Tensor:
    """What a heat map of one head shows, ``(L, L)``: ``T``, or the norm of each of its blocks."""
    matrix, d, L = operator.matrix(), operator.block, operator.length
    if d == 1:
        return matrix
    norms: Tensor = torch.linalg.vector_norm(matrix.reshape(L, d, L, d), dim=(1, 3))
    return norms


def operator_data(operator: Operator, layer: str | None, head: int) -> dict[str, Any]:
    """The operator of one head at screen resolution."""
    matrix = entries(operator)
    cells, block = thumbnail(matrix)
    return {
        "layer": layer,
        "head": head,
        "length": matrix.shape[-1],
        "side": cells.shape[-1],
        "block": block,
        "matrix": pack(cells.cpu().numpy()),
    }


def detail_message(
    operator: Operator, layer: str | None, head: int, rows: tuple[int, int], columns: tuple[int, int]
) -> tuple[dict[str, Any], list[bytes]]:
    """A part of the operator of one head, at screen resolution: what zooming in asks for."""
    (top, bottom), (left, right) = rows, columns
    cells, block = thumbnail(entries(operator)[top:bottom, left:right])
    content = {"type": "detail", "layer": layer, "head": head, "top": top, "left": left, "block": block}
    content |= {"rows": cells.shape[0], "columns": cells.shape[1]}
    return content, [pack(cells.cpu().numpy())]


def spectrum_data(values: np.ndarray, layer: str | None, head: int, block: int) -> dict[str, Any]:
    """The singular values of every ``H_i`` of one head, ``(L, K)``; ``block`` rows of it belong to a position."""
    length, rank = values.shape
    shape = {"length": length, "rank": rank, "block": block}
    return {"layer": layer, "head": head, **shape, "values": pack(values)}


def profile_data(
    ess: np.ndarray,
    state_size: np.ndarray,
    ceiling: np.ndarray,
    layer: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """ESS of all heads of a layer, ``(heads, L)``, NaN where it is not known yet, and its limits."""
    heads, length = ess.shape
    return {
        "layer": layer,
        "heads": heads,
        "length": length,
        **settings,
        "ess": pack(ess),
        "state_size": pack(np.broadcast_to(state_size, ess.shape)),
        "ceiling": pack(np.broadcast_to(ceiling, ess.shape)),
    }


def grid_data(
    ess: np.ndarray,
    state_size: np.ndarray,
    ceiling: np.ndarray,
    fresh: np.ndarray,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Mean ESS and utilisations, ``(layers, heads)``; ``fresh`` is 0 where a number is of an earlier input."""
    rows, columns = ess.shape
    return {
        "rows": rows,
        "columns": columns,
        **settings,
        "ess": pack(ess),
        "state_size": pack(state_size),
        "ceiling": pack(ceiling),
        "fresh": pack(fresh),
    }


def vector_message(
    operator: Operator, layer: str | None, head: int, position: int
) -> tuple[dict[str, Any], list[bytes]]:
    """Singular vectors of ``H_position`` of one head: what each singular value carries."""
    future, _, past = vectors(operator, position)
    if operator.block > 1:
        past, future = (_joined(past, operator.block), _joined(future.mT, operator.block).mT)
    count = min(MAX_VECTORS, past.shape[-2])
    content = {"type": "vectors", "layer": layer, "head": head, "position": position, "count": count}
    return content, [pack(past[:count].cpu().numpy()), pack(future.mT[:count].cpu().numpy())]


def _joined(rows: Tensor, block: int) -> Tensor:
    """Weights on the channels of each position as one weight."""
    norms: Tensor = torch.linalg.vector_norm(rows.reshape(rows.shape[0], -1, block), dim=-1)
    return norms
