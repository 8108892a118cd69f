"""The matplotlib picture shows what was computed."""

import numpy as np
import pytest
import torch

from ess_widgets import ess, figures


def test_the_curve_and_the_bars_are_those_of_the_operator(tmp_path):
    T = torch.rand(12, 12).tril()
    figure = figures.memory(T, 5, kind="tolerance", tol=0.3)
    heat, profile, bars, _ = figure.axes
    curve = profile.lines[0].get_ydata()
    np.testing.assert_array_equal(curve, ess(T, kind="tolerance", tol=0.3).numpy())
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_allclose(heights, torch.linalg.svdvals(T[5:, :5].double()).numpy(), rtol=1e-6)
    frame = heat.patches[0]
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (-0.5, 4.5, 5, 7)
    figure.savefig(tmp_path / "memory.pdf")
    assert (tmp_path / "memory.pdf").stat().st_size > 5000


def test_by_default_the_position_where_most_is_remembered():
    T = torch.eye(9).roll(3, 0).tril()
    figure = figures.memory(T, kind="tolerance", labels=[f"t{i}" for i in range(9)])
    assert "ESS 3 of" in figure.axes[1].get_title(loc="left")


@pytest.mark.parametrize("T", [torch.zeros(6, 6), torch.ones(1, 1), torch.rand(2, 2).tril()])
def test_small_and_empty_operators_are_drawn(T, tmp_path):
    figures.memory(T).savefig(tmp_path / "memory.png")


def test_wrong_shapes_are_explained():
    with pytest.raises(ValueError, match="choose one head"):
        figures.memory(torch.rand(2, 4, 4).tril())
    with pytest.raises(ValueError, match="3 labels for 4"):
        figures.memory(torch.rand(4, 4).tril(), labels=["a", "b", "c"])


def test_notebooks_show_it_without_pyplot():
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(figures.memory(torch.ones(3, 3).tril()))
    assert shown["image/png"].startswith(b"\x89PNG")
