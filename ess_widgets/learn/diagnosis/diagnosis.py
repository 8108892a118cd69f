"""Diagnose a model: every layer and head measured, what is wrong first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ess_widgets.capture import Cancelled, Capture, CaptureError, NotCausalError, UnknownLayerError, run

from .broken import first_broken
from .findings import SEVERITIES, Finding, judge
from .inputs import Sample, samples
from .measures import Measured, Question, measure
from .projections import Projections
from .rows import Row, combine
from .summary import summary
from .thresholds import Thresholds

if TYPE_CHECKING:
    from pandas import DataFrame

    from ess_widgets.widgets import Explorer

    from .view import DiagnosisView

__all__ = ["Diagnosis", "diagnose"]


class Diagnosis:
    """What :func:`diagnose` found.

    Attributes
    ----------
    findings : list of Finding
        Worst first.
    rows : list of Row
        Every layer and head that was looked at, in the model's order.
    layers : list of str
        Their names.
    measure : str
        Which ESS all numbers of this diagnosis are.
    thresholds : Thresholds
    notes : list of str
        What was not looked at, or not judged, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: list[Sample],
        rows: list[Row],
        findings: list[Finding],
        asked: Question,
        notes: list[str],
        tokenizer: Any,
        groups: int,
    ) -> None:
        self._model, self._calls, self._tokenizer, self._groups, self._asked = (
            model,
            calls,
            tokenizer,
            groups,
            asked,
        )
        self.rows, self.notes = rows, notes
        self.layers = list(dict.fromkeys(row.layer for row in rows))
        self.thresholds, self.measure = asked.limits, asked.name
        for finding in findings:
            object.__setattr__(finding, "_open", self.explore)
        self.findings = findings
        self._table: DataFrame | None = None
        self.title = type(model).__name__

    @property
    def table(self) -> DataFrame:
        """A pandas DataFrame, one row for each layer and head, all numbers and signs; ``measure`` names the ESS."""
        if self._table is None:
            import pandas

            names = list(dict.fromkeys(name for row in self.rows for name in row.numbers))
            self._table = pandas.DataFrame(
                [
                    {
                        "layer": row.layer,
                        "head": row.head,
                        "group": row.group,
                        "family": row.family,
                        "findings": ", ".join(row.signs),
                        "severity": self._severity(row),
                        "measure": self.measure,
                        **{name: row[name] for name in names if name != "finite"},
                    }
                    for row in self.rows
                ]
            )
        return self._table

    def of(self, layer: str, head: int | None = None) -> list[Finding]:
        """Findings of a layer, or of one of its heads."""
        if layer not in self.layers:
            raise UnknownLayerError(f"no layer is called {layer!r} here; there are {', '.join(self.layers)}.")
        return [f for f in self.findings if f.layer == layer and head in (None, f.head)]

    def explore(self, where: Any = 0, **options: Any) -> Explorer:
        """Open the explorer at a layer and head.

        Parameters
        ----------
        where : Finding, int or (str, int)
            A finding, a row of ``table``, or a layer's name and head.
        **options
            As in :func:`ess_widgets.explore`.

        Raises
        ------
        ValueError
            Where the model gives NaN there, and nothing can be drawn.
        IndexError, UnknownLayerError
            Where there is no such row.
        """
        from ess_widgets.widgets import Explorer, Selection

        row, sample = self._find(where)
        if not row.numbers:
            raise ValueError(
                f"{row.layer!r} has no operator: its values are not finite, or it cannot be built (see the findings). There is nothing to explore."
            )
        call = self._calls[sample]
        heads = [r.head for r in self.rows if r.layer == row.layer]
        chosen: dict[str, Any] = {
            "kind": self._asked.kind,
            "tol": self._asked.tol,
            "relative": self._asked.relative,
            "layers": self.layers,
            "groups": self._groups,
            "selection": Selection(layer=row.layer, head=heads.index(row.head)),
            **options,
        }
        if call.text is not None:
            return Explorer(self._model, self._tokenizer, call.text, **chosen)
        inputs = {**call.kwargs} if call.kwargs and not call.args else call.args
        return Explorer(self._model, inputs=inputs, **chosen)

    def view(self, **options: Any) -> DiagnosisView:
        """A widget: the findings as a table, and below it an explorer that follows the row that is chosen."""
        from .view import DiagnosisView

        return DiagnosisView(self, **options)

    def to_html(self, path: str | Path | None = None) -> str:
        """The whole diagnosis as a page of its own, without a kernel; written to ``path`` where that is given."""
        from .page import document

        text = document(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def _repr_html_(self) -> str:
        from .page import fragment

        return fragment(self)

    def __str__(self) -> str:
        return summary(self)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{sum(f.severity == s for f in self.findings)} {s}"
            for s in SEVERITIES
            if any(f.severity == s for f in self.findings)
        )
        return f"Diagnosis({self.title}, {len(self.layers)} layers, {len(self.rows)} rows: {counts or 'no findings'})"

    def _find(self, where: Any) -> tuple[Row, int]:
        if isinstance(where, Finding):
            return self._row(where.layer, where.head), where.sample
        if isinstance(where, tuple) and len(where) == 2:
            return self._row(*where), 0
        row = self.rows[where]
        return row, row.worst

    def _row(self, layer: str, head: int) -> Row:
        for row in self.rows:
            if (row.layer, row.head) == (layer, head):
                return row
        raise UnknownLayerError(f"there is no row for {layer!r}, head {head}.")

    def _severity(self, row: Row) -> str:
        mine = {f.severity for f in self.findings if (f.layer, f.head) == (row.layer, row.head)}
        return next((s for s in SEVERITIES if s in mine), "")


