"""From rows of single dips to numbers per layer, head, family and kind of delimiter, with texts as the unit."""

from __future__ import annotations

from typing import Any

import numpy as np

from ess_widgets.learn.modulation.significance import Tested, over_texts

__all__ = ["by_text", "summarise"]

# What is summed over heads and delimiters before it is divided: a head counts by what it remembers.
_SUMS = ("lost", "expected", "line", "placebo_lost", "placebo_expected", "replaced_lost", "replaced_expected")


def by_text(table: Any, keys: list[str]) -> Any:
    """One row per text and group, with ratios of sums over the group's heads and delimiters.

    ``depth = Σ lost / Σ expected`` at the delimiters, ``placebo`` the same where there is none, ``replaced`` the same
    after the replacement; ``excess = depth - max(placebo, 0)`` and ``paired = depth - replaced``. Where curves arch,
    ordinary positions lie on a bump, with depths below 0: that does not make any other position a dip.
    """
    frame = table.assign(
        gone=table["line"] - table["ess"],
        wide=(table["width"] * table["lost"].clip(lower=0)).fillna(0.0),
        dropped=table["lost"].clip(lower=0),
    )
    groups = frame.groupby(["text", *keys], sort=False, observed=True)
    # Without a single number in it a sum is unknown, not 0.
    sums = groups[[*_SUMS, "gone", "wide", "dropped"]].sum(min_count=1)
    out = sums[[]].copy()
    out["dips"] = groups.size()
    out["depth"] = _ratio(sums["lost"], sums["expected"])
    out["depth_raw"] = _ratio(sums["gone"], sums["line"])
    out["placebo"] = _ratio(sums["placebo_lost"], sums["placebo_expected"])
    out["replaced"] = _ratio(sums["replaced_lost"], sums["replaced_expected"])
    out["excess"] = out["depth"] - out["placebo"].clip(lower=0)
    out["paired"] = out["depth"] - out["replaced"]
    out["lost"] = sums["lost"] / out["dips"]
    out["width"] = _ratio(sums["wide"], sums["dropped"])
    return out.reset_index()


def _ratio(part: Any, whole: Any) -> Any:
    return part / whole.where(whole > 0)


def summarise(texts: Any, keys: list[str], seed: int) -> Any:
    """One row per group: means over texts, 95 % intervals, and the tests of ``depth``, ``excess`` and ``paired``."""
    import pandas as pd

    wide = texts.pivot(index="text", columns=keys, values=["depth", "excess", "paired"])
    order = texts[keys].drop_duplicates()
    groups = texts.groupby(keys, sort=False, observed=True)
    out = groups[["depth", "depth_raw", "placebo", "replaced", "lost", "width"]].mean()
    out["dips"] = groups["dips"].sum()
    index = pd.MultiIndex.from_frame(order) if len(keys) > 1 else pd.Index(order[keys[0]], name=keys[0])
    out = out.loc[index]
    columns = list(index)
    for what in ("depth", "excess", "paired"):
        values = wide[what].reindex(columns=columns).to_numpy(dtype=float)
        found: Tested = over_texts(values, seed, greater=what == "excess")
        if what != "depth":
            out[what] = found.mean
        out[f"{what}_low"], out[f"{what}_high"] = found.low, found.high
        if what == "depth":
            out["texts"] = found.texts
            continue
        out[f"{what}_p"], out[f"{what}_p_holm"], out[f"{what}_p_max"] = found.p, found.p_holm, found.p_max
        out[f"{what}_effect"], out[f"{what}_positive"] = found.effect, found.positive
    first = [
        "texts",
        "dips",
        "depth",
        "depth_low",
        "depth_high",
        "depth_raw",
        "lost",
        "width",
        "placebo",
        "excess",
    ]
    rest = [name for name in out.columns if name not in first and name not in ("replaced", "paired")]
    excess = [name for name in rest if name.startswith("excess")]
    paired = [name for name in rest if name.startswith("paired")]
    return out[[*first, *excess, "replaced", "paired", *paired]].astype({"texts": np.int64, "dips": np.int64})
