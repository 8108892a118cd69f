"""How long the panel's survey of a namespace takes: ``python -m tests.benchmarks.lab``."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

from ess_widgets.lab.namespace import survey

__all__ = ["main", "namespace"]


def namespace(variables: int = 1000) -> dict[str, Any]:
    """A notebook late in the day: numbers, texts, containers, objects, tensors and three models, one of 300 modules."""

    class Thing:
        def __init__(self, number: int) -> None:
            self.number = number

    kinds = (
        lambda i: i,
        lambda i: f"text {i}",
        lambda i: [i] * 50,
        lambda i: {"a": i, "b": [i]},
        lambda i: Thing(i),
        lambda i: torch.zeros(3, 4),
        lambda i: 0.5 * i,
    )
    found: dict[str, Any] = {f"name{i}": kinds[i % len(kinds)](i) for i in range(variables - 3)}
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8)) for _ in range(59)]
    found["model"] = nn.Sequential(
        nn.Embedding(16, 8), *blocks, nn.LayerNorm(8), nn.Dropout(), nn.Linear(8, 16)
    )
    found["layer"] = nn.TransformerEncoderLayer(8, 2, 16)
    found["recurrent"] = nn.LSTM(4, 8)
    return found


def main(runs: int = 50) -> None:
    """Print median and maximum."""
    names = namespace()
    print(f"{len(names)} variables, {sum(1 for _ in names['model'].modules())} modules in the largest model")
    for title, expanded in (("listed", ()), ("all models open", ("model", "layer", "recurrent"))):
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            found = survey(names, expanded=expanded)
            seconds.append(time.perf_counter() - start)
        assert all(model["complete"] for model in found["models"])
        median, most = (1e3 * value for value in (statistics.median(seconds), max(seconds)))
        print(f"{title}: median {median:.1f} ms, maximum {most:.1f} ms of {runs} runs")


if __name__ == "__main__":
    main()
