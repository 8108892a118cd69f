"""What was measured, per dip, head, layer, family and kind of delimiter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from ess_widgets.learn.modulation import report
from ess_widgets.learn.modulation.curves import Curves, Measure
from ess_widgets.learn.modulation.delimiters import Occurrence
from ess_widgets.learn.modulation.summary import by_text, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ess_widgets.widgets import Explorer

__all__ = ["Modulation", "Reading"]


@dataclass(frozen=True)
class Reading:
    """One text as the model read it, with its delimiters and without them.

    Attributes
    ----------
    index : int
        Among the texts that were given.
    text : str
    ids, replaced_ids : list of int
        Tokens, and those of the counterfactual.
    labels : list of str
        For each token what to show of it.
    delimiters : list of Occurrence
        All, also those without room around them.
    replacement : str
    curves, replaced : Curves
        ``.ess`` and ``.ceiling``, ``(heads, L)``, and ``.heads``, of the text and of the counterfactual.
    """

    index: int
    text: str
    ids: list[int]
    replaced_ids: list[int]
    labels: list[str]
    delimiters: list[Occurrence]
    replacement: str
    curves: Curves
    replaced: Curves


class Modulation:
    """Dips of effective state-size at delimiters; made by :func:`ess_widgets.modulation`.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per text, delimiter, layer and head. ``position`` is the ``i`` of ``H_i`` where the dip is lowest;
        ``ess`` and ``ceiling`` there; ``line`` the straight line between the surroundings; ``expected`` the line as far as
        the ceiling's bends do not explain what is found (between the line, cut off at the ceiling, and the line bent as
        the ceiling is); ``lost = expected - ess``; ``depth = lost / expected`` (1: all is dropped, 0: no dip,
        below 0: a bump); ``depth_raw`` the same without regard to the ceiling; ``width`` in positions at half of ``lost``;
        ``placebo_…`` means over positions without a delimiter; ``replaced_…`` after the replacement;
        ``paired = depth - replaced_depth``; ``measure`` which ESS.
    readings : list of Reading
        The texts, tokens and whole curves behind it.
    window : int
        Positions on each side that make the surroundings.
    skipped : list of str
        Delimiters without room and layers that do not lie along the tokens, and why.
    kind, tol, relative
        Which ESS.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        measure: Measure,
        readings: list[Reading],
        table: Any,
        window: int,
        skipped: list[str],
        groups: int,
        seed: int,
    ) -> None:
        self._model, self._tokenizer, self._measure = model, tokenizer, measure
        self._groups, self._seed = groups, seed
        self.readings, self.table, self.window, self.skipped = readings, table, window, skipped
        self.kind, self.tol, self.relative = measure.kind, measure.tol, measure.relative

    @property
    def measure(self) -> str:
        """Which ESS, in words."""
        return str(self._measure)

    @property
    def testable(self) -> bool:
        """Whether there are two texts or more with a delimiter to measure at: a text is the unit of the tests."""
        return len(self.readings) > 1

    def frame(self) -> Any:
        """A copy of ``table``."""
        return self.table.copy()

    @cached_property
    def layers(self) -> Any:
        """Per layer, in the model's order: pandas.DataFrame with a row for each.

        ``depth`` (mean over texts of ``Σ lost / Σ expected`` over heads and delimiters) with its 95 % bootstrap interval
        over texts, ``placebo`` and ``replaced`` likewise; ``excess = depth - max(placebo, 0)``, how much deeper than at
        ordinary positions, and ``paired = depth - replaced``, how much is due to the delimiter itself. Each with
        interval, sign-flip ``p`` (one-sided for ``excess``, two-sided for ``paired``), corrected over the layers by Holm
        (``p_holm``) and by Westfall and Young's step-down maxima (``p_max``), effect size (mean over standard deviation)
        and the share of texts above 0. The test of ``paired`` is exact: both are measured at the same positions. That of
        ``excess`` takes it that curves bend at delimiters no more than elsewhere.
        ``width`` weighted by what each dip loses; ``residual`` of the worst head. NaN for tests of a single text.
        """
        summary = self._summary(["layer"])
        family = self.table.drop_duplicates("layer").set_index("layer")["family"]
        summary.insert(0, "family", family.reindex(summary.index))
        worst: dict[str, float] = {}
        for reading in self.readings:
            for run in (reading.curves, reading.replaced):
                for name, value in run.residual.items():
                    worst[name] = max(value, worst.get(name, 0.0))
        summary["residual"] = [worst[name] for name in summary.index]
        return summary

    @cached_property
    def families(self) -> Any:
        """Per family of layers, as :attr:`layers`."""
        return self._summary(["family"])

    @cached_property
    def heads(self) -> Any:
        """Per layer and head, as :attr:`layers`."""
        return self._summary(["layer", "head"])

    @cached_property
    def delimiters(self) -> Any:
        """Per kind of delimiter, over all layers, as :attr:`layers`."""
        return self._summary(["kind"])

    @cached_property
    def overall(self) -> Any:
        """One row for all layers and delimiters together, as :attr:`layers`."""
        return self._summary(["measure"], False)

    @cached_property
    def texts(self) -> Any:
        """Per text and layer the numbers that the tests of :attr:`layers` take: ``depth``, ``excess``, ``paired``, ..."""
        return by_text(self.table, ["layer"]).assign(measure=self.measure)

    @property
    def deepest(self) -> Any:
        """The row of :attr:`table` that loses the most ESS."""
        return self.table.loc[self.table["lost"].idxmax()]

    def _summary(self, keys: list[str], named: bool = True) -> Any:
        summary = summarise(by_text(self.table, keys), keys, self._seed)
        return summary.assign(measure=self.measure) if named else summary

    def __str__(self) -> str:
        return report.text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return report.html(self)

    def figure(
        self, text: int | None = None, layer: str | int | None = None, head: int | None = None, *,
        figsize: tuple[float, float] = (10.0, 4.2),
    ) -> Figure:  # fmt: skip
        """Draw ESS along one text with its delimiters, the counterfactual and the ceiling; and the depth of each layer.

        Parameters
        ----------
        text : int, optional
            Which of the texts; by default that of the deepest dip.
        layer : str or int, optional
            By default the layer that dips most beyond its placebos.
        head : int, optional
            By default the mean over the layer's heads.
        figsize : (float, float)
            Inches.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from ess_widgets.learn.modulation import picture

        return picture.draw(self, text, layer, head, figsize)

    def explore(self, row: int | None = None) -> Explorer:
        """Open the explorer at a dip.

        Parameters
        ----------
        row : int, optional
            A row's label in :attr:`table`; by default the dip that loses the most ESS.

        Returns
        -------
        Explorer
        """
        from ess_widgets.widgets import Selection, explore

        if row is not None and row not in self.table.index:
            raise ValueError(f"row {row!r} is not in the table, whose rows are 0 … {len(self.table) - 1}.")
        dip = self.deepest if row is None else self.table.loc[row]
        reading = next(one for one in self.readings if one.index == dip["text"])
        op = [head.head for head in reading.curves.heads if head.layer == dip["layer"]]
        selection = Selection(
            layer=dip["layer"], head=op.index(dip["head"]), position=int(dip["position"]), pinned=True
        )
        return explore(
            self._model,
            self._tokenizer,
            reading.text,
            layers=list(dict.fromkeys(head.layer for head in reading.curves.heads)),
            kind=self.kind,
            tol=self.tol,
            relative=self.relative,
            groups=self._groups,
            max_tokens=max(2048, len(reading.ids)),
            selection=selection,
        )
