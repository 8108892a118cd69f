"""Operators whose effective state-size is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ess_widgets as ew
from ess_widgets.operators import Dense, softmax_attention

L = 24
F64 = torch.float64
POSITION = torch.arange(L)
SHAPE_LIMIT = torch.minimum(POSITION, L - POSITION)


def rank(T: Tensor | ew.operators.Operator) -> Tensor:
    """Tolerance-ESS at a tolerance that only rounding falls below."""
    return ew.ess(T, kind="tolerance", tol=1e-11, relative=True)


def capped(n: int | Tensor) -> Tensor:
    return torch.minimum(SHAPE_LIMIT, torch.as_tensor(n)).to(F64)


def lags() -> Tensor:
    return POSITION[:, None] - POSITION[None, :]


def toeplitz(kernel: Tensor) -> Tensor:
    return torch.where(lags() >= 0, kernel[lags().clamp(min=0)], 0.0)


def delay(k: int, length: int = L) -> Tensor:
    return torch.ones(length - k, dtype=F64).diag(-k)


def poles(*values: float, length: int = L) -> Tensor:
    """Kernel of a sum of first-order recurrences with unit residues."""
    return sum(
        (torch.tensor(a, dtype=F64) ** torch.arange(length) for a in values), torch.zeros(length, dtype=F64)
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of ``(L, d)``."""
    half = x.shape[-1] // 2
    angle = POSITION[:, None] * 10.0 ** -torch.arange(half, dtype=F64)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


def delta_rule(q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
    """``T_ij = q_i · Π_{t=j+1..i} (I - β_t k_t k_tᵀ) · β_j k_j``, entry by entry."""
    T = torch.zeros(L, L, dtype=F64)
    for j in range(L):
        carried = beta[j] * k[j]
        T[j, j] = q[j] @ carried
        for i in range(j + 1, L):
            carried = carried - beta[i] * k[i] * (k[i] @ carried)
            T[i, j] = q[i] @ carried
    return T


def update_then_read(A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """``T_ij = C_i A_i … A_{j+1} B_j`` for factors ``(L, n, n)``, ``(L, n)``, ``(L, n)``."""
    T = torch.zeros(L, L, dtype=F64)
    for j in range(L):
        carried = B[j]
        for i in range(j, L):
            if i > j:
                carried = A[i] @ carried
            T[i, j] = C[i] @ carried
    return T


def test_diagonal_keeps_nothing() -> None:
    T = random(L).diag()
    assert torch.equal(rank(T), torch.zeros(L, dtype=F64))
    assert torch.equal(ew.ess(T), torch.zeros(L, dtype=F64))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(L, L, dtype=F64).tril(),
        lambda: toeplitz(torch.ones(L, dtype=F64)) / (1 + POSITION)[:, None],
        lambda: torch.nn.functional.pad(random(L, 1), (0, L - 1)),
        lambda: softmax_attention(torch.zeros(L, 4, dtype=F64), random(L, 4)),
    ],
    ids=["all ones", "causal mean", "every row reads token 0", "softmax of zero scores"],
)
def test_one_number_is_enough(make: Callable[[], Tensor]) -> None:
    T = make()
    assert torch.equal(rank(T), capped(1))
    torch.testing.assert_close(ew.ess(T), capped(1), rtol=0, atol=1e-12)


