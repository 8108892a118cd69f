"""Spectra and effective state-size by the cheapest exact way that the operator and the question allow.

===========  =======================================================================================================
recurrence   square-root factors of what reaches the state and of what is read of it (``realization``)
convolution  all positions share the blocks of one small matrix (``support``)
low rank     orthogonal compression down the tree of positions (``low_rank``)
dense        elimination and inertia for the tolerance (``tolerance``), log-determinants for the entropy (``entropy``),
             Gram matrices for the relative tolerance (``relative``), each on the parts that are not zero (``support``)
svd          one singular value decomposition per position (``reference``)
===========  =======================================================================================================

Each knows the error of its answer. What one cannot promise, the dense way computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_args

import torch
from torch import Tensor

from ess_widgets.metrics import dense, low_rank, realization
from ess_widgets.metrics._checks import Kind, as_operator, check_kind, check_rtol, check_tol, position_list
from ess_widgets.metrics._question import Question
from ess_widgets.metrics._svd import one_thread, working_dtype
from ess_widgets.metrics.hankel import convolution_part, convolution_spectrum, convolution_values
from ess_widgets.metrics.reference import checked_matrix, parts, width
from ess_widgets.operators import Convolution, Operator, Recurrence

__all__ = ["Profile", "Route", "ess", "profile", "spectrum"]

P = ParamSpec("P")
R = TypeVar("R")
Op = TypeVar("Op", bound=Operator)
Route = Literal["auto", "recurrence", "convolution", "low rank", "dense", "svd"]

# Entries of T, or singular values, that are worked on at once: 128 MB in float64, or a single matrix.
_ENTRIES = 2**24
_EPS = torch.finfo(torch.float64).eps
# So many taps at most make a small matrix per position cheaper than one large matrix for all.
_FEW_TAPS = 33
# Microseconds per head and position on one CPU core: a recurrence with a state of 16, its growth with the state, and
# what it competes with: matrices of 1,024 positions, and what does not grow with their number.
_RECURRENCE, _GROWTH = 28.0, 2.2
_DENSE = {"tolerance": (110.0, 13.0), "entropy": (430.0, 40.0), "relative": (6000.0, 40.0)}


@dataclass(frozen=True)
class Profile:
    """Effective state-size at positions, with what is known of its error.

    Attributes
    ----------
    values : Tensor, ``(..., P)``
        float64 (float32 on MPS).
    error : Tensor, ``(..., P)``
        Entropy: a bound on the relative error. Tolerance: singular values within this, relative, of the
        threshold may be counted either way; 0 where the count is certain.
    routes : dict of str to int
        How many heads (leading entries) took which route.
    """

    values: Tensor
    error: Tensor
    routes: dict[str, int]


def _calm(f: Callable[P, R]) -> Callable[P, R]:
    """Let torch's own operations use one thread meanwhile: where there is more to gain, pieces of work have their own."""

    @wraps(f)
    def calm(*args: P.args, **kwargs: P.kwargs) -> R:
        with one_thread(torch.device("cpu")):
            return f(*args, **kwargs)

    return calm


def ess(
    op: Any,
    kind: Kind = "entropy",
    tol: float = 1e-3,
    relative: bool = False,
    positions: Any = None,
    *,
    route: Route = "auto",
    rtol: float = 1e-4,
    certify: bool = False,
) -> Tensor:
    """Effective state-size at every position: how much of the past the operator carries into the future.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., d*L, d*L)``
        ``d`` rows per position (``op.block``), 1 for a plain matrix.
    kind : {"entropy", "tolerance"}
        ``"tolerance"`` counts the singular values of ``H_i = T[d*i:, :d*i]`` above ``tol``; ``"entropy"`` is
        ``exp(-Σ p log p)`` with ``p = σ / Σσ``, Roy and Vetterli's effective rank, which is blind to scale.
    tol : float
        The tolerance; does not enter the entropy.
    relative : bool
        Whether ``tol`` is in units of the largest singular value of ``H_i``; does not enter the entropy.
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.
    route : {"auto", "recurrence", "convolution", "low rank", "dense", "svd"}
        How to compute it. By default the cheapest way for this operator and kind.
    rtol : float
        Relative error allowed in the entropy.
    certify : bool
        Counts are those of a singular value decomposition in float64, except that a value within 1e-6 of ``tol``,
        relative, may be counted either way (in the worst case: rounding is mostly a thousand times smaller).
        With ``certify`` they are taken at both edges of that band, and whatever lies in it is settled; that
        takes about half as long again. Operators that exceed ``tol`` by a factor of 1e6 and more have a wider
        band, for which :func:`profile` gives an estimate.

    Returns
    -------
    Tensor, ``(..., L)`` or ``(..., P)``
        float64 (float32 on MPS) for both kinds, on the operator's device. Entry 0, and any ``H_i = 0``, is 0.

    Raises
    ------
    ValueError
        If the operator is not square, causal and finite, an argument is out of range, or the route does not
        fit the operator.
    TypeError
        If ``tol``, ``rtol`` or ``positions`` are of the wrong type.

    References
    ----------
    Parnichkun et al., "Quantifying Memory Utilization with Effective State-Size", ICML 2025,
    arXiv:2504.19561.

    Examples
    --------
    A delay by two steps keeps two numbers.

    >>> import torch
    >>> ess(torch.ones(6).diag().roll(2, 0).tril(), kind="tolerance")
    tensor([0., 1., 2., 2., 2., 1.], dtype=torch.float64)
    """
    return profile(op, kind, tol, relative, positions, route=route, rtol=rtol, certify=certify).values


