"""Balanced truncation of an operator that varies along the sequence, and how far the result is off."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ess_widgets.capture import LayerCapture
from ess_widgets.learn.reduction import bounds
from ess_widgets.learn.reduction.balancing import Balanced, Rule, balance
from ess_widgets.learn.reduction.norms import hankel_norms, norms
from ess_widgets.operators import Dense, Operator, Recurrence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Reduction", "ReductionError", "as_operator", "reduce"]


class ReductionError:
    """How far a reduced operator is from its original, measured.

    Attributes
    ----------
    spectral, frobenius : Tensor, ``(...)``
        Operator norm and Frobenius norm of ``T - T_r``.
    relative : Tensor, ``(...)``
        ``‖T - T_r‖_F / ‖T‖_F``; 0 where both are 0.
    """

    def __init__(self, original: Operator, reduced: Recurrence) -> None:
        self._original, self._reduced = original, reduced
        self.spectral, self.frobenius = norms(original, reduced)

    @cached_property
    def hankel(self) -> Tensor:
        """``‖H_i(T) - H_i(T_r)‖`` at every position, ``(..., L)``."""
        return hankel_norms(self._original, self._reduced)

    @cached_property
    def relative(self) -> Tensor:
        whole = torch.linalg.matrix_norm(self._original.matrix().detach().double())
        return torch.where(self.frobenius == 0, self.frobenius, self.frobenius / whole)

    def __repr__(self) -> str:
        return f"ReductionError(spectral ≤ {float(self.spectral.max()):.3g}, frobenius ≤ {float(self.frobenius.max()):.3g})"


class Reduction:
    """An operator cut to a smaller state at every position; made by :func:`reduce`.

    Attributes
    ----------
    operator : Recurrence
        ``T_r``, in float64, with an ``A``, ``B`` and ``C`` of its own at each position, and ``read="before"`` whatever the
        original's order was: ``H_i`` leaves the diagonal out, so the state is what has been read before position ``i``, and the
        diagonal of ``T`` passes by it, in ``D``, unchanged.
    original : Operator
    ranks : int Tensor, ``(..., L)``
        Size of the state before each position: what was asked for, or less where ``H_i`` has no more.
    singular_values : Tensor, ``(..., L, K)``
        Of all ``H_i``, descending, zero-padded.
    """

    def __init__(self, original: Operator, balanced: Balanced, layer: LayerCapture | None = None) -> None:
        self.original, self._balanced, self._layer = original, balanced, layer
        self._lead = original.shape[:-2]
        self.operator = balanced.recurrence(original)
        self.ranks = balanced.ranks.reshape(*self._lead, original.length)
        self.singular_values = balanced.sigma.reshape(*self._lead, *balanced.sigma.shape[1:])

    @cached_property
    def discarded(self) -> Tensor:
        """Singular values of each ``H_i`` that are not kept, ``(..., L, K)``, descending, zero-padded."""
        K = self.singular_values.shape[-1]
        index = self.ranks.unsqueeze(-1) + torch.arange(K, device=self.ranks.device)
        discarded = self.singular_values.gather(-1, index.clamp(max=K - 1))
        return discarded.where(index < K, 0.0)

    @cached_property
    def error(self) -> ReductionError:
        """``T - T_r``, measured."""
        return ReductionError(self.original, self.operator)

    @cached_property
    def bound(self) -> Tensor:
        """Proven: ``‖T - T_r‖`` is at most this, ``(...)``, from :attr:`discarded` alone.

        Between ``max_i σ_{r+1}(H_i)`` and ``Σ_i σ_{r+1}(H_i)``; at most ``2 Σ_k max_i σ_k(H_i)`` where each discarded
        singular value rises and then falls along the sequence, or stays the same, and more where it goes up and down. The
        theorem and its proof are in :mod:`ess_widgets.learn.reduction.bounds`. Singular values are taken as large as they may be
        but for rounding, and what rounding may do to ``T_r`` (to first order) is added: about 1e-13 of ``‖T‖``, more where the
        state is reached strongly in directions that are hardly read.
        """
        return (bounds.spectral_bound(self._tail) + self._rounding).reshape(self._lead)

    @cached_property
    def frobenius_bound(self) -> Tensor:
        """Proven: ``‖T - T_r‖_F ≤ Σ_i (Σ_{k>r} σ_k(H_i)²)^½``, ``(...)``."""
        return (bounds.frobenius_bound(self._tail) + self._rounding).reshape(self._lead)

    @cached_property
    def lower(self) -> Tensor:
        """``max_i σ_{r+1}(H_i)``, ``(...)``: no causal operator with these ranks comes closer to ``T`` in operator norm."""
        return self._floor[0]

    @cached_property
    def frobenius_lower(self) -> Tensor:
        """``max_i (Σ_{k>r} σ_k(H_i)²)^½``, ``(...)``: the same in the Frobenius norm."""
        return self._floor[1]

    @cached_property
    def estimate(self) -> Tensor:
        """``2 Σ_{k>r} max_i σ_k(H_i)``, ``(...)``: the textbook's number for systems that do not vary in time. Here an estimate."""
        return bounds.textbook(self._flat_discarded).reshape(self._lead)

    @cached_property
    def output_error(self) -> Tensor | None:
        """Of a captured layer, ``‖T_r u - y‖ / ‖y‖`` against what the model computed, ``(batch, groups)``; else None."""
        if self._layer is None:
            return None
        from ess_widgets.capture.residual import residual

        return residual(self.operator, self._layer.inputs, self._layer.outputs, self._layer.valid)

    @cached_property
    def _floor(self) -> tuple[Tensor, Tensor]:
        spectral, frobenius = bounds.lower_bound(self._flat_discarded)
        return spectral.reshape(self._lead), frobenius.reshape(self._lead)

    @property
    def _flat_discarded(self) -> Tensor:
        return self.discarded.reshape(-1, *self.discarded.shape[-2:])

    @property
    def _rounding(self) -> Tensor:
        """Singular values that may be 0, each position on its own, and what rounding of the coordinates adds, about as much."""
        return 4 * self._balanced.slack.sum(-1)

    @property
    def _tail(self) -> Tensor:
        return self._balanced.tail()

    def figure(
        self, index: int | tuple[int, ...] | None = None, ranks: Sequence[int] | None = None
    ) -> Figure:
        """Error against rank with its bounds, beside the singular values that are kept and discarded along the sequence.

        Parameters
        ----------
        index : int or tuple of int, optional
            Which leading entry; by default the one with the largest error.
        ranks : sequence of int, optional
            As in :func:`rank_curve`.
        """
        from ess_widgets.learn.reduction.curve import draw

        return draw(self, index, ranks)

    def __repr__(self) -> str:
        return (
            f"Reduction({tuple(self.operator.shape)}, state at most {int(self.ranks.max())}, "
            f"error {float(self.error.spectral.max()):.3g}, proven at most {float(self.bound.max()):.3g}, "
            f"possible at best {float(self.lower.max()):.3g})"
        )


