"""What each head writes to the residual stream: the product with the output projection that follows a mixer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ess_widgets.capture import LayerCapture

__all__ = ["Projections", "Written"]


@dataclass(frozen=True)
class Written:
    """An output projection and what it was given.

    Attributes
    ----------
    weight : Tensor, ``(d, groups, width)``
        Its part for each head.
    given : Tensor, ``(batch, L, groups, width)``
        Heads as they enter it, gates and norms applied.
    bare : bool
        Whether that is the mixer's own output: nothing stands in between.
    """

    weight: Tensor
    given: Tensor
    bare: bool

    def sizes(self, sample: int, own: Tensor | slice) -> Tensor:
        """Root mean square over positions of what each head writes, ``(groups,)``, float64."""
        given = self.given[sample, own].double()
        gram = torch.einsum("dgw,dgv->gwv", self.weight.double(), self.weight.double())
        energy = torch.einsum("lgw,gwv,lgv->g", given, gram, given)
        return (energy.clamp_min(0) / max(1, given.shape[0])).sqrt()


class Projections(TorchFunctionMode):
    """Watches a run for the linear maps that come after each mixer.

    Used as a context around the capture; ``seen`` goes to ``run(on_layer=...)``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._after: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._weights: dict[str, set[int]] = {}
        self._current: str | None = None

    def seen(self, name: str, _: int) -> None:
        """A mixer has run."""
        self._current = name
        self._after[name] = []
        owner = _owner(self._model, name)
        self._weights[name] = (
            {p.data_ptr() for p in owner.parameters() if p.ndim == 2} if owner is not None else set()
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._current is not None:
            linear = _linear(func, args, kwargs or {})
            # Of what runs before the next mixer, the layer's own maps; elsewhere (a bare layer, a script) the first few.
            if linear is not None and self._concerns(linear[1]):
                self._after[self._current].append(linear)
        return result

    def _concerns(self, weight: Tensor) -> bool:
        assert self._current is not None
        return weight.data_ptr() in self._weights[self._current] or len(self._after[self._current]) < 2

    def of(self, layer: LayerCapture) -> Written | None:
        """The layer's output projection, if it was seen or can be told by its name."""
        y = layer.outputs
        batch, groups, L, width = y.shape
        flat = y.transpose(1, 2).reshape(batch, L, groups * width)
        own = self._weights.get(layer.name, set())
        last = None
        for given, weight in self._after.get(layer.name, []):
            if weight.ndim != 2 or weight.shape[1] != groups * width or given.numel() != flat.numel():
                continue
            if given.ndim == 3 and batch > 1 and given.shape[:2] != (batch, L):
                continue  # sequence first: its rows are in another order
            given = given.reshape(flat.shape)
            if torch.allclose(given.to(flat), flat, rtol=1e-2, atol=1e-2 * float(flat.abs().max())):
                return _written(weight, flat, groups, bare=True)
            if weight.data_ptr() in own:
                last = _written(weight, given, groups, bare=False)
        return last or self._by_name(layer.name, flat, groups)

    def _by_name(self, name: str, flat: Tensor, groups: int) -> Written | None:
        """Where a fused function applies it (``nn.MultiheadAttention``)."""
        owner = _owner(self._model, name)
        if not isinstance(owner, nn.MultiheadAttention):
            owner = self._model if isinstance(self._model, nn.MultiheadAttention) else None
        if owner is None or owner.out_proj.weight.shape[1] != flat.shape[-1]:
            return None
        return _written(owner.out_proj.weight.detach(), flat, groups, bare=True)


def _written(weight: Tensor, given: Tensor, groups: int, bare: bool) -> Written:
    weight = weight.detach()
    return Written(
        weight.reshape(weight.shape[0], groups, -1), given.reshape(*given.shape[:-1], groups, -1), bare
    )


def _owner(model: nn.Module, name: str) -> nn.Module | None:
    """The module of a captured layer, or None where the layer is the model itself."""
    try:
        found = model.get_submodule(name.partition("#")[0])
    except AttributeError:
        return None
    return None if found is model else found


def _linear(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor] | None:
    """The input and the weight ``(out, in)`` of a linear map."""
    if func is nn.functional.linear:
        given, weight = (*args, kwargs.get("input"), kwargs.get("weight"))[:2]
    elif func is torch.addmm and len(args) == 3:  # transformers' Conv1D holds the transpose
        given, weight = args[1], args[2].T
    else:
        return None
    if not isinstance(given, Tensor) or not isinstance(weight, Tensor):
        return None
    return given.detach(), weight.detach()
