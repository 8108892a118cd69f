"""The residual: what it measures, and that a wrong operator shows in it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets import capture
from ess_widgets.capture import LayerCapture, residual
from ess_widgets.operators import Deferred, Dense, softmax_attention

BATCH, HEADS, GROUPS, L, D = 2, 6, 3, 12, 8


class Grouped(nn.Module):
    """Grouped-query attention in a window, with a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, n * D) for n in (HEADS, GROUPS, GROUPS))
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, D)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mask = torch.ones(L, L, dtype=torch.bool).tril() & torch.ones(L, L, dtype=torch.bool).triu(-4)
        self.seen.update(q=q, k=k, v=v, mask=mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.7, enable_gqa=True)


@pytest.fixture
def grouped() -> tuple[LayerCapture, dict[str, Any]]:
    torch.manual_seed(0)
    model, x = Grouped(), 2 * torch.randn(BATCH, L, 16)
    with torch.no_grad():
        model(x)
    return capture(model, x)[0], model.seen


def again(layer: LayerCapture, q: Tensor, k: Tensor, **options: Any) -> Tensor:
    return residual(softmax_attention(q, k, **options), layer.inputs, layer.outputs)


def test_the_true_operator(grouped: tuple[LayerCapture, dict[str, Any]]) -> None:
    layer, seen = grouped
    assert layer.residual.shape == (BATCH, HEADS)
    assert layer.residual.max() < 1e-6
    error = again(layer, seen["q"], seen["k"], mask=seen["mask"], scale=0.7)
    torch.testing.assert_close(error, layer.residual)
    torch.testing.assert_close(layer.inputs, seen["v"].repeat_interleave(2, dim=1))


@pytest.mark.parametrize(
    "fault", ["mask", "one entry of the mask", "scale", "grouping", "keys", "queries", "shift"]
)
def test_planted_faults_show(grouped: tuple[LayerCapture, dict[str, Any]], fault: str) -> None:
    layer, seen = grouped
    q, k, options = seen["q"], seen["k"], {"mask": seen["mask"], "scale": 0.7}
    if fault == "mask":
        options["mask"] = torch.ones(L, L, dtype=torch.bool).tril()
    elif fault == "one entry of the mask":
        options["mask"] = seen["mask"].clone()
        options["mask"][-1, -2] = False
    elif fault == "scale":
        options["scale"] = 1 / math.sqrt(D)
    elif fault == "grouping":
        k = k.repeat(1, 2, 1, 1)  # heads interleaved the other way round
    elif fault == "keys":
        k = seen["v"]
    elif fault == "queries":
        q = q.flip(1)
    else:
        k = k.roll(1, dims=2)
    error = again(layer, q, k, **options)
    assert error.max() > 1e-3
    if fault != "one entry of the mask":
        assert error.max() > 0.05
    if fault == "grouping":
        assert error[:, [0, -1]].max() < 1e-6  # these two are served by the right keys


def test_one_wrong_head_is_pointed_at(grouped: tuple[LayerCapture, dict[str, Any]]) -> None:
    layer, _ = grouped
    T = layer.operator.matrix()
    T[1, 4] *= 1.1
    error = residual(Dense(T), layer.inputs, layer.outputs)
    assert error[1, 4] == pytest.approx(0.1, rel=1e-4)
    error[1, 4] = 0
    assert error.max() < 1e-6


def test_own_tokens_alone_count() -> None:
    T = torch.rand(2, 3, 5, 5).tril()
    u = torch.randn(2, 3, 5, 4)
    y = T @ u
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[0, 3:] = False
    u[0, :, 3:] = torch.nan
    y[0, :, 3:] = torch.nan
    assert residual(Dense(T), u, y, valid).max() < 1e-6
    valid[0] = False
    assert not residual(Dense(T), u, y, valid)[0].any()


def test_zero_outputs() -> None:
    zero, u = torch.zeros(1, 2, 4, 3), torch.randn(1, 2, 4, 3)
    assert not residual(Dense(torch.zeros(1, 2, 4, 4)), u, zero).any()
    assert residual(Dense(torch.ones(1, 2, 4, 4).tril()), u, zero).isinf().all()


def test_large_operators_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from ess_widgets.capture import residual as module

    torch.manual_seed(0)
    q, k, u = torch.randn(2, 5, 16, 4), torch.randn(2, 5, 16, 4), torch.randn(2, 5, 16, 3)
    operator = softmax_attention(q, k)
    y = operator.matrix() @ u * torch.linspace(1, 2, 5)[:, None, None]
    whole = residual(operator, u, y)
    built: list[torch.Size] = []
    original = type(operator).matrix
    monkeypatch.setattr(type(operator), "matrix", lambda self: built.append(self.shape) or original(self))
    monkeypatch.setattr(__import__("sys").modules[module.__module__], "_CHUNK", 2 * 16 * 16)
    torch.testing.assert_close(residual(operator, u, y), whole)
    assert max(shape[0] for shape in built) == 2 and len(built) == 6
    deferred = Deferred(operator.matrix, shape=operator.shape, dtype=operator.dtype, device="cpu")
    torch.testing.assert_close(residual(deferred, u, y), whole)
