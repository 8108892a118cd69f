"""The rank of the matrix state against the recurrence written out, and against what ESS says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ess_widgets as ew
from ess_widgets.metrics import state_matrix
from ess_widgets.metrics.state_matrix import state_matrix_rank
from ess_widgets.operators import Dense, DiagonalPlusLowRank, Recurrence

L, N, V = 10, 5, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transitions() -> dict[str, tuple[Any, Any]]:
    """Of each kind: as ``Recurrence`` takes it, and one ``(n, n)`` matrix per position."""
    k, beta = torch.nn.functional.normalize(random(2, L, N), dim=-1), torch.rand(2, L, 1).double()
    gate = torch.rand(2, L, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    full = random(2, L, N, N, seed=2) / 3
    eye = torch.eye(N, dtype=torch.float64)
    return {
        "none": (torch.ones(2, 1, 1), eye.expand(2, L, N, N)),
        "scalar": (gate[..., 0], gate[..., :1, None] * eye),
        "diagonal": (gate, torch.diag_embed(gate)),
        "dense": (full, full),
        "delta rule": (
            DiagonalPlusLowRank(torch.ones(1, 1), (-beta * k)[..., None], k[..., None]),
            eye - beta[..., None] * k[..., None] * k[..., None, :],
        ),
    }


def written_out(A: Tensor, B: Tensor, v: Tensor) -> Tensor:
    """``S_t`` of one sample: ``(L, n, n)``, ``(L, n)``, ``(L, d_v)`` to ``(L, n, d_v)``."""
    state = torch.zeros(B.shape[-1], v.shape[-1], dtype=A.dtype)
    states = []
    for t in range(len(B)):
        state = A[t] @ state + torch.outer(B[t], v[t]).to(A.dtype)
        states.append(state)
    return torch.stack(states)


def plain_rank(S: Tensor, kind: str, tol: float, relative: bool) -> float:
    sigma = np.linalg.svd(S.numpy(), compute_uv=False)
    if kind == "tolerance":
        return float((sigma > (tol * sigma[0] if relative else tol)).sum())
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("name", transitions())
def test_against_the_recurrence_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_matrix, "_ENTRIES", 3 * 2 * N * V)
    A, matrices = transitions()[name]
    B, v = random(2, L, N, seed=3), random(2, L, V, seed=4)
    op = Recurrence(A, B, random(2, L, N, seed=5))
    for kind, relative in (("entropy", False), ("tolerance", False), ("tolerance", True)):
        found = state_matrix_rank(op, v, kind, 0.3, relative)
        assert found.shape == (2, L) and found.dtype == torch.float64
        for b in range(2):
            states = written_out(matrices[b], B[b], v[b])
            expected = [plain_rank(S, kind, 0.3, relative) for S in states]
            np.testing.assert_allclose(found[b].numpy(), expected, rtol=1e-10)
    some = state_matrix_rank(op, v, positions=[7, 0, 7, 3])
    assert torch.equal(some, state_matrix_rank(op, v)[:, [7, 0, 7, 3]])
    assert state_matrix_rank(op, v, positions=[]).shape == (2, 0)


def test_a_complex_state() -> None:
    a = torch.polar(torch.full((L, N), 0.9), random(L, N).float()).to(torch.complex128)
    B = torch.complex(random(L, N), random(L, N, seed=1))
    op = Recurrence(a, B, B.conj())
    v = random(L, V, seed=2)
    states = written_out(torch.diag_embed(a), B, v)
    expected = [plain_rank(S, "entropy", 1, False) for S in states]
    np.testing.assert_allclose(state_matrix_rank(op, v).numpy(), expected, rtol=1e-10)


def test_channels_that_share_a_state() -> None:
    B, v = random(L, 3, N), random(L, 3, V, seed=1)
    op = Recurrence(torch.full((L,), 0.5), B, B, block=3)
    state, expected = torch.zeros(N, V, dtype=torch.float64), []
    for t in range(L):
        state = 0.5 * state + sum(torch.outer(B[t, c], v[t, c]) for c in range(3))
        expected.append(plain_rank(state, "entropy", 1, False))
    np.testing.assert_allclose(state_matrix_rank(op, v).numpy(), expected, rtol=1e-10)


def test_padding_leaves_the_state_as_it_is() -> None:
    valid = torch.tensor([False, False, True, True, False, True, True, True, True, True])
    op = Recurrence(torch.full((L,), 0.5), random(L, N), random(L, N), valid=valid)
    rank = state_matrix_rank(op, random(L, V))
    assert rank[:2].tolist() == [0, 0]
    assert rank[4] == rank[3]


def test_values_are_shared_by_heads_and_may_be_in_half_precision() -> None:
    op = Recurrence(torch.ones(2, 3, L), random(2, 3, L, N), random(2, 3, L, N))
    v = random(2, 1, L, V).bfloat16()
    assert torch.equal(state_matrix_rank(op, v), state_matrix_rank(op, v.double().expand(2, 3, L, V)))


def test_it_depends_on_values_and_ess_does_not() -> None:
    """The same values for all tokens: rank 1, however much the queries can tell apart; and the reverse."""
    keys, queries = random(L, N), random(L, N, seed=1)
    op = Recurrence(torch.ones(L), keys, queries)
    assert state_matrix_rank(op, torch.ones(L, V), "tolerance").max() == 1
    assert ew.ess(op, "tolerance").max() == N
    unread = Recurrence(torch.ones(L), keys, torch.zeros(L, N))
    assert state_matrix_rank(unread, random(L, V), "tolerance").max() == min(N, V)
    assert ew.ess(unread, "tolerance").max() == 0


def test_parameters_that_are_trained() -> None:
    keys = random(L, N).requires_grad_()
    rank = state_matrix_rank(Recurrence(torch.ones(L), keys, keys), random(L, V).requires_grad_())
    assert not rank.requires_grad


def test_clear_errors() -> None:
    op = Recurrence(torch.ones(2, L), random(2, L, N), random(2, L, N))
    with pytest.raises(TypeError, match="op is of type Dense"):
        state_matrix_rank(Dense(torch.eye(4)), torch.ones(4, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"values must be \(..., L, d_v\) with {'L': 10}"):
        state_matrix_rank(op, torch.ones(L + 1, 2))
    with pytest.raises(ValueError, match="not finite"):
        state_matrix_rank(op, torch.full((L, 2), torch.nan))
    with pytest.raises(ValueError, match="do not broadcast to the operator's leading dimensions"):
        state_matrix_rank(op, torch.ones(3, L, 2))
    with pytest.raises(ValueError, match="position 10 is out of range"):
        state_matrix_rank(op, torch.ones(L, 2), positions=[L])
    with pytest.raises(ValueError, match="kind must be"):
        state_matrix_rank(op, torch.ones(L, 2), kind="rank")  # type: ignore[arg-type]