@_calm
def profile(
    op: Any,
    kind: Kind = "entropy",
    tol: float = 1e-3,
    relative: bool = False,
    positions: Any = None,
    *,
    route: Route = "auto",
    rtol: float = 1e-4,
    certify: bool = False,
) -> Profile:
    """Effective state-size as :func:`ess` has it, with its error and the routes that were taken.

    Parameters
    ----------
    op, kind, tol, relative, positions, route, rtol, certify
        As in :func:`ess`.

    Returns
    -------
    Profile

    Examples
    --------
    >>> import torch
    >>> found = profile(torch.ones(6, 6).tril(), kind="tolerance")
    >>> found.values, found.routes
    (tensor([0., 1., 1., 1., 1., 1.], dtype=torch.float64), {'svd': 1})
    >>> bool(found.error.any())
    False
    """
    check_kind(kind)
    op = as_operator(op)
    asked = Question(
        kind, check_tol(tol), relative, check_rtol(rtol), bool(certify), position_list(positions, op.length)
    )
    route = _checked(route, op)
    if route == "auto" and isinstance(op, Convolution) and _shares(op):
        route = "convolution"
    if route == "auto" and isinstance(op, Recurrence) and _is_small(op, asked.measure):
        route = "recurrence"
    shape = op.shape[:-2].numel(), len(asked.positions)
    values = torch.zeros(shape, dtype=working_dtype(op.device), device=op.device)
    error = torch.zeros_like(values)
    taken: Counter[str] = Counter()
    if values.numel():
        for rows, found, wrong, name in _answers(op, asked, route):
            values[rows], error[rows] = found.to(values), wrong.to(error)
            taken[name] += len(found)
    lead = *op.shape[:-2], shape[1]
    return Profile(values.reshape(lead), error.reshape(lead), dict(taken))


