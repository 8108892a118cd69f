"""From numbers to signs: what is found, how grave it is, what it rests on and what can be done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .advice import ADVICE, Advice
from .rows import Row
from .thresholds import Thresholds

if TYPE_CHECKING:
    from ess_widgets.widgets import Explorer

__all__ = ["SEVERITIES", "SIGNS", "Finding", "judge"]

SEVERITIES = ("critical", "warning", "notice", "info")
# Worst first.
SIGNS = (
    "non-finite",
    "unreadable",
    "unverified",
    "exploding",
    "saturation",
    "collapse",
    "dead",
    "uniform",
    "constant",
    "undecayed",
    "copy",
    "diagonal",
    "local",
    "sink",
    "full",
)


@dataclass(frozen=True)
class Finding:
    """A sign of one head.

    Attributes
    ----------
    sign : str
        "non-finite", "unreadable", "unverified", "exploding", "saturation", "collapse", "dead", "uniform", "constant", "undecayed",
        "copy", "diagonal", "local", "sink" or "full".
    severity : {"critical", "warning", "notice", "info"}
        "info" is common in healthy models.
    layer, head, family, group
        Where; ``head`` counts the operator's groups.
    number : str
        What was measured, in words; for ESS with its kind.
    value, threshold : float
    why : str
        One sentence with the numbers.
    evidence : dict of str to float
        All numbers that it rests on.
    advice : Advice
        What the paper suggests, and what is only this project's advice.
    sample : int
        Which call of ``inputs`` shows it worst.
    """

    sign: str
    severity: str
    layer: str
    head: int
    family: str
    group: str
    number: str
    value: float
    threshold: float
    why: str
    evidence: dict[str, float]
    advice: Advice
    sample: int = 0
    _open: Callable[..., Any] | None = field(default=None, repr=False, compare=False)

    def explore(self, **options: Any) -> Explorer:
        """Open the explorer at this layer and head; options as in :func:`ess_widgets.explore`."""
        if self._open is None:
            raise ValueError("this finding belongs to no diagnosis: use diagnosis.explore.")
        return self._open(self, **options)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return f"{self.severity}: {self.sign} in {self.layer}, {self.group} {self.head}: {self.why}"


@dataclass(frozen=True)
class _Rules:
    """The rules of one diagnosis."""

    row: Row
    limits: Thresholds
    kind: str
    measure: str
    failing: bool | None
    others: list[Row]

    def signs(self) -> Iterator[Finding]:
        """Findings of the row. What makes its other numbers meaningless comes alone."""
        for alone in (self._broken, self._unreadable, self._unverified, self._exploding, self._dead):
            found = alone()
            if found is not None:
                yield found
                return
        if self.row.state == "fixed":
            return  # what a kernel of fixed length reads is its design
        shape = self._uniform() or self._diagonal() or self._local() or self._sink()
        collapse = self._collapse(explained=shape is not None)
        if shape is not None and (collapse is None or shape.sign == "sink"):
            yield shape
        for found in (
            collapse,
            self._saturation(),
            self._undecayed(),
            None if shape is not None else self._copy(),
            None if shape is not None and shape.sign in ("uniform", "sink") else self._constant(),
        ):
            if found is not None:
                yield found

    def _broken(self) -> Finding | None:
        broken = self.row.broken
        if broken is None:
            return None
        at = "" if broken.position is None else f", first at position {broken.position}"
        why = f"{broken.what} is NaN or infinite in sample {broken.sample}{at}"
        return self._found(
            "non-finite",
            "critical",
            "values that are not finite",
            float(broken.count),
            0.0,
            why,
            sample=broken.sample,
        )

    def _unreadable(self) -> Finding | None:
        if not self.row.refused:
            return None
        return self._found(
            "unreadable", "critical", "operators that can be built", 0.0, 1.0, self.row.refused
        )

    def _unverified(self) -> Finding | None:
        value, limit = self.row["residual"], self.row.residual_limit
        if value <= limit or not self.row.numbers:
            return None
        why = (
            f"T u differs from what the model computed by {value:.2g} of it, where rounding explains {limit:.0g}: "
            "this operator is not the layer's, and its other numbers are withheld"
        )
        return self._found(
            "unverified", "critical", "‖T u − y‖ / ‖y‖", value, limit, why, sample=self.row.worst
        )

    def _exploding(self) -> Finding | None:
        growth, gain = self.row["growth"], self.row["gain"]
        numbers = ("growth", "gain")
        if growth > self.limits.growth:
            why = f"an input weighs {growth:.3g} times more on outputs half a sequence later than on the next ones"
            return self._found(
                "exploding", "critical", "weight far over near", growth, self.limits.growth, why, numbers
            )
        if gain > self.limits.gain:
            why = f"outputs are {gain:.3g} times larger than what is mixed"
            return self._found("exploding", "critical", "‖y‖ / ‖u‖", gain, self.limits.gain, why, numbers)
        return None

    def _dead(self) -> Finding | None:
        row, limits = self.row, self.limits
        numbers = ("gain", "written", "output_share", "contribution")
        if row["gain"] <= limits.silent:
            why = f"gives out nothing: its output is {row['gain']:.2g} of what it mixes"
            return self._found("dead", "warning", "‖y‖ / ‖u‖", row["gain"], limits.silent, why, numbers)
        # One of a thousand channels may well be weak: only one that is cut off is dead.
        limit = limits.dead if row.group == "head" else limits.silent
        written = row["written"]
        if written <= limit:
            why = (
                f"what the output projection lets through is {written:.2g} of the layer's median {row.group}"
            )
            return self._found("dead", "warning", "written / layer's median", written, limit, why, numbers)
        if math.isnan(written) and row["output_share"] <= limit:
            why = (
                f"its output is {row['output_share']:.2g} of the layer's median {row.group}; no output projection was "
                "found, so a norm behind it may make up for that"
            )
            return self._found(
                "dead", "notice", "output / layer's median", row["output_share"], limit, why, numbers
            )
        return None

    def _uniform(self) -> Finding | None:
        value = self.row["selectivity"]
        if not value <= self.limits.uniform:
            return None
        why = f"rows are the plain mean of what they may read (selectivity {round(value, 9):.1g}): queries and keys choose nothing"
        return self._found(
            "uniform", "warning", "1 − H(row)/log n", value, self.limits.uniform, why, ("selectivity",)
        )

    def _diagonal(self) -> Finding | None:
        value = self.row["diagonal"]
        if not value >= self.limits.diagonal:
            return None
        why = f"{value:.0%} of each row's weight is on the token itself: almost nothing is mixed"
        return self._found(
            "diagonal", "notice", "share on the token itself", value, self.limits.diagonal, why, _WHERE
        )

    def _local(self) -> Finding | None:
        value = self.row["local"]
        if not value >= self.limits.local:
            return None
        why = f"{value:.0%} of each row's weight is within {self.limits.local_width} positions"
        return self._found("local", "info", "share near the diagonal", value, self.limits.local, why, _WHERE)

    def _sink(self) -> Finding | None:
        value, part = self.row["sink"], self.row["sink_contribution"]
        if self.row.state != "growing" or not value >= self.limits.sink:
            return None
        contributed = (
            "" if math.isnan(part) else f", which contribute {part:.1%} of the layer's output through it"
        )
        idle = value >= self.limits.idle
        why = f"{value:.{1 if idle else 0}%} of each row's weight is on the first {self.limits.sink_tokens} tokens{contributed}"
        severity = "notice" if idle else "info"
        if idle:
            why += ": on these inputs it reads nothing else"
        return self._found(
            "sink", severity, "share on the first tokens", value, self.limits.sink, why, _WHERE
        )

    def _collapse(self, explained: bool) -> Finding | None:
        row, limits = self.row, self.limits
        value, used = row["ess_with_room"], row["utilisation_with_room"]
        bounded = row.state == "bounded"
        if (explained and not bounded) or math.isnan(value):
            return None
        numbers = ("ess_with_room", "utilisation_with_room", "ess_peak", "state_size", "local", "forgets")
        severity = "notice" if not bounded else "warning" if self._common() else "info"
        offered = f"a state of {row['state_size']:.0f}" if bounded else "all of the past"
        where = f"where the ceiling is {limits.room} or more, mean {self.measure} is {value:.2f} of {offered}"
        if value <= limits.collapse:
            return self._found(
                "collapse", severity, f"mean {self.measure}", value, limits.collapse, where, numbers
            )
        if bounded and used <= limits.collapse_utilisation:
            number = f"{self.measure} / ceiling"
            why = f"{where}, {used:.1%} of the ceiling"
            return self._found("collapse", severity, number, used, limits.collapse_utilisation, why, numbers)
        return None

    def _common(self) -> bool:
        """Whether it is a head, or one of as many channels as make half of the layer: one of a thousand is no loss."""
        low = [row["ess_with_room"] <= self.limits.collapse for row in self.others]
        return self.row.group == "head" or 2 * sum(low) >= len(low)

    def _saturation(self) -> Finding | None:
        value, limit = self.row["full"], self.limits.saturation(self.kind)
        if self.failing is False or not value >= limit:
            return None
        why = f"{self.measure} is {value:.0%} of the state-size of {self.row['state_size']:.0f} wherever that is the limit"
        sign, severity = "saturation", "warning"
        if self.failing is None:
            sign, severity = "full", "info"
            why += "; this is saturation if the task fails (failing=True)"
        numbers = ("full", "state_size", "ess", "utilisation_of_state")
        return self._found(sign, severity, f"{self.measure} / TSS", value, limit, why, numbers)

    def _undecayed(self) -> Finding | None:
        value = self.row["forgets"]
        others = [row["forgets"] for row in self.others if row is not self.row]
        if not value <= self.limits.undecayed or not any(other > 1e-3 for other in others):
            return None
        why = f"forgets {value:.1g} per step where other {self.row.group}s of the layer forget up to {max(others):.2g}"
        return self._found("undecayed", "notice", "1 − |A|", value, self.limits.undecayed, why, ("forgets",))

    def _copy(self) -> Finding | None:
        value, twin = self.row["copy"], self.row.twin
        if twin is None or not value >= self.limits.copy:
            return None
        why = f"operator and output are those of {self.row.group} {twin} (cosine {value:.4f} or more)"
        return self._found(
            "copy", "notice", "cosine of operators and outputs", value, self.limits.copy, why, ("copy",)
        )

    def _constant(self) -> Finding | None:
        value = self.row["varies"]
        varying = any(word in self.row.family for word in ("attention", "selective", "delta"))
        if not varying or not value <= self.limits.constant:
            return None
        why = f"the operator is the same on different inputs (relative change {value:.1g})"
        return self._found(
            "constant", "notice", "‖T_a − T_b‖ / ‖T_a‖", value, self.limits.constant, why, ("varies",)
        )

    def _found(
        self,
        sign: str,
        severity: str,
        number: str,
        value: float,
        threshold: float,
        why: str,
        evidence: tuple[str, ...] = (),
        sample: int = 0,
    ) -> Finding:
        row = self.row
        known = {name: row[name] for name in (*evidence, "residual", "tokens") if not math.isnan(row[name])}
        return Finding(
            sign, severity, row.layer, row.head, row.family, row.group, number, value, threshold, why, known,
            ADVICE[sign], sample,
        )  # fmt: skip


_WHERE = ("local", "diagonal", "sink", "sink_contribution", "contribution", "ess")


def judge(
    rows: list[Row], limits: Thresholds, kind: str, measure: str, failing: bool | None
) -> list[Finding]:
    """All findings, worst first, and each row's signs."""
    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        by_layer.setdefault(row.layer, []).append(row)
    found = []
    for row in rows:
        mine = list(_Rules(row, limits, kind, measure, failing, by_layer[row.layer]).signs())
        row.signs = [finding.sign for finding in mine]
        found += mine
    return sorted(found, key=_rank)


def _rank(finding: Finding) -> tuple[int, int]:
    return SEVERITIES.index(finding.severity), SIGNS.index(finding.sign)
