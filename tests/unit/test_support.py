"""Zeros of a matrix cut the work without changing an answer."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.metrics import support
from ess_widgets.metrics.support import apply, segments


def sigmas(T: Tensor, at: list[int]) -> Tensor:
    """Every singular value of every ``H_p``: a dense route that sees everything."""
    N = T.shape[-1]
    values = [torch.linalg.svdvals(T[:, p:, :p]) for p in at]
    return torch.stack([torch.nn.functional.pad(s, (0, N // 2 - s.shape[-1])) for s in values], dim=1)


def widen(sigma: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(sigma, (0, width - sigma.shape[-1]))


def masks(rng: np.random.Generator, N: int, kind: str) -> np.ndarray:
    """A mask of one of the kinds that occur, or any other."""
    mask = np.tril(np.ones((N, N), dtype=bool))
    i, j = np.indices((N, N))
    if "window" in kind:
        mask &= i - j < rng.integers(1, 8)
    if "chunk" in kind:
        size = rng.integers(2, 12)
        mask &= i // size == j // size
    if "documents" in kind:
        document = np.cumsum(rng.random(N) < 0.15)
        mask &= document[:, None] == document
    if "padding" in kind:
        own = rng.random(N) < 0.6
        mask &= own[:, None] & own
    if "sink" in kind:
        mask[:, 0] = True
    if "delay" in kind:
        mask = i - j == rng.integers(1, 9)
    if "sparse" in kind:
        mask &= rng.random((N, N)) < 0.04
    return mask


KINDS = [
    "dense",
    "window",
    "chunk",
    "documents",
    "padding",
    "sink window",
    "delay",
    "sparse",
    "padding documents window",
]


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**31),
    N=st.integers(1, 72),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    scattered=st.booleans(),
)
def test_the_answer_is_that_of_the_whole(seed: int, N: int, kinds: list[str], scattered: bool) -> None:
    rng = np.random.default_rng(seed)
    T = torch.stack([torch.from_numpy(masks(rng, N, kind) * rng.normal(size=(N, N))) for kind in kinds])
    at = (
        rng.permutation(rng.integers(0, N + 1, size=rng.integers(1, 12))).tolist()
        if scattered
        else list(range(N + 1))
    )
    torch.testing.assert_close(
        widen(apply(sigmas, T, at), N), widen(sigmas(T, at), N), rtol=1e-12, atol=1e-12
    )


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), N=st.integers(2, 40), kind=st.sampled_from(KINDS))
def test_segments_keep_every_row_and_column_that_is_not_zero(seed: int, N: int, kind: str) -> None:
    """Whether or not they pay: what a segment leaves out of ``H_p`` is zero, and every split is in one of them."""
    rng = np.random.default_rng(seed)
    T = torch.from_numpy(masks(rng, N, kind) * rng.normal(size=(N, N)))[None]
    at = rng.permutation(N + 1).tolist()
    parts, _ = support._plan(*support._reach(T), at)
    seen: list[int] = []
    for part in parts:
        splits = [at[n] for n in part.order]
        assert bool((np.diff(part.index) > 0).all())
        assert part.splits.tolist() == np.searchsorted(part.index, splits).tolist()
        seen += splits
        rest = torch.ones(N, dtype=torch.bool)
        rest[part.index] = False
        for p in splits:
            assert not bool(T[0, p:, :p][rest[p:]].any())
            assert not bool(T[0, p:, :p][:, rest[:p]].any())
    assert sorted(seen) == list(range(N + 1))


def recorded(sizes: list[tuple[int, int]]) -> Any:
    def route(T: Tensor, at: list[int]) -> Tensor:
        sizes.append((len(T), T.shape[-1]))
        return sigmas(T, at)

    return route


def test_a_window_becomes_stacks_of_small_matrices() -> None:
    N, w = 512, 16
    T = torch.ones(2, N, N, dtype=torch.float64).tril().triu(1 - w)
    sizes: list[tuple[int, int]] = []
    apply(recorded(sizes), T, list(range(N)))
    assert max(size for _, size in sizes) <= 4 * w
    assert len(sizes) <= 4
    assert sum(count for count, _ in sizes) <= 2 * (N // w + 1)


def test_documents_stay_apart_and_those_of_one_length_together() -> None:
    lengths = [60, 30, 60, 30, 60]
    T = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).double()[None]
    sizes: list[tuple[int, int]] = []
    sigma = apply(recorded(sizes), T, list(range(sum(lengths))))
    assert max(size for _, size in sizes) <= 60
    assert sorted(count for count, _ in sizes) in ([2, 3], [1, 2, 2])
    # The all-ones operator of one document has one singular value.
    expected = torch.cat([(torch.arange(n) * (n - torch.arange(n))).sqrt() for n in lengths]).double()
    torch.testing.assert_close(sigma[0, :, 0], expected)


def test_samples_of_a_batch_may_differ() -> None:
    """Two samples, each with documents that end where the other's do not: the union would hide them."""
    one = torch.block_diag(torch.ones(160, 160), torch.ones(80, 80)).tril().double()
    other = torch.block_diag(torch.ones(80, 80), torch.ones(160, 160)).tril().double()
    dense = torch.ones(240, 240).tril().double()
    T = torch.stack([one, other, one, dense, other])
    at = list(range(0, 240, 8))
    sizes: list[tuple[int, int]] = []
    sigma = apply(recorded(sizes), T, at)
    assert sum(count * size**3 for count, size in sizes) < 0.6 * 5 * 240**3
    torch.testing.assert_close(widen(sigma, 120), sigmas(T, at))


