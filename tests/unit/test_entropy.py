"""Entropy at every split with a bound: the bound holds, and is kept, on anything that singular values can be of."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ess_widgets.metrics import _nodes, determinants
from ess_widgets.metrics.determinants import log_determinants
from ess_widgets.metrics.entropy import entropy
from ess_widgets.metrics.reference import from_spectrum


def singular_values(T, p):
    """In units in which the largest entry is near 1, so that no square over- or underflows."""
    H = T[p:, :p]
    largest = H.abs().max() if H.numel() else torch.tensor(0.0)
    return torch.linalg.svdvals(H / largest) if largest > 0 else torch.zeros(0, dtype=T.dtype)


def check(T, rtol=1e-4, at=None):
    """Against one decomposition per position; what that itself does not know is allowed on top."""
    T = torch.as_tensor(T, dtype=torch.float64)
    T = T[None] if T.ndim == 2 else T
    T = T.tril()
    N = T.shape[-1]
    at = list(range(N + 1)) if at is None else at
    counts = Counter()
    values, bound = entropy(T, at, rtol, counts=counts)
    assert values.shape == bound.shape == (len(T), len(at))
    assert (bound >= 0).all() and (bound <= rtol).all(), bound.max()
    for row, matrix in enumerate(T):
        for k, p in enumerate(at):
            sigma = singular_values(matrix, p)
            truth = from_spectrum(sigma[None])[0]
            if not sigma.numel():
                assert values[row, k] == 0 and bound[row, k] == 0
                continue
            own = 1e-14 * len(sigma) ** 1.5 + 1e-14
            assert abs(values[row, k] / truth - 1) <= bound[row, k] + own, (p, values[row, k], truth)
    return values, bound, counts


def random(N, seed=0, B=1):
    return torch.randn(B, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(N, scale=1.0, seed=0, B=1):
    future = torch.ones(N, N, dtype=torch.bool).triu(1)
    return torch.softmax((scale * random(N, seed, B)).masked_fill(future, -torch.inf), -1)


@pytest.mark.parametrize("N", [1, 2, 3, 5, 16, 17, 31, 33, 48, 65, 100, 129])
def test_log_determinants_are_those_of_the_singular_values(N):
    T, shifts = random(N, seed=N, B=3), [10.0, 1.0, 0.03]
    at = list(range(N + 1))
    logs = log_determinants(T, at, shifts)
    for k, p in enumerate(at):
        sigma = torch.linalg.svdvals(T.tril(-1)[:, p:, :p])
        expected = torch.stack([torch.log1p((sigma / s) ** 2).sum(-1) for s in shifts], 1)
        torch.testing.assert_close(logs[..., k], expected, rtol=1e-8, atol=1e-9)


@given(st.integers(2, 90), st.integers(0, 10**6), st.data())
@settings(max_examples=25, deadline=None)
def test_a_few_splits_in_any_order_are_those_of_all(N, seed, data):
    T = random(N, seed)
    at = data.draw(st.lists(st.integers(0, N), max_size=6))
    every = log_determinants(T, range(N + 1), [1.0, 0.1])
    torch.testing.assert_close(log_determinants(T, at, [1.0, 0.1]), every[..., at], rtol=1e-9, atol=1e-9)


def test_chunks_and_threads_change_nothing(monkeypatch):
    T, shifts = random(70, B=5), [3.0, 1.0, 0.3, 0.1, 0.03]
    whole = log_determinants(T, range(70), shifts)
    threads = torch.get_num_threads()
    monkeypatch.setattr(determinants, "_CHUNK", 1)
    monkeypatch.setattr(determinants, "_LEAF_CHUNK", 600)
    try:
        torch.set_num_threads(3)
        torch.testing.assert_close(log_determinants(T, range(70), shifts), whole, rtol=1e-12, atol=1e-12)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_large_blocks_leave_out_only_what_is_not_read(monkeypatch):
    T = random(150, B=2)
    whole = log_determinants(T, range(150), [1.0, 0.1])
    monkeypatch.setattr(determinants, "_STRIPS", 20)
    torch.testing.assert_close(log_determinants(T, range(150), [1.0, 0.1]), whole, rtol=1e-10, atol=1e-10)


def test_what_is_above_the_diagonal_is_not_read():
    T = random(40)
    full = T + torch.full((40, 40), torch.nan, dtype=torch.float64).triu().nan_to_num(7e99)
    torch.testing.assert_close(
        log_determinants(full, range(40), [1.0]), log_determinants(T, range(40), [1.0])
    )
    assert torch.equal(entropy(full, range(40))[0], entropy(T, range(40))[0])


@pytest.mark.parametrize("target", [-20, -27, -31, -36])
@pytest.mark.parametrize("scales", [(0, 0, 0), (-5, 1, -2), (-9, 0, 0), (-11, 2, -3), (-20, 0, 0)])
def test_the_error_of_a_rule_is_dominated_everywhere(scales, target):
    """On a grid much finer than the rule was made on, for single singular values and for mixtures."""
    rule = _nodes.rule(*scales, target)
    sigma = np.exp(np.linspace(np.log(rule.upper) - 60, np.log(rule.upper), 40_001))
    x = np.column_stack([np.log1p((sigma[:, None] / np.array(rule.shifts)) ** 2), sigma**2])
    sums = x @ rule.sums
    plain, entropic = sums[:, 0] - sigma, sums[:, 1] - sigma * np.log(sigma / rule.centre)
    rounding = 1e-13 * (x @ np.abs(rule.sums)).sum(-1)
    cases = [(plain, rule.wrong_sum, rule.floor_sum)]
    for k, reference in enumerate(rule.references):
        cases.append(
            ((1 + reference) * plain - entropic, rule.wrong_entropy[k], rule.floor_entropy[k]),
        )
    for error, weights, floors in cases:
        # Bounds lean on the sum itself, which may be short by its own error.
        allowed = x @ weights.T + floors + rule.nominal * np.abs(plain)[:, None]
        assert (np.abs(error)[:, None] <= allowed + rounding[:, None]).all()
    assert rule.nominal <= 2.0 ** (target / 2) * 8


CASES = {
    "softmax": lambda N: softmax(N),
    "sharp softmax": lambda N: softmax(N, 6.0),
    "random": lambda N: random(N),
    "ones": lambda N: torch.ones(N, N),
    "mean": lambda N: torch.ones(N, N).tril() / torch.arange(1, N + 1)[:, None],
    "identity": lambda N: torch.eye(N),
    "delay": lambda N: torch.eye(N).roll(3, 0).tril(),
    "delay with a little else": lambda N: torch.eye(N).roll(3, 0).tril() + 1e-9 * random(N)[0],
    "rank 3": lambda N: random(N)[0, :, :3] @ random(N, 1)[0, :3],
    "rank 3 and noise": lambda N: random(N)[0, :, :3] @ random(N, 1)[0, :3] + 1e-7 * random(N, 2)[0],
    "one entry of 1e5": lambda N: random(N)[0].index_put(
        (torch.tensor(N // 2), torch.tensor(N // 4)), torch.tensor(1e5).double()
    ),
    "decaying rows": lambda N: random(N)[0] * torch.logspace(0, -12, N, dtype=torch.float64)[:, None],
    "growing rows": lambda N: random(N)[0] * torch.logspace(-12, 0, N, dtype=torch.float64)[:, None],
    "decaying columns": lambda N: random(N)[0] * torch.logspace(0, -12, N, dtype=torch.float64),
    "growing columns": lambda N: random(N)[0] * torch.logspace(-12, 0, N, dtype=torch.float64),
    "huge": lambda N: random(N)[0] * 1e150,
    "tiny": lambda N: random(N)[0] * 1e-150,
    "from 1e-300 to 1": lambda N: random(N)[0] * torch.logspace(-300, 0, N, dtype=torch.float64)[:, None],
    "beyond what squares hold": lambda N: random(N)[0] * torch.logspace(-150, 150, N, dtype=torch.float64),
    "band": lambda N: random(N)[0].triu(-4),
    "documents": lambda N: torch.block_diag(*[random(N // 4, k)[0] for k in range(4)]),
    "one pole": lambda N: 0.9 ** (torch.arange(N)[:, None] - torch.arange(N)).clamp(min=0).double(),
    "Hilbert": lambda N: 1.0 / (torch.arange(N)[:, None] - torch.arange(N) + 1.0).clamp(min=1).double(),
}


@pytest.mark.parametrize("N", [40, 97])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("few", [0, 32], ids=["nodes", "either"])
def test_the_bound_holds_and_is_kept(name, N, few, monkeypatch):
    monkeypatch.setattr("ess_widgets.metrics.entropy._FEW", few)
    check(CASES[name](N))


@pytest.mark.parametrize("leak", [1e-3, 1e-9, 1e-16, 1e-80])
def test_documents_that_leak_into_each_other(leak):
    T = random(96)
    T[:, 40:, :40] *= leak
    check(T)


@pytest.mark.parametrize("rtol", [1e-2, 1e-5, 1e-6, 1e-8])
@pytest.mark.parametrize("name", ["softmax", "rank 3", "decaying rows", "one pole"])
def test_other_tolerances(name, rtol):
    check(CASES[name](64), rtol)


@given(st.integers(2, 70), st.integers(0, 10**6), st.data())
@settings(max_examples=40, deadline=None)
def test_any_spectrum_at_the_middle(N, seed, data):
    """Clusters, gaps, decays and ties of singular values, chosen by the test."""
    h = N // 2
    exponents = data.draw(st.lists(st.floats(-14, 0), min_size=h, max_size=h))
    sigma = 10 ** torch.tensor(exponents, dtype=torch.float64)
    if data.draw(st.booleans()):
        sigma = sigma.round(decimals=1)
    left, _ = torch.linalg.qr(random(N - h, seed)[0])
    right, _ = torch.linalg.qr(random(h, seed + 1)[0])
    T = random(N, seed + 2)[0] * 10 ** data.draw(st.floats(-9, 3))
    T[h:, :h] = left[:, :h] @ torch.diag(sigma) @ right
    check(T)


@given(st.integers(1, 40), st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_sparse_and_unevenly_scaled(N, seed, density):
    rng = np.random.default_rng(seed)
    T = rng.standard_normal((2, N, N)) * (rng.random((2, N, N)) < density)
    T *= 10 ** rng.uniform(-20, 5, (2, N, 1)) * 10 ** rng.uniform(-5, 5, (2, 1, N))
    check(torch.from_numpy(T))


def test_nothing_remembered_is_exactly_zero():
    T = torch.block_diag(random(20)[0], random(30)[0])
    values, bound = entropy(T[None], [0, 20, 50])
    assert values.tolist() == bound.tolist() == [[0, 0, 0]]
    values, _ = entropy(torch.zeros(2, 9, 9), range(10))
    assert (values == 0).all()
    assert entropy(torch.zeros(0, 9, 9), range(10))[0].shape == (0, 10)
    assert entropy(torch.zeros(1, 1, 1), [])[0].shape == (1, 0)


def test_rank_one_is_exactly_one():
    T = torch.zeros(1, 50, 50)
    T[:, :, 7] = 3.0
    values, bound = entropy(T.tril(), range(50))
    assert values[0].tolist() == [0.0] * 8 + [1.0] * 42 and (bound == 0).all()


def test_numbers_of_very_different_matrices_do_not_mix():
    T = torch.cat([random(64), 1e-120 * random(64, 1), 1e120 * softmax(64), torch.zeros(1, 64, 64).double()])
    together, _ = entropy(T, range(64))
    apart = torch.cat([entropy(one[None], range(64))[0] for one in T])
    torch.testing.assert_close(together, apart, rtol=2e-4, atol=0)
    check(T)


def test_a_dense_head_needs_no_decomposition():
    _, _, counts = check(softmax(160, B=2))
    assert counts["svd"] == 0 and counts["nodes"] + counts["exact"] == 2 * 159


def test_float32_is_taken_as_it_is():
    T = softmax(70).float()
    values, bound = entropy(T, range(70))
    assert values.dtype == bound.dtype == torch.float64
    torch.testing.assert_close(values, entropy(T.double(), range(70))[0], rtol=0, atol=0)


def test_the_matrix_is_left_as_it_was():
    T = random(66)
    before = T.clone()
    entropy(T, range(66))
    assert torch.equal(T, before)
