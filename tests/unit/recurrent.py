"""What the tests of recurrent families share: random tensors, plain loops, comparisons, small models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.operators import Operator

F64 = torch.float64
Names = dict[str, Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def decays(*shape: int, seed: int = 0) -> Tensor:
    """Decays between 1e-12 and 1 on a logarithmic scale, some exactly 0 and some exactly 1."""
    value = 10.0 ** (-12.0 * rand(*shape, seed=seed) ** 3)
    which = rand(*shape, seed=seed + 1)
    return torch.where(which < 0.1, 0.0, torch.where(which > 0.8, 1.0, value))


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """A length, a number of features and a seed."""
    return draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.integers(0, 10_000))


def assert_outputs(op: Operator, u: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    """``T u`` equals the outputs of a plain loop, up to rounding in the terms that each output sums."""
    T = op.matrix()
    assert T.dtype is F64
    assert bool(torch.isfinite(T).all())
    allowed = rtol * (T.abs() @ u.abs() + expected.abs()) + 1e-290
    worst = ((T @ u - expected).abs() / allowed).max()
    assert worst <= 1, f"{float(worst):.3g} times the allowed difference"


def assert_same(a: Tensor, b: Tensor, rtol: float) -> None:
    """Equal up to ``rtol`` of the largest entry."""
    worst = (a.double() - b.double()).abs().max() / b.double().abs().max()
    assert worst <= rtol, f"relative difference {float(worst):.3g}"


def matrix_state(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """``S_t = Diag(a_t) S_{t-1} + k_t v_tᵀ``, ``o_t = q_tᵀ S_t``, position by position, for one head."""
    S = torch.zeros(k.shape[-1], v.shape[-1], dtype=F64)
    outputs = []
    for t in range(len(q)):
        S = a[t, :, None] * S + k[t, :, None] * v[t, None, :]
        outputs.append(q[t] @ S)
    return torch.stack(outputs)


def assert_padding_is_absent(
    make: Callable[..., Operator], per_position: dict[str, tuple[Tensor, int]], **fixed: Any
) -> None:
    """Own tokens mix as if padding were not there, whatever it holds.

    ``per_position`` gives each argument that has positions and the axis they lie on.
    """
    L = next(iter(value.shape[axis] for value, axis in per_position.values()))
    own = torch.arange(L) % 4 != 1
    own[:2] = False
    clean = {
        name: value.index_select(axis, own.nonzero()[:, 0]) for name, (value, axis) in per_position.items()
    }
    dirty = {}
    for name, (value, axis) in per_position.items():
        shape = [1] * value.ndim
        shape[axis] = L
        dirty[name] = torch.where(own.view(shape), value, torch.nan if value.is_floating_point() else True)
    expected = make(**clean, **fixed).matrix()
    op = make(**dirty, **fixed, valid=own)
    T = op.matrix()
    assert_same(T[..., own, :][..., own], expected, 1e-13)
    assert not bool(T[..., ~own, :].any()) and not bool(T[..., ~own].any())
    assert int(op.state_size.max()) <= int(own.sum()) - 1


def rank(op: Operator) -> Tensor:
    """Tolerance-ESS at a tolerance that only rounding falls below."""
    return ew.metrics.reference.ess(op.matrix(), kind="tolerance", tol=1e-11, relative=True)


def capped(n: int, L: int) -> Tensor:
    """``min(n, i, L - i)``, and 0 at position 0."""
    i = torch.arange(L)
    return torch.minimum(i, L - i).clamp(max=n).to(F64)


class Seen:
    """Inputs and outputs of a module's parts during one forward pass."""

    def __init__(self) -> None:
        self.args: dict[str, tuple[Any, ...]] = {}
        self.kwargs: dict[str, dict[str, Any]] = {}
        self.out: dict[str, Any] = {}


@contextlib.contextmanager
def watch(module: nn.Module, *names: str) -> Iterator[Seen]:
    seen = Seen()

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen.args[name], seen.kwargs[name], seen.out[name] = args, kwargs, output

        return keep

    parts = [module.get_submodule(name) for name in names]
    handles = [
        part.register_forward_hook(hook(name), with_kwargs=True)
        for name, part in zip(names, parts, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def randomise(module: nn.Module, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Random values for every parameter, so that nothing is zero, equal or at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, scale, generator=generator)
    return module.eval()