def reduce(
    op: Any,
    *,
    rank: Any = None,
    tol: float | None = None,
    energy: float | None = None,
    relative: bool = False,
) -> Reduction:
    """Cut the state of an operator at every position, by balanced truncation.

    At position ``i`` the state is what the past passes on to the future: ``H_i = O_i R_i``. In balanced coordinates each of its
    directions is reached and observed equally, ``σ_k(H_i)``; those with the smallest are left out, at all positions at once.

    Parameters
    ----------
    op : Operator, LayerCapture, Tensor or ndarray ``(..., L, L)``
        A :class:`~ess_widgets.operators.Recurrence` is cut in ``O(L n³)`` without its matrix; anything else takes a
        singular value decomposition at each position, ``O(L⁴)``. Leading dimensions (batch, heads) are cut one by one.
    rank : int, or int Tensor broadcastable to ``(..., L)``
        States to keep before each position.
    tol : float
        Keep singular values above this, at each position.
    energy : float in (0, 1]
        Keep the fewest that hold this part of ``Σ_k σ_k(H_i)²``, at each position.
    relative : bool
        ``tol`` times ``σ_1(H_i)``.

    Returns
    -------
    Reduction

    Raises
    ------
    TypeError
        If ``op`` is no operator.
    ValueError
        If not exactly one of ``rank``, ``tol`` and ``energy`` is given or it is out of range, or the state overflows.

    References
    ----------
    Shokoohi, Silverman, Van Dooren, Linear time-variable systems: balancing and model reduction, 1983; Lall and Beck, Error bounds for
    balanced model-reduction of linear time-varying systems, 2003; Sandberg and Rantzer, Balanced truncation of linear
    time-varying systems, 2004. The bound used here goes further, see :mod:`ess_widgets.learn.reduction.bounds`.

    Examples
    --------
    >>> import torch
    >>> from ess_widgets.operators import Recurrence
    >>> op = Recurrence(torch.tensor([[0.9, 0.8, 0.2]]), torch.ones(64, 3), torch.ones(64, 3))
    >>> reduction = reduce(op, rank=1)
    >>> reduction.operator
    Recurrence('reduced', shape=(64, 64), n=1, A dense, read before update, dtype=float64, device=cpu)
    >>> bool(reduction.lower <= reduction.error.spectral) and bool(reduction.error.spectral <= reduction.bound)
    True
    >>> bool(reduce(op, rank=3).error.spectral < 1e-12)
    True
    """
    layer = op if isinstance(op, LayerCapture) else None
    operator = as_operator(op)
    return Reduction(operator, balance(operator, _rule(operator, rank, tol, energy, relative)), layer)


