"""What a monitor has recorded, in memory and in a file that survives a killed process."""

from __future__ import annotations

import json
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["History", "HistoryFile", "LayerMeasurement", "Measurement"]

FORMAT = "ess_widgets training history 1"


@dataclass(frozen=True)
class LayerMeasurement:
    """One layer on the probe inputs.

    Attributes
    ----------
    family, group : str
        As in :class:`ess_widgets.LayerCapture`.
    groups : tuple of int
        Which of the layer's heads (or channels) were measured.
    of : int
        How many there are.
    ess : ndarray, ``(heads,)``
        Average ESS of each head: mean over samples and the measured positions, own tokens only.
    of_state_size, of_ceiling : ndarray, ``(heads,)``
        Utilisation, ``Σ ESS_i / Σ TSS_i`` and ``Σ ESS_i / Σ ceiling_i``, mean over samples.
    residual, limit : float
        Worst ``‖T u - y‖ / ‖y‖`` over samples and heads, and what the dtype explains.
    positions : tuple of int
        Of the spectra.
    spectra : ndarray, ``(heads, positions, K)``
        The largest singular values of ``H_i``, descending; the first sample's.
    """

    family: str
    group: str
    groups: tuple[int, ...]
    of: int
    ess: np.ndarray
    of_state_size: np.ndarray
    of_ceiling: np.ndarray
    residual: float
    limit: float
    positions: tuple[int, ...]
    spectra: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain values: numbers with six significant digits, singular values with four."""
        return {
            "family": self.family,
            "group": self.group,
            "groups": list(self.groups),
            "of": self.of,
            "ess": _plain(self.ess),
            "of_state_size": _plain(self.of_state_size),
            "of_ceiling": _plain(self.of_ceiling),
            "residual": _plain(self.residual),
            "limit": self.limit,
            "positions": list(self.positions),
            "spectra": _plain(self.spectra, 4),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerMeasurement:
        """From what :meth:`to_json` gives."""
        groups, positions = tuple(data["groups"]), tuple(data["positions"])
        spectra = _array(data["spectra"])
        ess, of_state_size, of_ceiling = (
            _array(data[name]) for name in ("ess", "of_state_size", "of_ceiling")
        )
        return cls(
            data["family"],
            data["group"],
            groups,
            int(data["of"]),
            ess,
            of_state_size,
            of_ceiling,
            float(data["residual"]),
            float(data["limit"]),
            positions,
            spectra if spectra.size else np.zeros((len(groups), len(positions), 0)),
        )


@dataclass(frozen=True)
class Measurement:
    """All layers at one step; ``failed`` says why there are none.

    Attributes
    ----------
    step : int
        How many optimiser steps the model had taken.
    seconds : float
        What the measurement took.
    layers : dict of str to LayerMeasurement
    failed : str or None
    """

    step: int
    seconds: float
    layers: dict[str, LayerMeasurement] = field(default_factory=dict)
    failed: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        layers = {name: layer.to_json() for name, layer in self.layers.items()}
        return {"step": self.step, "seconds": _plain(self.seconds), "layers": layers, "failed": self.failed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """From what :meth:`to_json` gives."""
        layers = {name: LayerMeasurement.from_json(layer) for name, layer in data["layers"].items()}
        return cls(int(data["step"]), float(data["seconds"]), layers, data["failed"])


class History:
    """Metrics of every step and measurements of some, in the order of steps.

    Attributes
    ----------
    steps : array of int
        Steps with metrics, ascending.
    metrics : dict of str to array of float
        A value for each of ``steps``, NaN where there was none.
    measurements : list of Measurement
        Ascending in their steps, failed ones included.

    Examples
    --------
    >>> history = History()
    >>> history.log([1, 2, 3], {"loss": [0.9, 0.5, 0.4]})
    >>> history.rewind(1)
    >>> history.log([2], {"loss": [0.6]})
    >>> list(history.steps), list(history.metrics["loss"]), history.last
    ([1, 2], [0.9, 0.6], 2)
    """

    def __init__(self) -> None:
        self.steps = array("q")
        self.metrics: dict[str, array[float]] = {}
        self.measurements: list[Measurement] = []

    @property
    def last(self) -> int | None:
        """The last step of which anything is known."""
        return max([*self.steps[-1:], *(m.step for m in self.measurements[-1:])], default=None)

    @property
    def good(self) -> list[Measurement]:
        """Measurements that did not fail."""
        return [m for m in self.measurements if m.failed is None]

    def log(self, steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
        """Add metrics of steps, ascending; those of the last known step are completed."""
        start = 0
        if steps and self.steps and steps[0] == self.steps[-1]:
            start = 1
            for name, values in columns.items():
                if not math.isnan(values[0]):
                    self._column(name)[-1] = values[0]
        before = len(self.steps)
        self.steps.extend(steps[start:])
        for name, values in columns.items():
            column = self._column(name, before)
            column.extend(values[start:])
        for column in self.metrics.values():
            column.extend([math.nan] * (len(self.steps) - len(column)))

    def add(self, measurement: Measurement) -> None:
        """Add a measurement; it takes the place of one of the same step."""
        while self.measurements and self.measurements[-1].step >= measurement.step:
            self.measurements.pop()
        self.measurements.append(measurement)

    def rewind(self, step: int) -> None:
        """Forget what is later than ``step``: training goes on from there."""
        keep = bisect_left(self.steps, step + 1)
        del self.steps[keep:]
        for column in self.metrics.values():
            del column[keep:]
        while self.measurements and self.measurements[-1].step > step:
            self.measurements.pop()

    def to_json(self) -> list[dict[str, Any]]:
        """Lines that :meth:`apply` takes back."""
        lines: list[dict[str, Any]] = [{"measurement": m.to_json()} for m in self.measurements]
        if self.steps:
            lines.append(metrics_line(self.steps, self.metrics))
        return lines

    def apply(self, line: Mapping[str, Any]) -> None:
        """Take in one line of a file."""
        if "rewind" in line:
            self.rewind(int(line["rewind"]))
        elif "measurement" in line:
            self.add(Measurement.from_json(line["measurement"]))
        elif "steps" in line:
            columns = {name: [float(v) for v in values] for name, values in line["metrics"].items()}
            self.log([int(step) for step in line["steps"]], columns)

    def _column(self, name: str, length: int | None = None) -> array[float]:
        if name not in self.metrics:
            self.metrics[name] = array("d", [math.nan] * (len(self.steps) if length is None else length))
        return self.metrics[name]


class HistoryFile:
    """A file of JSON lines: what it is of, then what was recorded, each line written whole and flushed.

    A process that is killed leaves at most one torn last line, which is cut off when the file is opened again.

    Parameters
    ----------
    path : Path
    header : dict
        What was watched, and how: a file of something else is refused.

    Raises
    ------
    ValueError
        If the file is no history, or one of another model, other probe inputs or another measure.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            self.lines = self._read()
        if self.lines:
            first, *self.lines = self.lines
            if first.get("format") != FORMAT:
                raise ValueError(f"{path} is no training history: give Monitor another path.")
            refuse_another(first.get("of", {}), header, str(path))
        else:
            self.write([{"format": FORMAT, "of": dict(header)}])

    def write(self, lines: Iterable[Mapping[str, Any]], safely: bool = True) -> None:
        """Append lines in one piece; ``safely`` waits until they are on the disk."""
        text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
        if not text:
            return
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            if safely:
                os.fsync(file.fileno())

    def _read(self) -> list[dict[str, Any]]:
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        lines: list[dict[str, Any]] = []
        for number, text in enumerate(raw[:whole].splitlines(), 1):
            try:
                lines.append(dict(json.loads(text)))
            except (TypeError, ValueError):
                raise ValueError(
                    f"{self.path} is no training history: line {number} is not one of its lines. "
                    "Give Monitor another path."
                ) from None
        if whole < len(raw):
            begins = b'{"format"'
            if not lines and raw[: len(begins)] != begins[: len(raw)]:
                raise ValueError(f"{self.path} is no training history: give Monitor another path.")
            os.truncate(self.path, whole)
        return lines


def refuse_another(recorded: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Raise a ValueError where a history is not one of what is watched now."""
    different = [what for what in wanted if recorded.get(what) != wanted[what]]
    if different:
        told = ", ".join(
            f"{what.replace('_', ' ')} ({recorded.get(what)!r} there, {wanted[what]!r} here)"
            for what in different
        )
        raise ValueError(
            f"{where} holds the history of another run: it differs in {told}. "
            "To start afresh give Monitor another path, or remove the file."
        )


def metrics_line(steps: Iterable[int], columns: Mapping[str, Iterable[float]]) -> dict[str, Any]:
    """Metrics of some steps as a line."""
    return {"steps": list(steps), "metrics": {name: [_plain(v) for v in c] for name, c in columns.items()}}


def _plain(value: Any, digits: int = 6) -> Any:
    """Rounded numbers; what is not finite as text, so that other programs can read the file too."""
    if isinstance(value, np.ndarray):
        return [_plain(entry, digits) for entry in value.tolist()]
    if isinstance(value, list):
        return [_plain(entry, digits) for entry in value]
    number = float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else str(number)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)
