"""Where language models drop context: dips of ESS at ends of text, and what is left of them at a full stop or a comma.

``python -m tests.paper.modulation [MODEL ...]`` writes ``tests/paper/results/modulation.csv`` and ``modulation_layers.csv``.
Sixteen texts of three unrelated passages each (``passages.txt``, public domain, each used once), joined by the end-of-text
token; the same positions are measured after that token has been replaced by a full stop, and by a comma.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ess_widgets as ew
from ess_widgets import demo
from ess_widgets.learn.modulation.significance import over_texts

HERE = Path(__file__).parent
MODELS = ("SmolLM2-135M-Instruct", "bytes-SA", "bytes-GLA", "bytes-WLA", "bytes-LA")
MEASURES: tuple[tuple[str, float], ...] = (
    ("entropy", 1e-3),
    ("tolerance", 1e-1),
    ("tolerance", 1e-2),
    ("tolerance", 1e-3),
)
END = "<|endoftext|>"
TEXTS, EACH = 16, 3


def texts() -> list[str]:
    """Each passage once, so that no two texts share any."""
    passages = (HERE / "passages.txt").read_text(encoding="utf-8").splitlines()
    return [END.join(passages[k : k + EACH]) for k in range(0, TEXTS * EACH, EACH)]


def measured(model: Any, tokenizer: Any, kind: Any, tol: float) -> tuple[dict[str, Any], Any]:
    """One row over all layers, and a table of the layers."""
    runs = {
        name: ew.modulation(model, tokenizer, texts(), END, token, kind=kind, tol=tol)
        for name, token in (("period", "."), ("comma", ","))
    }
    end = runs["period"]
    row: dict[str, Any] = {"measure": end.measure, "texts": len(end.readings), "window": end.window}
    wholes = {name: run.overall.iloc[0] for name, run in runs.items()}
    row |= {"end of text": wholes["period"]["depth"], "placebo": wholes["period"]["placebo"]}
    row |= {"excess_p": wholes["period"]["excess_p"]}
    for name, whole in wholes.items():
        row |= {name: whole["replaced"], f"end - {name}": whole["paired"]}
        row |= {f"end - {name}_{what}": whole[f"paired_{what}"] for what in ("low", "high", "p", "effect")}
    # A full stop against a comma: the two counterfactuals of the same texts.
    replaced = {name: _by_text(run) for name, run in runs.items()}
    stop = over_texts((replaced["period"] - replaced["comma"])[:, None])
    row |= {
        "period - comma": stop.mean[0],
        "period - comma_low": stop.low[0],
        "period - comma_high": stop.high[0],
    }
    row |= {"period - comma_p": stop.p[0]}
    row["layers with end > period"] = int(
        ((end.layers["paired_p_max"] < 0.05) & (end.layers["paired"] > 0)).sum()
    )
    row["layers"] = len(end.layers)
    cut = end.table["position"] - end.table["start"]
    row["lowest after the delimiter"] = float(np.average(cut == 1, weights=end.table["lost"].clip(lower=0)))
    layers = end.layers.drop(columns=["excess", "excess_low", "excess_high"]).assign(
        comma=runs["comma"].layers["replaced"]
    )
    return row, layers.reset_index()


def _by_text(run: Any) -> np.ndarray[Any, Any]:
    sums = run.table.groupby("text")[["replaced_lost", "replaced_expected"]].sum()
    return (sums["replaced_lost"] / sums["replaced_expected"]).to_numpy()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("models", nargs="*", default=MODELS)
    rows, layers = [], []
    for name in arguments.parse_args().models:
        try:
            model, tokenizer = demo.load(name, fallback=False, say=lambda line: None)
        except (ImportError, RuntimeError) as error:
            print(f"{name}: left out, {str(error).splitlines()[0]}")
            continue
        for kind, tol in MEASURES:
            began = time.process_time()
            row, each = measured(model, tokenizer, kind, tol)
            row = {"model": name, **row, "seconds": round(time.process_time() - began, 1)}
            rows.append(row)
            layers.append(each.assign(model=name))
            print(
                f"{name}, {row['measure']}: depth {row['end of text']:.3f} (ordinary positions {row['placebo']:.3f}), as a "
                f"full stop {row['period']:.3f} (p {row['end - period_p']:.2g}), as a comma {row['comma']:.3f}; "
                f"{row['layers with end > period']} of {row['layers']} layers; {row['seconds']} s",
                flush=True,
            )
    if rows:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_csv(results / "modulation.csv", index=False, float_format="%.5g")
        pd.concat(layers).to_csv(results / "modulation_layers.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
