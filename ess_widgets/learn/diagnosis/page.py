"""A diagnosis as HTML: a fragment for a notebook, a page of its own, and the table that the widget shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .findings import SEVERITIES, Finding
from .rows import Row
from .summary import grouped, headline, spans

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["STYLE", "document", "fragment", "table"]

# A notebook stays light; the page and the widget have all rows.
_MOST = 60
_POINTS = 32

_CSS = """
.ess-diagnosis{--fg:var(--jp-ui-font-color1,var(--vscode-foreground,CanvasText));
--soft:color-mix(in srgb,var(--fg) 75%,transparent);
--line:var(--jp-border-color2,color-mix(in srgb,var(--fg) 18%,transparent));
--hover:color-mix(in srgb,var(--fg) 6%,transparent);
--bar:var(--jp-brand-color1,#2a6fb0);--critical:color-mix(in srgb,var(--jp-error-color1,#c62828) 75%,var(--fg));
--warning:color-mix(in srgb,var(--jp-warn-color1,#c25700) 65%,var(--fg));
color:var(--fg);font:13px/1.45 var(--jp-ui-font-family,system-ui,sans-serif);max-width:72rem}
.ess-diagnosis p{margin:.3em 0}
.ess-diagnosis .ess-head{font-weight:600}
.ess-diagnosis .ess-soft{color:var(--soft)}
.ess-diagnosis .ess-scroll{overflow-x:auto}
.ess-diagnosis table{border-collapse:collapse;width:100%;margin:.5em 0;font-variant-numeric:tabular-nums;
color:inherit;font-size:inherit;border:0;table-layout:auto}
.ess-diagnosis th,.ess-diagnosis td{padding:4px 10px 4px 0;text-align:left;vertical-align:top;
border:0;border-bottom:1px solid var(--line);background:none;white-space:nowrap;max-width:none}
.ess-diagnosis th{font-weight:600;color:var(--soft);vertical-align:bottom}
.ess-diagnosis td.ess-num,.ess-diagnosis th.ess-num{text-align:right}
.ess-diagnosis td.ess-why{white-space:normal;min-width:18rem;width:50%}
.ess-diagnosis tbody tr{background:none}
.ess-diagnosis tbody tr:hover{background:var(--hover)}
.ess-diagnosis .ess-sev{font-weight:600}
.ess-diagnosis .ess-critical{color:var(--critical)}
.ess-diagnosis .ess-warning{color:var(--warning)}
.ess-diagnosis .ess-info{font-weight:400;color:var(--soft)}
.ess-diagnosis svg{display:block;overflow:visible}
.ess-diagnosis .ess-room{fill:color-mix(in srgb,var(--fg) 10%,transparent)}
.ess-diagnosis .ess-curve{fill:none;stroke:var(--bar);stroke-width:1.5;vector-effect:non-scaling-stroke}
.ess-diagnosis .ess-bar{display:inline-block;width:36px;height:6px;margin-right:6px;vertical-align:middle;
background:color-mix(in srgb,var(--fg) 12%,transparent)}
.ess-diagnosis .ess-bar i{display:block;height:100%;background:var(--bar)}
.ess-diagnosis details{margin:.4em 0}
.ess-diagnosis summary{cursor:pointer}
.ess-diagnosis ul{margin:.3em 0 .3em 1.2em;padding:0}
.ess-diagnosis button.ess-sort{all:unset;cursor:pointer;font:inherit;color:inherit}
.ess-diagnosis button.ess-sort:focus-visible{outline:2px solid var(--bar)}
.ess-diagnosis tr[tabindex]{cursor:pointer}
.ess-diagnosis tr[tabindex]:focus-visible{outline:2px solid var(--bar);outline-offset:-2px}
.ess-diagnosis tr[aria-selected=true]{background:color-mix(in srgb,var(--bar) 18%,transparent)}
"""
# Classes repeated: a notebook's own rules for tables are more specific than one of them.
STYLE = _CSS.replace(".ess-diagnosis ", ".ess-diagnosis" * 3 + " ")

# Headers sort their table: numbers by data-value, the rest by their text; a second click turns the order round.
SORT = """
for (const table of document.querySelectorAll('.ess-diagnosis table')) {
  table.querySelectorAll('th').forEach((th, at) => {
    const button = document.createElement('button');
    button.className = 'ess-sort'; button.type = 'button';
    button.append(...th.childNodes); th.append(button);
    button.onclick = () => {
      const down = th.ariaSort !== 'descending';
      table.querySelectorAll('th').forEach((other) => { other.ariaSort = null; });
      th.ariaSort = down ? 'descending' : 'ascending';
      const key = (row) => row.cells[at].dataset.value ?? row.cells[at].textContent;
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        return x !== '' && y !== '' && !isNaN(x) && !isNaN(y) ? x - y : x === '' ? -1 : y === '' ? 1 : x.localeCompare(y);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * order(a, b)));
    };
  });
}
"""


def fragment(diagnosis: Diagnosis) -> str:
    """For a notebook: counts, the table of what was found, the rest folded away."""
    rows, rest = _sorted(diagnosis)
    parts = [f"<style>{STYLE}</style>", _top(diagnosis)]
    grave = [row for row in rows if diagnosis._severity(row) != "info"]
    common = [row for row in rows if diagnosis._severity(row) == "info"]
    if grave:
        parts.append(table(diagnosis, grave[:_MOST]))
        if len(grave) > _MOST:
            parts.append(f"<p class='ess-soft'>{len(grave) - _MOST} more in <code>.table</code>.</p>")
        parts.append(_advice(diagnosis.findings))
    for name, some in (("with what healthy models have too", common), ("without findings", rest)):
        if some:
            more = f", {_MOST} shown" if len(some) > _MOST else ""
            label = f"{len(some)} row{'s' if len(some) != 1 else ''} {name}{more}"
            parts.append(f"<details><summary>{label}</summary>{table(diagnosis, some[:_MOST])}</details>")
    return f"<div class='ess-diagnosis'>{''.join(parts)}{_notes(diagnosis)}</div>"


def document(diagnosis: Diagnosis) -> str:
    """A page of its own, light or dark as the reader's system, sortable by its headers."""
    rows, rest = _sorted(diagnosis)
    title = escape(f"Diagnosis of {diagnosis.title}")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<meta name='color-scheme' content='light dark'><title>{title}</title>"
        f"<style>body{{margin:1.5rem}}{STYLE}"
        "@media (prefers-color-scheme:dark){.ess-diagnosis{--bar:#7db4ea}}"
        f"</style></head><body><main class='ess-diagnosis'><h1>{title}</h1>{_top(diagnosis)}"
        f"{_advice(diagnosis.findings)}{table(diagnosis, [*rows, *rest])}{_notes(diagnosis)}</main>"
        f"<script>{SORT}</script></body></html>"
    )