def test_all_ones_singular_value() -> None:
    sigma = ew.spectrum(torch.ones(L, L).tril())[:, 0]
    torch.testing.assert_close(sigma, (POSITION * (L - POSITION)).to(F64).sqrt(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("k", [1, 2, 5, L // 2, L - 3, L - 1])
def test_delay(k: int) -> None:
    expected = capped(min(k, L - k))
    assert torch.equal(rank(delay(k)), expected)
    torch.testing.assert_close(ew.ess(delay(k)), expected, rtol=1e-13, atol=0)
    sigma = ew.spectrum(delay(k))
    assert torch.equal(sigma, (sigma > 0.5).to(F64))


@pytest.mark.parametrize("taps", [1, 2, 5, L // 2 + 1])
def test_finite_impulse_response(taps: int) -> None:
    kernel = torch.zeros(L, dtype=F64)
    kernel[:taps] = 1.0 + random(taps).abs()
    assert torch.equal(rank(toeplitz(kernel)), capped(taps - 1))


@pytest.mark.parametrize(
    ("kernel", "order"),
    [
        (poles(0.9, -0.7, 0.3), 3),
        (poles(0.95, 0.6, 0.2, -0.4, -0.9), 5),
        (poles(0.8, 0.8), 1),
        (torch.arange(L) * 0.8 ** torch.arange(L, dtype=F64), 2),
        (poles(0.8, 0.0), 1),
    ],
    ids=["three", "five", "one, twice on the diagonal", "a Jordan pair", "a zero pole"],
)
def test_real_poles(kernel: Tensor, order: int) -> None:
    assert torch.equal(rank(toeplitz(kernel)), capped(order))


@pytest.mark.parametrize("a", [0.5, 0.99, -0.8])
def test_one_pole_singular_value(a: float) -> None:
    sigma = ew.spectrum(toeplitz(poles(a)))
    i = POSITION.to(F64)
    expected = abs(a) * ((1 - a ** (2 * (L - i))) * (1 - a ** (2 * i))).sqrt() / (1 - a * a)
    torch.testing.assert_close(sigma[:, 0], expected, rtol=1e-11, atol=0)
    assert sigma[:, 1:].max() < 1e-14


def test_random_operators_reach_the_shape_limit() -> None:
    assert torch.equal(rank(random(L, L).tril()), capped(L))
    q, k = random(L, 32, seed=1), random(L, 32, seed=2)
    assert torch.equal(rank(softmax_attention(q, k)), capped(L))


@pytest.mark.parametrize("features", [1, 4, 8])
def test_linear_attention(features: int) -> None:
    d = 2 * features
    q, k = random(L, d, seed=3), random(L, d, seed=4)
    assert torch.equal(rank((q @ k.T).tril()), capped(d))
    assert torch.equal(rank((rotate(q) @ rotate(k).T).tril()), capped(d))
    weights = (q.exp() @ k.exp().T).tril()
    assert torch.equal(rank(weights / weights.sum(-1, keepdim=True)), capped(d))


@pytest.mark.parametrize("split", [1, 7, L // 2, L - 1])
def test_two_documents(split: int) -> None:
    document = (split <= POSITION).long()
    mask = (document[:, None] == document[None, :]) & (lags() >= 0)
    op = softmax_attention(random(L, 32, seed=5), random(L, 32, seed=6), mask=mask)
    start, end = torch.where(document == 0, 0, split), torch.where(document == 0, split, L)
    inside = torch.minimum(POSITION - start, end - POSITION)
    assert torch.equal(rank(op), inside.to(F64))
    assert rank(op)[split] == 0
    assert torch.equal(op.state_size, POSITION - start)


def test_delta_rule() -> None:
    d = 5
    q, k = random(L, d, seed=7), torch.nn.functional.normalize(random(L, d, seed=8), dim=-1)
    assert torch.equal(rank(delta_rule(q, k, torch.ones(L, dtype=F64))), capped(d - 1))
    beta = torch.sigmoid(random(L, seed=9))
    assert torch.equal(rank(delta_rule(q, k, beta)), capped(d))


def test_a_hard_reset_forgets_at_its_own_position() -> None:
    """Update before read: with ``A_p = 0`` nothing crosses ``p``."""
    n, p = 3, 10
    A = 0.9 * torch.eye(n, dtype=F64) + 0.1 * random(L, n, n)
    A[p] = 0.0
    T = update_then_read(A, random(L, n, seed=1), random(L, n, seed=2))
    start, end = torch.where(p <= POSITION, p, 0), torch.where(p <= POSITION, L, p)
    expected = torch.minimum(POSITION - start, end - POSITION).clamp(max=n)
    assert torch.equal(rank(T), expected.to(F64))


def test_changes_by_at_most_one_per_position() -> None:
    for seed in range(5):
        T = torch.softmax(random(L, L, seed=seed) * 3 + torch.full((L, L), -math.inf).triu(1), dim=-1)
        for tol in (1e-1, 1e-2, 1e-3):
            assert ew.ess(T, "tolerance", tol).diff().abs().max() <= 1


def test_reversing_time_mirrors_the_profile() -> None:
    T = random(L, L).tril() * 0.8 ** lags().clamp(min=0)
    mirrored = T.T.flip(0, 1)
    for kind in ("entropy", "tolerance"):
        profile, reversed_profile = ew.ess(T, kind), ew.ess(mirrored, kind)
        torch.testing.assert_close(reversed_profile[1:], profile[1:].flip(0), rtol=1e-11, atol=0)


def test_rank_is_subadditive() -> None:
    first = (random(L, 2, seed=1) @ random(2, L, seed=2)).tril()
    second = toeplitz(poles(0.9, -0.5))
    limit = rank(first) + rank(second)
    assert bool((rank(first + second) <= limit).all())
    assert bool((rank(first @ second) <= limit).all())


def test_an_operator_and_its_inverse_share_the_profile() -> None:
    T = torch.eye(L, dtype=F64) + 0.3 * toeplitz(poles(0.8, -0.6, 0.2))
    assert torch.equal(rank(torch.linalg.inv(T).tril()), rank(T))


def test_a_state_size_caps_the_ceiling() -> None:
    assert torch.equal(ew.ceiling(Dense(torch.eye(L), state_size=3)), SHAPE_LIMIT.clamp(max=3))
