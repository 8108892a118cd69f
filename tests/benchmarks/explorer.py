"""The explorer's whole grid on a language model: ``python -m tests.benchmarks.explorer``.

Seconds from the end of the model's own forward pass until ``explorer.wait()`` returns, on the kernel's side, for either
kind, against one singular value decomposition per position of the same heads in the same run. The page goes to
``results/explorer-<machine>.md`` beside this file; the script ends with 1 where an answer is wrong.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets import demo

from . import baseline, checks, machine
from .clock import figure

TOL = 1e-2
SECONDS = 4.0
TEXT = """\
What a sequence model remembers of its past is decided anew at every position. A sentence begins, and names are kept;
it ends, and much of it can be let go. Whoever reads a long report keeps the figures that will be needed and drops
the rest, and so does a model that has learnt to read. How much is kept is a number, and the number changes along the
text: it rises while a list is read, it falls where a document ends, and it starts again from little when the next
one begins. A cache that grows with every token offers room, but room that is offered is not room that is used. """


class Timed(nn.Module):
    """A model that notes when its forward pass ended, wherever it runs."""

    ended: list[float] = []  # noqa: RUF012, shared by the copies that the explorer makes

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.model(*args, **kwargs)
        self.ended.append(time.perf_counter())
        return out


@dataclass(frozen=True)
class Grid:
    """Seconds after the forward pass until the first paint and until everything, for each text.

    Beside them the loop of decompositions, and whether the answers are right.
    """

    kind: str
    heads: int
    length: int
    painted: list[float]
    times: list[float]
    loop: baseline.Loop
    verdict: checks.Verdict

    def __str__(self) -> str:
        median = statistics.median(self.times)
        mark = " **above**" if median > SECONDS else ""
        cells = (
            f"{self.kind}, {self.heads} heads of {self.length} tokens",
            f"{figure(self.loop.seconds)} ({self.loop.describe(self.length, self.heads)})",
            figure(statistics.median(self.painted)),
            f"{figure(median)} ({figure(min(self.times))}){mark}",
            f"{self.loop.seconds / median:.3g}×",
            f"≤ {SECONDS:g} s",
            str(self.verdict),
        )
        return f"| {' | '.join(cells)} |"


def texts(tokenizer: Any, tokens: int, count: int) -> list[str]:
    """Texts of that many tokens, each beginning elsewhere."""
    ids = tokenizer.encode(TEXT)
    ids = ids * (2 + (tokens + count) // len(ids))
    found = []
    for start in range(len(ids)):
        text = tokenizer.decode(ids[start : start + tokens])
        if len(tokenizer.encode(text)) == tokens:
            found.append(text)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} texts of {tokens} tokens in the sample.")


def measure(model: nn.Module, tokenizer: Any, tokens: int = 128, repeat: int = 3) -> list[Grid]:
    """Both kinds, each after ``repeat`` edits of the text."""
    grids = []
    warm, *edits = texts(tokenizer, tokens, repeat + 1)
    explorer = ew.explore(Timed(model), tokenizer, warm, tol=TOL)
    paints: list[float] = []
    explorer.observe(lambda change: paints.append(time.perf_counter()), "tokens")
    try:
        explorer.wait()
        loop = None
        for kind in ("tolerance", "entropy"):
            explorer.kind = kind
            explorer.text = warm
            explorer.wait()
            painted, times = [], []
            for text in edits:
                explorer.text = text
                explorer.wait()
                times.append(time.perf_counter() - Timed.ended[-1])
                painted.append(paints[-1] - Timed.ended[-1])
            T = torch.cat([layer.operator.matrix()[0] for layer in explorer.captured.values()])
            if loop is None:
                loop = baseline.run(lambda heads, T=T: T[heads], T.shape[-1], len(T))
            values = profiles(explorer)
            if kind == "tolerance":
                verdict = checks.counts(values, torch.zeros_like(values), loop, TOL, False)
            else:
                verdict = checks.entropies(values, None, loop)
            grids.append(Grid(kind, len(T), T.shape[-1], painted, times, loop, verdict))
            print(grids[-1], flush=True)
    finally:
        explorer.close()
    return grids


def profiles(explorer: ew.Explorer) -> Tensor:
    """ESS of every head as the explorer has it, ``(heads, L)``."""
    found = []
    for name in explorer.captured:
        explorer.selection = {"layer": name, "head": 0}
        explorer.wait()
        found.append(torch.from_numpy(explorer.profile))
    return torch.cat(found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as ess_widgets.demo.load takes it; SmolLM2-135M-Instruct by default")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="edits for each kind, 3 by default"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes")
    args = parser.parse_args(argv)
    device = torch.device("cpu")
    heading = machine.heading("The explorer's grid", device)
    model, tokenizer = demo.load(args.model, fallback=False)
    grids = measure(model, tokenizer, args.tokens, args.repeat)
    output = args.output
    if output is None and args.model is None:
        output = machine.RESULTS / f"explorer-{machine.kind(device)}.md"
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(heading, name(model), grids), encoding="utf-8")
        print(f"written to {output}")
    return 0 if all(grid.verdict.right for grid in grids) else 1


def name(model: nn.Module) -> str:
    """What the model is, without where it was found."""
    return (
        f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:,.3g} million parameters"
    )


def page(heading: str, model: str, grids: list[Grid]) -> str:
    """The page of results."""
    text = (
        f"{model}, tolerance {TOL:g}. "
        "Wall-clock seconds from the end of the model's forward pass, after an edit of the text, until "
        "the selected head is sent (first paint) and until `explorer.wait()` returns (whole grid), in the kernel. "
        "Beside it a loop of `torch.linalg.svdvals` in float64 over positions, all heads at once."
    )
    table = [
        "| grid | loop of SVDs | first paint | whole grid: median (best) | ratio | demanded | answers |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *map(str, grids),
    ]
    return "\n\n".join([heading, text, "\n".join(table)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