def table(diagnosis: Diagnosis, rows: Sequence[Row]) -> str:
    """One row for each head; ``data-row`` is its index in ``diagnosis.rows``."""
    index = {id(row): at for at, row in enumerate(diagnosis.rows)}
    measure = escape(diagnosis.measure)
    head = (
        "<thead><tr><th>Severity</th><th>Findings</th><th>Layer</th><th class='ess-num'>Head</th>"
        f"<th>{measure} by position</th><th class='ess-num'>mean</th><th>of ceiling</th><th>Numbers</th></tr></thead>"
    )
    found: dict[tuple[str, int], list[Finding]] = {}
    for finding in diagnosis.findings:
        found.setdefault((finding.layer, finding.head), []).append(finding)
    body = "".join(_row(row, index[id(row)], found.get((row.layer, row.head), [])) for row in rows)
    return f"<div class='ess-scroll'><table>{head}<tbody>{body}</tbody></table></div>"


def _row(row: Row, at: int, findings: list[Finding]) -> str:
    severity = min((f.severity for f in findings), key=SEVERITIES.index, default="")
    rank = len(SEVERITIES) - SEVERITIES.index(severity) if severity else 0
    why = "; ".join(f.why for f in findings)
    where = f"title='{escape(row.family, quote=True)}, {escape(row.group, quote=True)} {row.head}'"
    withheld = any(f.sign in ("non-finite", "unreadable", "unverified") for f in findings)
    ess, used = (math.nan, math.nan) if withheld else (row["ess"], row["utilisation_of_ceiling"])
    return (
        f"<tr data-row='{at}'><td data-value='{rank}' class='ess-sev ess-{severity or 'none'}'>{severity or '–'}</td>"
        f"<td>{escape(', '.join(row.signs)) or '–'}</td><td {where}>{escape(row.layer)}</td>"
        f"<td class='ess-num' data-value='{row.head}'>{row.head}</td><td data-value=''>{'' if withheld else _sparkline(row)}</td>"
        f"<td class='ess-num' data-value='{_value(ess)}'>{_number(ess)}</td>"
        f"<td data-value='{_value(used)}'>{_bar(used)}</td><td class='ess-why'>{escape(why)}</td></tr>"
    )


