"""Does memory that is used predict recall better than memory that is provided? ``python -m tests.paper.sweep``.

Trains two-layer models of four families on multi-query associative recall, over state-sizes and numbers of pairs, and
writes a row for every checkpoint into ``results/sweep.csv``; runs that are already there are not run again.
`tests.paper.sweep_analysis` correlates the rows with accuracy.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ess_widgets as ew
from ess_widgets.demo.miniatures import Miniature
from ess_widgets.demo.training.fit import evaluate, fit
from ess_widgets.tasks import MQAR

RESULTS = Path(__file__).with_name("results") / "sweep.csv"
FAMILIES = ("SA", "LA", "WLA", "GLA")
STATES = (4, 8, 16, 32)
PAIRS = (3, 4, 6, 8)
LENGTH, VOCAB, STEPS, EVERY = 32, 64, 1050, 350
MEASURES: dict[str, dict[str, Any]] = {
    "entropy": {"kind": "entropy"},
    "tolerance_1e-1": {"kind": "tolerance", "tol": 1e-1},
    "tolerance_1e-2": {"kind": "tolerance", "tol": 1e-2},
    "tolerance_1e-3": {"kind": "tolerance", "tol": 1e-3},
}


def measure(model: nn.Module, task: MQAR, samples: int = 16) -> dict[str, float]:
    """Average ESS and TSS, over heads, samples and positions, of each layer on samples that training did not see."""
    inputs, _ = task.held_out().batch(samples, 1)
    found = {}
    for number, layer in enumerate(ew.capture(model, inputs).values()):
        assert float(layer.residual.max()) < 1e-5
        found[f"tss_{number}"] = float(layer.operator.state_size.double().mean())
        for name, options in MEASURES.items():
            found[f"{name}_{number}"] = float(ew.ess(layer.operator, **options).double().mean())
    return found


def run(family: str, state: int, kv: int, seed: int) -> list[dict[str, Any]]:
    """Train one model; a row for each checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task = MQAR(kv, LENGTH, VOCAB, seed=seed)
    model = Miniature((family, family), vocab=VOCAB, width=64, heads=1, state=state)
    rows: list[dict[str, Any]] = []
    begin = time.process_time()

    def checkpoint(step: int, loss: float) -> None:
        if (step + 1) % EVERY:
            return
        row = {"family": family, "state": state, "kv": kv, "length": LENGTH, "seed": seed, "step": step + 1}
        row |= {"loss": loss, "accuracy": evaluate(model, task), **measure(model, task)}
        rows.append({**row, "cpu_seconds": round(time.process_time() - begin, 1)})
        model.train()

    fit(model, task, steps=STEPS, batch=32, rate=4e-3, callback=checkpoint)
    return rows


def wanted(seeds: int) -> Iterator[tuple[str, int, int, int]]:
    """All runs, the first seed of every one first; shuffled, so that a table that is not finished is not lopsided."""
    for seed in range(seeds):
        runs = list(itertools.product(FAMILIES, STATES, PAIRS, [seed]))
        random.Random(seed).shuffle(runs)
        yield from runs


def main() -> None:
    """Run what is missing and add it to the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    known = set()
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            known = {
                (r["family"], int(r["state"]), int(r["kv"]), int(r["seed"])) for r in csv.DictReader(file)
            }
    missing = [key for key in wanted(options.seeds) if key not in known]
    with ProcessPoolExecutor(options.processes) as pool:
        for rows in pool.map(run, *zip(*missing, strict=True)) if missing else ():
            new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                if new:
                    writer.writeheader()
                writer.writerows(
                    {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
                )
            last = rows[-1]
            print(
                *(last[name] for name in ("family", "state", "kv", "seed", "accuracy", "cpu_seconds")),
                flush=True,
            )


if __name__ == "__main__":
    main()
