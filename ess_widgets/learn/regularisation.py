"""Penalties on what a layer remembers, for any training loop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ess_widgets.capture import Capture, LayerCapture, Live, run
from ess_widgets.metrics import entropy_ess, sample_positions, tolerance_surrogate
from ess_widgets.operators import DenseTransition, Diagonal, Recurrence, Transition

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Regulariser", "distance_from_identity"]


class Regulariser:
    """A term for the loss that keeps the memory of some layers from collapsing, or from growing.

    Around the forward pass of a training step, which it watches as it is::

        memory = Regulariser(model, layers="layers.1.mixer", term="identity", weight=0.1)

        with memory:
            logits = model(inputs)
        loss = cross_entropy(logits, targets) + memory.penalty

    or by a second run of the model, where the first cannot be watched (compiled models) or is somebody else's::

        loss = cross_entropy(model(inputs), targets) + memory(inputs)

    Gradients reach the model's parameters; the model, its mode, hooks, buffers and the random streams stay as they
    are. The operator is the one without dropout. What stands before the layer is as in training inside ``with``, and
    in eval mode in ``memory(inputs)``.

    Parameters
    ----------
    model : nn.Module
        On any device, in any float type, under autocast or not. Mixers are found as in :func:`ess_widgets.capture`.
    layers : str, int, callable, or an iterable of those, optional
        Which layers, as in :func:`ess_widgets.capture`; all that the term knows by default. The penalty is the mean
        over them.
    term : {"identity", "ess"}
        "identity": ``weight * mean ‖A_t - I‖_F``, the paper's. ``A_t`` is the ``n x n`` transition from position
        ``t - 1`` to ``t`` of a linear recurrence, for each sample and head (or channel): the diagonal of gates in GLA
        and WLA, ``exp(Δ A)`` in Mamba, ``α_t (I - β_t k_t k_tᵀ)`` in the delta rule. One Frobenius norm, not squared,
        for each of these matrices; then the mean over positions (a sample's own tokens), samples and heads. Where one
        gate serves a head of ``n`` features the norm counts it ``n`` times.

        "ess": effective state-size itself, ``E`` = its mean over positions (a sample's own tokens), samples and heads.
        Without a target ``-weight * E``, so that it grows; with one ``weight * (E / target - 1)²``.
    weight : float
        Negative to push the other way.
    target : float, optional
        Of term "ess", the ESS that is wanted on average over the positions that are looked at.
    kind : {"entropy", "tolerance"}
        Of term "ess": :func:`ess_widgets.metrics.entropy_ess`, or :func:`ess_widgets.metrics.tolerance_surrogate`, the
        smooth stand-in for a count.
    tol, relative, width
        Of kind "tolerance", as in :func:`ess_widgets.metrics.tolerance_surrogate`.
    positions : int or sequence of int
        Of term "ess": at how many positions ESS is taken in a step, other ones in each, evenly spaced from a random
        offset; or which. Every one costs a singular value decomposition per head and sample.
    sequences : int, optional
        How many samples of a batch are looked at, the first ones; all by default.
    seed : int
        Of the positions. They have a random generator of their own.

    Attributes
    ----------
    penalty : Tensor
        The term after a ``with`` block, a scalar; the mean where the model was run several times in it.
    measured : dict
        From each layer's name to what was measured last, a number without weight: the mean ``‖A - I‖_F``, or ESS.

    Raises
    ------
    ValueError
        Where an argument is out of range; when it is used, where a layer has no state to speak of (softmax attention
        has no ``A``), or where the term depends on nothing that requires gradients.
    CaptureError, UnknownLayerError
        As in :func:`ess_widgets.capture`.

    References
    ----------
    Parnichkun et al., Quantifying Memory Utilization with Effective State-Size, 2025 (arXiv 2504.19561).

    Examples
    --------
    >>> import torch
    >>> from ess_widgets.demo import Miniature
    >>> model, ids = Miniature(("GLA", "GLA"), vocab=16), torch.arange(16)[None]
    >>> memory = Regulariser(model, layers="layers.1.mixer", weight=0.1)
    >>> with memory:
    ...     logits = model(ids)
    >>> (logits.square().mean() + memory.penalty).backward()
    >>> list(memory.measured)
    ['layers.1.mixer']
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Any = None,
        *,
        term: Literal["identity", "ess"] = "identity",
        weight: float = 1.0,
        target: float | None = None,
        kind: Literal["entropy", "tolerance"] = "entropy",
        tol: float = 1e-3,
        relative: bool = False,
        width: float = 0.5,
        positions: Any = 4,
        sequences: int | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}.")
        if term not in ("identity", "ess"):
            raise ValueError(f"term must be 'identity' or 'ess', but is {term!r}.")
        if kind not in ("entropy", "tolerance"):
            raise ValueError(f"kind must be 'entropy' or 'tolerance', but is {kind!r}.")
        if target is not None and term != "ess":
            raise ValueError("target belongs to term='ess'; the identity term aims at A = I.")
        self.model, self.layers, self.term = model, layers, term
        self.weight = _number(weight, "weight")
        self.target = None if target is None else _number(target, "target", above=0.0)
        self.kind, self.tol, self.relative, self.width = kind, tol, relative, width
        self.positions, self.sequences = _count_or_list(positions), _count(sequences, "sequences")
        self.measured: dict[str, Tensor] = {}
        self._random = torch.Generator().manual_seed(seed)
        self._live = Live(model, layers)
        self._penalty: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The term by a run of its own, ``model(*args, **kwargs)`` in eval mode on a copy that shares the weights."""
        cap = run(self.model, args, kwargs, layers=self.layers, differentiable=True, keep_output=False)
        return self._term([cap])

    def __enter__(self) -> Self:
        self._penalty = None
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._live.__exit__(kind, *exc)
        captures, self._live.captures = self._live.captures, []
        if captures:
            self._penalty = self._term(captures)

    @property
    def penalty(self) -> Tensor:
        if self._penalty is None:
            raise RuntimeError(
                "there is no penalty: call the model inside `with regulariser:` first, as logits = model(inputs)."
            )
        return self._penalty

    def _term(self, captures: list[Capture]) -> Tensor:
        totals = [self._of_one(cap) for cap in captures]
        total = totals[0] if len(totals) == 1 else torch.stack(totals).mean()
        if torch.is_grad_enabled() and not total.requires_grad:
            raise ValueError(
                f"the term {self.term!r} of {', '.join(self.measured)} depends on no parameter that requires gradients"
                f"{_FIXED if self.term == 'identity' else ''}. Are these layers frozen, or was the model run under "
                "torch.no_grad()?"
            )
        return total

    def _of_one(self, cap: Capture) -> Tensor:
        values = {name: self._measure(layer) for name, layer in cap.items() if self._knows(layer)}
        if not values:
            families = ", ".join(sorted({layer.family for layer in cap.values()}))
            raise ValueError(
                f"no layer of this model is a linear recurrence: there is {families}. {_USE_ESS}"
            )
        self.measured = {name: value.detach() for name, value in values.items()}
        first = next(iter(values.values()))
        if self.term == "identity":
            terms = [self.weight * value for value in values.values()]
        elif self.target is None:
            terms = [-self.weight * value for value in values.values()]
        else:
            terms = [self.weight * (value / self.target - 1).square() for value in values.values()]
        return torch.stack([item.to(first.device, first.dtype) for item in terms]).mean()

    def _knows(self, layer: LayerCapture) -> bool:
        """Whether the term can be taken of a layer; an error where the user asked for one of which it cannot."""
        if self.term == "ess" or isinstance(layer.operator, Recurrence):
            return True
        if self.layers is None:
            return False
        raise ValueError(
            f"layer {layer.name!r} ({layer.family}) has no state that a transition matrix A carries along. {_USE_ESS}"
        )

    def _measure(self, layer: LayerCapture) -> Tensor:
        op = layer.operator
        if self.sequences is not None and op.shape[0] > self.sequences:
            op = op[: self.sequences]
        with torch.autocast(op.device.type, enabled=False):
            if self.term == "identity":
                assert isinstance(op, Recurrence)
                value = _mean(distance_from_identity(op.A, op.order), op.valid)
            else:
                value = self._ess(op)
        return value.to(torch.float64 if layer.dtype is torch.float64 else torch.float32)

    def _ess(self, op: Any) -> Tensor:
        at = self.positions
        if isinstance(at, int):
            at = sample_positions(op.length, min(at, op.length - 1), generator=self._random)
        if self.kind == "entropy":
            ess = entropy_ess(op, at)
        else:
            ess = tolerance_surrogate(op, self.tol, width=self.width, relative=self.relative, positions=at)
        return _mean(ess, None if op.valid is None else op.valid[..., at])


_FIXED = "; A is a constant in linear attention without gates"
_USE_ESS = "Name a linear recurrence with layers=, or use term='ess'."


def distance_from_identity(A: Transition, n: int | None = None) -> Tensor:
    """``‖A_t - I‖_F`` of each transition, differentiable also where it is 0.

    Parameters
    ----------
    A : Transition
        Diagonal, dense, or diagonal plus low rank.
    n : int, optional
        The size of the state, where a diagonal of one number stands for all of it.

    Returns
    -------
    Tensor, ``(..., L)``
        ``(..., 1)`` where one transition serves all positions.

    Examples
    --------
    >>> import torch
    >>> distance_from_identity(Diagonal(torch.tensor([[1.0, 1.0], [0.0, 1.0]])))
    tensor([0., 1.])
    """
    if isinstance(A, Diagonal):
        distance: Tensor = torch.linalg.vector_norm(A.parts[0] - 1, dim=-1)
        return distance if n is None or A.order > 1 else distance * math.sqrt(n)
    if isinstance(A, DenseTransition):
        dense = A.parts[0]
        eye = torch.eye(A.order, dtype=dense.dtype, device=dense.device)
        apart: Tensor = torch.linalg.vector_norm(dense - eye, dim=(-2, -1))
        return apart
    d, U, V = A.parts
    e = (d - 1).expand(*torch.broadcast_shapes(d.shape[:-1], U.shape[:-2]), U.shape[-2])  # type: ignore[no-untyped-call]
    # ‖diag(e) + U Vᵀ‖² without writing out n x n numbers for each position.
    cross = (e.conj() * (U * V).sum(-1)).sum(-1)
    low_rank = ((U.mH @ U) * (V.mH @ V)).sum((-2, -1))
    squared = e.abs().square().sum(-1) + _real(2 * cross + low_rank)
    positive = squared > 0
    return torch.where(positive, squared.where(positive, 1.0).sqrt(), 0.0)


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _mean(values: Tensor, own: Tensor | None) -> Tensor:
    """The mean over own tokens."""
    if own is None:
        return values.mean()
    own = own.expand(torch.broadcast_shapes(own.shape, values.shape))  # type: ignore[no-untyped-call]
    return (values * own).sum() / own.sum().clamp(min=1)


def _number(value: Any, name: str, above: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
        least = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
        raise ValueError(f"{name} must be {least}, but is {value!r}.")
    return float(value)


def _count(value: Any, name: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a positive integer, but is {value!r}.")
    return value


def _count_or_list(positions: Any) -> int | list[int]:
    if isinstance(positions, int):
        count = _count(positions, "positions")
        assert count is not None
        return count
    chosen = [int(i) for i in positions]
    if not chosen:
        raise ValueError("positions is empty: name at least one, or say how many.")
    return chosen
