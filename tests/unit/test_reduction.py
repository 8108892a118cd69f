"""Balanced truncation: its error lies between what is possible and what is proven, on systems of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ess_widgets as ew
from ess_widgets.learn.reduction import rank_curve, reduce
from ess_widgets.operators import Dense, DenseTransition, Diagonal, Recurrence
from tests.unit.recurrences import recurrences
from tests.unit.test_realization import adversarial

unhurried = settings(deadline=None, max_examples=60)
f64 = torch.float64


def dense_norms(op: Any, reduction: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Operator and Frobenius norm of the difference by plain decomposition, and the operator norm of T."""
    T = op.matrix().double()
    E = T - reduction.operator.matrix()
    return torch.linalg.matrix_norm(E, 2), torch.linalg.matrix_norm(E), torch.linalg.matrix_norm(T, 2)


def check(op: Any, **how: Any) -> Any:
    """Everything that is claimed of a reduction, against the matrices."""
    reduction = reduce(op, **how)
    spectral, frobenius, norm = dense_norms(op, reduction)
    rounding = 1e-13 * norm + 1e-300
    assert bool((spectral <= reduction.bound + rounding).all())
    assert bool((frobenius <= reduction.frobenius_bound + rounding).all())
    assert bool((reduction.lower <= spectral + 1e-10 * norm).all())
    assert bool((reduction.frobenius_lower <= frobenius + 1e-10 * norm).all())
    assert bool(((reduction.error.spectral - spectral).abs() <= 1e-7 * spectral + rounding).all())
    assert bool(((reduction.error.frobenius - frobenius).abs() <= 1e-10 * frobenius + rounding).all())
    # Only H is cut: the diagonal (in blocks) stays as it is.
    d, L = op.block, op.length
    E = (op.matrix().double() - reduction.operator.matrix()).unflatten(-1, (L, d)).unflatten(-3, (L, d))
    assert bool((E.diagonal(dim1=-4, dim2=-2).abs().amax((-3, -2, -1)) <= rounding).all())
    return reduction


@unhurried
@given(recurrences(longest=14), st.integers(0, 6))
def test_every_form_obeys_its_bounds(op: Recurrence, rank: int) -> None:
    reduction = check(op, rank=rank)
    assert int(reduction.ranks.max()) <= rank
    assert reduction.operator.shape == op.shape and reduction.operator.order == max(
        1, int(reduction.ranks.max())
    )


@unhurried
@given(recurrences(longest=14))
def test_enough_state_is_exact(op: Recurrence) -> None:
    state = op.order * (2 if op.is_complex else 1)
    reduction = check(op, rank=state)
    spectral, _, norm = dense_norms(op, reduction)
    assert bool((spectral <= 1e-10 * norm).all())


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("name", list(adversarial("after")))
def test_adversarial_systems(name: str, read: str) -> None:
    op = adversarial(read)[name]
    for rank in (1, 4):
        reduction = reduce(op, rank=rank)
        spectral, frobenius, norm = dense_norms(op, reduction)
        # What forming the matrices themselves rounds.
        slack = 1e-13 * norm if "1e8, never" not in name else 1e-7 * norm
        assert spectral <= reduction.bound + slack
        assert frobenius <= reduction.frobenius_bound + slack
        assert reduction.lower <= spectral + slack


@unhurried
@given(st.integers(0, 10**6), st.integers(2, 16), st.integers(1, 3), st.integers(0, 5))
def test_dense_operators(seed: int, length: int, block: int, rank: int) -> None:
    random = torch.Generator().manual_seed(seed)
    T = torch.randn(2, length * block, length * block, dtype=f64, generator=random)
    mask = torch.ones(length, length).tril().repeat_interleave(block, 0).repeat_interleave(block, 1)
    op = Dense(T * mask, block=block)
    check(op, rank=rank)
    most = length * block
    spectral, _, norm = dense_norms(op, reduce(op, rank=most))
    assert bool((spectral <= 1e-12 * norm).all())


