"""Spectra of recurrences from their factors, and the bounds that come with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from ess_widgets.metrics import realization, reference
from ess_widgets.metrics._svd import one_thread
from ess_widgets.metrics._sweeps import qr_error, triangle
from ess_widgets.metrics.realization import factors, spectra
from ess_widgets.operators import Dense, DenseTransition, Diagonal, DiagonalPlusLowRank, Recurrence
from tests.unit.recurrences import by_definition, entries, recurrences

unhurried = settings(deadline=None)
# What the decomposition of the dense matrix, and rounding it to float64, may be off by, in units of σ_1.
DENSE = 1e-14


def check_against_dense(op: Recurrence, T: Tensor, sigma: Tensor, bound: Tensor, at: list[int]) -> None:
    """Every singular value of one recurrence is within its bound, and where none can be there is 0."""
    d = op.block
    for column, i in enumerate(at):
        H = T[d * i :, : d * i]
        if 0 in H.shape:
            assert not sigma[column].any()
            continue
        with one_thread(H.device):
            expected = torch.linalg.svdvals(H)
        k = min(len(expected), sigma.shape[-1])
        allowed = bound[column] + DENSE * expected[0]
        assert bool(((sigma[column, :k] - expected[:k]).abs() <= allowed).all())
        assert not sigma[column, k:].any()
        assert bool((expected[k:] <= allowed).all())


@unhurried
@given(recurrences(direct=False))
def test_every_form_within_its_bound(op: Recurrence) -> None:
    sigma, bound = spectra(op)
    at = list(range(op.length))
    state = op.order * (2 if op.is_complex else 1)
    K = max(min(state, op.block * i, op.block * (op.length - i)) for i in at)
    assert sigma.shape == (*op.shape[:-2], op.length, K)
    assert bound.shape == (*op.shape[:-2], op.length)
    assert sigma.dtype is bound.dtype is torch.float64
    assert bool((sigma.diff(dim=-1) <= 0).all())
    lead = op.shape[:-2]
    for index in np.ndindex(*lead):
        part = op[index] if lead else op
        check_against_dense(part, part.matrix(), sigma[index], bound[index], at)


def test_the_same_as_one_decomposition_per_position() -> None:
    torch.manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(2, 40, 6), dim=-1)
    beta = torch.rand(2, 40, 1)
    A = DiagonalPlusLowRank(torch.ones(1, 1), (-beta * k)[..., None], k[..., None])
    op = Recurrence(A, beta * k, torch.randn(2, 40, 6))
    sigma, bound = spectra(op)
    expected = reference.spectrum(op.matrix())
    torch.testing.assert_close(sigma, expected[..., :6], rtol=0, atol=1e-13)
    assert not (expected[..., 6:] > 1e-13).any()
    assert float(bound.max()) < 1e-10


# Adversarial recurrences: the bound holds against the matrix in extended precision.

L, N = 100, 6


def adversarial(read: Any) -> dict[str, Recurrence]:
    random = torch.Generator().manual_seed(1)
    f64 = torch.float64

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=f64, generator=random)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=f64, generator=random)

    def make(A: Any, B: Tensor | None = None, C: Tensor | None = None) -> Recurrence:
        return Recurrence(A, randn(L, N) if B is None else B, randn(L, N) if C is None else C, read=read)

    q = torch.linalg.qr(randn(N, N))[0]
    v = q[:, 0]
    unread = randn(L, N)
    unread = unread - (unread @ v)[:, None] * v
    flood = randn(L, N) + 1e8 * randn(L, 1) * v
    spread = torch.logspace(-4, 4, N, dtype=f64)
    jordan = 0.99 * torch.eye(N, dtype=f64) + torch.ones(N - 1, dtype=f64).diag(1)
    k = torch.nn.functional.normalize(randn(L, N), dim=-1)
    alpha = rand(L, 1) * (rand(L, 1) > 0.1)
    resets = rand(L, N)
    resets[L // 2] = 0
    magnitudes = torch.where(torch.arange(L) < L // 2, 1e6, 1e-6)[:, None]
    last = randn(L, N)
    last[:, 0] *= 1e8

    def delta(beta: float) -> DiagonalPlusLowRank:
        return DiagonalPlusLowRank(torch.ones(1, 1), (-beta * k)[..., None], k[..., None])

    return {
        "reached at 1e8, never read": make(torch.ones(1, N), flood, unread),
        "the same, dense": make(torch.eye(N)[None], flood, unread),
        "reached at 1e8, read at 1e-8": make(rand(L, N), last, randn(L, N) * 1e-8),
        "decays from 1e-12 to 1": make(10 ** (-12 * rand(L, N) ** 2)),
        "one decay each": make(10 ** (-12 * rand(1, N) ** 4)),
        "exact zeros": make(rand(L, N) * (rand(L, N) > 0.2)),
        "growing modes": make(0.5 + 1.2 * rand(L, N)),
        "growing, not normal": make(randn(L, N, N) * 0.7),
        "alternating 1e60 and 1e-60": make(torch.tensor([1e60, 1e-60], dtype=f64).repeat(L // 2)[:, None]),
        "a Jordan block": make(jordan[None]),
        "an ill-conditioned basis": make((0.95 * spread[:, None] * q / spread)[None]),
        "equal poles but for 1e-9": make(0.9 + 1e-9 * torch.arange(N, dtype=f64)[None]),
        "delta rule, β = 1": make(delta(1.0), k),
        "delta rule, β = 2": make(delta(2.0), 2 * k),
        "gated delta rule that forgets": make(
            DiagonalPlusLowRank(alpha, (-alpha * k)[..., None], k[..., None]), k
        ),
        "two magnitudes": make(resets, magnitudes * randn(L, N), magnitudes * randn(L, N)),
        "two magnitudes, dense": make(
            DenseTransition(resets.diag_embed()), magnitudes * randn(L, N), magnitudes * randn(L, N)
        ),
        "huge and tiny": make(rand(L, N), 1e200 * randn(L, N), 1e-200 * randn(L, N)),
        "subnormal inputs": make(rand(L, N), 1e-310 * randn(L, N), 1e300 * randn(L, N)),
        "tiny": make(rand(L, N), 1e-150 * randn(L, N), 1e-150 * randn(L, N)),
        "complex on the unit circle": make(
            torch.polar(torch.ones(1, N, dtype=f64), 3 * rand(1, N)),
            torch.complex(randn(L, N), randn(L, N)),
            torch.complex(randn(L, N), randn(L, N)),
        ),
        "a constant that is not a binary fraction": make(
            torch.full((1, N), 0.999), torch.full((L, N), 0.1, dtype=f64), torch.ones(L, N)
        ),
        "never read": make(rand(L, N), None, torch.zeros(L, N)),
        "never written": make(rand(L, N), torch.zeros(L, N)),
    }


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("case", list(adversarial("after")))
def test_the_bound_holds_on_adversarial_recurrences(case: str, read: str) -> None:
    op = adversarial(read)[case]
    sigma, bound = spectra(op)
    T = torch.from_numpy(by_definition(op).astype(np.float64))
    check_against_dense(op, T, sigma, bound, list(range(L)))
    if case not in ("reached at 1e8, never read", "the same, dense"):
        # And it says something: 1e-9 of the largest entry, or of what only rounding leaves.
        assert float((bound - 1e-9 * sigma[:, 0] - 1e-290).max()) <= 0


def test_a_mode_that_is_never_read_is_admitted() -> None:
    """Its 1e8 must show in the bound, or a tolerance of 1e-9 of σ_1 would be trusted."""
    op = adversarial("after")["reached at 1e8, never read"]
    sigma, bound = spectra(op)
    assert bool((bound[1:] > 1e-9 * sigma[1:, 0]).any())


def test_what_overflows_is_not_known() -> None:
    grows = Recurrence(torch.full((60, 1), 1e30), torch.ones(60, 2), torch.ones(60, 2))
    fine = Recurrence(torch.full((60, 1), 0.5), torch.ones(60, 2), torch.ones(60, 2))
    _, bound = spectra(grows)
    assert bool(torch.isinf(bound[1:]).any())
    both = Recurrence(
        Diagonal(torch.stack([torch.full((60, 1), 1e30), torch.full((60, 1), 0.5)])),
        torch.ones(60, 2),
        torch.ones(60, 2),
    )
    sigma, bound = spectra(both)
    assert bool(torch.isinf(bound[0, 1:]).any())
    torch.testing.assert_close(sigma[1], spectra(fine)[0], rtol=1e-14, atol=1e-14)
    assert bool(torch.isfinite(sigma).all())


def householder(X: Tensor) -> tuple[Tensor, Tensor]:
    """The triangular factor that LAPACK computes, and the product of its reflections with it, in float64."""
    packed, tau = torch.geqrf(X)
    n = X.shape[-1]
    R = packed[..., :n, :].triu()
    product = torch.nn.functional.pad(R.double(), (0, 0, 0, X.shape[-2] - n))
    for j in reversed(range(n)):
        v = packed[..., :, j : j + 1].double().clone()
        v[..., :j, :], v[..., j, :] = 0.0, 1.0
        # Of exactly orthogonal reflections: what differs from X is all the factorisation's own error.
        scale = torch.where(tau[..., j, None, None] == 0, 0.0, 2 / (v * v).sum(-2, keepdim=True))
        product = product - scale * v * (v.mT @ product)
    return R, product


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("added", [1, 3, 20])
def test_factorisations_err_no_more_than_the_bound_counts_on(n: int, added: int) -> None:
    """In float32, where float64 can watch."""
    random = torch.Generator().manual_seed(n + added)
    m, batch = n + added, 400 // n + 20
    grades = torch.logspace(0, -6, m)[:, None]
    base = torch.rand(batch, m, n, generator=random)
    old = torch.linalg.qr(torch.rand(batch, 10 * m, n, generator=random), mode="r")[1]
    for X in (
        torch.randn(batch, m, n, generator=random),
        base,
        base * grades,
        base * grades.flip(0),
        base[:, :1].expand(-1, m, -1),
        torch.full((1, m, n), 0.1),
        base[..., :1] * base[:, :1] + 1e-6 * base,
        torch.cat([0.999 * old, base[:, n:]], dim=1),
    ):
        X = X.contiguous()
        R, product = householder(X)
        torch.testing.assert_close(triangle(X.mT).mT, R, rtol=0, atol=0)
        off, norms = ((Y.double()).norm(dim=-2) for Y in (product - X, X))
        assert bool((off <= qr_error(n, torch.float32) * norms).all())


# Positions, chunks, memory


def mixed(L: int = 50) -> Recurrence:
    random = torch.Generator().manual_seed(3)
    parts = [torch.randn(3, 2, L, 4, generator=random) for _ in range(2)]
    return Recurrence(torch.rand(3, 2, L, 4, generator=random), *parts)


@pytest.mark.parametrize("positions", [[7], [0], [49, 3, 3, 0, 20], [], None, torch.tensor([5, 6, 7])])
def test_positions_in_any_order(positions: Any) -> None:
    op = mixed()
    sigma, bound = spectra(op, positions)
    all_sigma, all_bound = spectra(op)
    at = list(range(50)) if positions is None else [int(i) for i in positions]
    K = max((min(4, i, 50 - i) for i in at), default=0)
    assert sigma.shape == (3, 2, len(at), K)
    torch.testing.assert_close(sigma, all_sigma[:, :, at, :K], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(bound, all_bound[:, :, at], rtol=1e-9, atol=0)


@pytest.mark.parametrize("room", [2**10, 2**14, 2**30])
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch, room: int, chunk: int | None) -> None:
    op = mixed()
    expected = spectra(op)
    monkeypatch.setattr(realization, "_BYTES", {"cpu": room})
    monkeypatch.setattr(realization, "_LEAST", 1)
    for found, wanted in zip(spectra(op, chunk=chunk), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


def test_a_gpu_without_memory_gets_less_at_a_time_and_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    op = mixed()
    expected = spectra(op)
    rooms: list[int] = []
    real = realization._spectra

    def short_of_memory(op: Recurrence, wanted: Any, chunk: Any, room: int) -> tuple[Tensor, Tensor]:
        rooms.append(room)
        if isinstance(op, OnGpu):
            raise torch.OutOfMemoryError("out of memory")
        return real(op, wanted, chunk, room)

    class OnGpu(Recurrence):
        device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]

        def to(self, device: Any) -> Recurrence:
            return op

    on_gpu = OnGpu(op.A, op.B, op.C)
    monkeypatch.setattr(realization, "_spectra", short_of_memory)
    monkeypatch.setattr(realization, "_moved", lambda result, device: result)
    with pytest.warns(RuntimeWarning, match="cuda has no memory left for the factors of OnGpu.*on the CPU"):
        found = spectra(on_gpu)
    torch.testing.assert_close(found, expected)
    assert rooms == [*(2**e for e in range(29, 19, -2)), realization._BYTES["cpu"]]


def test_a_cpu_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def svdvals(X: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.linalg, "svdvals", svdvals)
    with pytest.raises(torch.OutOfMemoryError):
        spectra(mixed())


# Factors


@unhurried
@given(recurrences(longest=12, direct=False))
def test_factors_are_those_of_reachability_and_observability(op: Recurrence) -> None:
    found = factors(op)
    core = found.observe.mT @ found.reach
    sigma, _ = spectra(op)
    K = sigma.shape[-1]
    allowed = found.bound.unsqueeze(-1) + 1e-12 * sigma[..., :1].amax(-2, keepdim=True)
    assert bool(((torch.linalg.svdvals(core)[..., :K] - sigma).abs() <= allowed).all())
    for index, part in zip(np.ndindex(*op.shape[:-2]), entries(op), strict=True):
        for i in range(op.length):
            R, O = both_sides(part, i)
            M, N = found.reach[index][i], found.observe[index][i]
            torch.testing.assert_close(M @ M.mT, R @ R.mT, rtol=1e-10, atol=1e-11 * float(R.norm() ** 2))
            torch.testing.assert_close(N @ N.mT, O.mT @ O, rtol=1e-10, atol=1e-11 * float(O.norm() ** 2))


def both_sides(op: Recurrence, i: int) -> tuple[Tensor, Tensor]:
    """``R_i`` and ``O_i`` of the state before position ``i``, written as a real one."""
    n, d, L = op.order, op.block, op.length
    field = torch.complex128 if op.is_complex else torch.float64
    B, C = (X.reshape(L, d, n).to(field) for X in (op.B, op.C))
    A = op.A.to(dtype=field)

    def step(X: Tensor, t: int) -> Tensor:
        return A.at(slice(t, t + 1)).apply(X.unsqueeze(0)).squeeze(0)

    R = torch.zeros(n, 0, dtype=field)
    for t in range(i):
        R = torch.cat([step(R, t), B[t].mT], dim=-1)
    P, rows = torch.eye(n, dtype=field), [torch.zeros(0, n, dtype=field)]
    for t in range(i, L):
        if op.read == "after":
            P = step(P, t)
        rows.append(C[t] @ P)
        if op.read == "before":
            P = step(P, t)
    O = torch.cat(rows)
    if op.is_complex:
        R, O = torch.cat([R.real, R.imag]), torch.cat([O.real, -O.imag], dim=-1)
    return R, O


# What is refused


@pytest.mark.parametrize("function", [spectra, factors])
def test_refused_arguments(function: Any) -> None:
    with pytest.raises(TypeError, match="factors exist for a Recurrence, but op is of type Dense"):
        function(Dense(torch.ones(3, 3).tril()))
    with pytest.raises(ValueError, match="position 50 is out of range"):
        function(mixed(), [50])
    with pytest.raises(ValueError, match="chunk must be a positive integer"):
        function(mixed(), chunk=0)


def test_nothing_is_tracked_and_nothing_changed() -> None:
    a = torch.rand(10, 2, requires_grad=True)
    before = a.detach().clone()
    threads = torch.get_num_threads()
    sigma, bound = spectra(Recurrence(a, torch.ones(10, 2), torch.ones(10, 2)))
    assert not sigma.requires_grad
    assert not bound.requires_grad
    assert torch.equal(a, before)
    assert a.grad is None
    assert torch.get_num_threads() == threads