def _sparkline(row: Row) -> str:
    """ESS along the positions above the shaded ceiling, both on one scale."""
    values = [v if math.isfinite(v) else 0.0 for v in row.profile]
    if len(values) < 2:
        return ""
    step = max(1, math.ceil(len(values) / _POINTS))
    peaks = [max(values[i : i + step]) for i in range(0, len(values), step)]
    tops = [max(row.ceiling[i : i + step]) for i in range(0, len(values), step)]
    scale = max(*tops, *peaks, 1.0)
    x = [round(96 * i / max(1, len(peaks) - 1)) for i in range(len(peaks))]

    def line(heights: list[float]) -> str:
        return " ".join(f"{a},{round(20 - 19 * h / scale, 1)}" for a, h in zip(x, heights, strict=True))

    label = f"highest {max(values):.3g} of a ceiling of {max(row.ceiling):.0f}"
    return (
        f"<svg width='96' height='20' viewBox='0 0 96 20' role='img'><title>{label}</title>"
        f"<polygon class='ess-room' points='0,20 {line(tops)} 96,20'/><polyline class='ess-curve' points='{line(peaks)}'/></svg>"
    )


def _bar(share: float) -> str:
    if math.isnan(share):
        return "–"
    return f"<span class='ess-bar'><i style='width:{100 * min(1.0, share):.0f}%'></i></span>{share:.0%}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _value(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _sorted(diagnosis: Diagnosis) -> tuple[list[Row], list[Row]]:
    """Rows with findings, worst first, and the others in the model's order."""
    by_place = {(row.layer, row.head): row for row in diagnosis.rows}
    places = dict.fromkeys((f.layer, f.head) for f in diagnosis.findings)
    return [by_place[place] for place in places], [row for row in diagnosis.rows if not row.signs]


def _top(diagnosis: Diagnosis) -> str:
    counts = []
    for severity in SEVERITIES:
        signs: dict[str, int] = {}
        for finding in diagnosis.findings:
            if finding.severity == severity:
                signs[finding.sign] = signs.get(finding.sign, 0) + 1
        if signs:
            told = ", ".join(f"{sign} {count}" for sign, count in signs.items())
            counts.append(f"<span class='ess-sev ess-{severity}'>{severity}</span> {escape(told)}")
    return f"<p class='ess-head'>{escape(headline(diagnosis))}</p><p>{' · '.join(counts) or 'Nothing to report.'}</p>"


def _advice(findings: Sequence[Finding]) -> str:
    """For each sign that healthy models do not have: where it is, and what can be done."""
    items: dict[str, tuple[str, list[str]]] = {}
    for group in grouped(findings):
        first = group[0]
        if first.severity != "info":
            places = items.setdefault(first.sign, (str(first.advice), []))[1]
            places.append(f"{first.layer} {spans([f.head for f in group])}")
    if not items:
        return ""
    listed = "".join(
        f"<li><b>{escape(sign)}</b> <span class='ess-soft'>({escape('; '.join(places[:4]))}{' …' if places[4:] else ''})</span>"
        f"<br>{escape(advice)}</li>"
        for sign, (advice, places) in items.items()
    )
    return f"<details open><summary>What can be done</summary><ul>{listed}</ul></details>"


def _notes(diagnosis: Diagnosis) -> str:
    return "".join(f"<p class='ess-soft'>{escape(note)}</p>" for note in diagnosis.notes)
