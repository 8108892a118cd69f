"""Means and totals of effective state-size over layers, channels, samples and positions, each by its name.

Effective state-size is a tensor over (layer, channel, sample, position). *average* is the mean over all that
the name does not keep, *total* the sum over channels and the mean over the rest: average times channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ess_widgets.metrics.limits import utilisation
from ess_widgets.operators import Operator
from ess_widgets.operators.checks import as_tensor

__all__ = ["Aggregates", "aggregate"]


@dataclass(frozen=True)
class Aggregates:
    """Every number under the name of what it is; float64, on the CPU.

    Only a sample's own positions count. What no own position contributes to is NaN.

    Attributes
    ----------
    per_head : dict of str to Tensor, ``(groups,)``
        Mean over samples and positions, one per head (or channel, where channels differ).
    layer_average : dict of str to Tensor, ``()``
        Mean over channels, samples and positions.
    layer_total : dict of str to Tensor, ``()``
        Sum over channels, mean over samples and positions: ``layer_average`` times ``channels``.
    total_per_position : dict of str to Tensor, ``(L,)``
        The paper's ``(total)_i``: sum over channels, mean over samples, for each position.
    model_average : Tensor, ``()``
        Mean over the channels of all layers, samples and positions.
    channels : dict of str to int
        A head shared by ``c`` channels counts ``c`` times.
    utilisation_of_state_size, utilisation_of_ceiling : dict of str to Tensor, ``(groups,)``
        As :func:`utilisation` has them, against either limit, per head: mean over samples. Empty where the
        operators were not given.

    Examples
    --------
    See :func:`aggregate`.
    """

    per_head: dict[str, Tensor]
    layer_average: dict[str, Tensor]
    layer_total: dict[str, Tensor]
    total_per_position: dict[str, Tensor]
    model_average: Tensor
    channels: dict[str, int]
    utilisation_of_state_size: dict[str, Tensor]
    utilisation_of_ceiling: dict[str, Tensor]

    def to_dict(self) -> dict[str, Any]:
        """The same names with plain numbers and lists, for JSON or a table."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: plain(entry) for name, entry in value.items()}
            return value.tolist() if isinstance(value, Tensor) else value

        return {name: plain(value) for name, value in asdict(self).items()}

    def __repr__(self) -> str:
        names = ", ".join(field.name for field in fields(self) if getattr(self, field.name) != {})
        average = self.model_average.item()
        return f"Aggregates({len(self.channels)} layers, model_average={average:.6g}; {names})"


def aggregate(
    profiles: Mapping[str, Any],
    *,
    widths: Mapping[str, Any] | int = 1,
    valid: Mapping[str, Any] | Tensor | None = None,
    operators: Mapping[str, Operator] | None = None,
) -> Aggregates:
    """Means and totals of the profiles of a model's layers.

    Parameters
    ----------
    profiles : mapping of str to Tensor or ndarray, ``(batch, groups, L)``
        By layer: effective state-size at all positions, of one kind, as :func:`ess` returns it.
    widths : mapping of str to int or integer Tensor ``(groups,)``, or int
        Channels that share each group's operator, ``u.shape[-1]`` of what the layer mixes. Channels that are
        mixed together, in one operator with ``block > 1``, have one state and count once.
    valid : bool Tensor, ``(batch, L)`` or ``(batch, groups, L)``, or mapping of str to such, optional
        A sample's own tokens; all by default, or what the operators say. Padding does not count.
    operators : mapping of str to Operator, optional
        By layer, leading dimensions ``(batch, groups)``: then utilisations are given too.

    Returns
    -------
    Aggregates

    Raises
    ------
    ValueError
        If there are no layers, or shapes do not fit, or a profile is not finite at a position that counts.
    TypeError
        If something is no tensor or of a wrong dtype.
    KeyError
        If a mapping lacks a layer.

    Examples
    --------
    Two heads of 64 channels each, one sample.

    >>> import torch
    >>> profile = torch.tensor([[[0.0, 1, 1, 1], [0, 1, 2, 1]]])
    >>> found = aggregate({"attention": profile}, widths=64)
    >>> found.per_head["attention"]
    tensor([0.7500, 1.0000], dtype=torch.float64)
    >>> found.layer_average["attention"], found.layer_total["attention"]
    (tensor(0.8750, dtype=torch.float64), tensor(112., dtype=torch.float64))
    >>> found.total_per_position["attention"]
    tensor([  0., 128., 192., 128.], dtype=torch.float64)
    """
    if not profiles:
        raise ValueError("profiles is empty: at least one layer is needed.")
    sums = {}
    used: dict[str, dict[str, Tensor]] = {"state_size": {}, "ceiling": {}}
    for name, value in profiles.items():
        op = None if operators is None else _entry(operators, name, "operators")
        profile = _profile(value, name)
        mask = _entry(valid, name, "valid") if isinstance(valid, Mapping) else valid
        if mask is None and op is not None:
            mask = op.valid
        own = _own(mask, name, profile.shape)
        width = _width(
            _entry(widths, name, "widths") if isinstance(widths, Mapping) else widths, name, profile
        )
        if not bool(torch.isfinite(profile[own]).all()):
            raise ValueError(f"the profile of {name!r} is not finite at positions that count.")
        sums[name] = _Sums(profile.where(own, 0.0), own.double(), width)
        if op is not None:
            for against, found in used.items():
                ratio = utilisation(op, profile.to(op.device), against=against)  # type: ignore[arg-type]
                found[name] = ratio.double().cpu().mean(dim=0)
    return Aggregates(
        per_head={name: part.per_head() for name, part in sums.items()},
        layer_average={name: part.average() for name, part in sums.items()},
        layer_total={name: part.average() * part.channels for name, part in sums.items()},
        total_per_position={name: part.total_per_position() for name, part in sums.items()},
        model_average=_model_average(list(sums.values())),
        channels={name: part.channels for name, part in sums.items()},
        utilisation_of_state_size=used["state_size"],
        utilisation_of_ceiling=used["ceiling"],
    )


