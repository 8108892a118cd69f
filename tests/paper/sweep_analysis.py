"""Spearman's ρ of accuracy with ESS/kv and with TSS/kv, by family: ``python -m tests.paper.sweep_analysis``.

Reads ``results/sweep.csv`` and writes ``results/sweep_correlation.csv``. The measure was fixed before the runs: entropy-ESS,
the mean over both layers, finished models only. The other rows show what a choice would have changed. Intervals are
percentile bootstraps over models (10,000 draws, 95 %), of each ρ and of their difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from tests.paper.sweep import FAMILIES, MEASURES, RESULTS, STEPS

OUTPUT = RESULTS.with_name("sweep_correlation.csv")
PRIMARY = "entropy"
DRAWS = 10_000


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ; NaN where one of them is constant."""
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else float("nan")


def correlation(runs: pd.DataFrame, measure: str, normalised: bool, seed: int = 0) -> dict[str, Any]:
    """ρ of accuracy with ESS and with TSS over runs, their difference, and intervals."""
    share = runs["kv"] if normalised else 1
    ess = ((runs[f"{measure}_0"] + runs[f"{measure}_1"]) / 2 / share).to_numpy()
    tss = ((runs["tss_0"] + runs["tss_1"]) / 2 / share).to_numpy()
    accuracy = runs["accuracy"].to_numpy()
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(runs), size=(DRAWS, len(runs)))
    pairs = np.array([(spearman(ess[i], accuracy[i]), spearman(tss[i], accuracy[i])) for i in drawn])
    found: dict[str, Any] = {"rho_ess": spearman(ess, accuracy), "rho_tss": spearman(tss, accuracy)}
    found["difference"] = found["rho_ess"] - found["rho_tss"]
    for name, values in (
        ("rho_ess", pairs[:, 0]),
        ("rho_tss", pairs[:, 1]),
        ("difference", pairs[:, 0] - pairs[:, 1]),
    ):
        known = values[
            ~np.isnan(values)
        ]  # a draw may have models of one accuracy only; TSS may not vary at all
        low_high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
        found[f"{name}_low"], found[f"{name}_high"] = low_high
    return found


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """All correlations, by family and for all families together."""
    rows = []
    for family in (*FAMILIES, "all"):
        own = runs if family == "all" else runs[runs["family"] == family]
        for measure in MEASURES:
            for normalised in (True, False):
                found = correlation(own, measure, normalised)
                rows.append(
                    {"family": family, "measure": measure, "per_kv": normalised, "models": len(own), **found}
                )
    return pd.DataFrame(rows)


def main() -> None:
    """Correlate, print and write."""
    runs = pd.read_csv(RESULTS)
    found = table(runs[runs["step"] == STEPS])
    found.to_csv(OUTPUT, index=False, float_format="%.4f")
    chosen = found[(found["measure"] == PRIMARY) & found["per_kv"]]
    print(chosen.drop(columns=["measure", "per_kv"]).round(2).to_string(index=False))
    ahead = chosen[chosen["family"] != "all"]
    print(f"\n{PRIMARY}-ESS/kv is ahead of TSS/kv in {(ahead['difference'] > 0).sum()} of {len(ahead)} families; "
          f"the interval of the difference is above 0 in {(ahead['difference_low'] > 0).sum()}")  # fmt: skip


if __name__ == "__main__":
    main()
