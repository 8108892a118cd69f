"""The explorer's picture in matplotlib: for papers, and for places without JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import figure as matplotlib_figure
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from ess_widgets.metrics import ceiling, ess, spectrum
from ess_widgets.operators import Dense, Operator

__all__ = ["Figure", "memory"]

_SERIES, _ACCENT, _SHADE = "#1f5fa8", "#c8441b", "#e9ebef"


class Figure(matplotlib_figure.Figure):
    """A figure that notebooks show as a picture, also where ``%matplotlib inline`` and pyplot have not been used."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def memory(
    op: Operator | Any,
    position: int | None = None,
    *,
    kind: str = "entropy",
    tol: float = 1e-3,
    relative: bool = False,
    labels: Sequence[str] | None = None,
    figsize: tuple[float, float] = (7.2, 5.4),
) -> Figure:
    """Draw ESS along the sequence above the operator, with ``H_i`` framed and its spectrum beside it.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(L, L)``
        One head.
    position : int, optional
        ``i``; by default where ESS is largest.
    kind, tol, relative
        As in :func:`ess_widgets.ess`.
    labels : sequence of str, optional
        A label for each position.
    figsize : (float, float)
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the operator has leading dimensions, or labels do not fit.

    Examples
    --------
    >>> import torch
    >>> figure = memory(torch.rand(8, 8).tril(), kind="tolerance", tol=0.1)
    >>> len(figure.axes)
    4
    """
    operator = op if isinstance(op, Operator) else Dense(op)
    if len(operator.shape) != 2:
        raise ValueError(f"The operator has shape {tuple(operator.shape)}; choose one head, as in op[0, 3].")
    length = operator.shape[-1]
    if labels is not None and len(labels) != length:
        raise ValueError(f"{len(labels)} labels for {length} positions.")
    T = operator.matrix().detach().cpu().double().numpy()
    curve = ess(operator, kind=kind, tol=tol, relative=relative).cpu().numpy()  # type: ignore[arg-type]
    top = ceiling(operator).cpu().numpy()
    i = int(curve.argmax()) if position is None else position
    sigma = spectrum(operator, positions=[i])[0].cpu().numpy()

    figure = Figure(figsize=figsize, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.7, 1], height_ratios=[1, 2.4])
    heat = figure.add_subplot(grid[1, 0])
    profile = figure.add_subplot(grid[0, 0], sharex=heat)
    bars = figure.add_subplot(grid[:, 1])

    # Position i lies between the cells i-1 and i: everything left of it and below it is H_i.
    edges = np.arange(length) - 0.5
    profile.fill_between(edges, top, max(top.max(), 1), color=_SHADE, linewidth=0, label="above the ceiling")
    profile.plot(edges, curve, color=_SERIES, linewidth=1.8)
    profile.plot(i - 0.5, curve[i], "o", color=_ACCENT, markersize=5)
    profile.set(ylim=(0, max(top.max(), 1) * 1.02), ylabel=f"ESS ({kind})")
    profile.set_title(f"ESS {curve[i]:.3g} of {top[i]} at i = {i}", fontsize=10, loc="left")
    profile.tick_params(labelbottom=False)

    size = np.abs(np.ma.masked_array(T, np.triu(np.ones_like(T), 1).astype(bool)))
    largest = float(size.max()) or 1.0
    image = heat.imshow(
        np.ma.maximum(size, largest * 1e-4),
        norm=LogNorm(largest * 1e-4, largest),
        cmap="magma_r",
        interpolation="nearest",
        aspect="auto",
    )
    heat.add_patch(Rectangle((-0.5, i - 0.5), i, length - i, fill=False, edgecolor=_ACCENT, linewidth=1.6))
    heat.annotate(
        f"$H_{{{i}}}$: past → future",
        (0, length - 1),
        color=_ACCENT,
        fontsize=9,
        va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )
    heat.set(xlabel="input position", ylabel="output position")
    for axes in (profile, heat):
        axes.axvline(i - 0.5, color=_ACCENT, linewidth=0.9)
    if labels is not None and length <= 40:
        heat.set_xticks(range(length), [label.strip() or "␣" for label in labels], rotation=90, fontsize=7)
    figure.colorbar(image, ax=heat, location="bottom", label="|T|", shrink=0.6, aspect=40)

    count = min(i, length - i)
    values = sigma[:count]
    limit = tol * (values[0] if relative and count else 1.0)
    kept = values > limit if kind == "tolerance" else np.arange(count) < round(float(curve[i]))
    bars.bar(np.arange(1, count + 1), values, color=np.where(kept, _SERIES, "#c9ced6"), width=0.8)
    bars.set(yscale="log", xlabel="k", title=f"singular values of $H_{{{i}}}$")
    bars.title.set_fontsize(10)
    if kind == "tolerance":
        bars.axhline(limit, color=_ACCENT, linewidth=1)
        bars.annotate(
            "τ", (1, limit), xycoords=("axes fraction", "data"), color=_ACCENT, ha="right", va="bottom"
        )
    for axes in (profile, bars):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