@dataclass(frozen=True)
class _Sums:
    """A layer's profile, 0 where nothing counts, and what counts, ``(batch, groups, L)``; widths ``(groups,)``."""

    profile: Tensor
    own: Tensor
    width: Tensor

    @property
    def channels(self) -> int:
        return int(self.width.sum())

    def per_head(self) -> Tensor:
        return self.profile.sum(dim=(0, 2)) / self.own.sum(dim=(0, 2))

    def average(self) -> Tensor:
        return self.weighted(self.profile) / self.weighted(self.own)

    def weighted(self, values: Tensor) -> Tensor:
        return (values.sum(dim=(0, 2)) * self.width).sum()

    def total_per_position(self) -> Tensor:
        return (self.profile.sum(dim=0) / self.own.sum(dim=0) * self.width.unsqueeze(-1)).sum(dim=0)


def _model_average(parts: list[_Sums]) -> Tensor:
    total = torch.stack([part.weighted(part.profile) for part in parts]).sum()
    return total / torch.stack([part.weighted(part.own) for part in parts]).sum()


def _entry(mapping: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in mapping:
        raise KeyError(f"{what} has no entry for the layer {name!r}, but profiles has.")
    return mapping[name]


def _profile(value: Any, name: str) -> Tensor:
    profile = as_tensor(value, f"the profile of {name!r}")
    if profile.ndim != 3 or 0 in profile.shape:
        raise ValueError(
            f"the profile of {name!r} must be (batch, groups, L), but its shape is {tuple(profile.shape)}."
        )
    if profile.is_complex() or profile.dtype is torch.bool:
        raise TypeError(f"the profile of {name!r} must hold real numbers, but its dtype is {profile.dtype}.")
    return profile.detach().cpu().double()


def _own(mask: Any, name: str, shape: torch.Size) -> Tensor:
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    mask = as_tensor(mask, f"valid of {name!r}")
    if mask.dtype is not torch.bool:
        raise TypeError(
            f"valid of {name!r} must be boolean, but its dtype is {mask.dtype}; use valid.bool()."
        )
    try:
        own: Tensor = (mask.unsqueeze(1) if mask.ndim == 2 else mask).cpu().expand(shape)
    except RuntimeError:
        raise ValueError(
            f"valid of {name!r} has shape {tuple(mask.shape)}, which is neither (batch, L) nor "
            f"(batch, groups, L) = {tuple(shape)}."
        ) from None
    return own


def _width(value: Any, name: str, profile: Tensor) -> Tensor:
    width = torch.as_tensor(value)
    if width.is_floating_point() or width.is_complex() or width.dtype is torch.bool:
        raise TypeError(f"widths of {name!r} count channels and must be integers, but are {value!r}.")
    if width.ndim > 1 or width.numel() not in (1, profile.shape[1]) or bool((width < 1).any()):
        raise ValueError(
            f"widths of {name!r} must be one positive integer, or one for each of its {profile.shape[1]} groups, "
            f"but are {value!r}."
        )
    return width.cpu().double().expand(profile.shape[1])
