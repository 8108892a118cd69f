"""Means and totals against the tensor over (layer, channel, sample, position) written out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ess_widgets as ew
from ess_widgets.metrics import utilisation
from ess_widgets.metrics.aggregates import aggregate
from ess_widgets.operators import Dense

unhurried = settings(deadline=None, max_examples=60)


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    """Profiles and widths of layers with different numbers of heads, and own tokens."""
    batch, L = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    profiles, widths = {}, {}
    for name in ("first", "second", "third")[: draw(st.integers(1, 3))]:
        groups = draw(st.integers(1, 4))
        profiles[name] = 9 * torch.rand(batch, groups, L, generator=random, dtype=torch.float64)
        widths[name] = draw(
            st.one_of(
                st.integers(1, 5),
                st.lists(st.integers(1, 5), min_size=groups, max_size=groups).map(torch.tensor),
            )
        )
    valid = torch.rand(batch, L, generator=random) < 0.7
    return profiles, widths, valid


@unhurried
@given(models())
def test_against_the_tensor_written_out(model: tuple[dict[str, Tensor], dict[str, Any], Tensor]) -> None:
    """Every channel becomes a row of its own, and padding a NaN that means leave out."""
    profiles, widths, valid = model
    found = aggregate(profiles, widths=widths, valid=valid)
    every = []
    for name, profile in profiles.items():
        per_group = torch.as_tensor(widths[name]).expand(profile.shape[1])
        masked = profile.where(valid[:, None], torch.nan)
        channels = masked.repeat_interleave(per_group, dim=1)
        every.append(channels.transpose(0, 1).flatten(0, 1))
        average = channels.nanmean()

        def close(actual: Tensor, expected: Tensor) -> None:
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)

        close(found.per_head[name], masked.transpose(0, 1).flatten(1).nanmean(dim=1))
        close(found.layer_average[name], average)
        close(found.layer_total[name], average * channels.shape[1])
        close(found.total_per_position[name], channels.nanmean(dim=0).sum(dim=0))
        assert found.channels[name] == channels.shape[1]
    close(found.model_average, torch.cat(every).nanmean())


def test_a_head_shared_by_channels_counts_as_often() -> None:
    profile = torch.tensor([[[0.0, 1.0, 1.0], [0.0, 3.0, 5.0]]])
    found = aggregate({"layer": profile}, widths={"layer": [1, 3]})
    assert found.layer_average["layer"].item() == pytest.approx((2 / 3 + 3 * 8 / 3) / 4)
    assert found.layer_total["layer"].item() == pytest.approx(2 / 3 + 3 * 8 / 3)
    assert found.total_per_position["layer"].tolist() == [0, 10, 16]


def test_padding_is_taken_from_the_operators_and_utilisation_is_that_of_limits() -> None:
    valid = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
    T = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).tril()
    op = Dense(T, valid=valid[:, None], state_size=2)
    profile = ew.ess(op)
    found = aggregate({"layer": profile}, widths=8, operators={"layer": op})
    by_mask = aggregate({"layer": profile}, widths=8, valid={"layer": valid})
    assert torch.equal(found.per_head["layer"], by_mask.per_head["layer"])
    expected = profile[0].sum(dim=-1) + profile[1, :, 2:].sum(dim=-1)
    torch.testing.assert_close(found.per_head["layer"], expected / 10)
    torch.testing.assert_close(found.utilisation_of_state_size["layer"], utilisation(op, profile).mean(dim=0))
    torch.testing.assert_close(
        found.utilisation_of_ceiling["layer"], utilisation(op, profile, against="ceiling").mean(dim=0)
    )
    assert by_mask.utilisation_of_ceiling == {} == by_mask.utilisation_of_state_size


def test_what_nothing_contributes_to_is_nan() -> None:
    profile = torch.ones(1, 2, 3)
    found = aggregate({"layer": profile}, valid=torch.tensor([[True, True, False]]))
    assert found.total_per_position["layer"][:2].tolist() == [2, 2]
    assert found.total_per_position["layer"][2].isnan()
    assert aggregate({"layer": profile}, valid=torch.zeros(1, 3, dtype=torch.bool)).model_average.isnan()


def test_every_number_says_which_one_it_is() -> None:
    profile = np.array([[[0, 1, 2, 1]]])
    found = aggregate({"a": profile, "b": profile})
    assert json.loads(json.dumps(found.to_dict())) == {
        "per_head": {"a": [1.0], "b": [1.0]},
        "layer_average": {"a": 1.0, "b": 1.0},
        "layer_total": {"a": 1.0, "b": 1.0},
        "total_per_position": {"a": [0, 1, 2, 1], "b": [0, 1, 2, 1]},
        "model_average": 1.0,
        "channels": {"a": 1, "b": 1},
        "utilisation_of_state_size": {},
        "utilisation_of_ceiling": {},
    }
    assert "2 layers, model_average=1; per_head, layer_average" in repr(found)


@pytest.mark.parametrize(
    ("profiles", "options", "error", "message"),
    [
        ({}, {}, ValueError, "profiles is empty"),
        ({"a": torch.ones(2, 3)}, {}, ValueError, r"must be \(batch, groups, L\), but its shape is \(2, 3\)"),
        ({"a": torch.ones(1, 2, 3) / 0}, {}, ValueError, "'a' is not finite"),
        ({"a": torch.ones(1, 2, 3, dtype=torch.bool)}, {}, TypeError, "must hold real numbers"),
        ({"a": [[[1.0]]]}, {}, TypeError, "must be a torch tensor"),
        ({"a": torch.ones(1, 2, 3)}, {"widths": {"b": 1}}, KeyError, "widths has no entry for the layer 'a'"),
        ({"a": torch.ones(1, 2, 3)}, {"widths": 1.5}, TypeError, "must be integers"),
        ({"a": torch.ones(1, 2, 3)}, {"widths": 0}, ValueError, "one positive integer"),
        ({"a": torch.ones(1, 2, 3)}, {"widths": {"a": [1, 2, 3]}}, ValueError, "each of its 2 groups"),
        ({"a": torch.ones(1, 2, 3)}, {"valid": torch.ones(1, 3)}, TypeError, "must be boolean"),
        (
            {"a": torch.ones(1, 2, 3)},
            {"valid": torch.ones(1, 4, dtype=torch.bool)},
            ValueError,
            r"neither \(batch, L\)",
        ),
        (
            {"a": torch.ones(1, 2, 3)},
            {"operators": {"a": Dense(torch.ones(1, 2, 4, 4).tril())}},
            ValueError,
            "must hold all positions",
        ),
    ],
)
def test_clear_errors(profiles: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        aggregate(profiles, **options)
