"""Spectra of convolutions from their taps, against decompositions of the whole matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ess_widgets.metrics import hankel, reference
from ess_widgets.metrics.hankel import convolution_part, convolution_spectrum, convolution_values
from ess_widgets.operators import Convolution


@settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 2**31),
    L=st.integers(1, 24),
    taps=st.integers(1, 30),
    lead=st.sampled_from([(), (2,), (3, 2)]),
    gates=st.sampled_from(["", "", "i", "o", "io"]),
    padded=st.booleans(),
)
def test_against_the_whole_matrix(
    seed: int, L: int, taps: int, lead: tuple[int, ...], gates: str, padded: bool
) -> None:
    torch.manual_seed(seed)
    op = Convolution(
        torch.randn(*lead[-1:], taps, dtype=torch.float64).expand(*lead, taps),
        input_gate=torch.randn(*lead, L, dtype=torch.float64) if "i" in gates else None,
        output_gate=torch.randn(L, dtype=torch.float64) if "o" in gates else None,
        D=torch.randn(L, dtype=torch.float64),
        length=L,
        valid=torch.rand(*lead[:1], *(1,) * (len(lead) - 1), L) < 0.7 if padded else None,
    )
    expected = reference.spectrum(op)
    found = convolution_spectrum(op)
    assert found.shape == expected.shape
    assert convolution_values(op).shape[-1] == min(taps - 1, L // 2)
    close = {"rtol": 1e-12, "atol": 1e-13 * float(op.matrix().abs().max() + 1)}
    torch.testing.assert_close(found, expected, **close)
    some = list(range(0, L, 3))[::-1]
    torch.testing.assert_close(convolution_spectrum(op, some), reference.spectrum(op, some), **close)


def test_large_batches_are_taken_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hankel, "_ENTRIES", 400)
    op = Convolution(torch.randn(5, 4).double(), input_gate=torch.rand(2, 5, 12))
    torch.testing.assert_close(convolution_spectrum(op), reference.spectrum(op), rtol=1e-12, atol=1e-12)


def test_a_dense_route_on_the_part_of_a_convolution() -> None:
    op = Convolution(torch.rand(4, 20) + 0.1, length=1000)
    T, at, index = convolution_part(op)
    assert T.shape == (4, 38, 38)
    assert at == list(range(20))
    values = reference.ess(T, positions=at)[:, index]
    some = [3, 500, 990]
    torch.testing.assert_close(values[:, some], reference.ess(op, positions=some))


def test_all_channels_of_all_samples_share_their_values() -> None:
    kernel = torch.randn(1, 6, 4).expand(1000, 6, 4)
    values = convolution_values(Convolution(kernel, length=64))
    assert values.shape == (1000, 6, 64, 3)
    assert values.stride(0) == 0


def test_gates_and_padding_leave_positions_nothing_to_share() -> None:
    for options in ({"input_gate": torch.rand(8)}, {"valid": torch.arange(8) < 5}):
        with pytest.raises(ValueError, match="only without gates and padding"):
            convolution_part(Convolution(torch.ones(3), length=8, **options))
