"""Weights are computed again from queries and keys, whatever calls lie between."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ess_widgets import capture
from ess_widgets.capture.attention.replay import replay, structure
from ess_widgets.capture.interception.tape import Leaves, Tape
from tests.unit.models import forbidden

L = 10
BIAS = (
    torch.randn(L, L, generator=torch.Generator().manual_seed(0)).bfloat16().float()
)  # the same in any precision


def masked(s: Tensor) -> Tensor:
    return s.masked_fill(forbidden(L), -math.inf)


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda s: s * 0.3,
    "divide in place": lambda s: s.div_(2.0),
    "bias": lambda s: s + BIAS.to(s.dtype),
    "bias in place": lambda s: s.add_(BIAS.to(s.dtype), alpha=0.5),
    "cap": lambda s: 4 * torch.tanh(s / 4),
    "float": lambda s: s.float(),
    "half": lambda s: s.to(torch.bfloat16),
    "view": lambda s: s.view(-1, L, L).reshape(s.shape),
    "transpose": lambda s: s.mT.contiguous().transpose(-1, -2),
    "permute": lambda s: s.permute(1, 0, 2, 3).permute(1, 0, 2, 3),
    "split": lambda s: torch.cat(s.chunk(2, dim=-1), -1),
    "unbind": lambda s: torch.stack(s.unbind(1), 1),
    "largest": lambda s: s - s.max(dim=-1, keepdim=True).values,
    "clamp": lambda s: s.clamp(min=-6, max=6),
    "pad": lambda s: nn.functional.pad(s, (0, 1))[..., :-1],
    "where": lambda s: torch.where(BIAS > 1, s * 2, s),
    "clone": lambda s: s.clone(),
    "item": lambda s: s.index_fill(-1, torch.tensor([0]), 0.5),
    "negate twice": lambda s: -(1 - s) + 1,
    "rsub": lambda s: 1 - (1 - s),
}
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda p: nn.functional.dropout(p, 0.5, training=True),
    "cast": lambda p: p.to(torch.float32).to(p.dtype),
    "slice": lambda p: torch.cat([p, p[..., :1]], -1)[..., :-1],
    "head mask": lambda p: p * torch.tensor([1.0, 0.5])[:, None, None].to(p.dtype),
    "reshape": lambda p: p.flatten(0, 1).unflatten(0, (2, 2)),
    "renormalise": lambda p: p / p.sum(-1, keepdim=True),
}


class Chain(nn.Module):
    def __init__(self, before: list[str], after: list[str]) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.mT
        for step in self.before:
            scores = STEPS[step](scores)
        weights = masked(scores).softmax(-1)
        for step in self.after:
            weights = AFTER[step](weights)
        return weights.to(x.dtype) @ x


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(STEPS)), max_size=8), st.lists(st.sampled_from(sorted(AFTER)), max_size=3)
)
def test_replay_in_half_precision_is_replay_in_full_precision(before: list[str], after: list[str]) -> None:
    x = torch.randn(2, 2, L, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    half = capture(Chain(before, after), x)[0]
    # The same from float64 inputs of the same values; its own casts to bfloat16 are left out as well.
    exact = capture(Chain(before, after), x.double())[0]
    assert not half.rounded
    assert half.operator.dtype is torch.float32
    assert exact.operator.dtype is torch.float64
    torch.testing.assert_close(half.operator.matrix().double(), exact.operator.matrix(), atol=1e-5, rtol=1e-4)
    rounding = sum(step == "half" for step in before)
    single = capture(Chain([step for step in before if step != "half"], after), x.float())[0]
    assert single.residual.max() < 1e-5
    torch.testing.assert_close(single.operator.matrix(), half.operator.matrix(), atol=1e-5, rtol=1e-4)
    assert half.residual.max() < 0.1 + rounding


@pytest.fixture
def tape() -> Tape:
    return Tape(Leaves({}))


def start(tape: Tape) -> tuple[Tensor, Tensor]:
    a = torch.randn(3, 3)
    product = a @ a
    tape.start(torch.matmul, "matmul", (a, a), {}, product)
    return a, product


def test_values_are_those_of_the_call(tape: Tape) -> None:
    a, product = start(tape)
    leaves = tape._leaves
    expected = product.clone()
    leaves.before_write(a)
    a.zero_()
    ref = tape.ref(product)
    assert ref is not None
    torch.testing.assert_close(replay(ref, torch.float32), expected)


def test_overwritten_tensors_are_forgotten(tape: Tape) -> None:
    _, product = start(tape)
    assert (
        tape.any_known((product,), {})
        and tape.any_known(([product],), {})
        and tape.any_known((), {"x": product})
    )
    product.view(-1).zero_()
    assert tape.ref(product) is None


def test_entries_die_with_their_tensors(tape: Tape) -> None:
    _, product = start(tape)
    assert len(tape._known) == 1
    del product
    assert not tape._known


def test_structure_ignores_scores(tape: Tape) -> None:
    a, product = start(tape)
    masked = product.masked_fill(forbidden(3), -1e9)
    tape.follow(Tensor.masked_fill, "masked_fill", (product, forbidden(3), -1e9), {}, masked)
    weights = masked.softmax(-1)
    tape.follow(Tensor.softmax, "softmax", (masked, -1), {}, weights)
    a.mul_(1e6)  # some weights underflow, which is no mask
    ref = tape.ref(weights)
    assert ref is not None and ref.node.weights and ref.node.paired
    assert torch.equal(structure(ref), ~forbidden(3))
