"""Profiles that get finer: bounds that hold at every step, and the whole profile in the end."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ess_widgets.metrics import Partial, anytime, ceiling, ess
from ess_widgets.operators import Dense, softmax_attention


@settings(deadline=None, max_examples=25)
@given(
    L=st.integers(1, 90),
    seed=st.integers(0, 10**6),
    tol=st.sampled_from([1e-3, 1e-1, 1.0]),
    asked=st.sampled_from([("tolerance", False), ("tolerance", True), ("entropy", False)]),
)
def test_bounds_hold_and_the_last_step_is_the_whole(
    L: int, seed: int, tol: float, asked: tuple[str, bool]
) -> None:
    kind, relative = asked
    random = torch.Generator().manual_seed(seed)
    q, k = 2 * torch.randn(2, 2, L, 6, generator=random, dtype=torch.float64)
    op = softmax_attention(q, k)
    whole = ess(op, kind, tol, relative)
    steps = list(anytime(op, kind, tol, relative))
    before = None
    for step in steps:
        assert isinstance(step, Partial)
        assert ((step.lower <= whole + 1e-3) & (whole <= step.upper + 1e-3)).all()
        assert (step.upper <= ceiling(op)).all() or kind == "entropy"
        assert torch.equal(step.values.isnan().all(dim=0), ~step.known)
        if before is not None:
            assert (step.known >= before.known).all() and step.known.sum() > before.known.sum()
            assert (step.upper - step.lower <= before.upper - before.lower).all()
        before = step
    assert before is not None and before.known.all()
    torch.testing.assert_close(before.values, whole, rtol=1e-4, atol=0)


def test_what_neighbours_imply_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("ess_widgets.metrics.anytime")  # the package gives its name to the function
    asked: list[int] = []
    computed = module.profile

    def watched(op, kind, tol, relative, positions, **options):  # type: ignore[no-untyped-def]
        asked.extend(positions)
        return computed(op, kind, tol, relative, positions, **options)

    monkeypatch.setattr(module, "profile", watched)
    # Full rank all along: wherever the ceiling's slope is 1, two points settle what lies between.
    T = torch.randn(128, 128, dtype=torch.float64).tril()
    *_, last = anytime(T, "tolerance", 1e-12)
    assert len(asked) < 32
    assert torch.equal(last.values, ceiling(T).double())


def test_stopping_computes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("ess_widgets.metrics.anytime")  # the package gives its name to the function
    calls = 0
    computed = module.profile

    def watched(*args, **options):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return computed(*args, **options)

    monkeypatch.setattr(module, "profile", watched)
    steps = anytime(torch.ones(100, 100).tril(), "tolerance")
    assert calls == 0
    next(steps)
    assert calls == 1


def test_several_rows_per_position() -> None:
    T = torch.randn(60, 60, dtype=torch.float64).tril()
    op = Dense(T, block=2)
    *_, last = anytime(op, "tolerance", 0.5)
    assert torch.equal(last.values, ess(op, "tolerance", 0.5))


def test_bad_arguments_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        anytime(torch.eye(3), "rank")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tol must be positive"):
        anytime(torch.eye(3), "tolerance", -1.0)
    with pytest.raises(ValueError, match="not causal"):
        anytime(torch.ones(3, 3))
