"""Gradients of the differentiable measures, against finite differences and autograd through plain formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

import ess_widgets as ew
from ess_widgets.metrics import differentiable, reference
from ess_widgets.metrics.differentiable import entropy_ess, sample_positions, tolerance_surrogate
from ess_widgets.operators import Dense, softmax_attention

unhurried = settings(deadline=None, max_examples=40)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).requires_grad_(grad)


def strictly_lower(entries: Tensor, L: int) -> Tensor:
    """``(..., L (L - 1) / 2)`` free numbers to ``(..., L, L)``: perturbing them keeps the matrix causal."""
    T = torch.zeros(*entries.shape[:-1], L, L, dtype=entries.dtype)
    row, column = torch.tril_indices(L, L, -1)
    T[..., row, column] = entries
    return T


def delay(L: int, k: int) -> Tensor:
    return torch.diag_embed(torch.ones(L - k, dtype=torch.float64), -k)


def test_values_are_those_of_ess() -> None:
    T = random(2, 3, 12, 12, grad=False).tril()
    torch.testing.assert_close(entropy_ess(T), reference.ess(T), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        entropy_ess(T, positions=[5, 0, 5]), reference.ess(T, positions=[5, 0, 5]), rtol=1e-12, atol=1e-12
    )
    for relative in (False, True):
        near = tolerance_surrogate(T, 0.7, width=1e-9, relative=relative)
        count = reference.ess(T, "tolerance", 0.7, relative)
        torch.testing.assert_close(near, count, rtol=0, atol=1e-3)


def test_the_default_width_is_the_degrees_of_freedom_of_ridge_regression() -> None:
    T = random(10, 10, grad=False).tril()
    gram = T[4:, :4] @ T[4:, :4].mT
    expected = torch.trace(gram @ torch.linalg.inv(gram + 0.3**2 * torch.eye(6, dtype=torch.float64)))
    torch.testing.assert_close(tolerance_surrogate(T, 0.3, positions=[4])[0], expected)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("width", [0.1, 0.5, 0.9])
def test_gradient_of_the_surrogate(width: float, relative: bool) -> None:
    entries = random(2, 28)
    gradcheck(
        lambda e: tolerance_surrogate(strictly_lower(e, 8), 0.5, width=width, relative=relative), entries
    )


def test_gradient_of_the_entropy() -> None:
    gradcheck(lambda e: entropy_ess(strictly_lower(e, 8)), random(2, 28))


def test_gradients_at_repeated_singular_values() -> None:
    """Every singular value of ``H_4`` is 1."""

    def square(f: Any) -> Any:
        return lambda block: f(torch.nn.functional.pad(block, (0, 4, 4, 0)))

    block = torch.linalg.qr(random(4, 4, grad=False))[0].requires_grad_()
    gradcheck(square(lambda T: entropy_ess(T, positions=[4])), block)
    gradcheck(square(lambda T: tolerance_surrogate(T, 0.8, positions=[4])), block)
    # The largest one stands alone, the rest are equal.
    U, Vh = (torch.linalg.qr(random(4, 4, seed=seed, grad=False))[0] for seed in (1, 2))
    block = (U * torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64) @ Vh).requires_grad_()
    gradcheck(square(lambda T: tolerance_surrogate(T, 0.4, positions=[4], relative=True)), block)
    gradcheck(square(lambda T: entropy_ess(T, positions=[4])), block)


@pytest.mark.parametrize("width", [0.2, 0.25, 0.5])
def test_gradients_of_the_surrogate_at_singular_values_of_zero(width: float) -> None:
    row, column = torch.tril_indices(9, 9, -1)
    entries = delay(9, 2)[row, column].requires_grad_()
    gradcheck(lambda e: tolerance_surrogate(strictly_lower(e, 9), 0.8, width=width), entries)
    entries = torch.zeros_like(entries, requires_grad=True)
    gradcheck(lambda e: tolerance_surrogate(strictly_lower(e, 9), 0.8, width=width), entries)


def test_gradients_where_the_rank_cannot_rise() -> None:
    """``H_i`` has rank 2 of up to 4: what is zero stays zero, whatever the parameters do."""
    q, k = random(2, 9, 2), random(2, 9, 2, seed=1)
    gradcheck(lambda q, k: entropy_ess((q @ k.mT).tril()), (q, k))
    gradcheck(lambda q, k: tolerance_surrogate((q @ k.mT).tril(), 0.5), (q, k))


@pytest.mark.parametrize(
    "f", [entropy_ess, tolerance_surrogate, lambda T: tolerance_surrogate(T, relative=True)]
)
def test_zero_operators_have_no_gradient(f: Any) -> None:
    T = torch.zeros(2, 7, 7, requires_grad=True)
    value = f(T)
    assert not value.any()
    value.sum().backward()
    assert T.grad is not None and not T.grad.any()


@st.composite
def adversarial(draw: st.DrawFn) -> Tensor:
    """Repeated, zero, huge and tiny singular values."""
    L = draw(st.integers(1, 12))
    T = random(2, L, L, seed=draw(st.integers(0, 10**6)), grad=False)
    kind = draw(st.sampled_from(["rank 1", "sparse", "graded", "delay", "ones", "huge", "tiny"]))
    if kind == "rank 1":
        T = T[..., :1] @ T[..., :1].mT
    elif kind == "sparse":
        T = T * (torch.rand(2, L, L, generator=generator()) < 0.2)
    elif kind == "graded":
        T = T * torch.logspace(-150, 150, L, dtype=torch.float64)
    elif kind == "delay":
        T = torch.eye(L, dtype=torch.float64).roll(1, 0).expand(2, L, L)
    elif kind == "ones":
        T = torch.ones_like(T)
    else:
        T = T * (1e200 if kind == "huge" else 1e-300)
    return T.tril()


@unhurried
@given(adversarial(), st.booleans(), st.sampled_from([0.05, 0.5, 0.95]), st.sampled_from([1e-3, 1.0]))
def test_values_and_gradients_are_always_finite(T: Tensor, relative: bool, width: float, tol: float) -> None:
    T = T.clone().requires_grad_()
    for value in (entropy_ess(T), tolerance_surrogate(T, tol, width=width, relative=relative)):
        assert value.shape == T.shape[:-1]
        assert bool(torch.isfinite(value).all()) and bool((value >= 0).all())
        assert bool((value <= ew.ceiling(T) * (1 + 1e-9)).all())
        (gradient,) = torch.autograd.grad(value.sum(), T)
        assert bool(torch.isfinite(gradient).all())
        assert not gradient.triu().any()


def test_both_ways_of_keeping_the_singular_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    T = random(2, 10, 10, grad=False).tril().requires_grad_()
    weights = torch.rand(2, 10, generator=generator(), dtype=torch.float64)
    weights[:, 6] = 0

    def gradient() -> Tensor:
        return torch.autograd.grad((entropy_ess(T) * weights).sum(), T)[0]

    kept = gradient()
    for room in (0, 200):
        monkeypatch.setattr(differentiable, "_KEEP", room)
        torch.testing.assert_close(gradient(), kept, rtol=1e-12, atol=1e-14)


def test_float32_is_worked_on_in_float64() -> None:
    T = random(2, 16, 16, grad=False).tril().float()
    single, double = T.clone().requires_grad_(), T.double().requires_grad_()
    values = [entropy_ess(part) + tolerance_surrogate(part, 0.1) for part in (single, double)]
    assert values[0].dtype == torch.float64
    assert torch.equal(*values)
    for value in values:
        value.sum().backward()
    assert single.grad is not None and double.grad is not None
    assert single.grad.dtype == torch.float32
    torch.testing.assert_close(single.grad, double.grad.float(), rtol=1e-6, atol=1e-9)


def test_through_an_operator() -> None:
    q, k = random(1, 2, 8, 4), random(1, 2, 8, 4, seed=1)
    op = softmax_attention(q, k)
    entropy_ess(op).sum().backward()
    assert q.grad is not None and bool((q.grad != 0).any())
    torch.testing.assert_close(entropy_ess(op), reference.ess(op), rtol=1e-10, atol=1e-10)


def test_blocks_of_several_channels() -> None:
    T = random(2, 12, 12, grad=False)
    position = torch.arange(12) // 3
    T = (T * (position[:, None] >= position)).requires_grad_()
    op = Dense(T, block=3)
    value = entropy_ess(op)
    assert value.shape == (2, 4)
    torch.testing.assert_close(
        value, reference.ess(T.detach().tril(), positions=[0, 3, 6, 9]), rtol=1e-12, atol=1e-12
    )
    value.sum().backward()
    assert T.grad is not None and not T.grad[..., :3, :].any()
    surrogate = tolerance_surrogate(op, 0.5, positions=[2])
    assert surrogate.shape == (2, 1)


def test_descending_makes_an_operator_forget() -> None:
    T = random(12, 12, grad=False).tril().requires_grad_()
    before = tolerance_surrogate(T, 0.5).sum().item()
    optimiser = torch.optim.Adam([T], lr=0.02)
    for _ in range(100):
        optimiser.zero_grad()
        tolerance_surrogate(T, 0.5).sum().backward()
        optimiser.step()
    assert tolerance_surrogate(T, 0.5).sum().item() < before / 2


def test_differentiating_twice_is_refused() -> None:
    T = random(6, 6, grad=False).tril().requires_grad_()
    (gradient,) = torch.autograd.grad(entropy_ess(T).sum(), T, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        gradient.sum().backward()


def test_what_needs_no_gradient_gets_no_graph() -> None:
    T = random(6, 6, grad=False).tril()
    assert not entropy_ess(T).requires_grad
    with torch.no_grad():
        assert not entropy_ess(T.clone().requires_grad_()).requires_grad


def test_sampled_positions_estimate_the_mean_without_bias() -> None:
    source = generator()
    for L, count in ((2, 1), (10, 9), (10, 4), (17, 5)):
        seen = torch.zeros(L)
        for _ in range(4000):
            positions = sample_positions(L, count, generator=source)
            assert positions == sorted(set(positions)) and len(positions) == count
            seen[positions] += 1
        expected = 4000 * count / (L - 1)
        assert seen[0] == 0
        assert bool(((seen[1:] - expected).abs() <= 6 * math.sqrt(expected)).all())


def test_clear_errors() -> None:
    T = torch.ones(5, 5).tril()
    with pytest.raises(ValueError, match="width must be a number above 0 and below 1, but is 1"):
        tolerance_surrogate(T, width=1)
    with pytest.raises(ValueError, match="tol must be positive"):
        tolerance_surrogate(T, 0.0)
    with pytest.raises(ValueError, match="position 5 is out of range"):
        entropy_ess(T, positions=[5])
    with pytest.raises(ValueError, match="half precision"):
        entropy_ess(T.bfloat16())
    with pytest.raises(ValueError, match="not causal"):
        entropy_ess(torch.ones(5, 5))
    with pytest.raises(ValueError, match="between 1 and length - 1 = 4"):
        sample_positions(5, 5, generator=generator())
