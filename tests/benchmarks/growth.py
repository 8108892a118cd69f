"""How time grows with the length: ``python -m tests.benchmarks.growth`` measures, fits and draws.

The figure goes to ``.github/images/growth.png``, its numbers to ``results/growth-<machine>.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import ess_widgets as ew
from ess_widgets.metrics import ess

from . import baseline, inputs, machine
from .clock import figure as for_people
from .clock import repeated

PICTURE = Path(__file__).parents[2] / ".github" / "images" / "growth.png"
# Lengths from here on enter the fits: below, what does not grow with the length still shows.
FIT_FROM = 512
_BLUE, _RED, _GREY = "#1f5fa8", "#c8441b", "#5c6470"


@dataclass
class Series:
    """Seconds at lengths; ``sampled`` says where they are scaled from a part of the positions."""

    label: str
    lengths: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)

    def add(self, length: int, seconds: float, sampled: bool = False) -> None:
        self.lengths.append(length)
        self.seconds.append(seconds)
        self.sampled.append(sampled)
        print(f"{self.label}, {length}: {for_people(seconds)}{' (sampled)' if sampled else ''}", flush=True)

    @property
    def exponent(self) -> float:
        """Of the power of the length that fits best, from ``FIT_FROM`` on."""
        lengths, seconds = np.log(self.lengths), np.log(self.seconds)
        # Two lengths at least, for runs that measure nothing.
        large = np.array(self.lengths) >= min(FIT_FROM, sorted(self.lengths)[-2])
        return float(np.polyfit(lengths[large], seconds[large], 1)[0])


@dataclass(frozen=True)
class Curve:
    """A question, the operators it is put to, and the largest length that is worth the wait."""

    label: str
    make: Callable[[int, int], Any]
    answer: Callable[[Any], object]
    longest: int
    style: dict[str, Any]


CURVES = [
    Curve("entropy, dense matrix", inputs.softmax, ew.ess, 4096, {"color": _RED, "marker": "s"}),
    Curve(
        "tolerance, dense matrix",
        inputs.softmax,
        lambda T: ew.ess(T, kind="tolerance"),
        4096,
        {"color": _BLUE, "marker": "o"},
    ),
    Curve(
        "entropy, matrix of rank 16",
        inputs.low_rank,
        ew.ess,
        4096,
        {"color": _RED, "marker": "D", "ls": "--"},
    ),
    Curve(
        "entropy, recurrence, n = 16",
        inputs.mamba,
        lambda op: ess(op, route="recurrence"),
        16384,
        {"color": _RED, "marker": "^", "ls": ":"},
    ),
]
NAIVE = {"color": _GREY, "marker": "v"}


def measure(shortest: int = 128, longest: int = 16384, repeat: int = 5) -> list[Series]:
    """One head of each; the loop of decompositions whole where that takes seconds, else from a sample."""
    lengths = [2**k for k in range(shortest.bit_length() - 1, longest.bit_length())]
    naive = Series("one SVD per position")
    for length in (length for length in lengths if length <= 4096):
        T = inputs.softmax(length, 1)
        loop = baseline.run(lambda heads, T=T: T[heads], length, 1)
        naive.add(length, loop.seconds, not loop.whole)
    found = [naive]
    for curve in CURVES:
        series = Series(curve.label)
        for length in (length for length in lengths if length <= curve.longest):
            op = curve.make(length, 1)
            if length <= 1024:
                curve.answer(op)  # warm
            times = repeated(lambda op=op, answer=curve.answer: answer(op), torch.device("cpu"), repeat)
            series.add(length, statistics.median(times))
        found.append(series)
    return found


def draw(found: list[Series], subtitle: str) -> Figure:
    """Time against length, both logarithmic."""
    picture = Figure(figsize=(7.2, 5.4), layout="constrained")
    axes = picture.add_subplot()
    for series, style in zip(found, [NAIVE, *(curve.style for curve in CURVES)], strict=True):
        lengths, seconds, sampled = (np.array(x) for x in (series.lengths, series.seconds, series.sampled))
        label = f"{series.label},  $L^{{{series.exponent:.1f}}}$"
        axes.plot(lengths, seconds, linewidth=1.8, markersize=5, label=label, **style)
        if sampled.any():
            hollow = {**style, "ls": "none", "markerfacecolor": "white"}
            axes.plot(lengths[sampled], seconds[sampled], markersize=5, **hollow)
    axes.set(xscale="log", yscale="log", xlabel="length L", ylabel="seconds, all positions of a head")
    ticks = found[-1].lengths
    axes.set_xticks(ticks, [f"{length:,}" for length in ticks])
    axes.minorticks_off()
    axes.set_title("Effective state-size at every position", fontsize=10, loc="left")
    axes.set_title(subtitle, fontsize=8, loc="right", color=_GREY)
    axes.grid(color="#e9ebef", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    note = f"Exponents fitted from L = {FIT_FROM} on. Hollow: scaled from a sample of positions."
    picture.legend(
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        title=note,
        title_fontsize=8,
        alignment="left",
    )
    return picture


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="calls of each, 5 by default")
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the numbers go")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: checks the script, measures nothing"
    )
    args = parser.parse_args(argv)
    if args.quick and (args.picture == PICTURE or args.output is None):
        parser.error(
            "--quick measures nothing: say where its picture and numbers go, with --picture and --output"
        )
    device = torch.device("cpu")
    heading = machine.heading("Growth", device)
    found = measure(32, 128, 1) if args.quick else measure(repeat=args.repeat)
    output = args.output or machine.RESULTS / f"growth-{machine.kind(device)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    numbers = {
        "machine": [line.removeprefix("- ") for line in heading.splitlines()[2:]],
        "fitted_from": FIT_FROM,
        "series": [asdict(series) | {"exponent": series.exponent} for series in found],
    }
    output.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    draw(found, f"{machine.cpu()}, {machine.cores()} cores").savefig(args.picture, dpi=200)
    print(f"written to {output} and {args.picture}")


if __name__ == "__main__":
    main()
