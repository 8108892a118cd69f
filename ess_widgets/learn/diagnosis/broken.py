"""Where values first stop being finite: a capture refuses such a layer, a diagnosis names it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ess_widgets.capture.interception import session
from ess_widgets.capture.interception.quiet import quietly
from ess_widgets.capture.names import Selector

from .inputs import Sample
from .rows import Broken, Row

__all__ = ["first_broken"]


def first_broken(
    model: nn.Module, sample: Sample, number: int, layers: Any
) -> tuple[list[str], list[Row], list[str]]:
    """The layers before the first one whose output is not finite, that one's rows, and the names behind it."""

    def look(_: Any) -> tuple[list[str], list[Row], list[str]]:
        selector = Selector(layers)
        found = session.run(model, sample.args, sample.kwargs, selector).found
        names = [item.name for item in found]
        chosen = [name for name in selector.select(names)]
        for item in found:
            if item.mixer is None or item.name not in chosen or 0 in item.mixer.shape:
                continue
            bad = ~torch.isfinite(item.mixer.outputs()).all(-1)
            block = bad.shape[-1] // item.mixer.shape[-1]
            if item.valid is not None:
                bad &= item.valid.repeat_interleave(block, dim=-1).unsqueeze(1)
            if bool(bad.any()):
                at = chosen.index(item.name)
                about = item.name, item.mixer.family, item.mixer.group
                return chosen[:at], _rows(bad, block, number, *about), chosen[at + 1 :]
        return chosen, [], []

    return quietly(look)


def _rows(bad: torch.Tensor, block: int, number: int, name: str, family: str, group: str) -> list[Row]:
    rows = []
    for head in range(bad.shape[1]):
        row = Row(name, head, family, group)
        where = bad[:, head].nonzero()
        if len(where):
            row.broken = Broken("the output", number, int(where[:, 1].min()) // block, len(where))
        rows.append(row)
    return rows