def _answers(
    op: Operator, asked: Question, route: Route
) -> Iterator[tuple[slice | Tensor, Tensor, Tensor, str]]:
    """Flattened leading entries, their values and errors, ``(count, P)``, and the route they took."""
    if route == "convolution":
        assert isinstance(op, Convolution)
        if op.taps <= _FEW_TAPS:
            each = _ENTRIES // max(1, len(asked.positions) * op.taps**2)
            for some in _split(torch.arange(op.shape[:-2].numel(), device=op.device), each):
                sigma = convolution_values(_entries(op, some), asked.positions)
                top = sigma.amax(dim=-1) if sigma.shape[-1] else sigma.sum(dim=-1)
                values, error, _ = asked.answer(sigma, _EPS * op.taps * top)
                yield some, values, error, route
            return
        T, at, index = convolution_part(op, asked.positions)
        values, error, _ = dense.answer(T.reshape(-1, *T.shape[-2:]), at, asked, "auto")

        def shared(part: Tensor) -> Tensor:
            all_ = part.reshape(*T.shape[:-2], -1)[..., index].expand(*op.shape[:-2], -1)
            return all_.reshape(-1, all_.shape[-1])

        yield slice(None), shared(values), shared(error), route
        return
    if route == "recurrence":
        for rows, sigma, bound in _recurrence_spectra(op, asked.positions):
            values, error, enough = asked.answer(sigma, bound)
            good = enough.all(dim=-1)
            yield rows[good], values[good], error[good], route
            for some in _split(rows[~good], _ENTRIES // op.shape[-1] ** 2):
                yield some, *_from_matrix(_entries(op, some), asked, "dense")
        return
    for part, piece in parts(op, _ENTRIES):
        yield part, *_from_matrix(piece, asked, route)


def _from_matrix(op: Operator, asked: Question, route: str) -> tuple[Tensor, Tensor, str]:
    T = checked_matrix(op).reshape(-1, *op.shape[-2:])
    return dense.answer(T, [op.block * i for i in asked.positions], asked, route)


def _recurrence_spectra(op: Operator, positions: list[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Flattened leading entries, as many as memory allows, their singular values and the bounds on these."""
    assert isinstance(op, Recurrence)
    count = op.shape[:-2].numel()
    each = max(1, _ENTRIES // max(1, len(positions) * _order(op)))
    for rows in _split(torch.arange(count, device=op.device), each):
        sigma, bound = realization.spectra(_entries(op, rows), positions)
        yield rows, sigma, bound


def _entries(op: Op, rows: Tensor) -> Op:
    """Some of the flattened leading entries, as one dimension."""
    lead = op.shape[:-2]
    part = op[torch.unravel_index(rows, lead)] if lead else op[None]
    return cast(Op, part)


def _split(rows: Tensor, each: int) -> list[Tensor]:
    return list(torch.split(rows, max(1, each))) if len(rows) else []


@_calm
def spectrum(op: Any, positions: Any = None, *, route: Route = "auto") -> Tensor:
    """Singular values of ``H_i = T[d*i:, :d*i]``, strictly past inputs to present-and-future outputs.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., d*L, d*L)``
    positions : sequence of int, optional
        Which ``i``, in this order; all by default.
    route : {"auto", "recurrence", "convolution", "low rank", "dense", "svd"}
        How to compute them. By default the cheapest way for this operator whose error bound is at most 1e-8 of
        the largest singular value; the error itself is mostly that of a decomposition in float64. ``"dense"`` and
        ``"svd"`` decompose what is not zero at each position.

    Returns
    -------
    Tensor, ``(..., P, K)``
        Descending, padded with zeros to ``K``: the largest ``d * min(i, L - i)`` of the positions asked for
        (``d * (L // 2)`` for all). float64 (float32 on MPS), on the operator's device.

    Raises
    ------
    ValueError
        If the operator is not square, causal and finite, a position is out of range, or the route does not fit.
    TypeError
        If positions are not integers.

    Examples
    --------
    The all-ones operator has rank 1 everywhere, with ``sqrt(i * (L - i))`` as its only singular value.

    >>> import torch
    >>> spectrum(torch.ones(4, 4).tril(), positions=[1, 2])[:, 0]
    tensor([1.7321, 2.0000], dtype=torch.float64)
    """
    op = as_operator(op)
    wanted = position_list(positions, op.length)
    route = _checked(route, op)
    K = width(wanted, op)
    if route in ("auto", "convolution") and isinstance(op, Convolution) and _shares(op):
        return convolution_spectrum(op, wanted)
    out = torch.zeros(op.shape[:-2].numel(), len(wanted), K, dtype=working_dtype(op.device), device=op.device)
    if out.numel():
        for rows, sigma in _spectra(op, wanted, route):
            out[rows, :, : sigma.shape[-1]] = sigma.to(out)
    return out.reshape(*op.shape[:-2], len(wanted), K)


def _spectra(op: Operator, wanted: list[int], route: Route) -> Iterator[tuple[slice | Tensor, Tensor]]:
    if route == "recurrence" or (
        route == "auto" and isinstance(op, Recurrence) and _order(op) < op.length // 4
    ):
        for rows, sigma, bound in _recurrence_spectra(op, wanted):
            good = _exact(sigma, bound).all(dim=-1)
            yield rows[good], sigma[good]
            for some in _split(rows[~good], 1):
                yield some, _spectra_of_matrix(_entries(op, some), wanted, "dense")
        return
    for part, piece in parts(op, _ENTRIES):
        yield part, _spectra_of_matrix(piece, wanted, route)


def _spectra_of_matrix(op: Operator, wanted: list[int], route: Route) -> Tensor:
    T = checked_matrix(op).reshape(-1, *op.shape[-2:])
    at = [op.block * i for i in wanted]
    if route == "low rank" or (route == "auto" and T.shape[-1] >= dense.LOOK_FROM):
        found = low_rank.spectra(T, at)
        if found is not None and (route == "low rank" or bool(_exact(*found).all())):
            return found[0]
        dense.check_low_rank(found, route)
    return dense.singular_values_at(T, at)


def _exact(sigma: Tensor, bound: Tensor) -> Tensor:
    """Where singular values are known to eight digits of the largest, or to twelve of the largest at any position."""
    top = sigma.amax(dim=-1) if sigma.shape[-1] else torch.zeros_like(bound)
    return (bound <= 1e-8 * top) | (bound <= 1e-12 * top.amax(dim=-1, keepdim=True))


def _checked(route: str, op: Operator) -> Route:
    if route not in get_args(Route):
        raise ValueError(f"route must be one of {', '.join(map(repr, get_args(Route)))}, but is {route!r}.")
    if route == "recurrence" and not isinstance(op, Recurrence):
        raise ValueError(f"route='recurrence' needs a Recurrence, but the operator is a {type(op).__name__}.")
    if route == "convolution" and not (isinstance(op, Convolution) and _shares(op)):
        raise ValueError(
            f"route='convolution' needs a Convolution without gates and padding or with few taps, but the operator is {op!r}."
        )
    return route  # type: ignore[return-value]


def _shares(op: Convolution) -> bool:
    """Whether positions in the middle share one spectrum, or each has a small matrix of its own."""
    return op.taps <= _FEW_TAPS or not (op.gated or op.valid is not None)


def _order(op: Recurrence) -> int:
    """Real numbers in the state."""
    return op.order * (2 if op.B.is_complex() or op.C.is_complex() else 1)


def _is_small(op: Recurrence, measure: str) -> bool:
    """Whether the state is so small that its own way is cheaper than that of a matrix."""
    large, fixed = _DENSE[measure]
    size = op.shape[-1] / 1024
    own: float = _RECURRENCE * max(1.0, _order(op) / 16) ** _GROWTH
    return own < op.block * (large * size**2 + fixed)
