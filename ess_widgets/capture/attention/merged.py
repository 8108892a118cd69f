"""One dimension that holds batch and heads: which of them comes first shows in what follows."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ess_widgets.capture.attention.weights import Weights

__all__ = ["SplitWatcher"]


class SplitWatcher:
    """Watches how the model splits a merged dimension of its attention's result, and corrects the layout."""

    def __init__(self) -> None:
        self._results: Any = WeakTensorKeyDictionary()
        self.active = False

    def add(self, result: Tensor, mixer: Weights) -> None:
        if mixer.layout.merged:
            self._results[result] = (mixer, False)
            self.active = True

    def forget(self) -> None:
        self._results.clear()

    def see(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Look at a call that follows."""
        target = args[0] if args else None
        entry = self._results.get(target) if isinstance(target, Tensor) else None
        if entry is None or not isinstance(target, Tensor):
            return
        mixer, viewed = entry
        if viewed:
            dims = _permutation(name, args, kwargs, target.ndim)
            if dims is not None and dims.index(0) > dims.index(1):
                mixer.layout = mixer.layout.heads_first()
            del self._results[target]
        elif mixer.layout.merged:
            self._see_split(mixer, name, result)

    def _see_split(self, mixer: Weights, name: str, result: Any) -> None:
        batch, heads = mixer.layout.split
        if isinstance(result, Tensor) and name in ("view", "reshape", "unflatten", "view_as", "reshape_as"):
            if tuple(result.shape[:2]) != (heads, batch):
                return
            if batch != heads:
                mixer.layout = mixer.layout.heads_first()
            else:  # equal sizes: how the result is permuted will tell
                self._results[result] = (mixer, True)
        elif isinstance(result, tuple | list) and len(result) == heads and result[0].shape[0] == batch:
            mixer.layout = mixer.layout.heads_first()


def _permutation(name: str, args: Any, kwargs: Any, ndim: int) -> list[int] | None:
    if name == "permute":
        dims = args[1:] if len(args) > 2 else kwargs.get("dims", args[1] if len(args) > 1 else ())
    elif name in ("transpose", "swapaxes", "swapdims") and len(args) == 3:
        dims = list(range(ndim))
        a, b = args[1] % ndim, args[2] % ndim
        dims[a], dims[b] = dims[b], dims[a]
    else:
        return None
    dims = [int(d) % ndim for d in dims]
    return dims if sorted(dims) == list(range(ndim)) else None
