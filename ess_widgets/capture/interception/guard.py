"""Keeps a run away from the model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.tape import Leaves

__all__ = ["Guard", "LeakedWeight", "WrittenWeight"]

# Calls that end in an underscore and write no values.
_HARMLESS = frozenset(
    {
        "requires_grad_", "detach_", "share_memory_", "rename_", "squeeze_", "unsqueeze_", "transpose_", "t_",
        "swapaxes_", "swapdims_", "as_strided_",
    }
)  # fmt: skip


class LeakedWeight(Exception):
    """The copy of the model reached a weight of the original, so it does not stand on its own."""


class WrittenWeight(Exception):
    """The forward writes to a weight."""


class Guard:
    """Knows the weights of the model that is run.

    Parameters
    ----------
    weights : dict
        Their memory, to their names.
    is_original : callable, optional
        Whether a parameter belongs to the original model although a copy is running.
    writable : bool
        Whether the forward may write to them: it is the user's own.
    """

    def __init__(
        self,
        weights: dict[int, str],
        leaves: Leaves,
        is_original: Callable[[object], bool] | None,
        *,
        writable: bool = False,
    ) -> None:
        self._weights, self._leaves, self._is_original = weights, leaves, is_original
        self._writable = writable

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, or a view of one."""
        return isinstance(tensor, nn.Parameter) or calls.storage(tensor) in self._weights

    def check(self, args: Any, kwargs: Any) -> None:
        """Refuse a weight of the original."""
        if self._is_original is None:
            return
        for item in (*args, *kwargs.values()) if kwargs else args:
            if type(item) is nn.Parameter and self._is_original(item):
                raise LeakedWeight(item)

    def before_write(self, name: str, args: Any, kwargs: Any) -> None:
        """Save what the tape keeps of the memory a call is going to write to; refuse writing to a weight."""
        for tensor in _targets(name, args, kwargs):
            self._leaves.before_write(tensor)
            where = calls.storage(tensor)
            if where is not None and where in self._weights and not self._writable:
                raise WrittenWeight(self._weights[where])


def _targets(name: str, args: Any, kwargs: Any) -> Iterator[Tensor]:
    if name in _MAX_NORM:
        at = _MAX_NORM[name]
        limit = kwargs.get("max_norm", args[at] if len(args) > at else None)
        found = [kwargs.get("weight", args[1] if len(args) > 1 else None)] if limit is not None else []
    elif calls.writes(name, kwargs) and name not in _HARMLESS:
        found = [args[0] if args else kwargs.get("input"), kwargs.get("out")]
    else:
        found = []
    for item in found:
        for tensor in item if isinstance(item, tuple | list) else (item,):
            if isinstance(tensor, Tensor):
                yield tensor


# Lookups that renormalise the weight they read, and where that argument stands.
_MAX_NORM = {"embedding": 3, "embedding_bag": 4}
