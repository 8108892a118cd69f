"""Where language models drop context: dips of ESS at ends of text, and what is left of them at a full stop or a comma.

``python -m tests.paper.modulation [MODEL ...]`` writes ``tests/paper/results/modulation.csv`` and ``modulation_layers.csv``.
Twelve texts of three unrelated passages each, two for byte-level models (``passages.txt``, public domain, each used once),
joined by the end-of-text token; the same positions are measured after a full stop, and a comma, has taken its place.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd

import ess_widgets as ew
from ess_widgets import demo
from ess_widgets.demo.small import ByteTokenizer
from ess_widgets.learn.modulation.call import MOST_GROUPS as GROUPS
from ess_widgets.learn.modulation.curves import Measure, curves
from ess_widgets.learn.modulation.delimiters import replaced
from ess_widgets.learn.modulation.dips import measure, shoulders
from ess_widgets.learn.modulation.significance import over_texts

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MODELS = ("SmolLM2-135M-Instruct", "bytes-SA", "bytes-GLA", "bytes-WLA", "bytes-LA")
MEASURES: tuple[tuple[str, float], ...] = (
    ("entropy", 1e-3),
    ("tolerance", 1e-1),
    ("tolerance", 1e-2),
    ("tolerance", 1e-3),
)
END = "<|endoftext|>"
TEXTS = 12


def texts(each: int) -> list[str]:
    """Each passage once, so that no two texts share any."""
    passages = (HERE / "passages.txt").read_text(encoding="utf-8").splitlines()
    return [END.join(passages[k : k + each]) for k in range(0, TEXTS * each, each)]


def measured(model: Any, tokenizer: Any, kind: Any, tol: float) -> tuple[dict[str, Any], Any]:
    """One row over all layers, and a table of the layers."""
    # A byte is a token: two passages make a text as long as the byte-level models were trained on.
    each = 2 if isinstance(tokenizer, ByteTokenizer) else 3
    end = ew.modulation(model, tokenizer, texts(each), END, ".", kind=kind, tol=tol)
    table = end.table.join(as_commas(end, model, tokenizer))
    whole = end.overall.iloc[0]
    row: dict[str, Any] = {"measure": end.measure, "texts": len(end.readings), "window": end.window}
    row |= {"end of text": whole["depth"], "placebo": whole["placebo"], "excess_p": whole["excess_p"]}
    depths = {
        name: sums[f"{column}lost"] / sums[f"{column}expected"]
        for sums in [table.groupby("text").sum(numeric_only=True)]
        for name, column in (("end", ""), ("period", "replaced_"), ("comma", "comma_"))
    }
    row |= {name: depths[name].mean() for name in ("period", "comma")}
    for one, other in (("end", "period"), ("end", "comma"), ("period", "comma")):
        found = over_texts((depths[one] - depths[other]).to_numpy()[:, None])
        name = f"{one} - {other}"
        row |= {name: found.mean[0], f"{name}_low": found.low[0], f"{name}_high": found.high[0]}
        row |= {f"{name}_p": found.p[0], f"{name}_effect": found.effect[0]}
    row["layers with end > period"] = int(
        ((end.layers["paired_p_max"] < 0.05) & (end.layers["paired"] > 0)).sum()
    )
    row["layers"] = len(end.layers)
    after, lost = end.table["position"] > end.table["start"], end.table["lost"].clip(lower=0)
    row["lowest after the delimiter"] = (lost * after).sum() / lost.sum() if lost.sum() > 0 else float("nan")
    sums = table.groupby(["text", "layer"], sort=False)[["comma_lost", "comma_expected"]].sum()
    comma = (sums["comma_lost"] / sums["comma_expected"]).groupby("layer").mean()
    return row, end.layers.assign(comma=comma).reset_index()


def as_commas(end: Any, model: Any, tokenizer: Any) -> pd.DataFrame:
    """The same dips with a comma in place of every end of text, row by row."""
    rows = []
    for reading in end.readings:
        other = replaced(tokenizer, ",", reading.ids, reading.delimiters)
        run = curves(model, other, Measure(end.kind, end.tol, end.relative), None, GROUPS)
        taken = [at for one in reading.delimiters for at in one.cuts]
        spots = end.table.loc[end.table["text"] == reading.index, ["start", "stop"]].drop_duplicates()
        for start, stop in spots.itertuples(index=False):
            cuts = range(start, stop + 1)
            sides = shoulders(cuts, taken, len(other), end.window, end.window // 4)
            dip = measure(run.ess, run.ceiling, cuts, sides, widths=False)
            rows.append(pd.DataFrame({"comma_lost": dip.lost, "comma_expected": dip.expected}))
    return pd.concat(rows, ignore_index=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("models", nargs="*", default=MODELS)
    RESULTS.mkdir(exist_ok=True)
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
            write("modulation.csv", pd.DataFrame(rows))
            write("modulation_layers.csv", pd.concat(layers))


def write(name: str, table: pd.DataFrame) -> None:
    """Replace the rows of these models and keep those of others."""
    path = RESULTS / name
    if path.exists():
        before = pd.read_csv(path)
        table = pd.concat([before[~before["model"].isin(set(table["model"]))], table])
    table.to_csv(path, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