def test_padding_is_left_out() -> None:
    torch.manual_seed(0)
    own = torch.rand(400) < 0.3
    T = torch.randn(2, 400, 400, dtype=torch.float64).tril() * own[:, None] * own
    sizes: list[tuple[int, int]] = []
    at = list(range(0, 400, 7))
    sigma = apply(recorded(sizes), T, at)
    assert max(size for _, size in sizes) <= int(own.sum())
    torch.testing.assert_close(widen(sigma, 200), sigmas(T, at), rtol=1e-12, atol=1e-12)


def test_a_dense_matrix_is_left_whole() -> None:
    T = torch.ones(2, 40, 40).tril()
    assert segments(T, list(range(40))) == []
    sizes: list[tuple[int, int]] = []
    apply(recorded(sizes), T, list(range(40)))
    assert sizes == [(2, 40)]


def test_tuples_and_what_belongs_to_each_matrix() -> None:
    N, w = 256, 8
    torch.manual_seed(0)
    T = torch.randn(3, N, N, dtype=torch.float64).tril().triu(1 - w)
    T[2] = torch.block_diag(*torch.randn(2, N // 2, N // 2, dtype=torch.float64)).tril()
    tau = torch.tensor([[0.5, 1.0], [1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)

    def count(T: Tensor, at: list[int], tau: Tensor) -> tuple[Tensor, Tensor]:
        sigma = sigmas(T, at)
        return (sigma.unsqueeze(-1) > tau[:, None, None]).sum(-2), sigma.amax(-1)

    at = list(range(0, N, 5))
    number, largest = apply(count, T, at, tau)
    expected = count(T, at, tau)
    assert torch.equal(number, expected[0])
    torch.testing.assert_close(largest, expected[1])
    assert len(segments(T[:2], at)) > 1


def test_no_splits_and_a_single_position() -> None:
    assert apply(sigmas_or_empty, torch.ones(2, 5, 5).tril(), []).shape == (2, 0)
    assert apply(sigmas, torch.ones(2, 1, 1), [0, 1]).shape == (2, 2, 0)


def sigmas_or_empty(T: Tensor, at: list[int]) -> Tensor:
    return sigmas(T, at) if at else T.new_zeros(len(T), 0)


def test_a_stack_stays_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_ENTRIES", 2 * 64**2)
    T = torch.randn(1, 512, 512, dtype=torch.float64).tril().triu(-15)
    sizes: list[tuple[int, int]] = []
    at = list(range(512))
    sigma = apply(recorded(sizes), T, at)
    assert all(count * size**2 <= 2 * 64**2 for count, size in sizes)
    torch.testing.assert_close(widen(sigma, 256), sigmas(T, at), rtol=1e-12, atol=1e-12)


def test_a_window_costs_far_less() -> None:
    """Window 64 of 2,048 positions, by a dense route that decomposes every H_p: measured on a sample of splits."""
    N, w = 2048, 64
    torch.manual_seed(0)
    T = torch.randn(1, N, N, dtype=torch.float64).tril().triu(1 - w)
    began = time.process_time()
    apply(sigmas, T, list(range(N)))
    fast = time.process_time() - began
    began = time.process_time()
    sigmas(T, [1024])
    assert fast < N * (time.process_time() - began) / 20
