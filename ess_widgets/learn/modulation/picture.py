"""ESS along a text with its delimiters, beside the depth of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ess_widgets.learn.modulation.result import Modulation, Reading

__all__ = ["draw"]

_SERIES, _OTHER, _ACCENT, _SHADE, _QUIET = "#1f5fa8", "#8a93a0", "#c8441b", "#e9ebef", "#5c6470"


def draw(
    found: Modulation,
    text: int | None,
    layer: str | int | None,
    head: int | None,
    figsize: tuple[float, float],
) -> Figure:
    from ess_widgets.figures import Figure

    name = _layer(found, layer)
    reading = _reading(found, text, name)
    rows = [k for k, one in enumerate(reading.curves.heads) if one.layer == name and head in (None, one.head)]
    if not rows:
        known = [one.head for one in reading.curves.heads if one.layer == name]
        raise ValueError(f"head {head!r} of {name!r} was not measured; measured are {known}.")
    figure = Figure(figsize=figsize, layout="constrained")
    along, depths = figure.subplots(1, 2, width_ratios=[1.7, 1])
    group = reading.curves.heads[rows[0]].group
    which = (
        f"{group} {head}"
        if head is not None
        else f"mean of {len(rows)} {group}{'s' if len(rows) > 1 else ''}"
    )
    _along(along, reading, rows)
    along.set(ylabel=f"ESS ({found.measure})")
    along.set_title(f"text {reading.index}, {_plain(name)}, {which}", fontsize=9, loc="left")
    _depths(depths, found, name)
    for axes in (along, depths):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _layer(found: Modulation, layer: str | int | None) -> str:
    names = list(found.layers.index)
    if layer is None:
        by = "excess" if found.layers["excess"].notna().any() else "depth"
        return str(found.layers[by].fillna(-np.inf).idxmax())
    if isinstance(layer, int) and not isinstance(layer, bool):
        if not -len(names) <= layer < len(names):
            raise ValueError(f"layer {layer} is out of range: {len(names)} layers were measured.")
        return str(names[layer])
    if layer not in names:
        raise ValueError(f"no layer {layer!r} was measured; measured are {', '.join(map(str, names))}.")
    return str(layer)


def _reading(found: Modulation, text: int | None, layer: str) -> Reading:
    if text is None:
        table = found.table[found.table["layer"] == layer]
        text = int(table.groupby("text")["lost"].sum().idxmax())
    for reading in found.readings:
        if reading.index == text:
            return reading
    known = [reading.index for reading in found.readings]
    raise ValueError(f"text {text!r} was not measured; measured are {known}.")


def _along(axes: Any, reading: Reading, rows: list[int]) -> None:
    at = np.arange(len(reading.ids))
    curve, other = reading.curves.ess[rows].mean(0), reading.replaced.ess[rows].mean(0)
    limit = reading.curves.ceiling[rows].mean(0)
    top = max(1.0, 1.25 * float(max(curve.max(), other.max())))
    axes.fill_between(at, np.minimum(limit, top), top, color=_SHADE, linewidth=0, label="above the ceiling")
    for k, one in enumerate(reading.delimiters):
        edges = {"color": _ACCENT, "linewidth": 0.9, "linestyle": ":"}
        axes.axvline(one.stop, label="delimiters" if k == 0 else None, **edges)
        axes.annotate(
            _plain(one.label.strip() or repr(one.label)[1:-1]), (one.stop, 1), xycoords=("data", "axes fraction"),
            fontsize=7, color=_ACCENT, rotation=90, ha="right", va="top",
        )  # fmt: skip
    axes.plot(at, other, color=_OTHER, linewidth=1.3, label=f"with {_plain(reading.replacement)!r} instead")
    axes.plot(at, curve, color=_SERIES, linewidth=1.8, label="the text")
    axes.set(xlabel="position i", xlim=(0, len(at) - 1), ylim=(0, top))
    axes.legend(fontsize=7, frameon=False, loc="lower center", ncols=2)


def _depths(axes: Any, found: Modulation, chosen: str) -> None:
    layers = found.layers
    at = np.arange(len(layers))
    low = (layers["depth"] - layers["depth_low"]).clip(lower=0).fillna(0.0)
    high = (layers["depth_high"] - layers["depth"]).clip(lower=0).fillna(0.0)
    axes.axhline(0, color=_QUIET, linewidth=0.7)
    axes.plot(at, layers["placebo"], "_", color=_QUIET, markersize=6, label="other positions")
    axes.plot(at, layers["replaced"], "o", color=_OTHER, markersize=3.5, label="delimiters replaced")
    axes.errorbar(
        at, layers["depth"], yerr=np.stack([low, high]), fmt="o", color=_SERIES, markersize=4, linewidth=1,
        label="delimiters" + (", 95 % over texts" if found.testable else ""),
    )  # fmt: skip
    k = list(layers.index).index(chosen)
    axes.plot(k, layers["depth"].iloc[k], "o", color=_ACCENT, markersize=6)
    axes.set(
        xlabel="layers that were measured, in order", ylabel=f"depth of the dips in ESS ({found.measure})"
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    # Above the axes: points may be anywhere inside.
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _plain(text: str) -> str:
    """matplotlib reads dollar signs as mathematics."""
    return text.replace("$", r"\$")