def as_operator(op: Any) -> Operator:
    """The operator that is meant, on a device that knows float64."""
    if isinstance(op, LayerCapture):
        op = op.operator
    found: Operator = op if isinstance(op, Operator) else Dense(op)
    return found.to("cpu") if found.device.type == "mps" else found


def _rule(op: Operator, rank: Any, tol: Any, energy: Any, relative: bool) -> Rule:
    given = {"rank": rank, "tol": tol, "energy": energy}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"give exactly one of rank, tol and energy, but {' and '.join(named) or 'none'} is given."
        )
    if rank is not None:
        return _fixed(op, rank)
    value = tol if energy is None else energy
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{named[0]} must be a number that is at least 0, but is {value!r}.")
    if tol is not None:

        def above(sigma: Tensor, rows: slice, positions: slice) -> Tensor:
            count: Tensor = (sigma > (tol * sigma[..., :1] if relative else tol)).sum(-1)
            return count

        return above
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], but is {energy!r}.")

    def holding(sigma: Tensor, rows: slice, positions: slice) -> Tensor:
        # Relative to the largest: squares of tiny numbers are zero.
        top = sigma[..., :1]
        squares = (sigma / top.where(top > 0, 1.0)).square()
        # Keep those without which, and all after it, too much is missing.
        missing = squares.flip(-1).cumsum(-1).flip(-1)
        count: Tensor = (missing > (1 - energy) * missing[..., :1]).sum(-1)
        return count

    return holding


def _fixed(op: Operator, rank: Any) -> Rule:
    wanted = torch.as_tensor(rank, device=op.device)
    if wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool:
        raise ValueError(f"rank must be an integer, or integers for each position, but is {rank!r}.")
    if bool((wanted < 0).any()):
        raise ValueError(f"rank must be at least 0, but the smallest is {int(wanted.min())}.")
    shape = (*op.shape[:-2], op.length)
    try:
        everywhere = wanted.broadcast_to(shape).reshape(-1, op.length)
    except RuntimeError:
        raise ValueError(
            f"rank of shape {tuple(wanted.shape)} does not fit the positions of this operator, {shape}."
        ) from None

    def fixed(sigma: Tensor, rows: slice, positions: slice) -> Tensor:
        return everywhere[rows, positions].clamp(max=sigma.shape[-1])

    return fixed
