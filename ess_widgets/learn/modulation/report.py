"""The findings in words, as text and as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from ess_widgets.learn.modulation.significance import attainable

if TYPE_CHECKING:
    from ess_widgets.learn.modulation.result import Modulation

__all__ = ["html", "text"]

_SHOWN = 12  # layers; the rest is in .layers
_LEVEL = 0.05


def _heading(found: Modulation) -> str:
    table = found.table
    each = table.drop_duplicates(["text", "number"])["kind"].value_counts()
    kinds = ", ".join(f"{count} × {kind!r}" for kind, count in each.items())
    layers, heads = table["layer"].nunique(), len(table[["layer", "head"]].drop_duplicates())
    return (
        f"Dips of ESS ({found.measure}) at delimiters: {_number(len(found.readings), 'text')}, {kinds}; "
        f"{_number(layers, 'layer')}, {_number(heads, 'head')}; surroundings of {found.window} positions"
    )


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _sentences(found: Modulation) -> list[str]:
    whole = found.overall.iloc[0]
    swap = sorted({repr(one.replacement) for one in found.readings})
    said = (
        f"Depth over all layers {whole['depth']:.3f} (1: all is dropped), elsewhere {whole['placebo']:.3f}, "
        f"with {', '.join(swap)} in the delimiters' place {whole['replaced']:.3f}."
    )
    lines = [said]
    if not found.testable:
        lines.append(
            "One text: no test is possible, since heads and positions of one text depend on each other."
        )
    else:
        for what, against in (("excess", "ordinary positions"), ("paired", "the replacement")):
            lines.append(
                f"Against {against}: {whole[what]:+.3f} [{whole[what + '_low']:+.3f}, {whole[what + '_high']:+.3f}], "
                f"p = {whole[what + '_p']:.2g}; layers that differ at {_LEVEL:g} after correction: "
                f"{int((found.layers[what + '_p_max'] < _LEVEL).sum())} of {len(found.layers)} "
                f"(Holm: {int((found.layers[what + '_p_holm'] < _LEVEL).sum())})."
            )
        lines.append(_power(len(found.readings), len(found.layers)))
    if found.table["placebo_lost"].isna().all():
        lines.append("No position is far enough from all delimiters to serve as a placebo.")
    if found.skipped:
        lines.append(f"Left out: {_number(len(found.skipped), 'delimiter or layer')}, see .skipped.")
    return lines


def _power(texts: int, layers: int) -> str:
    least = attainable(texts)
    line = f"A text is the unit: {texts} of them cannot give a two-sided p below {least:.2g}"
    if least >= _LEVEL:
        return line + ", so nothing can be significant; six or more can."
    if least * layers >= _LEVEL:
        return (
            line + f", nor below {min(1.0, least * layers):.2g} after Holm over {layers} layers; p_max can."
        )
    return line + "."


def _columns(found: Modulation) -> list[str]:
    columns = ["family", "depth", "placebo", "replaced", "width"]
    return [*columns, "excess_p_max", "paired_p_max"] if found.testable else columns


def _deepest_layers(found: Modulation) -> Any:
    by = "excess" if found.layers["excess"].notna().any() else "depth"
    return found.layers.sort_values(by, ascending=False, kind="stable").head(_SHOWN)[_columns(found)]


def text(found: Modulation) -> str:
    """What ``print`` shows."""
    rows = _deepest_layers(found).to_string(float_format="{:.3f}".format)
    return "\n".join([_heading(found), *_sentences(found), _caption(found), rows])


def _caption(found: Modulation) -> str:
    rest = len(found.layers) - _SHOWN
    return "Layers that dip most" + (f" ({rest} more in .layers)" if rest > 0 else "") + f", {found.measure}:"


def html(found: Modulation) -> str:
    """What a notebook shows; whatever comes from models and texts is escaped."""
    rows = _deepest_layers(found).to_html(float_format="{:.3f}".format, escape=True, border=0)
    said = "".join(f"<p>{escape(line)}</p>" for line in [*_sentences(found), _caption(found)])
    return f"<div><p><b>{escape(_heading(found))}</b></p>{said}{rows}</div>"
