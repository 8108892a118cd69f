"""Effective state-size and spectra against one singular value decomposition per position.

``python -m tests.benchmarks.metrics`` from the root of the repository writes ``results/<machine>.md`` beside this
file, and ends with 1 where an answer is wrong. Anything else in the table, such as a ratio below what is
demanded, is marked there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch

from . import baseline, large, machine
from .cases import DEMANDED, FURTHER, Case, Operators
from .checks import Verdict
from .clock import figure, repeated

LARGE = "tolerance-4096"
HEADER = """\
| case | loop of SVDs | ess_widgets: median (best) | ratio | at least | answers |
| --- | ---: | ---: | ---: | ---: | --- |"""
EXPLANATION = """\
Wall-clock seconds of `ess_widgets.ess` and `ess_widgets.spectrum` as users call them, and in the same run of a loop of
`torch.linalg.svdvals` in float64 over all positions, all heads at once, with torch's own number of threads, or
with one where that was faster, which is then said. Matrices and parameters are random, from a fixed seed; forming them is in neither time, except that `ess` and `spectrum` of a recurrence
or convolution start from its parameters, and the loop from the finished matrix. A loop that would take more
than {whole:.0f} s ran at positions (and heads) spread evenly, and its time is scaled by their share in the operations,
`Σ m·n·min(m, n)`; the answers are compared there. Tolerance 1e-3 where nothing else is said."""


@dataclass(frozen=True)
class Row:
    """A case as it was measured."""

    case: Case
    loop: baseline.Loop
    times: list[float]
    verdict: Verdict

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def ratio(self) -> float:
        return self.loop.seconds / self.median

    @property
    def below(self) -> bool:
        """Whether it is slower than demanded."""
        case = self.case
        return self.ratio < (case.minimum or 0.0) or self.median > (case.limit or torch.inf)

    def __str__(self) -> str:
        case = self.case
        demanded = f"{case.minimum:g}×" if case.minimum else f"≤ {case.limit:g} s" if case.limit else "–"
        mark = " **below**" if self.below else ""
        loop = f"{figure(self.loop.seconds)} ({self.loop.describe(case.length, case.heads)})"
        ours = f"{figure(self.median)} ({figure(min(self.times))})"
        cells = case.title, loop, ours, f"{self.ratio:,.3g}×{mark}", demanded, str(self.verdict)
        return f"| {' | '.join(cells)} |"


def measure(
    cases: list[Case], device: torch.device, repeat: int, loops: dict[object, baseline.Loop] | None = None
) -> list[Row]:
    """Each case checked once, which also warms up, then timed."""
    loops = {} if loops is None else loops
    rows = []
    for case in cases:
        operators = Operators(case, device)
        if case.operator not in loops:
            loops[case.operator] = baseline.run(operators.matrices, case.length, case.heads)
        loop = loops[case.operator]
        op = operators.whole
        verdict = case.ask.check(op, loop)
        rows.append(
            Row(case, loop, repeated(lambda op=op, ask=case.ask: ask.answer(op), device, repeat), verdict)
        )
        print(rows[-1], flush=True)
    return rows


def largest(found: large.Large) -> str:
    """The row of the head of 4,096."""
    mark = "" if found.within else " **above**"
    gpu = "" if found.gpu is None else f", {found.gpu:.2f} GiB of GPU memory"
    memory = f"{found.peak:.2f} GiB at its peak{gpu}, of which {found.before:.2f} before (torch){mark}"
    limits = f"≤ {large.SECONDS:g} s, {large.GIB:g} GiB"
    loop = f"{figure(found.loop.seconds)} ({found.loop.describe(found.length, 1)})"
    ratio = f"{found.loop.seconds / found.seconds:,.3g}×"
    title = "tolerance, a head of 4,096, first call of a fresh process"
    cells = title, loop, f"{figure(found.seconds)}; {memory}", ratio, limits, str(found.verdict)
    return f"| {' | '.join(cells)} |"


def report(heading: str, demanded: list[Row], largest: list[str], further: list[Row]) -> str:
    """The whole page."""
    deviations: dict[int, float] = {}
    for row in demanded + further:
        if row.loop.deviation is not None:
            length = row.case.length
            deviations[length] = max(row.loop.deviation, deviations.get(length, 0.0))
    parts = [heading, EXPLANATION.format(whole=baseline.WHOLE)]
    if deviations:
        missed = ", ".join(f"{length:,}: {deviation:.1%}" for length, deviation in sorted(deviations.items()))
        parts.append(
            f"Where the loop ran whole, {baseline.POSITIONS} of its positions, scaled, miss its time by (lengths, worst): "
            f"{missed}."
        )
    if demanded or largest:
        parts += ["## Demanded", "\n".join([HEADER, *map(str, demanded), *largest])]
    if further:
        parts += ["## What users meet beyond", "\n".join([HEADER, *map(str, further)])]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", default="*", metavar="GLOB", help=f"names, such as 'entropy*' or {LARGE}")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="calls of each, 5 by default")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: checks the scripts, measures nothing"
    )
    args = parser.parse_args(argv)
    args.device = torch.device(args.device)

    def wanted(cases: list[Case]) -> list[Case]:
        some = [
            c for c in cases if fnmatch(c.name, args.cases) and (args.device.type == "cuda" or not c.gpu_only)
        ]
        return [case.quick() for case in some] if args.quick else some

    names = [case.name for case in [*DEMANDED, *FURTHER]] + [LARGE]
    if not any(fnmatch(name, args.cases) for name in names):
        parser.error(f"no case matches {args.cases!r}; there are {', '.join(names)}")
    output = args.output
    if output is None and args.cases == "*" and not args.quick:
        output = machine.RESULTS / f"{machine.kind(args.device)}.md"

    heading = machine.heading("Benchmarks", args.device)  # its load is that before this run
    found = None
    if fnmatch(LARGE, args.cases):
        found = large.measure(args.device, 96 if args.quick else large.LENGTH)
        print(largest(found), flush=True)
    loops: dict[object, baseline.Loop] = {}
    demanded = measure(wanted(DEMANDED), args.device, args.repeat, loops)
    further = measure(wanted(FURTHER), args.device, args.repeat, loops)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        page = report(heading, demanded, [largest(found)] if found else [], further)
        output.write_text(page, encoding="utf-8")
        print(f"written to {output}")
    verdicts = [row.verdict for row in demanded + further] + ([found.verdict] if found else [])
    return 0 if all(verdict.right for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
