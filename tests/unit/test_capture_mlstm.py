"""xLSTM's matrix memory, as transformers and xlstm's own kernels compute it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.capture import CaptureError, capture
from tests.unit.kernel_calls import Calls, Net
from tests.unit.recurrent import randomise

LIMIT = 1e-5


def xlstm(chunk_size: int = 8, **options: Any) -> nn.Module:
    from transformers import xLSTMConfig, xLSTMForCausalLM

    config = xLSTMConfig(
        vocab_size=32, hidden_size=128, embedding_dim=128, num_hidden_layers=2, num_blocks=2, num_heads=4,
        chunk_size=chunk_size, qk_dim_factor=0.5, v_dim_factor=1.0, **options,
    )  # fmt: skip
    return randomise(xLSTMForCausalLM(config), scale=0.3)


@pytest.mark.parametrize("length", [5, 24, 29])
@pytest.mark.parametrize("use_cache", [True, False])
def test_transformers(length: int, use_cache: bool) -> None:
    """Chunks alone, steps alone, and chunks with a rest."""
    ids = torch.arange(2 * length).view(2, length) * 7 % 32
    cap = capture(xlstm(), input_ids=ids, use_cache=use_cache)
    assert len(cap) == 2 and not cap.skipped
    for layer in cap.values():
        assert layer.family == "mLSTM"
        assert layer.operator.shape == (2, 4, length, length)
        assert layer.inputs.shape == (2, 4, length, 32)
        assert bool((layer.residual < LIMIT).all()), layer.residual


def test_padding_on_the_right() -> None:
    ids = torch.arange(48).view(2, 24) * 7 % 32
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    for layer in capture(xlstm(), input_ids=ids, attention_mask=mask).values():
        assert layer.valid is None or torch.equal(layer.valid, mask.bool())
        assert bool((layer.residual < LIMIT).all())


def test_the_row_normaliser_and_the_input_gates_are_part_of_the_operator() -> None:
    layer = capture(xlstm(), torch.arange(48).view(2, 24) * 7 % 32)[0]
    T = layer.operator.matrix()
    rows = T.sum(-1).abs()
    assert bool((rows < 1 + 1e-6).all())  # |q·n| over max(|q·n|, exp(-m))
    assert layer.state_size.tolist() == [min(16, i) for i in range(24)]


def stabilised(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, eps: float, fault: str = "") -> Tensor:
    """The parallel form with a maximum for each row, as in xlstm's package."""
    logs = F.logsigmoid(f).cumsum(-1)
    D = logs.unsqueeze(-1) - logs.unsqueeze(-2) + (0 if fault == "no input gate" else i.unsqueeze(-2))
    D = D.masked_fill(torch.ones_like(D, dtype=torch.bool).triu(1), -torch.inf)
    top = D.amax(-1, keepdim=True)
    scores = q @ k.mT / q.shape[-1] ** 0.5 * (D - top).exp()
    if fault == "no normaliser":
        return scores @ v
    floor = torch.ones_like(top) if fault == "floor of one" else torch.exp(-top)
    return scores / (torch.maximum(scores.sum(-1, keepdim=True).abs(), floor) + eps) @ v


def draw(length: int = 21) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*tail: int) -> Tensor:
        return torch.randn(2, 3, length, *tail, generator=generator)

    return {"q": normal(4), "k": normal(4), "v": normal(5), "i": 2 * normal(), "f": 3 + normal()}


def test_names_of_the_package() -> None:
    def mlstm_chunkwise__xl_chunk(q, k, v, i, f, c_initial=None, n_initial=None, m_initial=None,
                                  return_last_states=False, eps=1e-6, chunk_size=128):  # type: ignore[no-untyped-def]  # fmt: skip
        return stabilised(q, k, v, i, f, eps)

    def parallel_stabilized_simple(queries, keys, values, igate_preact, fgate_preact,
                                   lower_triangular_matrix=None, stabilize_rowwise=True, eps=1e-6):  # type: ignore[no-untyped-def]  # fmt: skip
        return stabilised(queries, keys, values, igate_preact[..., 0], fgate_preact[..., 0], eps)

    given = draw()
    long = dict(zip(inspect.signature(parallel_stabilized_simple).parameters, given.values(), strict=False))
    long |= {name: long[name].unsqueeze(-1) for name in ("igate_preact", "fgate_preact")}
    for function, arguments in ((mlstm_chunkwise__xl_chunk, given), (parallel_stabilized_simple, long)):
        (layer,) = capture(Net(Calls(function)), arguments).values()
        assert layer.family == "mLSTM"
        assert bool((layer.residual < LIMIT).all())


@pytest.mark.parametrize("fault", ["no input gate", "no normaliser", "floor of one"])
def test_planted_faults_exceed_the_limit(fault: str) -> None:
    def mlstm_parallel(q, k, v, i, f, eps=1e-6):  # type: ignore[no-untyped-def]
        return stabilised(q, k, v, i, f, eps, fault)

    (layer,) = capture(Net(Calls(mlstm_parallel)), draw()).values()
    assert bool((layer.residual > 1e-3).any())


def test_reasons_and_other_functions() -> None:
    def mlstm_parallel(q, k, v, i, f, c_initial=None, eps=1e-6):  # type: ignore[no-untyped-def]
        return stabilised(q, k, v, i, f, eps)

    with pytest.raises(CaptureError, match="earlier state"):
        capture(Net(Calls(mlstm_parallel, c_initial=torch.ones(2, 3, 4, 5))), draw())

    def mlstm_block(x: Tensor) -> Tensor:
        """Its name alone does not hide what it calls."""
        heads = x.transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)

    cap = capture(Net(Calls(mlstm_block)), {"x": torch.randn(2, 9, 2, 4)})
    assert [layer.family for layer in cap.values()] == ["softmax attention"]