@unhurried
@given(st.integers(0, 10**6), st.floats(0.0, 3.0), st.integers(0, 3))
def test_singular_values_that_go_up_and_down(seed: int, spread: float, rank: int) -> None:
    """Inputs and outputs of very different strength, resets, and growth, at random positions."""
    random = torch.Generator().manual_seed(seed)
    L, n = 24, 4

    def strong(*shape: int) -> Tensor:
        return torch.randn(*shape, L, n, dtype=f64, generator=random) * torch.exp(
            spread * torch.randn(*shape, L, 1, dtype=f64, generator=random)
        )

    A = torch.randn(3, L, n, n, dtype=f64, generator=random) / n**0.5
    A[torch.rand(3, L, generator=random) < 0.1] = 0.0
    check(Recurrence(A, strong(3), strong(3)), rank=rank)


def test_ranks_of_their_own_at_each_position() -> None:
    random = torch.Generator().manual_seed(3)
    op = Recurrence(*(torch.rand(2, 20, 5, dtype=f64, generator=random) for _ in range(3)))
    ranks = torch.randint(0, 6, (20,), generator=random)
    reduction = check(op, rank=ranks)
    assert bool((reduction.ranks <= ranks).all())
    possible = torch.minimum(torch.arange(20), 20 - torch.arange(20)).clamp(max=5)
    tellable = (reduction.singular_values > 1e-12).sum(-1)
    assert torch.equal(reduction.ranks, torch.minimum(torch.minimum(ranks, possible), tellable).expand(2, -1))


