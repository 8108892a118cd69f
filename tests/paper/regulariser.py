"""Does the paper's regulariser rescue a model whose memory collapses? ``python -m tests.paper.regulariser``.

Gated linear attention whose gates forget half at every position when training begins, on multi-query associative
recall, with and without ``λ‖A - I‖_F`` on the second mixer, for a fixed set of seeds. A row for each run goes into
``results/regulariser.csv``; runs that are already there are not run again.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch

import ess_widgets as ew
from ess_widgets.demo.miniatures import Miniature
from ess_widgets.demo.training.fit import evaluate, fit
from ess_widgets.tasks import MQAR

RESULTS = Path(__file__).with_name("results") / "regulariser.csv"
SEEDS, WEIGHTS, STEPS = range(6), (0.0, 0.25), 1600
KV, LENGTH, VOCAB, STATE, BETA = 6, 32, 64, 16, 1.0


def run(seed: int, weight: float, steps: int = STEPS) -> dict[str, Any]:
    """Train one model; its accuracy and the ESS of both layers."""
    torch.manual_seed(seed)
    task = MQAR(KV, LENGTH, VOCAB, seed=seed)
    model = Miniature(
        ("GLA", "GLA"), vocab=VOCAB, width=64, heads=4, state=STATE, options={"GLA": {"beta": BETA}}
    )
    memory = ew.learn.Regulariser(model, layers="layers.1.mixer", weight=weight) if weight else None
    fit(model, task, steps=steps, batch=32, rate=4e-3, memory=memory)
    inputs, _ = task.held_out().batch(16, 1)
    first, second = (float(ew.ess(layer.operator).mean()) for layer in ew.capture(model, inputs).values())
    found = {"ess_entropy_0": first, "ess_entropy_1": second, "accuracy": evaluate(model, task, samples=512)}
    return {"seed": seed, "weight": weight, "steps": steps, **found}


def main() -> None:
    """Run what is missing, add it to the table, print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    known = {(int(row["seed"]), row["weight"]) for row in rows}
    for seed in SEEDS:
        for weight in WEIGHTS:
            if (seed, weight) in known:
                continue
            rows.append(run(seed, weight))
            print(rows[-1], flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    for weight in WEIGHTS:
        reached = [float(row["accuracy"]) for row in rows if row["weight"] == weight]
        print(f"weight {weight}: accuracy {' '.join(f'{a:.2f}' for a in reached)}; "
              f"{sum(a > 0.9 for a in reached)} of {len(reached)} above 0.9")  # fmt: skip


if __name__ == "__main__":
    main()
