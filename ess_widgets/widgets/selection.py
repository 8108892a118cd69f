"""What is brushed: one object that every linked view shows and Python reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import traitlets as t

from .routing import Responsive

__all__ = ["Selection"]

FIELDS = ("layer", "head", "position", "span", "pinned", "mode")


@dataclass(frozen=True)
class Extent:
    """What there is to select, so that a wrong value is refused where it is set."""

    layers: Sequence[str]
    heads: Mapping[str, int]
    length: int


class Selection(Responsive):
    """The brushed layer, head, position and span, shared by linked views.

    Views that are given the same ``Selection`` answer each other in the browser, without the kernel;
    Python observes and sets the same fields.

    Attributes
    ----------
    layer : str or None
        Module path of the layer. An index is accepted and replaced by the path once the layers are known.
    head : int
        Head (or channel) of the layer, from 0; where only some are shown, the index among those.
    position : int or None
        The position ``i`` of ``H_i = T[i:, :i]``, from 0.
    span : (int, int) or None
        Half-open range of positions, ``start < stop``.
    pinned : bool
        Whether ``position`` stays while the pointer moves on.
    mode : int or None
        Index of the singular value of ``H_i`` that is pointed at, from 0 (the largest).

    Examples
    --------
    >>> selection = Selection(head=2, position=5)
    >>> selection.observe(lambda change: print("now at", change.new), "position")
    >>> selection.position = 6
    now at 6
    >>> selection.update(span=[2, 4])
    >>> selection["span"]
    (2, 4)
    """

    layer = t.Union([t.Unicode(), t.Int()], default_value=None, allow_none=True).tag(
        sync=True, echo_update=False
    )
    head = t.Int(0).tag(sync=True, echo_update=False)
    position = t.Int(None, allow_none=True).tag(sync=True, echo_update=False)
    span = t.Tuple(t.Int(), t.Int(), default_value=None, allow_none=True).tag(sync=True, echo_update=False)
    pinned = t.Bool(False).tag(sync=True, echo_update=False)
    mode = t.Int(None, allow_none=True).tag(sync=True, echo_update=False)

    def __init__(self, **fields: Any) -> None:
        self._extent: Extent | None = None
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise TypeError(f"Selection has no field {unknown[0]!r}; it has {', '.join(FIELDS)}.")
        super().__init__(**fields)

    def update(self, **fields: Any) -> None:
        """Set several fields; each is checked like a single one."""
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise TypeError(f"Selection has no field {unknown[0]!r}; it has {', '.join(FIELDS)}.")
        for name in FIELDS:
            if name in fields:
                setattr(self, name, fields[name])

    def __getitem__(self, field: str) -> Any:
        if field not in FIELDS:
            raise KeyError(field)
        return getattr(self, field)

    def as_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return {name: getattr(self, name) for name in FIELDS}

    def __repr__(self) -> str:
        return f"Selection({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def _fit(self, extent: Extent, *, layer: str) -> None:
        """Take on what there is to select now; what no longer exists moves to what does."""
        self._extent = None
        chosen = self.layer
        if isinstance(chosen, int) and 0 <= chosen < len(extent.layers):
            chosen = extent.layers[chosen]
        self.layer = chosen if chosen in extent.heads else layer
        self.head = min(self.head, extent.heads[self.layer] - 1)
        if self.position is not None:
            self.position = min(self.position, extent.length - 1)
        if self.span is not None:
            start, stop = self.span
            kept = (start, min(stop, extent.length)) if start < extent.length else None
            self.set_trait("span", kept)
        self._extent = extent

    @t.validate("layer")
    def _check_layer(self, proposal: Any) -> Any:
        value, extent = proposal.value, self._extent
        if extent is None or value is None:
            return value
        if isinstance(value, int):
            if not -len(extent.layers) <= value < len(extent.layers):
                raise t.TraitError(f"layer {value} does not exist: there are {len(extent.layers)} layers.")
            return extent.layers[value]
        if value not in extent.heads:
            raise t.TraitError(f"no layer is called {value!r}; the layers are {', '.join(extent.layers)}.")
        return value

    @t.observe("layer")
    def _keep_head(self, change: Any) -> None:
        if self._extent is not None and change.new in self._extent.heads:
            self.head = min(self.head, self._extent.heads[change.new] - 1)

    @t.validate("head")
    def _check_head(self, proposal: Any) -> int:
        heads = None if self._extent is None else self._extent.heads.get(self.layer)
        if proposal.value < 0 or (heads is not None and proposal.value >= heads):
            have = "" if heads is None else f": this layer has {heads}, from 0"
            raise t.TraitError(f"head {proposal.value} does not exist{have}.")
        return int(proposal.value)

    @t.validate("position")
    def _check_position(self, proposal: Any) -> int | None:
        value: int | None = proposal.value
        length = None if self._extent is None else self._extent.length
        if value is not None and (value < 0 or (length is not None and value >= length)):
            have = "0 or more" if length is None else f"0 … {length - 1}"
            raise t.TraitError(f"position {value} is outside the sequence; positions are {have}.")
        return value

    @t.validate("span")
    def _check_span(self, proposal: Any) -> tuple[int, int] | None:
        if proposal.value is None:
            return None
        start, stop = proposal.value
        length = None if self._extent is None else self._extent.length
        if not 0 <= start < stop or (length is not None and stop > length):
            have = "" if length is None else f" ≤ {length}"
            raise t.TraitError(f"span ({start}, {stop}) must satisfy 0 ≤ start < stop{have}.")
        return int(start), int(stop)