def test_tolerance_and_energy() -> None:
    random = torch.Generator().manual_seed(4)
    op = Recurrence(*(torch.rand(3, 24, 6, dtype=f64, generator=random) for _ in range(3)))
    sigma = ew.spectrum(op)
    by_tol = check(op, tol=0.05)
    assert torch.equal(by_tol.ranks, (sigma > 0.05).sum(-1))
    assert bool((by_tol.discarded <= 0.05).all())
    relative = check(op, tol=0.1, relative=True)
    assert torch.equal(relative.ranks, (sigma > 0.1 * sigma[..., :1]).sum(-1))
    for energy in (0.5, 0.9, 0.999, 1.0):
        by_energy = reduce(op, energy=energy)
        total = sigma.square().sum(-1)
        kept = torch.stack([sigma[..., :k].square().sum(-1) for k in range(sigma.shape[-1] + 1)], dim=-1)
        enough = kept.gather(-1, by_energy.ranks.unsqueeze(-1)).squeeze(-1)
        assert bool((enough >= energy * total * (1 - 1e-12)).all())
        if energy < 1:
            fewer = kept.gather(-1, (by_energy.ranks - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
            assert bool(((fewer < energy * total) | (by_energy.ranks == 0)).all())


def test_ties_of_a_delay() -> None:
    op = Dense(torch.diag(torch.ones(28, dtype=f64), -4))
    reduction = check(op, rank=2)
    assert reduction.error.spectral == pytest.approx(1.0)
    # All discarded singular values are 1 everywhere: one removal, twice their value.
    assert float(reduction.bound) <= 2.0 + 1e-6
    assert float(reduction.estimate) == pytest.approx(4.0)


def test_one_pole_beside_a_weak_one_costs_at_most_twice() -> None:
    op = Recurrence(torch.tensor([[0.9, -0.5]]), torch.ones(200, 2), torch.tensor([1.0, 0.2]).expand(200, 2))
    reduction = check(op, rank=1)
    assert float(reduction.bound) <= float(reduction.estimate) * (1 + 1e-6)


def test_time_reversal() -> None:
    """``J Tᵀ J`` has the mirrored balanced realization, and the same error."""
    random = torch.Generator().manual_seed(5)
    op = Recurrence(*(torch.rand(30, 4, dtype=f64, generator=random) for _ in range(3)))
    mirrored = Dense(op.matrix().mT.flip(0, 1).contiguous())
    forth, back = reduce(op, rank=2), reduce(mirrored, rank=2)
    difference = forth.operator.matrix() - back.operator.matrix().mT.flip(0, 1)
    assert difference.abs().max() < 1e-12
    assert torch.allclose(forth.lower, back.lower)


def test_the_recurrence_and_its_matrix_reduce_alike() -> None:
    random = torch.Generator().manual_seed(6)
    A = torch.polar(
        torch.rand(2, 16, 3, dtype=f64, generator=random), torch.rand(2, 16, 3, dtype=f64, generator=random)
    )
    B, C = (torch.randn(2, 16, 2, 3, dtype=torch.complex128, generator=random) for _ in range(2))
    D = torch.randn(2, 16, 2, 2, dtype=f64, generator=random)
    op = Recurrence(DenseTransition(torch.diag_embed(A)), B, C, D, block=2)
    for rank in (1, 3, 6):
        one, other = check(op, rank=rank), check(Dense(op.matrix(), block=2), rank=rank)
        torch.testing.assert_close(one.operator.matrix(), other.operator.matrix(), rtol=0, atol=1e-10)
        torch.testing.assert_close(one.bound, other.bound, rtol=1e-6, atol=1e-9)


def test_balanced() -> None:
    """Reachability and observability of the reduced operator with nothing left out are both the singular values."""
    random = torch.Generator().manual_seed(7)
    op = Recurrence(*(torch.rand(20, 3, dtype=f64, generator=random) for _ in range(3)))
    reduction = reduce(op, rank=3)
    found = ew.metrics.realization.factors(reduction.operator)
    for gramian in (found.reach @ found.reach.mT, found.observe @ found.observe.mT):
        expected = reduction.singular_values.masked_fill(
            reduction.discarded.sum(-1, keepdim=True) > 1e-6, 0.0
        )
        assert torch.allclose(gramian[5:15], torch.diag_embed(expected)[5:15], atol=1e-10)


def test_padding() -> None:
    random = torch.Generator().manual_seed(8)
    valid = torch.ones(2, 18, dtype=torch.bool)
    valid[0, :5], valid[1, 9:12] = False, False
    op = Recurrence(*(torch.rand(2, 18, 4, dtype=f64, generator=random) for _ in range(3)), valid=valid)
    reduction = check(op, rank=2)
    T = reduction.operator.matrix()
    assert not T[~valid].any() and not T.mT[~valid].any()
    assert torch.equal(reduction.operator.valid, valid)


def test_long_ones_without_their_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    from ess_widgets.learn.reduction import norms

    random = torch.Generator().manual_seed(9)
    A = Diagonal(torch.rand(2, 120, 3, dtype=f64, generator=random))
    B, C = (torch.randn(2, 120, 2, 3, dtype=f64, generator=random) for _ in range(2))
    op = Recurrence(A, B, C, block=2)
    reduction = reduce(op, rank=1)
    spectral, frobenius, _ = dense_norms(op, reduction)
    for limits in ((0, 0), (10**6, 0)):
        monkeypatch.setattr(norms, "_FORMED", limits[0])
        monkeypatch.setattr(norms, "_DECOMPOSED", limits[1])
        found = norms.norms(op, reduction.operator)
        torch.testing.assert_close(found[0], spectral, rtol=1e-7, atol=0)
        torch.testing.assert_close(found[1], frobenius, rtol=1e-10, atol=0)


def test_error_at_each_position() -> None:
    random = torch.Generator().manual_seed(10)
    op = Recurrence(*(torch.rand(2, 16, 4, dtype=f64, generator=random) for _ in range(3)))
    for one in (op, Dense(op.matrix())):
        reduction = reduce(one, rank=2)
        E = op.matrix() - reduction.operator.matrix()
        for i in range(1, 16):
            expected = torch.linalg.matrix_norm(E[:, i:, :i], 2)
            torch.testing.assert_close(reduction.error.hankel[:, i], expected, rtol=0, atol=1e-12)
            assert bool((reduction.discarded[:, i, 0] <= expected + 1e-12).all())
        assert bool((reduction.error.hankel.amax(-1) <= reduction.error.spectral + 1e-12).all())


def test_more_state_lowers_the_bound_and_what_is_possible() -> None:
    random = torch.Generator().manual_seed(11)
    op = Recurrence(*(torch.rand(40, 6, dtype=f64, generator=random) for _ in range(3)))
    curve = rank_curve(op)
    assert curve.ranks == (0, 1, 2, 3, 4, 5, 6)
    for values in (curve.bound, curve.lower, curve.estimate):
        assert bool((values.diff() < 0).all())
    for rank, error, bound in zip(curve.ranks, curve.error, curve.bound, strict=True):
        alone = reduce(op, rank=rank)
        assert float(alone.error.spectral) == pytest.approx(float(error), abs=1e-12)
        assert float(alone.bound) == pytest.approx(float(bound))
    assert curve.relative[0] == pytest.approx(
        float(torch.linalg.matrix_norm(op.matrix().tril(-1)) / torch.linalg.matrix_norm(op.matrix()))
    )


class Retention(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        return chunk_gla(q, k, v, g, scale=1.0)


def chunk_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> Tensor:
    """Gated linear attention as flash-linear-attention lays it out, ``(B, L, H, d)``."""
    S, out = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1]), []
    for t in range(q.shape[1]):
        S = g[:, t].exp().unsqueeze(-1) * S + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        out.append((scale * q[:, t].unsqueeze(-1) * S).sum(-2))
    return torch.stack(out, dim=1)


def test_a_captured_layer() -> None:
    random = torch.Generator().manual_seed(12)
    q, k, v = (torch.randn(2, 20, 3, 4, generator=random) for _ in range(3))
    g = torch.nn.functional.logsigmoid(torch.randn(2, 20, 3, 4, generator=random))
    layer = ew.capture(Retention(), q, k, v, g)[0]
    whole, cut = reduce(layer, rank=4), reduce(layer, rank=2)
    assert whole.output_error is not None and cut.output_error is not None
    assert whole.output_error.shape == (2, 3) and float(whole.output_error.max()) < 1e-5
    y = layer.outputs.double()
    by_hand = torch.linalg.vector_norm(cut.operator.matrix() @ layer.inputs.double() - y, dim=(-2, -1))
    torch.testing.assert_close(cut.output_error, by_hand / torch.linalg.vector_norm(y, dim=(-2, -1)))
    assert reduce(layer.operator, rank=2).output_error is None


def test_figures() -> None:
    random = torch.Generator().manual_seed(13)
    op = Recurrence(*(torch.rand(2, 12, 3, dtype=f64, generator=random) for _ in range(3)))
    reduction = reduce(op, rank=1)
    left, right = reduction.figure(index=1).axes
    lines = {line.get_label(): line for line in left.lines}
    curve = rank_curve(op[1])
    np.testing.assert_allclose(lines["error"].get_ydata()[:3], curve.error[:3], rtol=1e-9)
    np.testing.assert_allclose(lines["proven bound"].get_ydata()[:3], curve.bound[:3], rtol=1e-9)
    assert {line.get_label() for line in right.lines} == {"kept", "discarded"}
    assert len(rank_curve(op).figure().axes) == 1
    with pytest.raises(ValueError, match="one entry of the leading dimensions"):
        reduction.figure(index=(0, 0))


def test_nothing_to_keep() -> None:
    zero = Recurrence(torch.ones(5, 2), torch.zeros(5, 2), torch.ones(5, 2))
    assert not reduce(zero, rank=2).operator.matrix().any()
    single = reduce(torch.full((1, 1), 3.0), rank=2)
    assert single.operator.matrix().item() == 3.0 and single.bound == 0.0
    op = Recurrence(torch.ones(5, 2), torch.ones(5, 2), torch.ones(5, 2))
    none = check(op, rank=0)
    torch.testing.assert_close(none.operator.matrix(), 2.0 * torch.eye(5, dtype=f64))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "exactly one of rank, tol and energy, but none"),
        ({"rank": 1, "tol": 0.1}, "but rank and tol"),
        ({"rank": -1}, "at least 0"),
        ({"rank": 1.5}, "integer"),
        ({"rank": True}, "integer"),
        ({"rank": torch.ones(3, dtype=torch.long)}, "does not fit the positions"),
        ({"tol": -1.0}, "tol must be"),
        ({"tol": "small"}, "tol must be"),
        ({"energy": 0.0}, "energy must be in"),
        ({"energy": 1.1}, "energy must be in"),
    ],
)
def test_bad_requests(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reduce(torch.eye(4), **how)


def test_bad_operators() -> None:
    with pytest.raises(ValueError, match="causal"):
        reduce(torch.ones(4, 4), rank=1)
    with pytest.raises(TypeError):
        reduce("T", rank=1)
    grows = Recurrence(torch.full((2000, 1), 2.0), torch.ones(2000, 1), torch.ones(2000, 1))
    with pytest.raises(ValueError, match="beyond the range"):
        reduce(grows, rank=1)
    with pytest.raises(ValueError, match="at least 0"):
        rank_curve(torch.eye(4), [-1])
