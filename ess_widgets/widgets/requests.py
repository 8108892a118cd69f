"""What a view asks the kernel for, beyond its traits: details that would be too much to send each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ess_widgets.operators import Operator

from .wire import detail_message, vector_message

__all__ = ["answer"]


def answer(
    operator: Operator, layer: str | None, head: int, request: Mapping[str, Any]
) -> tuple[dict[str, Any], list[bytes]] | None:
    """The message that answers a request about one head; None where it asks for what does not exist.

    ``{"type": "vectors", "position": i}`` is answered with the singular vectors of ``H_i``;
    ``{"type": "detail", "rows": [a, b], "columns": [c, d]}`` with that part of the operator.
    """
    length = operator.length
    if request.get("type") == "vectors":
        position = request.get("position")
        if isinstance(position, int) and 0 < position < length:
            return vector_message(operator, layer, head, position)
    if request.get("type") == "detail":
        rows, columns = (_range(request.get(key), length) for key in ("rows", "columns"))
        if rows is not None and columns is not None:
            return detail_message(operator, layer, head, rows, columns)
    return None


def _range(value: Any, length: int) -> tuple[int, int] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(v, int) for v in value):
        return None
    start, stop = max(0, value[0]), min(length, value[1])
    return (start, stop) if start < stop else None
