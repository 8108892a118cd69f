"""How the error falls as the state grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ess_widgets.learn.reduction.balancing import balance
from ess_widgets.learn.reduction.truncation import Reduction, as_operator
from ess_widgets.operators import Operator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RankCurve", "draw", "rank_curve"]

_ERROR, _BOUND, _GREY = "#1f5fa8", "#c8441b", "#8b93a0"


@dataclass(frozen=True)
class RankCurve:
    """Errors of reductions to several ranks, in operator norm, ``(ranks, ...)`` each.

    Attributes
    ----------
    ranks : tuple of int
    error, bound, lower, estimate : Tensor
        As :class:`Reduction` has them.
    relative : Tensor
        ``‖T - T_r‖_F / ‖T‖_F``.
    """

    ranks: tuple[int, ...]
    error: Tensor
    bound: Tensor
    lower: Tensor
    estimate: Tensor
    relative: Tensor

    def figure(self) -> Figure:
        """Error against rank; over leading dimensions, medians and the range."""
        from ess_widgets.figures import Figure

        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        _draw_curve(figure.add_subplot(), self)
        return figure


def rank_curve(op: Any, ranks: Sequence[int] | None = None) -> RankCurve:
    """Reduce to several ranks, with one balancing for all.

    Parameters
    ----------
    op : Operator, LayerCapture, Tensor or ndarray ``(..., L, L)``
    ranks : sequence of int, optional
        By default about a dozen from 0 to the most that any ``H_i`` has.

    Returns
    -------
    RankCurve

    Examples
    --------
    A delay by three positions keeps three numbers; every one that is dropped costs one.

    >>> import torch
    >>> curve = rank_curve(torch.diag(torch.ones(13), -3), [0, 1, 2, 3])
    >>> torch.round(curve.error, decimals=3).tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    operator = as_operator(op)
    given = None if ranks is None else _checked(ranks)
    most = None if given is None else max(given)
    balanced = balance(
        operator,
        lambda sigma, rows, at: (sigma > 0).sum(-1).clamp(max=most) if given else (sigma > 0).sum(-1),
    )
    chosen = given or _spread(int(balanced.ranks.amax()))
    reductions = [Reduction(operator, balanced.cut(torch.tensor(rank))) for rank in chosen]
    return RankCurve(
        tuple(chosen),
        torch.stack([r.error.spectral for r in reductions]),
        torch.stack([r.bound for r in reductions]),
        torch.stack([r.lower for r in reductions]),
        torch.stack([r.estimate for r in reductions]),
        torch.stack([r.error.relative for r in reductions]),
    )


def draw(reduction: Reduction, index: Any, ranks: Sequence[int] | None) -> Figure:
    """The picture of one entry of a reduction."""
    from ess_widgets.figures import Figure

    lead = reduction.operator.shape[:-2]
    if index is None:
        worst = reduction.error.spectral.argmax()
        index = tuple(int(i) for i in torch.unravel_index(worst, lead)) if lead else ()
    index = index if isinstance(index, tuple) else (index,)
    if len(index) != len(lead):
        raise ValueError(
            f"index must name one entry of the leading dimensions {tuple(lead)}, but is {index}."
        )
    op: Operator = reduction.original[index] if lead else reduction.original
    kept, sigma = reduction.ranks[index].cpu(), reduction.singular_values[index].cpu()
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
    _draw_curve(left, rank_curve(op, ranks))
    for rank in sorted({int(kept.min()), int(kept.max())}):
        left.axvline(rank, color=_GREY, linewidth=0.8, linestyle=":")
    positions = torch.arange(sigma.shape[0])
    smallest = float(sigma.max()) * 1e-12
    for k in range(min(sigma.shape[-1], 64)):
        curve = sigma[:, k].where(sigma[:, k] > smallest, torch.nan)
        for mask, color, label in ((kept > k, _ERROR, "kept"), (kept <= k, _BOUND, "discarded")):
            # Joined with the neighbours, so that a line that changes sides has no gap.
            wide = mask | mask.roll(1)
            right.plot(
                positions, curve.where(wide, torch.nan), color=color, linewidth=1, label=label, alpha=0.8
            )
    handles, labels = right.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        # Above the axes, which the lines fill.
        right.legend(
            unique.values(), unique.keys(), frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1),
            borderaxespad=0, ncols=2,
        )  # fmt: skip
    right.set(yscale="log", xlabel="position i")
    right.set_title("singular values of $H_i$", fontsize=10, loc="left")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_curve(axes: Any, curve: RankCurve) -> None:
    floor = float(curve.error.max()) * 1e-13 or 1e-300
    series = (
        ("proven bound", curve.bound, _BOUND, "-"),
        ("2 Σ max σ (estimate)", curve.estimate, _GREY, "--"),
        ("error", curve.error, _ERROR, "-"),
        ("best possible", curve.lower, _GREY, ":"),
    )
    for label, values, color, style in series:
        flat = values.reshape(len(curve.ranks), -1).cpu().clamp(min=floor)
        axes.plot(curve.ranks, flat.median(-1)[0], color=color, linestyle=style, label=label, linewidth=1.6)
        if flat.shape[-1] > 1:
            axes.fill_between(curve.ranks, flat.amin(-1), flat.amax(-1), color=color, alpha=0.12, linewidth=0)
    axes.set(yscale="log", xlabel="state kept", title="‖T − T_r‖ in operator norm")
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _checked(ranks: Sequence[int]) -> list[int]:
    chosen = [int(rank) for rank in ranks]
    if not chosen or any(rank < 0 for rank in chosen):
        raise ValueError(f"ranks must be some integers of at least 0, but are {list(ranks)}.")
    return chosen


def _spread(most: int, count: int = 12) -> list[int]:
    step = max(1, -(-most // count))
    return sorted({*range(0, most, step), most})
