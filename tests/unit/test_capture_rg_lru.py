"""RG-LRU in live models: RecurrentGemma's, and a unit with the parameters of Griffin's own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture.errors import CaptureError
from ess_widgets.capture.families import rg_lru
from tests.unit import hybrids

B, L, WIDTH, HEADS = 2, 13, 8, 2
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
FAMILY = "gated linear recurrence"


class Gate(nn.Module):
    """Block-diagonal, as ``BlockDiagonalLinear``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, WIDTH // HEADS))
        self.b = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.einsum("blhi,hij->blhj", x.unflatten(-1, (HEADS, -1)), self.w) + self.b).flatten(-2)


class Unit(nn.Module):
    """Griffin's ``RGLRU``: returns the outputs and the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.a_param = nn.Parameter(torch.randn(WIDTH))
        self.input_gate, self.a_gate = Gate(), Gate()

    def forward(self, x: Tensor, segment_pos: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        reset = (segment_pos == 0)[..., None]
        log_a = -8.0 * torch.sigmoid(self.a_gate(x)) * F.softplus(self.a_param)
        entering = (
            torch.where(reset, 1.0, torch.sqrt(1 - torch.exp(2 * log_a)))
            * torch.sigmoid(self.input_gate(x))
            * x
        )
        a = torch.exp(log_a) * ~reset
        state = torch.zeros_like(x[:, 0], dtype=torch.float32) if cache is None else cache
        ys = []
        for t in range(x.shape[1]):
            state = a[:, t].float() * state + entering[:, t].float()
            ys.append(state.to(x.dtype))
        return torch.stack(ys, 1), state


def positions(*starts: int) -> Tensor:
    where = torch.arange(L)
    for start in starts:
        where[start:] = torch.arange(L - start)
    return where.expand(B, L)


def layers(cap: Any) -> list[Any]:
    return [layer for layer in cap.values() if layer.family == FAMILY]


@pytest.mark.parametrize("dtype", list(LIMIT), ids=lambda d: str(d)[6:])
def test_recurrent_gemma(dtype: torch.dtype) -> None:
    model, ids = hybrids.build("recurrent_gemma", dtype), hybrids.tokens()
    for given in (
        {},
        {"use_cache": False},
        *({"attention_mask": hybrids.padding(w)} for w in ("left", "right")),
    ):
        cap = ew.capture(model, ids, **given)
        assert [k for k, v in cap.items() if v.family == FAMILY] == list(hybrids.MIXERS["recurrent_gemma"])
        for layer in layers(cap):
            assert (
                layer.operator.shape == (2, 16, hybrids.LENGTH, hybrids.LENGTH) and layer.group == "channel"
            )
            assert layer.residual.max() < LIMIT[dtype]
        assert sum("attention" in v.family for v in cap.values()) == 1


def test_padding_that_the_unit_reads_is_no_padding() -> None:
    model, ids = hybrids.build("recurrent_gemma"), hybrids.tokens()
    for where, own in (("left", None), ("hole", None), ("right", 5)):
        mask = hybrids.padding(where)
        for layer in layers(ew.capture(model, ids, attention_mask=mask)):
            assert (layer.valid is None) == (own is None)
            rows = layer.operator.matrix()[0, :, -5:]
            assert bool(rows.any()) == (own is None)


def test_against_the_gates_by_hand() -> None:
    model, ids, seen = hybrids.build("recurrent_gemma"), hybrids.tokens(), {}
    unit = model.model.layers[1].temporal_block.rg_lru
    unit.register_forward_hook(lambda m, args, out: seen.update(u=args[0], y=out))
    with torch.no_grad():
        model(ids, use_cache=False)
    layer = layers(ew.capture(model, ids))[1]
    u = seen["u"].double()
    heads = u.unflatten(-1, (4, 4))

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.sigmoid(torch.einsum("blhi,hij->blhj", heads, weight.double()) + bias.double()).flatten(
            -2
        )

    i, r = (
        gate(unit.input_gate_weight, unit.input_gate_bias),
        gate(unit.recurrent_gate_weight, unit.recurrent_gate_bias),
    )
    op = ew.operators.rg_lru(r.mT, i.mT, unit.recurrent_param.double())
    torch.testing.assert_close(layer.operator.matrix(), op.matrix(), atol=1e-5, rtol=1e-4)
    y = layer.operator.matrix() @ u.mT[..., None]
    torch.testing.assert_close(y.squeeze(-1).mT.float(), seen["y"], atol=1e-6, rtol=1e-5)
    assert layer.state_size.tolist() == [0] + [1] * (hybrids.LENGTH - 1)


@pytest.mark.parametrize("dtype", list(LIMIT), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("starts", [(), (5,), (1, 2, 9)])
def test_documents_start_where_positions_do(starts: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(B, L, WIDTH, dtype=dtype)
    (layer,) = layers(ew.capture(Unit().to(dtype), x, positions(*starts)))
    assert layer.residual.max() < LIMIT[dtype]
    T = layer.operator.matrix()
    for start in starts:
        assert not T[..., start:, :start].any()
    assert T[..., -1, max(starts, default=0) :].ne(0).any()


def test_a_state_from_before() -> None:
    unit, x = Unit(), torch.randn(B, L, WIDTH)
    with pytest.raises(CaptureError, match="state that is not zero; pass the full sequence without a cache"):
        ew.capture(unit, x, positions() + 1, torch.ones(B, WIDTH))
    # A reset forgets it, and an empty one is none.
    for where, cache in ((positions(), torch.ones(B, WIDTH)), (positions() + 1, torch.zeros(B, WIDTH))):
        (layer,) = layers(ew.capture(unit, x, where, cache))
        assert layer.residual.max() < 1e-6


FAULTS: dict[str, Any] = {
    "decay 1 % faster": lambda a, m, g: (a**1.01, m, g),
    "input not normalised": lambda a, m, g: (a, torch.ones_like(m), g),
    "no input gate": lambda a, m, g: (a, m, torch.ones_like(g)),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_wrong_operator_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = hybrids.build("recurrent_gemma"), hybrids.tokens()
    cap = ew.capture(model, ids)
    right = rg_lru._coefficients
    monkeypatch.setattr(rg_lru, "_coefficients", lambda t: FAULTS[fault](*right(t)))
    for layer in layers(cap):
        assert layer.residual.max() > 1e-4
