"""A diagnosis in plain text: one line for each layer and sign, worst first."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .findings import Finding

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["grouped", "headline", "spans", "summary"]


def summary(diagnosis: Diagnosis) -> str:
    """What was looked at, what was found and what can be done about it."""
    lines = [headline(diagnosis), ""]
    if not diagnosis.findings:
        lines += ["Nothing to report.", ""]
    told: set[str] = set()
    for findings in grouped(diagnosis.findings):
        first = findings[0]
        if first.severity == "info":
            continue
        noun = first.group + ("s" if len(findings) > 1 else "")
        lines.append(
            f"{first.severity:8} {first.sign:11} {first.layer}, {noun} {spans([f.head for f in findings])}"
        )
        lines.append(f"{'':20} {'e.g. ' if len(findings) > 1 else ''}{first.why}")
        if first.sign not in told:
            told.add(first.sign)
            lines += textwrap.wrap(
                str(first.advice), 110, initial_indent=" " * 21, subsequent_indent=" " * 21
            )
    lines += _common(diagnosis)
    lines += [f"note     {note}" for note in diagnosis.notes]
    return "\n".join(lines).rstrip()


def headline(diagnosis: Diagnosis) -> str:
    """One sentence about what was looked at."""
    calls = len(diagnosis._calls)
    nouns = {row.group for row in diagnosis.rows}
    noun = nouns.pop() + "s" if len(nouns) == 1 else "operators"
    tokens = [row["tokens"] for row in diagnosis.rows if row["tokens"] == row["tokens"]]
    average = " on average" if calls > 1 else ""
    length = f" of {max(tokens):.0f} tokens{average}" if tokens else ""
    return (
        f"{diagnosis.title}: {len(diagnosis.layers)} layer{'s' if len(diagnosis.layers) != 1 else ''}, "
        f"{len(diagnosis.rows)} {noun}; {calls} input{'s' if calls != 1 else ''}{length}; all ESS are {diagnosis.measure}"
    )


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one severity, sign and layer together, in their order."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.sign, finding.layer), []).append(finding)
    return list(groups.values())


def spans(numbers: Sequence[int]) -> str:
    """``0–3, 7``."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], n]
        else:
            parts.append([n])
    return ", ".join("–".join(map(str, part)) for part in parts)


def _common(diagnosis: Diagnosis) -> list[str]:
    """What healthy models have too, one line for each sign."""
    lines = []
    for sign in dict.fromkeys(f.sign for f in diagnosis.findings if f.severity == "info"):
        mine = [f for f in diagnosis.findings if f.sign == sign and f.severity == "info"]
        layers = list(dict.fromkeys(f.layer for f in mine))
        lines.append(
            f"info     {sign:11} {len(mine)} of {len(diagnosis.rows)}, in {len(layers)} layer{'s' if len(layers) > 1 else ''}"
        )
        first = mine[0]
        lines.append(f"{'':20} e.g. {first.layer}, {first.group} {first.head}: {first.why}")
        lines += textwrap.wrap(str(first.advice), 110, initial_indent=" " * 21, subsequent_indent=" " * 21)
    return lines
