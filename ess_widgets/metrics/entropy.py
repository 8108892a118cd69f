"""Entropy-ESS of a dense causal matrix at every split position, with an error bound for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ess_widgets.metrics._nodes import FIRST, Rule, rule
from ess_widgets.metrics._pool import in_parallel
from ess_widgets.metrics._svd import singular_values, threads
from ess_widgets.metrics.determinants import NestedElimination

__all__ = ["entropy"]

_EPS = torch.finfo(torch.float64).eps
# Positions whose norm is within this factor of the largest share their nodes.
_REACH = 64.0
# The largest value of log(1 + x²) / x, rounded up.
_SLOPE = 0.805
# This part of the positions may be left over: they are few, and mostly near the ends, where decomposition is cheap.
_QUANTILE = 0.02
# How many singular values are expected to matter near the smallest nodes, in a first and a second attempt.
_EXPECTED = (16, 64)
# So many positions of one matrix are sooner decomposed than given nodes of their own. Measured for N of 64 to
# 2,048: nodes cost as much as 25 to 50 decompositions of average size.
_FEW = 32
# Entries of T from which on several matrices are worked on by several threads.
_SIDE_BY_SIDE = 2**20
# Entries of T worked on at once.
_ENTRIES = 2**24


def entropy(
    T: Tensor, at: Sequence[int], rtol: float = 1e-4, *, counts: Counter[str] | None = None
) -> tuple[Tensor, Tensor]:
    r"""``exp(-Σ p log p)``, ``p = σ / Σσ``, of ``H_p = T[p:, :p]``, and how far it can be wrong.

    Log-determinants ``Σ_k log(1 + σ_k² / s²)`` at a dozen or two of ``s`` give ``Σσ`` and ``Σ σ log σ``; what is
    known of each position beforehand (its norm, its rank at most, a first pair of determinants) says which
    ``s``. Positions far smaller in norm than the largest get nodes of their own; those that nodes do not
    resolve, a singular value decomposition.

    Parameters
    ----------
    T : Tensor, ``(B, N, N)``
        float32 or float64. Only what is strictly below the diagonal is read.
    at : sequence of int
        Splits in ``0 .. N``.
    rtol : float
        The relative error allowed.
    counts : Counter, optional
        Gets the number of positions settled under ``"exact"``, ``"nodes"`` and ``"svd"``.

    Returns
    -------
    values, bound : Tensor, ``(B, P)``
        float64. The relative error of each value is at most its bound, and that at most ``rtol`` unless
        float64 cannot do better. ``H_p = 0`` gives exactly 0.

    Examples
    --------
    >>> import torch
    >>> values, bound = entropy(torch.ones(1, 64, 64).tril(), [0, 1, 32])
    >>> values.round(decimals=3), bool((bound <= 1e-4).all())
    (tensor([[0., 1., 1.]], dtype=torch.float64), True)
    """
    B, N = T.shape[0], T.shape[-1]
    inner = sorted({p for p in at if 0 < p < N})
    values = torch.zeros(B, len(at), dtype=torch.float64, device=T.device)
    bound = torch.zeros_like(values)
    counts = Counter() if counts is None else counts
    if not inner:
        return values, bound
    place = {p: k for k, p in enumerate(inner)}
    columns = [k for k, p in enumerate(at) if 0 < p < N]
    source = torch.tensor([place[at[k]] for k in columns], device=T.device)
    # Matrices side by side where there are enough of them; of a few, the nodes (in ``log_determinants``).
    each = -(-B // threads()) if B * N**2 >= _SIDE_BY_SIDE and T.device.type == "cpu" else B
    step = max(1, min(each, _ENTRIES // N**2))
    rows = [slice(b, min(b + step, B)) for b in range(0, B, step)]
    settled = in_parallel([partial(_settled, T[part], inner, rtol) for part in rows], T.device)
    for part, found in zip(rows, settled, strict=True):
        counts.update(found.counts)
        values[part, columns] = found.values[:, source]
        bound[part, columns] = found.bound[:, source]
    return values, bound


def _settled(T: Tensor, at: list[int], rtol: float) -> _Positions:
    positions = _Positions(T, at, rtol)
    positions.settle()
    return positions


def _scaled(X: Tensor) -> Tensor:
    """Each matrix times the power of two that brings its largest entry into ``[0.5, 1)``, in place."""
    exponent = -torch.frexp(torch.maximum(X.amax((-2, -1)), -X.amin((-2, -1))))[1]
    # In two steps: the factor itself may overflow.
    for half in (exponent // 2, exponent - exponent // 2):
        X.mul_(torch.ldexp(torch.ones_like(half, dtype=X.dtype), half)[:, None, None])
    return X


class _Positions:
    """All positions of a batch, and which of them are settled."""

    def __init__(self, T: Tensor, at: list[int], rtol: float) -> None:
        self.original, self.at, self.rtol = T, at, rtol
        self.X = X = _scaled(T.double().tril(-1))
        N = X.shape[-1]
        index = torch.tensor(at, device=X.device) - 1
        # ‖H_p‖², from sums of non-negative numbers alone: rows up to column p - 1, over rows from p.
        self.F = X.square().cumsum_(-1).tril_(-1).sum(-2)[:, index]
        # Rank at most: rows i of H_p that are not zero, those with first < p <= i, and columns likewise.
        used = (X != 0).byte()
        rows = torch.arange(N, device=X.device).expand(len(X), N)
        any_row, any_column = used.amax(-1), used.amax(-2)
        first = torch.where(any_row > 0, used.argmax(-1), rows)
        last = torch.where(any_column > 0, N - 1 - used.flip(-2).argmax(-2), rows)
        ones = torch.ones_like(rows)
        counts = torch.zeros(2, len(X), N, dtype=rows.dtype, device=X.device)
        counts[0].scatter_add_(-1, first, ones).sub_(1)
        counts[1].add_(1).scatter_add_(-1, last, -ones)
        self.K = counts.cumsum(-1).amin(0)[:, index]
        self.values = torch.clamp(self.K, max=1).double()
        self.bound = torch.zeros_like(self.values)
        self.counts: Counter[str] = Counter(exact=int((self.K <= 1).sum()))
        self.todo = self.K > 1

    def settle(self) -> None:
        # Numbers whose squares underflow are for the decomposition, which scales each position by itself.
        self._decompose(self.todo & (self.F < 1e-200))
        failed = torch.zeros_like(self.todo)
        while bool(self.todo.any()):
            norm = torch.where(self.todo, self.F, 0).sqrt()
            largest = norm.amax(-1, keepdim=True)
            group = self.todo & (norm * _REACH >= largest)
            again = bool((group & failed).any())
            if again:
                group &= failed
            few = group.sum(-1, keepdim=True) <= _FEW
            self._decompose(group & few)
            group &= ~few
            if bool(group.any()):
                self._by_nodes(group, largest[:, 0], strict=again)
                if again:
                    self._decompose(group & self.todo)
                failed |= group & self.todo

    def _by_nodes(self, group: Tensor, largest: Tensor, strict: bool) -> None:
        heads = group.any(-1).nonzero()[:, 0]
        columns = group.any(0).nonzero()[:, 0]
        at = [self.at[k] for k in columns.tolist()]
        unit = torch.ldexp(torch.ones_like(largest[heads]), torch.frexp(largest[heads])[1])[:, None]
        F = self.F[heads][:, columns] / unit / unit
        K = self.K[heads][:, columns].double()
        group, todo = group[heads][:, columns], self.todo[heads][:, columns]
        log_determinants = NestedElimination(self.X if len(heads) == len(self.X) else self.X[heads], at)
        first = log_determinants(unit * unit.new_tensor(FIRST))
        scales = _scales(first, F, K.clamp(max=_EXPECTED[strict]), group)
        target = math.floor(2 * math.log2(self.rtol)) - (4 if strict else 2)
        for kind in sorted(set(scales)):
            mine = torch.tensor([k for k, other in enumerate(scales) if other == kind], device=unit.device)
            chosen = rule(*kind, target)
            rest = [s for s in chosen.shifts if s not in FIRST]
            logs = torch.cat([first[mine], log_determinants(unit[mine] * unit.new_tensor(rest), mine)], 1)
            value, bound = _evaluate(chosen, [*FIRST, *rest], logs, F[mine], K[mine])
            settled = todo[mine] & (bound <= self.rtol)
            row, column = settled.nonzero(as_tuple=True)
            where = heads[mine[row]], columns[column]
            self.values[where], self.bound[where] = value[settled], bound[settled]
            self.todo[where] = False
            self.counts["nodes"] += len(row)

    def _decompose(self, which: Tensor) -> None:
        for k in which.any(0).nonzero()[:, 0].tolist():
            p = self.at[k]
            heads = which[:, k].nonzero()[:, 0]
            sigma = singular_values(_scaled(self.original[heads, p:, :p].double()))
            self.values[heads, k], self.bound[heads, k] = _from_singular_values(sigma)
            self.counts["svd"] += len(heads)
        self.todo &= ~which


def _rounding(shifts: Tensor, F: Tensor, K: Tensor) -> Tensor:
    """How far rounding can move the log-determinants: ``(b, S, P)``.

    The elimination works on ``I + X Xᵀ / s²`` and its likes, whose entries are rounded relative to the norm.
    """
    return 8 * _EPS * (K[:, None] + K[:, None].sqrt() * F[:, None] / shifts[:, None] ** 2)


def _at_least(logs: Tensor, F: Tensor) -> Tensor:
    """``Σσ`` is not smaller, from the determinants at the first nodes."""
    shifts = logs.new_tensor(FIRST)
    return torch.maximum((shifts[:, None] * logs).amax(1).nan_to_num(0) / _SLOPE, F.sqrt())


def _scales(logs: Tensor, F: Tensor, K: Tensor, group: Tensor) -> list[tuple[int, int, int]]:
    """Powers of two for each matrix: what singular values make up the sums at (nearly) all of its positions."""
    total = _at_least(logs, F)
    nan = torch.tensor(torch.nan, dtype=F.dtype, device=F.device)
    alpha = torch.nanquantile(torch.where(group, total / K, nan), _QUANTILE, dim=-1)
    beta = torch.nanquantile(torch.where(group, total / F, nan), _QUANTILE, dim=-1)
    upper = torch.where(group, _largest(logs[:, 0], F, K), 0).amax(-1)
    scales = torch.stack([alpha.log2(), beta.log2(), -2 * upper.log2()], -1)
    if len(logs) > 4:
        # Fewer kinds of rules, so that more matrices go together.
        scales = 2 * (scales / 2).floor()
    table = scales.floor().nan_to_num(-30).clamp(-40, 40).int().tolist()
    return [(low, flat, -high) for low, flat, high in table]


def _largest(logs: Tensor, F: Tensor, K: Tensor) -> Tensor:
    """No singular value is larger, from ``f(1)``: ``z - log(1 + z) ≥ z² / (2 + 4z/3)`` for each ``z = σ²``."""
    excess = (F - logs).clamp(min=0) + _rounding(logs.new_ones(1), F, K)[:, 0]
    z = 2 / 3 * excess + (4 / 9 * excess**2 + 2 * excess).sqrt()
    return torch.minimum(z.sqrt(), F.sqrt() * (1 + 1e-9)).nan_to_num(1.0)


def _evaluate(
    rule: Rule, shifts: Sequence[float], logs: Tensor, F: Tensor, K: Tensor
) -> tuple[Tensor, Tensor]:
    """Values and bounds ``(b, P)`` from log-determinants ``(b, S, P)`` at ``shifts``."""
    order = [shifts.index(s) for s in rule.shifts]
    s = logs.new_tensor(rule.shifts)
    x = torch.cat([logs[:, order], F[:, None]], 1)
    sums, wrong_sum, floor_sum, references, wrong_entropy, floor_entropy = (
        torch.as_tensor(a, dtype=x.dtype, device=x.device)
        for a in (
            rule.sums,
            rule.wrong_sum,
            rule.floor_sum,
            rule.references,
            rule.wrong_entropy,
            rule.floor_entropy,
        )
    )
    A, S = torch.einsum("bsp,sk->kbp", x, sums)
    mean = S / A
    value = (A / rule.centre).log() - mean
    # Rounding of the determinants and of sums of them.
    rough = torch.cat([_rounding(s, F, K), torch.zeros_like(F[:, None])], 1) + 4 * _EPS * x.abs()
    noise = torch.einsum("bsp,s->bp", rough, sums[:, 0].abs())
    noise_entropy = torch.einsum("bsp,s->bp", rough, (sums[:, 0] - sums[:, 1]).abs())
    both = torch.cat([x, rough], 1).mT.contiguous()

    def most(c: Tensor, floor: Tensor) -> Tensor:
        """The sum of what dominates the error, where it is smallest: weights ``(C, S + 1)``, floors ``(C,)``."""
        return (both @ torch.cat([c, c.abs()], -1).mT).addcmul_(K[..., None], floor).amin(-1)

    wrong = (most(wrong_sum, floor_sum) + noise) / (1 - rule.nominal)
    nearest = (mean[..., None] - references).abs().nan_to_num(torch.inf).argmin(-1)
    reference = references[nearest]
    off = torch.stack([most(*pair) for pair in zip(wrong_entropy, floor_entropy, strict=True)])
    off = off.gather(0, nearest[None])[0] + noise_entropy + reference.abs() * noise + rule.nominal * wrong
    # E = log A - S/A with A = Â(1 + u) and (1 + λ) A - S off by γ.
    u = wrong / A
    change = (u * (mean - reference).abs() + off / A) / (1 - u) + (u / (1 - u)) ** 2 / 2
    known = _largest(logs[:, rule.shifts.index(1.0)], F, K) <= rule.upper
    bound = torch.where((A > 0) & (u < 0.5) & known, change.expm1(), torch.inf).nan_to_num(torch.inf)
    value = torch.minimum(value.clamp(min=0), K.clamp(min=1).log())
    return value.exp(), bound


def _from_singular_values(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Values and bounds ``(b,)`` from singular values ``(b, K)``, each off by rounding relative to the largest."""
    total = sigma.sum(-1, keepdim=True)
    p = sigma / total
    value = torch.special.entr(p).sum(-1)
    off = 8 * _EPS * sigma.shape[-1] * p[:, 0]
    # A change of δ in p changes -p log p by at most δ (|log δ| + 1), and the mean of log p as much.
    bound = (2 * off * (1 - off.log()) + 4 * _EPS * sigma.shape[-1]).expm1()
    return value.exp(), bound