def diagnose(
    model: nn.Module,
    inputs: Any,
    tokenizer: Any = None,
    *,
    failing: bool | None = None,
    kind: Literal["entropy", "tolerance"] = "entropy",
    tol: float = 1e-3,
    relative: bool = False,
    layers: Any = None,
    groups: int = 32,
    thresholds: Thresholds | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Look through every layer and head for what goes wrong with memory, worst first.

    Parameters
    ----------
    model : torch.nn.Module
        A whole model or one layer; it is left as it is.
    inputs
        A text, token ids ``(batch, L)``, a tensor for a single layer, a dict or tuple of arguments; or a list of such:
        several samples, run one after the other, of any lengths. Use several that are typical: what no sample shows
        cannot be found.
    tokenizer : object, optional
        For texts: a transformers tokenizer, or any object with ``encode`` and ``decode``.
    failing : bool, optional
        Whether the model fails its task. Saturation is a full state *and* a failing task: True reports full states as
        saturation, False does not report them, None reports them as "full", for information.
    kind, tol, relative
        Which ESS, as in :func:`ess_widgets.ess`; all ESS of a diagnosis are of this one kind.
    layers
        Which layers, as in :func:`ess_widgets.capture`.
    groups : int
        Of a layer with more groups than this (an operator for each channel), evenly spaced ones are looked at.
    thresholds : Thresholds, optional
        From where on a number is a sign.
    should_stop : callable, optional
        Asked before each torch call of the model and before each layer is measured; once it returns true,
        ``ess_widgets.capture.Cancelled`` is raised.
    on_progress : callable, optional
        Called before each layer is measured with how many are done, and how many there are in all samples.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError
        If inputs are of a kind that no model takes, or a text has no tokenizer.
    ValueError
        If a text is empty, or all samples are of one token.
    CaptureError
        If nothing in the model mixes tokens, or a layer is not causal.

    Notes
    -----
    ``docs/diagnose.md`` tells for each sign its numbers, its threshold and where that comes from.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> mask = torch.nn.Transformer.generate_square_subsequent_mask(32)
    >>> with torch.no_grad():
    ...     layer.self_attn.out_proj.weight[:, 4:] = 0      # cuts head 1 off
    >>> found = diagnose(layer, {"src": torch.randn(1, 32, 8), "src_mask": mask})
    >>> [(f.sign, f.layer, f.head) for f in found.findings]
    [('dead', 'self_attn', 1)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}.")
    if kind not in ("entropy", "tolerance"):
        raise ValueError(f"kind must be 'entropy' or 'tolerance', but is {kind!r}.")
    if failing not in (True, False, None):
        raise TypeError(f"failing must be True, False or None, but is {failing!r}.")
    if groups < 1:
        raise ValueError(f"groups must be at least 1, but is {groups}.")
    limits = Thresholds() if thresholds is None else thresholds
    if not isinstance(limits, Thresholds):
        raise TypeError(
            f"thresholds must be ess_widgets.learn.Thresholds(...), but is of type {type(limits).__name__}."
        )
    asked = Question(kind, tol, relative, limits)
    calls = samples(model, inputs, tokenizer)
    looked = _Looked(model, asked, layers, groups, should_stop)
    for number, call in enumerate(calls):
        for done, of in looked.add(call, number):
            if on_progress is not None:
                on_progress(number * of + done, len(calls) * of)
            if should_stop is not None and should_stop():
                raise Cancelled
    rows = looked.rows()
    findings = judge(rows, limits, kind, asked.name, failing)
    return Diagnosis(model, calls, rows, findings, asked, looked.notes(rows), tokenizer, groups)


class _Looked:
    """What the calls brought to light, layer by layer."""

    def __init__(
        self,
        model: nn.Module,
        asked: Question,
        layers: Any,
        groups: int,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._model, self._asked, self._groups = model, asked, groups
        self._should_stop = should_stop
        self._layers = (
            list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else layers
        )
        self._measured: dict[str, list[Measured]] = {}
        self._shown: dict[str, list[int]] = {}
        self._about: dict[str, dict[str, Any]] = {}
        self._broken: dict[str, list[Row]] = {}
        self._refused: dict[str, list[Row]] = {}
        self._order: list[str] = []
        self._of: dict[str, int] = {}
        self._skipped: dict[str, str] = {}
        self._behind: list[str] = []
        self._tokens: list[int] = []

    def add(self, call: Sample, number: int) -> Iterator[tuple[int, int]]:
        """Run the model on one call and measure all of its samples; before each layer, which one it is, and of how many."""
        watch = Projections(self._model)
        captured = self._capture(call, number, watch)
        if captured is None:
            return
        self._skipped.update(captured.skipped)
        tokens = 0
        self._order += [name for name in captured if name not in self._order]
        for index, (name, layer) in enumerate(captured.items()):
            yield index, len(captured)
            try:
                operator = layer.operator
            except CaptureError as error:
                self._refused[name] = [
                    Row(name, head, layer.family, layer.group, refused=str(error))
                    for head in range(layer.outputs.shape[1])
                ]
                tokens = max(tokens, layer.outputs.shape[2])
                continue
            batch, count = operator.shape[:2]
            shown = (
                [i * count // self._groups for i in range(self._groups)]
                if count > self._groups
                else list(range(count))
            )
            self._of[name], self._shown[name] = count, shown
            self._about[name] = {
                "layer": name,
                "family": layer.family,
                "group": layer.group,
                "residual_limit": self._asked.limits.residual_limit(layer.dtype),
            }
            written = watch.of(layer)
            for sample in range(batch):
                found = measure(layer, sample, shown, written, self._asked)
                self._measured.setdefault(name, []).append(found)
                tokens = max(tokens, found.tokens)
        if tokens == 1:
            raise ValueError(
                f"inputs{f'[{number}]' if number else ''} has one token: nothing lies in its past. Give at least "
                f"{self._asked.limits.min_length}, better some hundred."
            )
        self._tokens.append(tokens)

    def _capture(self, call: Sample, number: int, watch: Projections) -> Capture | None:
        try:
            with watch:
                return run(
                    self._model,
                    call.args,
                    call.kwargs,
                    layers=self._layers,
                    should_stop=self._should_stop,
                    on_layer=watch.seen,
                    keep_output=False,
                )
        except (NotCausalError, UnknownLayerError):
            raise
        except CaptureError:
            before, rows, behind = first_broken(self._model, call, number, self._layers)
            if not rows:
                raise
        self._broken.setdefault(rows[0].layer, rows)
        self._behind += [name for name in behind if name not in self._behind]
        if not before:
            return None
        with watch:
            return run(
                self._model,
                call.args,
                call.kwargs,
                layers=before,
                should_stop=self._should_stop,
                on_layer=watch.seen,
                keep_output=False,
            )

    def rows(self) -> list[Row]:
        """All rows, in the model's order as far as it is known."""
        rows: list[Row] = []
        for name in self._order + [name for name in self._broken if name not in self._order]:
            given = self._broken.get(name) or self._refused.get(name)
            rows += given or combine(
                self._measured[name], self._shown[name], self._asked.limits, **self._about[name]
            )
        if not rows:
            reasons = "; ".join(f"{name!r}: {why}" for name, why in self._skipped.items())
            raise CaptureError(f"no layer could be looked at: {reasons or 'none was captured'}.")
        return rows

    def notes(self, rows: list[Row]) -> list[str]:
        """What was left out, in sentences."""
        notes = []
        behind = [name for name in self._behind if name not in self._measured]
        if behind:
            first = next(iter(self._broken))
            notes.append(
                f"{len(behind)} layer{'s' if len(behind) > 1 else ''} behind {first!r} not looked at: what reaches them "
                "is not finite."
            )
        short = min(self._tokens, default=0)
        if short and short < self._asked.limits.min_length:
            notes.append(
                f"Samples of fewer than {self._asked.limits.min_length} tokens (here {short}) are too short to judge "
                "where a head looks or how full it is."
            )
        elif (
            short
            and not any(not math.isnan(row["full"]) for row in rows)
            and any(r.state == "bounded" for r in rows)
        ):
            notes.append(
                "No sample is long enough to tell whether a state is full: give more than twice its size."
            )
        fixed = {row.layer for row in rows if row.state == "fixed"}
        if fixed:
            notes.append(
                f"{len(fixed)} convolution{'s' if len(fixed) > 1 else ''}: local and full by design, judged only for "
                "being alive, finite and verified."
            )
        some = [f"{self._of[name]} of {name!r}" for name in self._of if self._of[name] > self._groups]
        if some:
            notes.append(
                f"Evenly spaced {self._groups} groups were looked at, out of {', '.join(some[:3])}{' …' if some[3:] else ''}."
            )
        notes += [f"Left out: {name!r}: {why}" for name, why in self._skipped.items()]
        return notes
