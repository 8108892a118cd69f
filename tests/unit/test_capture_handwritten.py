"""Attention classes that the package has never seen are found by the calls they make."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ess_widgets import capture
from tests.unit.models import UNSEEN, Heads, Merged, TimeFirst, forbidden


def by_hand(module: Heads, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and values ``(batch, heads, L, dim)``, for plain attention."""
    q, k, v = module.split(x)
    scores = (q @ k.mT / math.sqrt(module.dim)).masked_fill(forbidden(x.shape[1]), -math.inf)
    return scores.softmax(-1), v


@pytest.mark.parametrize("kind", UNSEEN, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_operator_reproduces_output(kind: type[Heads], batch: int) -> None:
    torch.manual_seed(1)
    module = kind().eval()
    layer = capture(module, torch.randn(batch, 9, 16))[0]
    T = layer.operator.matrix()
    assert T.shape == (batch, 4, 9, 9)
    assert layer.inputs.shape == layer.outputs.shape == (batch, 4, 9, 4)
    assert T.dtype is torch.float32
    assert torch.equal(T, T.tril())
    live = layer.outputs.flatten(2).norm(dim=-1) > 0
    assert layer.residual[live].max() < 1e-6
    assert not layer.rounded


@pytest.mark.parametrize("kind", UNSEEN, ids=lambda kind: kind.__name__)
def test_half_precision_goes_back_to_queries_and_keys(kind: type[Heads]) -> None:
    torch.manual_seed(2)
    module = kind().eval().to(torch.bfloat16)
    layer = capture(module, torch.randn(2, 24, 16).bfloat16())[0]
    T = layer.operator.matrix()
    assert T.dtype is torch.float32
    live = layer.outputs.flatten(2).norm(dim=-1) > 0
    assert layer.residual[live].max() < 1e-2
    assert not layer.rounded
    # Rounded weights would have rows that sum to 1 within 1e-3 at best.
    rows = T.sum(-1)[:, :3]
    if kind.__name__ != "Sink":
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", UNSEEN, ids=lambda kind: kind.__name__)
def test_double_precision(kind: type[Heads]) -> None:
    torch.manual_seed(2)
    layer = capture(kind().double(), torch.randn(2, 7, 16).double())[0]
    assert layer.operator.matrix().dtype is torch.float64
    live = layer.outputs.flatten(2).norm(dim=-1) > 0
    assert layer.residual[live].max() < (1e-6 if kind.__name__ == "Einsum" else 1e-13)


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_merged_batch_and_heads_are_told_apart(heads_first: bool, batch: int) -> None:
    torch.manual_seed(3)
    module = Merged(heads_first=heads_first).eval()
    x = torch.randn(batch, 6, 16)
    layer = capture(module, x)[0]
    weights, values = by_hand(module, x)
    torch.testing.assert_close(layer.operator.matrix(), weights)
    torch.testing.assert_close(layer.inputs, values)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("heads_first", [False, True])
def test_time_first(batch: int, heads_first: bool) -> None:
    torch.manual_seed(3)
    module = TimeFirst(Merged(heads_first=heads_first)).eval()
    x = torch.randn(7, batch, 16)
    layer = capture(module, x)[0]
    torch.testing.assert_close(layer.operator.matrix(), by_hand(module.inner, x.transpose(0, 1))[0])


class Written(nn.Module):
    """Attention with queries that are keys, written by a function of scores and values."""

    def __init__(self, attend: Any) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x @ x.mT, x, forbidden(x.shape[1]))


def through_a_view(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    scores.view(-1, *mask.shape).masked_fill_(mask, -math.inf)  # writes to scores behind their back
    return scores.softmax(-1) @ x


def through_data(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    scores.data.masked_fill_(mask, -math.inf)
    return scores.softmax(-1) @ x


def data_replaced(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    scores.data = scores.masked_fill(mask, -math.inf)
    return scores.softmax(-1) @ x


def keys_in_another_order(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    weights = scores.mT.masked_fill(mask.mT, -math.inf).softmax(-2)  # (keys, queries)
    return torch.einsum("bkq,bkd->bqd", weights, x)


def softmax_with_dtype(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(scores.masked_fill(mask, -math.inf), dim=-1, dtype=torch.float64).to(x.dtype) @ x


def out_argument(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    fresh = torch.empty_like(scores)
    torch.bmm(x, x.mT, out=fresh)
    return torch.bmm(fresh.masked_fill(mask, -math.inf).softmax(-1), x)


def writes_to_keys_afterwards(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    keys = x.clone()
    y = (x @ keys.mT).masked_fill(mask, -math.inf).softmax(-1) @ x
    keys.zero_()
    return y


def writes_to_output_afterwards(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    y = scores.masked_fill(mask, -math.inf).softmax(-1) @ x
    return y.mul_(3).add_(1)


def numpy_free_unknown_call(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    weights = scores.masked_fill(mask, -math.inf).softmax(-1)
    return torch.special.expit(torch.logit(weights)) @ x  # calls that are not on any list


class Fn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(mask, -math.inf).softmax(-1)


def autograd_function(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return Fn.apply(scores, mask) @ x


def log_softmax(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return torch.log_softmax(scores.masked_fill(mask, -math.inf), -1).exp() @ x


def softcap(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return (5 * torch.tanh(scores / 5)).masked_fill(mask, -math.inf).softmax(-1) @ x


def einsum_with_ellipsis(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return torch.einsum("...ij,...jd->...id", scores.masked_fill(mask, -math.inf).softmax(-1), x)


def top_keys_only(scores: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    scores = scores.masked_fill(mask, -math.inf)
    least = scores.topk(3, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < least, -math.inf).softmax(-1) @ x


WAYS = (
    through_a_view,
    through_data,
    data_replaced,
    keys_in_another_order,
    softmax_with_dtype,
    out_argument,
    writes_to_keys_afterwards,
    writes_to_output_afterwards,
    numpy_free_unknown_call,
    autograd_function,
    log_softmax,
    softcap,
    einsum_with_ellipsis,
    top_keys_only,
)


@pytest.mark.parametrize("attend", WAYS, ids=lambda attend: attend.__name__)
def test_ways_to_write_it(attend: Any) -> None:
    torch.manual_seed(4)
    x = torch.randn(3, 8, 5)
    before = x.clone()
    layer = capture(Written(attend), x)[0]
    assert layer.operator.shape == (3, 1, 8, 8)
    assert layer.residual.max() < 1e-6
    assert torch.equal(x, before)


def test_weights_that_cannot_be_traced_are_marked_in_half_precision() -> None:
    x = torch.randn(2, 8, 5).bfloat16()
    assert capture(Written(numpy_free_unknown_call), x)[0].rounded
    assert not capture(Written(softcap), x)[0].rounded
    assert not capture(Written(numpy_free_unknown_call), x.float())[0].rounded


class NotAttention(nn.Module):
    """Softmaxes that are something else: a router, features of linear attention, an expected embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.table = nn.Linear(6, 6), nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.route(x).softmax(-1), self.route(x).softmax(-2)
        linear = q @ (k.mT @ x)
        scores = x @ x.mT
        columns = scores.softmax(-2) * 2
        return linear + columns @ x + self.route(x).softmax(-1) @ self.table


def test_other_softmaxes_are_left_alone() -> None:
    with pytest.raises(ValueError, match="Looked for"):
        capture(NotAttention(), torch.randn(2, 9, 6))
