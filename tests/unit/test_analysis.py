"""What the explorer shows of layers with many channels, or with channels that are mixed together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.widgets.analysis import Analysis, Measure
from tests.unit.test_capture_functions import Selective

ENTROPY = Measure("entropy", 1e-3, False)


def selective(width: int) -> tuple[nn.Module, Tensor]:
    layer = Selective(width=width)
    with torch.no_grad():
        layer.skip.fill_(0.5)
    return layer, torch.randn(2, 12, width)


def test_of_many_channels_evenly_spaced_ones_are_shown() -> None:
    model, x = selective(40)
    cap = ew.capture(model, x)
    (name,) = cap
    analysis = Analysis(cap, sample=1, groups=8)
    assert analysis.groups[name] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert analysis.heads[name] == 8
    analysis.measure(ENTROPY)
    while analysis.compute(name):
        pass
    expected = ew.ess(cap[name].operator[1][analysis.groups[name]])
    np.testing.assert_allclose(analysis.profile(name), expected.numpy())
    shown, expected = analysis.operator(name, 3).matrix(), cap[name].operator[1, 15].matrix()
    np.testing.assert_allclose(
        shown, expected, rtol=1e-14
    )  # batches of other sizes round the last bit otherwise
    assert analysis.limits(name)[0].shape == (8, 12)
    assert analysis.verify(name) == float(cap[name].residual[1, ::5].max())
    (data,) = analysis.layer_data()
    assert (data["groups"], data["of"], data["family"]) == (analysis.groups[name], 40, "selective SSM")
    assert data["limit"] == 1e-5


def test_few_channels_are_all_shown() -> None:
    model, x = selective(5)
    analysis = Analysis(ew.capture(model, x))
    (data,) = analysis.layer_data()
    assert (data["heads"], data["groups"], data["of"]) == (5, None, 5)


def test_the_explorer_tells_which_channels_it_shows() -> None:
    model, x = selective(20)
    explorer = ew.explore(model, x, groups=4)
    try:
        explorer.wait()
        assert explorer.groups == [0, 5, 10, 15]
        assert explorer.profile.shape == (4, 12)
        explorer.selection.head = 3
        explorer.wait()
        assert explorer.operator_data["head"] == 3
        shown = np.frombuffer(explorer.operator_data["matrix"], "<f4").reshape(12, 12)
        T = explorer.captured[0].operator[0, 15].matrix()
        np.testing.assert_allclose(shown, T.numpy(), rtol=1e-6)
    finally:
        explorer.close()
