"""From where on a number is a sign: every threshold in one place, with where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

__all__ = ["Thresholds"]


@dataclass(frozen=True)
class Thresholds:
    """What :func:`diagnose` holds its numbers against; give those you want to change by name.

    "Paper" is arXiv:2504.19561, which defines saturation and collapse in words and sets no numbers; unless another
    source is named, the numbers here are this project's, chosen so that healthy trained models stay silent.

    Attributes
    ----------
    saturation_entropy, saturation_tolerance : float
        ESS/TSS from which a state counts as full, over the positions where the state is what limits (TSS below both
        ``i`` and ``L - i``). The paper: "near 1". Two numbers since the entropy reaches 1 only on a flat spectrum.
    collapse : float
        ESS (of the kind asked for, mean over positions that have room) up to which a state with room for ``room``
        is collapsed: it carries about one number. The paper: ESS stays low though TSS is ample.
    collapse_utilisation : float
        Or: share of the ceiling that is used, whatever the size of the state.
    room : int
        Collapse is judged at positions whose ceiling is at least this, saturation of states at least 2 large.
    sink_tokens : int
        The first tokens of a sample that count as sink. Xiao et al., arXiv:2309.17453, keep 4.
    sink : float
        Mean share of a row's weight on them. Gu et al., arXiv:2410.10781, take 0.3 for the first token of long
        texts; here it is the majority.
    idle : float
        Share from which a sink head reads nothing else: a notice, no longer what most trained models have.
    local_width : int
        A head is local within so many positions before the token itself.
    local : float
        Mean share of a row's weight there.
    diagonal : float
        Mean share of a row's weight on the token itself: the head mixes nothing.
    uniform : float
        ``1 - H(row) / log(tokens it may read)``, mean over rows, up to which softmax attention is the plain mean.
    constant : float
        ``‖T_a - T_b‖ / ‖T_a‖`` between samples up to which an operator does not depend on its input.
    dead : float
        What a head writes to the residual stream, against the median head of its layer (root mean squares).
    silent : float
        ``‖y‖ / ‖u‖`` up to which a head gives nothing out.
    residual : float or None
        ``‖T u - y‖ / ‖y‖`` above which a row's numbers are not believed; None takes what rounding explains: 1e-5 in
        float32 and float64, 1e-2 in half precision.
    growth : float
        How much more an input weighs on outputs half a sequence later than on the next ones.
    gain : float
        ``‖y‖ / ‖u‖`` above which an operator explodes, whatever its growth.
    undecayed : float
        Mean of ``1 - |A|`` per step up to which a gate counts as open for good, where other heads of the layer close.
    copy : float
        Cosine between two heads' operators, and between their outputs, from which one is a copy of the other.
    min_length : int
        Samples of fewer own tokens are not judged, but for dead heads, residuals and non-finite values.

    Examples
    --------
    >>> Thresholds(sink=0.8).sink
    0.8
    >>> Thresholds(sink=-1)
    Traceback (most recent call last):
    ValueError: sink must be a finite number, 0 or more, but is -1.
    """

    saturation_entropy: float = 0.75
    saturation_tolerance: float = 0.95
    collapse: float = 1.5
    collapse_utilisation: float = 0.05
    room: int = 4
    sink_tokens: int = 4
    sink: float = 0.5
    idle: float = 0.99
    local_width: int = 2
    local: float = 0.9
    diagonal: float = 0.9
    uniform: float = 1e-5
    constant: float = 1e-3
    dead: float = 0.01
    silent: float = 1e-6
    residual: float | None = None
    growth: float = 10.0
    gain: float = 1e4
    undecayed: float = 1e-6
    copy: float = 0.999
    min_length: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == "residual":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{field.name} must be a number, but is {value!r}.")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{field.name} must be a finite number, 0 or more, but is {value!r}.")
            if field.type == "int" and (value != int(value) or value < (field.name != "local_width")):
                raise ValueError(f"{field.name} must be a positive integer, but is {value!r}.")

    def saturation(self, kind: str) -> float:
        """That of the kind of ESS; the two are never exchanged."""
        return self.saturation_entropy if kind == "entropy" else self.saturation_tolerance

    def residual_limit(self, dtype: torch.dtype) -> float:
        """What rounding explains, unless a limit was given."""
        if self.residual is not None:
            return self.residual
        return 1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-5
