"""ESS at initialisation, and the search for a scale."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.demo import MIXERS, Miniature
from ess_widgets.learn import OutOfReachError, find_scale, init_profile


def entropy(H: Tensor) -> float:
    sigma = torch.linalg.svdvals(H.double())
    p = sigma / sigma.sum()
    return float(torch.special.entr(p).sum().exp())


@pytest.mark.parametrize(
    ("name", "options", "decay"),
    [
        ("LA", {}, lambda n: torch.ones(n)),
        ("WLA", {"beta": 4.0}, lambda n: torch.full((n,), 0.5 ** (1 / 4))),
        ("GLA", {"beta": 16.0}, lambda n: torch.full((n,), 0.5 ** (1 / 16))),
        ("GLA-S6", {"alpha": 64.0}, lambda n: 2.0 ** (-torch.arange(1, n + 1) / 64)),
        ("S6", {"alpha": 8.0}, lambda n: 2.0 ** (-torch.arange(1, n + 1) / 8)),
    ],
)
def test_named_featurizers_are_what_the_formulas_say(name, options, decay):
    """Decays at zero weights, written out: H[i, j] = Σ_f q[i, f] a[f]^(i - j) k[j, f] with Gaussian q and k."""
    L, states, samples = 64, (4, 16), 24
    found = init_profile(name, states, length=L, batch=samples, **options)
    generator = torch.Generator().manual_seed(5)
    for n, measured in zip(states, found.ess, strict=True):
        a, lag = decay(n).double(), torch.arange(L)[:, None] - torch.arange(L)[None]
        values = []
        for _ in range(samples):
            q, k = torch.randn(2, L, n, generator=generator, dtype=torch.float64)
            T = torch.einsum("if, ijf, jf -> ij", q, a ** lag.clamp(min=0)[..., None].double(), k)
            values.append(entropy(T[L // 2 :, : L // 2]))
        error = 4 * np.std(values) * math.sqrt(2 / samples)
        assert abs(measured - np.mean(values)) < error + 0.02 * measured


def test_growth_with_the_state_as_in_the_paper():
    """S6 and GLA-S6 with a small α do not grow; a large α and A = I do; the exponents are ordered by α."""
    states = (8, 16, 32)
    slopes = [
        init_profile("GLA-S6", states, length=128, alpha=alpha, batch=8).slope
        for alpha in (1, 32, 1024, 16384)
    ]
    assert slopes == sorted(slopes)
    assert abs(slopes[0]) < 0.15 and slopes[-1] > 0.8
    assert abs(init_profile("S6", states, length=128, batch=8).slope) < 0.15
    assert init_profile("LA", states, length=128).slope > 0.8


def test_the_figures_at_full_size():
    """L = 512, the mean of a few samples beside single ones computed elsewhere."""
    expected = {
        ("GLA-S6", 1024.0): (13.9, 34.8),
        ("GLA-S6", 16384.0): (15.6, 140.0),
        ("GLA", None): (13.3, 33.8),
        ("LA", None): (15.7, 171.0),
    }
    for (name, alpha), values in expected.items():
        options = {} if alpha is None else {"alpha": alpha}
        assert init_profile(name, (16, 256), batch=2, **options).ess == pytest.approx(values, rel=0.05)


def test_the_same_seed_the_same_numbers_and_no_draw_from_the_users_stream():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    one = init_profile(partial(MIXERS["GLA"], 16, 2), (4, 8), width=16, length=24)
    two = init_profile(partial(MIXERS["GLA"], 16, 2), (4, 8), width=16, length=24)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.ess.tolist() == two.ess.tolist()
    assert (
        one.ess.tolist()
        != init_profile(partial(MIXERS["GLA"], 16, 2), (4, 8), width=16, length=24, seed=1).ess.tolist()
    )


def test_functions_of_the_input_and_the_state():
    def delay(u: Tensor, n: int) -> Tensor:
        L = u.shape[1]
        return torch.ones(L - n).diag(-n)

    found = init_profile(delay, (1, 3, 7), length=32)
    assert found.ess == pytest.approx([1, 3, 7])
    assert found.featurizer == "delay"
    assert found.slope == pytest.approx(1)
    counted = init_profile(delay, (1, 3, 7), length=32, kind="tolerance", tol=0.5)
    assert counted.ess.tolist() == [1, 3, 7]


def test_modules_are_captured_and_agree_with_their_operators():
    torch.manual_seed(0)
    ids = torch.randint(0, 16, (2, 32))
    model = Miniature(("GLA", "GLA"), vocab=16, width=16, heads=2, state=4)
    cap = ew.capture(model, ids)
    expected = torch.stack([ew.ess(layer.operator)[..., 16] for layer in cap.values()]).mean()
    found = init_profile(lambda n: model, (4,), inputs=ids)
    assert found.ess[0] == pytest.approx(float(expected))
    second = init_profile(lambda n: model, (4,), inputs=ids, layers="layers.1.mixer", position=8)
    assert second.ess[0] == pytest.approx(float(ew.ess(cap[1].operator)[..., 8].mean()))


def test_frame_and_figure():
    found = init_profile("GLA-S6", (4, 8), length=32, alpha=4)
    frame = found.frame()
    assert frame["state"].tolist() == [4, 8]
    assert frame["ess"].tolist() == found.ess.tolist()
    assert (frame["ceiling"].tolist(), frame["position"].tolist()) == ([4, 8], [16, 16])
    assert frame["alpha"].tolist() == [4, 4]
    assert (frame["of_ceiling"] <= 1).all()
    figure = found.figure()
    axes = figure.axes[0]
    assert init_profile("LA", (4, 8), length=32).figure(axes) is figure
    assert axes.lines[1].get_ydata().tolist() == found.ess.tolist()
    assert "alpha=4" in axes.get_legend().get_texts()[1].get_text()


def test_slope_of_too_little():
    assert math.isnan(init_profile("LA", (4,), length=16).slope)
    assert math.isnan(init_profile("LA", (4, 4), length=16).slope)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: init_profile("GRU"), "one of LA"),
        (lambda: init_profile("LA", alpha=3), "LA has no options"),
        (lambda: init_profile("GLA", alpha=3), "GLA has beta, spread"),
        (lambda: init_profile("LA", ()), "at least one"),
        (lambda: init_profile("LA", (4.0,)), "positive integers"),
        (lambda: init_profile("LA", (4,), length=16, position=16), "between 1 and 15"),
        (lambda: init_profile("LA", length=1), "at least 2"),
        (lambda: init_profile(lambda: None), "takes 0 arguments"),
        (lambda: init_profile(nn.Linear(2, 2)), "a factory"),
        (lambda: init_profile(lambda n: n, (4,)), "must return a torch.nn.Module"),
        (lambda: init_profile(lambda n: nn.Conv1d(n, n, 3), (4,)), "width="),
        (lambda: find_scale("GLA-S6", 4), "state must be"),
        (lambda: find_scale("GLA-S6", -1, 4), "target_ess"),
        (lambda: find_scale("GLA-S6", 4, 4, low=2, high=1), "low < high"),
        (lambda: find_scale("GLA-S6", 4, 4, alpha=3), "cannot be an option"),
        (lambda: find_scale("LA", 4, 4), "no options"),
        (lambda: find_scale(nn.Linear(2, 2), 4), "no module of Linear"),
        (lambda: find_scale(nn.Linear(2, 2), 4, parameter="weight"), "must be a number"),
        (lambda: find_scale(nn.Linear(2, 2), 4, 3, parameter="in_features"), "leave state"),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# The search ----------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.floats(2, 13), st.sampled_from([("GLA-S6", "alpha"), ("GLA", "beta"), ("WLA", "beta")]))
def test_a_scale_gives_what_it_promises(target, which):
    name, parameter = which
    found = find_scale(name, target, 16, parameter, length=64)
    again = init_profile(name, (16,), length=64, **{parameter: found.value}).ess[0]
    assert again == pytest.approx(found.ess) == pytest.approx(target, rel=0.01)
    low, high = found.attainable
    assert low <= found.ess <= high
    frame = found.frame()
    assert frame[parameter].is_monotonic_increasing
    assert (frame["ess"].diff()[1:] > -0.001).all()
    assert found.tried[found.value] == found.ess


def test_falling_scales():
    """Decay rates instead of their inverse; a temperature, from one token read to all of them alike."""

    def rates(u: Tensor, n: int, rate: float = 1.0) -> ew.operators.Recurrence:
        return ew.operators.gla_s6(u, u.flip(-1), u.new_full((1, 1), math.log(2)), alpha=1 / rate)

    found = find_scale(rates, 6, 8, "rate", length=48, low=1e-6, high=1e2)
    assert found.ess == pytest.approx(6, rel=0.01)
    assert find_scale("SA", 5, 8, "temperature", length=48, low=0.1, high=100).ess == pytest.approx(
        5, rel=0.01
    )


def test_out_of_reach_tells_what_is_not():
    with pytest.raises(OutOfReachError, match="out of reach: GLA-S6 with a state of 8 gives") as told:
        find_scale("GLA-S6", 9, 8, length=48)
    low, high = told.value.attainable
    assert 1 <= low < 1.5 and 7 < high < 8
    assert high == pytest.approx(init_profile("LA", (8,), length=48).ess[0], rel=1e-5)


def test_counts_come_as_near_as_they_can():
    found = find_scale("GLA-S6", 5.4, 16, length=48, batch=1, kind="tolerance", tol=0.1)
    values = sorted(set(found.tried.values()))
    assert all(float(value).is_integer() for value in values)
    assert found.ess in (5, 6)


def test_the_scale_of_a_layer_in_a_model():
    """α of the second GLA-S6 layer, found on the model itself, which stays as it is until the user sets it."""
    torch.manual_seed(0)
    model, ids = Miniature(("GLA-S6", "GLA-S6"), vocab=16, state=16), torch.randint(0, 16, (2, 64))
    found = find_scale(model, 6.0, parameter="layers.1.mixer.alpha", inputs=ids)
    assert [block.mixer.alpha for block in model.layers] == [1024.0, 1024.0]
    model.layers[1].mixer.alpha = found.value
    reached = ew.ess(ew.capture(model, ids)["layers.1.mixer"].operator)[..., 32].mean()
    assert float(reached) == pytest.approx(found.ess) == pytest.approx(6, rel=0.01)
    both = find_scale(model, 6.0, parameter="layers.*.mixer.alpha", inputs=ids)
    for block in model.layers:
        block.mixer.alpha = both.value
    mean = torch.stack([ew.ess(c.operator)[..., 32].mean() for c in ew.capture(model, ids).values()]).mean()
    assert float(mean) == pytest.approx(6, rel=0.01)


def test_the_scale_of_a_factory():
    torch.manual_seed(1)
    ids = torch.randint(0, 16, (2, 48))

    def build(n: int, alpha: float = 1.0) -> Miniature:
        return Miniature(
            ("GLA-S6",), vocab=16, width=16, heads=2, state=n, options={"GLA-S6": {"alpha": alpha}}
        )

    found = find_scale(build, 5.0, 8, inputs=ids)
    assert found.ess == pytest.approx(5, rel=0.01)
