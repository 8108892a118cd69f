"""Train the models that show what memory does to recall: ``python -m ess_widgets.demo.training.mqar``.

Three gated linear attentions of two layers on multi-query associative recall. *Success*: enough state, gates near one at
the start. *Saturation*: the same with two numbers of state per head, too few. *Collapse*: ample state, but gates of one
half at the start, which forget so fast that nothing is learned across the sequence.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from ess_widgets.demo.miniatures import Miniature
from ess_widgets.demo.training.fit import evaluate, fit
from ess_widgets.demo.weights import WEIGHTS, save
from ess_widgets.tasks import MQAR

__all__ = ["MODELS", "train"]

# pairs, state, beta of the gates, steps
MODELS: dict[str, tuple[int, int, float, int]] = {
    "success": (8, 16, 16.0, 1600),
    "saturation": (8, 2, 16.0, 1600),
    "collapse": (6, 16, 1.0, 1600),
}
LENGTH, VOCAB, RATE, BATCH = 32, 64, 4e-3, 32


def train(name: str, *, seed: int = 0, steps: int | None = None) -> tuple[Miniature, dict[str, Any]]:
    """Train one of `MODELS`; returns it, and what is recorded beside its weights."""
    kv, state, beta, usual = MODELS[name]
    steps = steps or usual
    torch.manual_seed(seed)
    task = MQAR(kv, LENGTH, VOCAB, seed=seed)
    options = {"GLA": {"beta": beta}}
    model = Miniature(("GLA", "GLA"), vocab=VOCAB, width=64, heads=4, state=state, options=options)
    losses: list[float] = []
    begin = time.process_time()
    fit(model, task, steps=steps, batch=BATCH, rate=RATE, callback=lambda step, loss: losses.append(loss))
    return model, {
        "config": model.config,
        "task": task.parameters,
        "parameters": sum(p.numel() for p in model.parameters()),
        "command": f"python -m ess_widgets.demo.training.mqar {name} --seed {seed} --steps {steps}",
        "train_loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "accuracy": round(evaluate(model, task, samples=1024), 4),
        "cpu_seconds": round(time.process_time() - begin),
    }


def main() -> None:
    """Parse the command line, train, and write the weights."""
    parser = argparse.ArgumentParser(description="Train the recall models that ship with ess_widgets.")
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the model's own")
    parser.add_argument("--directory", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    for name in options.models:
        model, record = train(name, seed=options.seed, steps=options.steps)
        save(model, record, options.directory / f"mqar-{name}.safetensors")


if __name__ == "__main__":
    main()
