"""Threads and memory: what the metrics do where these are short."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from ess_widgets.metrics import _svd, spectra
from ess_widgets.operators import Dense, Operator

GPU = torch.device("cuda")


class OnGpu(Tensor):
    """A tensor that says it is on a GPU; what is computed from it says so too."""

    device = property(lambda self: GPU)  # type: ignore[assignment]

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Host)  # type: ignore[return-value]


class Host(Tensor):
    """A tensor that can be sent to that GPU."""

    def to(self, target: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(OnGpu) if target == GPU else super().to(target)  # type: ignore[return-value]


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let decompositions on the GPU fit one matrix of up to 5 columns; returns the batch sizes that were tried."""
    tried = []
    real = torch.linalg.svdvals

    def svdvals(H: Tensor) -> Tensor:
        if isinstance(H, OnGpu):
            tried.append(H.shape[0])
            if H.shape[0] > 2 or H.shape[-1] > 5:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(H)

    monkeypatch.setattr(torch.linalg, "svdvals", svdvals)
    return tried


def test_a_batch_too_large_for_the_gpu_is_halved(
    small_gpu: list[int], recwarn: pytest.WarningsRecorder
) -> None:
    H = torch.randn(7, 6, 4)
    sigma = _svd.singular_values(H.as_subclass(OnGpu))
    assert isinstance(sigma, OnGpu)
    assert small_gpu == [7, 3, 1, 2, 4, 2, 2]
    assert torch.equal(sigma.as_subclass(Tensor), torch.linalg.svdvals(H.double()))
    assert not recwarn.list


def test_a_matrix_too_large_for_the_gpu_goes_to_the_cpu(small_gpu: list[int]) -> None:
    H = torch.randn(2, 6, 9)
    with pytest.warns(
        RuntimeWarning, match="cuda has no memory left for the singular values of one 6 x 9 matrix"
    ):
        sigma = _svd.singular_values(H.as_subclass(OnGpu))
    assert isinstance(sigma, OnGpu)
    torch.testing.assert_close(
        sigma.as_subclass(Tensor), torch.linalg.svdvals(H.double()), rtol=1e-13, atol=0
    )


class TooLarge(Dense):
    """An operator that its device has no memory for."""

    place = GPU

    @property
    def device(self) -> torch.device:
        return self.place

    def matrix(self) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    def to(self, device: torch.device | str) -> Operator:  # type: ignore[override]
        return Dense(super().matrix())


def test_an_operator_too_large_for_the_gpu_is_formed_on_the_cpu() -> None:
    T = torch.randn(4, 4).tril()
    with pytest.warns(RuntimeWarning, match=r"cuda has no memory left for an operator of shape \(4, 4\)"):
        assert torch.equal(_svd.materialise(TooLarge(T)), T)


def test_a_cpu_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def svdvals(H: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.linalg, "svdvals", svdvals)
    with pytest.raises(torch.OutOfMemoryError):
        _svd.singular_values(torch.ones(2, 3, 3))
    monkeypatch.setattr(TooLarge, "place", torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        _svd.materialise(TooLarge(torch.eye(3)))


def test_threads_are_the_callers_own_between_steps() -> None:
    before = torch.get_num_threads()
    seen = []

    def count(threads: int) -> None:
        torch.set_num_threads(threads)
        for _ in spectra(torch.randn(16, 16).tril(), chunk=5):
            seen.append(torch.get_num_threads())

    for threads in (3, before):
        worker = threading.Thread(target=count, args=(threads,))
        worker.start()
        worker.join()
    assert seen == [3] * 4 + [before] * 4
    assert torch.get_num_threads() == before


def test_one_thread_computes_and_others_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither threads that run already nor those that start meanwhile are restricted."""
    seen: dict[str, set[int]] = {"own": set(), "new": set()}
    real = torch.linalg.svdvals

    def note(who: str) -> None:
        seen[who].add(torch.get_num_threads())

    def in_a_thread(target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        thread.start()
        thread.join()

    def svdvals(H: Tensor) -> Tensor:
        note("own")
        in_a_thread(note, "new")
        return real(H)

    def work() -> None:
        torch.set_num_threads(3)
        list(spectra(torch.randn(8, 8).tril()))

    monkeypatch.setattr(torch.linalg, "svdvals", svdvals)
    before = torch.get_num_threads()
    try:
        in_a_thread(work)
    finally:
        # What threads start with, which the worker has set.
        in_a_thread(torch.set_num_threads, before)
    assert seen == {"own": {1}, "new": {3}}
    assert torch.get_num_threads() == before
