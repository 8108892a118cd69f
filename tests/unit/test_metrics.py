"""Spectra and effective state-size against numpy, one position at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ess_widgets as ew
from ess_widgets.metrics import from_spectrum, spectra, utilisation, vectors
from ess_widgets.operators import Deferred, Dense, softmax_attention

# Shared machines pause: time says nothing about these.
unhurried = settings(deadline=None)
# Singular values this near to the tolerance, in units of the largest, may be counted either way.
TIE = 1e-12


def numpy_singular_values(T: Tensor, i: int) -> Any:
    """Of one ``(L, L)`` matrix at one position, as numpy has them in float64."""
    H = T.double().numpy()[i:, :i]
    return np.linalg.svd(H, compute_uv=False) if H.size else np.zeros(0)


def numpy_entropy(sigma: Any) -> float:
    if not sigma.size or sigma[0] == 0:
        return 0.0
    p = sigma / sigma.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def check_against_numpy(op: Any, tol: float = 1e-3) -> None:
    """Spectrum, both kinds of ESS, both kinds of tolerance, at every position of every matrix."""
    T = (op if isinstance(op, Tensor) else op.matrix()).flatten(0, -3)
    sigmas = ew.spectrum(op).flatten(0, -3)
    entropy = ew.ess(op).flatten(0, -2)
    absolute, relative = (ew.ess(op, "tolerance", tol, relative=r).flatten(0, -2) for r in (False, True))
    L = T.shape[-1]
    assert sigmas.shape == (len(T), L, L // 2)
    for n in range(len(T)):
        for i in range(L):
            expected = numpy_singular_values(T[n], i)
            largest = expected[0] if expected.size else 0.0
            found = sigmas[n, i].numpy()
            assert not found[expected.size :].any()
            np.testing.assert_allclose(found[: expected.size], expected, rtol=0, atol=TIE * largest)
            assert entropy[n, i].item() == pytest.approx(numpy_entropy(expected), rel=1e-9, abs=0)
            for count, bound in ((absolute[n, i], tol), (relative[n, i], tol * largest)):
                slack = TIE * largest
                assert (expected > bound + slack).sum() <= count <= (expected > bound - slack).sum()
                assert bound > 0 or count == 0


@st.composite
def operators(draw: st.DrawFn) -> Tensor:
    """Lower triangular matrices of many kinds, ``(n, L, L)``."""
    L, n = draw(st.integers(1, 14)), draw(st.integers(1, 3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    T = torch.randn(n, L, L, generator=random, dtype=torch.float64)
    kind = draw(
        st.sampled_from(["random", "low rank", "graded", "huge entry", "zero rows", "sparse", "softmax"])
    )
    if kind == "low rank":
        T = T[..., :2] @ T[..., :2].mT
    elif kind == "graded":
        scale = torch.logspace(-12, 12, L, dtype=torch.float64)
        T = (
            scale[torch.randperm(L, generator=random)][:, None]
            * T
            * scale[torch.randperm(L, generator=random)]
        )
    elif kind == "huge entry":
        T[:, draw(st.integers(0, L - 1)), draw(st.integers(0, L - 1))] = 1e12
    elif kind == "zero rows":
        T = T * (torch.rand(n, L, 1, generator=random) > 0.5) * (torch.rand(n, 1, L, generator=random) > 0.3)
    elif kind == "sparse":
        T = (T > 1).double()
    elif kind == "softmax":
        T = torch.softmax(T * 4 + torch.full((L, L), -math.inf).triu(1), dim=-1)
    T = T.tril() * draw(st.sampled_from([1.0, 1e-150, 1e-30, 1e30, 1e150]))
    return T.to(draw(st.sampled_from([torch.float64, torch.float64, torch.float32]))).nan_to_num(
        posinf=3e38, neginf=-3e38
    )


@unhurried
@given(operators(), st.sampled_from([1e-5, 1e-3, 1e-1, 1.0]))
def test_equal_to_numpy(T: Tensor, tol: float) -> None:
    check_against_numpy(T, tol)


def test_equal_to_numpy_on_attention() -> None:
    """Grouped heads, a window, padding and two documents at once."""
    torch.manual_seed(0)
    L = 18
    q, k = torch.randn(2, 4, L, 6), torch.randn(2, 2, L, 6)
    i = torch.arange(L)
    window = (i[:, None] >= i) & (i[:, None] - i < 7)
    documents = torch.stack([i < 9, i < 4])[:, None, :, None] == torch.stack([i < 9, i < 4])[:, None, None, :]
    valid = torch.stack([i >= 0, i >= 3])[:, None]
    op = softmax_attention(q, k, mask=window & documents, valid=valid)
    for tol in (1e-1, 1e-2, 1e-3):
        check_against_numpy(op, tol)
    assert bool((ew.ess(op, "tolerance", 1e-9) <= ew.ceiling(op)).all())
    assert bool((ew.ess(op) <= ew.ceiling(op).double() + 1e-9).all())


@unhurried
@given(operators())
def test_scale_does_not_reach_the_entropy(T: Tensor) -> None:
    T = T.double()
    for factor in (2.0**-40, 2.0**40):
        torch.testing.assert_close(ew.ess(T * factor), ew.ess(T), rtol=1e-9, atol=0)


@unhurried
@given(operators())
def test_the_ceiling_holds(T: Tensor) -> None:
    ceiling = ew.ceiling(T)
    assert bool((ew.ess(T) <= ceiling.double() + 1e-9).all())
    assert bool((ew.ess(T, "tolerance") <= ceiling).all())


@unhurried
@given(operators())
def test_tolerance_counts_change_by_at_most_one_per_position(T: Tensor) -> None:
    """As exact values do; a tie within rounding may add one."""
    sigma = ew.spectrum(T.double())
    clear = (sigma - 1e-3).abs().amin(dim=-1) if sigma.shape[-1] else torch.ones(sigma.shape[:-1])
    rounding = TIE * sigma.sum(-1)
    if bool((clear > rounding).all()):
        assert bool((ew.ess(T.double(), "tolerance", 1e-3).diff(dim=-1).abs() <= 1).all())


# Shapes, dtypes, devices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_float64_in_the_leading_shape(dtype: torch.dtype) -> None:
    T = torch.randn(2, 3, 8, 8, dtype=dtype).tril()
    for kind in ("entropy", "tolerance"):
        result = ew.ess(T, kind)
        assert (result.shape, result.dtype) == ((2, 3, 8), torch.float64)
        assert ew.ess(T, kind, positions=[5, 2]).shape == (2, 3, 2)
    assert (ew.spectrum(T).shape, ew.spectrum(T).dtype) == ((2, 3, 8, 4), torch.float64)
    assert ew.spectrum(T, positions=[1, 6]).shape == (2, 3, 2, 2)
    assert (ew.ceiling(T).shape, ew.ceiling(T).dtype) == ((2, 3, 8), torch.int64)


def test_one_precision_for_every_dtype() -> None:
    T = torch.randn(9, 9).tril()
    assert torch.equal(ew.ess(T), ew.ess(T.double()))


def test_numpy_arrays_and_tensors_are_operators() -> None:
    T = torch.randn(6, 6).tril()
    for metric in (ew.ess, ew.spectrum, ew.ceiling):
        assert torch.equal(metric(T.numpy()), metric(Dense(T)))
        assert torch.equal(metric(T), metric(Dense(T)))
    with pytest.raises(TypeError, match="T must be a torch tensor"):
        ew.ess([[1.0]])  # type: ignore[arg-type]


def test_gradients_and_settings_are_left_alone() -> None:
    T = torch.randn(6, 6, requires_grad=True)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert not ew.ess(T.tril()).requires_grad
    assert not vectors(T.tril(), 3)[0].requires_grad
    with torch.inference_mode():
        assert ew.ess(T.tril()).shape == (6,)
    assert T.grad is None
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


# Positions


@pytest.mark.parametrize(
    "positions",
    [
        [3, 1, 1],
        (3, 1, 1),
        torch.tensor([3, 1, 1]),
        np.array([3, 1, 1]),
        [np.int64(3), torch.tensor(1), 1],
        iter([3, 1, 1]),
    ],
    ids=["list", "tuple", "tensor", "array", "mixed", "iterator"],
)
def test_positions_in_any_form_and_order(positions: Any) -> None:
    T = torch.randn(8, 8).tril()
    assert torch.equal(ew.ess(T, positions=positions), ew.ess(T)[[3, 1, 1]])


def test_other_forms_of_positions() -> None:
    T = torch.randn(2, 8, 8).tril()
    assert torch.equal(ew.ess(T, positions=range(2, 5)), ew.ess(T)[:, 2:5])
    assert torch.equal(ew.ess(T, positions=4), ew.ess(T)[:, 4:5])
    assert ew.ess(T, positions=[]).shape == (2, 0)
    assert ew.spectrum(T, positions=[]).shape == (2, 0, 0)
    assert ew.spectrum(T, positions=[0]).shape == (2, 1, 0)


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        ([8], ValueError, "position 8 is out of range: positions run from 0 to 7"),
        ([-1], ValueError, "negative ones do not count from the end"),
        ([1.0], TypeError, "must be integers, but hold 1.0"),
        (torch.tensor([1.5]), TypeError, "must be integers"),
        (np.ones(8, dtype=bool), TypeError, "boolean mask"),
        ([True], TypeError, "boolean mask"),
        ("12", TypeError, "must be integers"),
        (slice(2), TypeError, "must be integers"),
        (torch.tensor([[1]]), ValueError, "one-dimensional"),
    ],
)
def test_refused_positions(positions: Any, error: type[Exception], message: str) -> None:
    for metric in (ew.ess, ew.spectrum, spectra):
        with pytest.raises(error, match=message):
            metric(torch.eye(8), positions=positions)


# Other arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "rank"}, ValueError, "kind must be 'entropy' or 'tolerance', but is 'rank'"),
        ({"kind": None}, ValueError, "kind must be"),
        ({"tol": 0.0}, ValueError, "tol must be positive and finite, but is 0.0"),
        ({"tol": -1e-3}, ValueError, "tol must be positive"),
        ({"tol": math.nan}, ValueError, "tol must be positive and finite"),
        ({"tol": math.inf}, ValueError, "tol must be positive and finite"),
        ({"tol": "1e-3"}, TypeError, "tol must be a number, but is of type str"),
        ({"tol": torch.tensor([1e-3])}, TypeError, "tol must be a number"),
        ({"tol": True}, TypeError, "tol must be a number"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ew.ess(torch.eye(4), **arguments)
    with pytest.raises(error, match=message):
        from_spectrum(torch.ones(4), **arguments)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True])
def test_refused_chunks(chunk: Any) -> None:
    with pytest.raises(ValueError, match="chunk must be a positive integer"):
        spectra(torch.eye(4), chunk=chunk)


@pytest.mark.parametrize("metric", [ew.ess, ew.spectrum, ew.ceiling, spectra])
def test_bad_matrices_are_refused_at_the_call(metric: Any) -> None:
    with pytest.raises(ValueError, match="not causal"):
        metric(torch.ones(4, 4))
    with pytest.raises(ValueError, match="not finite"):
        metric(torch.full((4, 4), math.nan))


# From a spectrum


def test_from_spectrum_is_what_ess_computes() -> None:
    T = torch.softmax(torch.randn(3, 12, 12) * 3 + torch.full((12, 12), -math.inf).triu(1), dim=-1)
    sigma = ew.spectrum(T)
    for kind in ("entropy", "tolerance"):
        for relative in (False, True):
            for tol in (1e-1, 1e-3):
                expected = ew.ess(T, kind, tol, relative)
                assert torch.equal(from_spectrum(sigma, kind, tol, relative), expected)
                assert torch.equal(from_spectrum(sigma.numpy(), kind, tol, relative), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-1, 0, 1])
def test_entropy_at_the_ends_of_the_range(dtype: torch.dtype, exponent: int) -> None:
    largest = {-1: torch.finfo(dtype).tiny, 0: 1.0, 1: torch.finfo(dtype).max}[exponent]
    sigma = torch.full((4,), largest, dtype=dtype)
    assert from_spectrum(sigma).item() == pytest.approx(4, rel=1e-6)
    sigma[2:] = 0
    assert from_spectrum(sigma).item() == pytest.approx(2, rel=1e-6)
    assert from_spectrum(torch.zeros(4, dtype=dtype)).item() == 0
    assert from_spectrum(torch.zeros(3, 0, dtype=dtype)).tolist() == [0, 0, 0]


def test_relative_tolerance_of_nothing_is_nothing() -> None:
    assert ew.ess(torch.zeros(5, 5), "tolerance", 1e-300, relative=True).tolist() == [0.0] * 5


def test_overflowing_singular_values_are_reported() -> None:
    T = torch.full((4, 4), 1.7e308, dtype=torch.float64).tril()
    with pytest.raises(ValueError, match="overflowed or are NaN"):
        ew.ess(T)


# Vectors


@unhurried
@given(operators(), st.data())
def test_vectors_rebuild_the_memory(T: Tensor, data: st.DataObject) -> None:
    L = T.shape[-1]
    i = data.draw(st.integers(0, L - 1))
    U, sigma, Vh = vectors(T, i)
    K = min(i, L - i)
    assert (U.shape[1:], sigma.shape[1:], Vh.shape[1:]) == ((L - i, K), (K,), (K, i))
    H = T.double()[:, i:, :i]
    largest = H.abs().sum(dim=(-1, -2), keepdim=True)
    assert bool((((U * sigma[:, None]) @ Vh - H).abs() <= 1e-13 * largest).all())
    torch.testing.assert_close(
        sigma, ew.spectrum(T, positions=[i])[:, 0], rtol=0, atol=1e-13 * float(largest.max())
    )
    peaks = Vh.gather(-1, Vh.abs().argmax(-1, keepdim=True)) if K else Vh
    assert bool((peaks >= 0).all())


def test_vectors_need_one_position() -> None:
    with pytest.raises(ValueError, match="out of range"):
        vectors(torch.eye(4), 4)
    with pytest.raises(TypeError, match="must be integers"):
        vectors(torch.eye(4), 1.5)  # type: ignore[arg-type]


# Utilisation


def test_utilisation_is_a_ratio_of_sums() -> None:
    T = torch.randn(2, 3, 10, 10).tril()
    op = Dense(T, state_size=4)
    profile = ew.ess(op)
    for against, limit in (("state_size", op.state_size.expand(2, 3, 10)), ("ceiling", ew.ceiling(op))):
        expected = profile[..., 1:].sum(-1) / limit[..., 1:].sum(-1)
        torch.testing.assert_close(utilisation(op, profile, against=against), expected)
    full = ew.ess(op, "tolerance", 1e-12)
    assert utilisation(T, full.numpy(), against="ceiling").tolist() == [[1.0] * 3] * 2


def test_the_ceiling_counts_rows_and_utilisation_positions() -> None:
    op = Dense(torch.ones(2, 12, 12).tril(), block=3, state_size=5)
    assert ew.ceiling(op).tolist() == [[0, 3, 5, 3]] * 2
    profile = torch.tensor([0.0, 1.0, 1.0, 1.0]).expand(2, 4)
    assert utilisation(op, profile).tolist() == pytest.approx([3 / 13] * 2)
    assert utilisation(op, profile, against="ceiling").tolist() == pytest.approx([3 / 11] * 2)
    with pytest.raises(ValueError, match=r"all positions, \(..., L\) = \(2, 4\)"):
        utilisation(op, torch.zeros(2, 12))


def test_utilisation_where_nothing_can_be_carried() -> None:
    assert utilisation(torch.ones(1, 1), torch.zeros(1)).item() == 0
    padded = Dense(torch.eye(3), valid=torch.zeros(3, dtype=torch.bool))
    assert utilisation(padded, ew.ess(padded), against="ceiling").item() == 0


def test_utilisation_refusals() -> None:
    with pytest.raises(ValueError, match="against must be"):
        utilisation(torch.eye(3), torch.zeros(3), against="tss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must hold all positions"):
        utilisation(torch.eye(3), torch.zeros(2))


# A little at a time


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_steps_make_up_the_whole(chunk: int | None) -> None:
    T = torch.randn(2, 9, 9).tril()
    positions = [4, 0, 8, 2, 2, 7, 1]
    steps = list(spectra(T, positions, chunk=chunk))
    assert torch.cat([at for at, _ in steps]).tolist() == positions
    assert torch.equal(torch.cat([sigma for _, sigma in steps], dim=-2), ew.spectrum(T, positions))
    if chunk is not None:
        assert [len(at) for at, _ in steps] == [min(chunk, 7 - n) for n in range(0, 7, chunk)]


def test_long_work_comes_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ess_widgets.metrics.reference._PAUSE", 0.0
    )  # any work is long, however fast the machine
    steps = spectra(torch.randn(8, 96, 96).tril())
    at, sigma = next(steps)
    assert 0 < len(at) < 96
    assert sigma.shape == (8, len(at), 48)


def test_large_operators_are_materialised_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from ess_widgets.metrics import routes
    from ess_widgets.operators import SoftmaxAttention

    q = torch.randn(3, 4, 10, 5, dtype=torch.float64)
    op = softmax_attention(q, q, valid=torch.arange(10) > 1)
    profile, sigma = ew.ess(op), ew.spectrum(op)
    shapes = []
    whole = SoftmaxAttention.matrix

    def watched(self: SoftmaxAttention) -> Tensor:
        shapes.append(tuple(self.shape))
        return whole(self)

    monkeypatch.setattr(SoftmaxAttention, "matrix", watched)
    monkeypatch.setattr(routes, "_ENTRIES", 500)
    torch.testing.assert_close(ew.ess(op), profile, rtol=1e-12, atol=0)
    torch.testing.assert_close(ew.spectrum(op), sigma, rtol=0, atol=1e-13)
    assert shapes == [(5, 10, 10), (5, 10, 10), (2, 10, 10)] * 2


def test_a_deferred_operator_is_built_once() -> None:
    calls = []

    def build() -> Tensor:
        calls.append(1)
        return torch.ones(300, 2, 12, 12).tril()

    ew.ess(Deferred(build, shape=(300, 2, 12, 12), dtype=torch.float32, device="cpu"))
    assert len(calls) == 1
