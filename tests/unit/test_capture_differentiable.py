"""Captures that keep their graph, up to the model's own parameters."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import Live
from ess_widgets.demo import Miniature
from ess_widgets.metrics import entropy_ess, tolerance_surrogate
from ess_widgets.operators import Diagonal, Recurrence, gated_linear_attention


class Attention(nn.Module):
    """One head, by torch's function or written out."""

    def __init__(self, ready_made: bool) -> None:
        super().__init__()
        self.qkv, self.ready_made = nn.Linear(6, 18).double(), ready_made

    def weights(self, x: Tensor) -> Tensor:
        q, k, _ = self.qkv(x).chunk(3, -1)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return (q @ k.mT / math.sqrt(6)).masked_fill(future, -math.inf).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.ready_made:
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        return self.weights(x) @ v


class Averaged(nn.Module):
    """A layer of a user's own, known by registration."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def matrix(self, L: int) -> Tensor:
        lag = torch.arange(L)[:, None] - torch.arange(L)[None]
        return (self.decay ** lag.clamp(min=0)).tril()

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x.shape[1]) @ x


def _sum(T: Tensor) -> Tensor:
    """Something that depends on every entry differently."""
    weights = torch.linspace(-1, 1, T.numel(), dtype=torch.float64).view(T.shape)
    return (weights * T.double().sin()).sum()


@pytest.mark.parametrize("ready_made", [True, False])
@pytest.mark.parametrize("live", [True, False])
def test_attention(ready_made, live):
    torch.manual_seed(0)
    module, x = Attention(ready_made), torch.randn(2, 7, 6, dtype=torch.float64)
    if live:
        with Live(module) as watched:
            module(x)
        layer = watched.captures[0][0]
    else:
        layer = ew.capture(module, x, differentiable=True)[0]
    (ours,) = torch.autograd.grad(_sum(layer.operator.matrix()[:, 0]), module.qkv.weight, retain_graph=True)
    (expected,) = torch.autograd.grad(_sum(module.weights(x)), module.qkv.weight)
    torch.testing.assert_close(ours, expected)
    (ours,) = torch.autograd.grad(_sum(layer.outputs[:, 0]), module.qkv.weight, retain_graph=True)
    (expected,) = torch.autograd.grad(_sum(module(x)), module.qkv.weight)
    torch.testing.assert_close(ours, expected)
    (ours,) = torch.autograd.grad(_sum(layer.inputs[:, 0]), module.qkv.weight)
    (expected,) = torch.autograd.grad(_sum(module.qkv(x).chunk(3, -1)[2]), module.qkv.weight)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("mixer", ["SA", "LA", "GLA", "WLA", "GLA-S6", "S6", "GDN"])
def test_output_and_operators_of_every_mixer(mixer):
    """The model's output has the gradients of a plain run; ``T u`` those of the outputs that the model computed."""
    torch.manual_seed(0)
    module = Miniature((mixer,), vocab=8, width=8, heads=2, state=4).double()
    ids = torch.randint(0, 8, (2, 9))
    cap = ew.capture(module, ids, differentiable=True)
    parameters = list(module.parameters())
    ours = torch.autograd.grad(_sum(cap.output), parameters, retain_graph=True, allow_unused=True)
    plain = torch.autograd.grad(_sum(module(ids)), parameters, allow_unused=True)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)
    layer = cap[0]
    mixed = torch.autograd.grad(
        _sum(layer.operator.matrix() @ layer.inputs), parameters, retain_graph=True, allow_unused=True
    )
    outputs = torch.autograd.grad(_sum(layer.outputs), parameters, allow_unused=True)
    for a, b in zip(mixed, outputs, strict=True):
        assert (a is None or not a.any()) == (b is None or not b.any())
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert all(p.grad is None for p in parameters) and module.training


@pytest.mark.parametrize("live", [True, False])
def test_other_layers(live):
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    convolution = nn.Conv1d(6, 6, 3, padding=2, groups=6)
    cases = [
        (encoder, (x,), {"src_mask": mask, "is_causal": True}, encoder.self_attn.in_proj_weight),
        (nn.Sequential(convolution, _Cut()), (x,), {}, convolution.weight),
    ]
    for module, args, kwargs, parameter in cases:
        if live:
            with Live(module) as watched:
                module(*args, **kwargs)
            layer = watched.captures[0][0]
        else:
            layer = ew.capture(module, *args, differentiable=True, **kwargs)[0]
        _sum(layer.operator.matrix()).backward()
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


class _Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., :-2]


def test_a_layer_of_ones_own():
    module, x = Averaged(), torch.randn(1, 5, 3, dtype=torch.float64)

    def read(own: Averaged, call: object) -> ew.operators.Operator:
        return ew.operators.Dense(own.matrix(5))

    with ew.register(Averaged, read):
        T = ew.capture(module, x, differentiable=True)[0].operator.matrix()
        plain = ew.capture(module, x)[0].operator.matrix()
    (ours,) = torch.autograd.grad(_sum(T[0, 0]), module.decay)
    (expected,) = torch.autograd.grad(_sum(module.matrix(5)), module.decay)
    torch.testing.assert_close(ours, expected)
    assert not plain.requires_grad


def test_without_asking_there_is_no_graph():
    torch.manual_seed(0)
    for mixer in ("SA", "GLA", "S6"):
        layer = ew.capture(Miniature((mixer,), vocab=8, width=8, heads=2, state=4), torch.arange(8)[None])[0]
        assert not any(t.requires_grad for t in (layer.operator.matrix(), layer.inputs, layer.outputs))


def test_frozen_weights_and_inputs_that_require_gradients():
    torch.manual_seed(0)
    module, x = Attention(True).requires_grad_(False), torch.randn(1, 5, 6, dtype=torch.float64)
    assert not ew.capture(module, x, differentiable=True)[0].operator.matrix().requires_grad
    x.requires_grad_()
    _sum(ew.capture(module, x, differentiable=True)[0].operator.matrix()).backward()
    assert x.grad is not None and module.qkv.weight.grad is None


def test_under_no_grad_and_inference_mode():
    torch.manual_seed(0)
    module, x = Attention(False), torch.randn(1, 5, 6, dtype=torch.float64)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            layer = ew.capture(module, x, differentiable=True)[0]
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        _sum(layer.operator.matrix()).backward()
    assert module.qkv.weight.grad is not None


def test_metrics_of_a_capture_with_a_graph():
    torch.manual_seed(0)
    module, ids = Miniature(("GLA", "SA"), vocab=8, width=8, heads=2, state=4), torch.randint(0, 8, (1, 12))
    kept, plain = ew.capture(module, ids, differentiable=True), ew.capture(module, ids)
    for a, b in zip(kept.values(), plain.values(), strict=True):
        assert torch.equal(ew.ess(a.operator).detach(), ew.ess(b.operator))
        assert torch.equal(a.residual, b.residual)


def test_jacobians_are_refused():
    with pytest.raises(ValueError, match="do not go together"):
        ew.capture(nn.Linear(2, 2), torch.randn(1, 3, 2), jacobian="Linear", differentiable=True)


# ESS from the factors of a recurrence -----------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize("measure", [entropy_ess, lambda op, at: tolerance_surrogate(op, 0.1, positions=at)])
def test_factors_and_matrices_agree(read, scalar, measure):
    generator = torch.Generator().manual_seed(0)
    L, n, at = 14, 3, [0, 1, 2, 7, 12, 13]
    a = torch.rand(2, 1 if scalar else L, 1 if scalar else n, generator=generator, dtype=torch.float64)
    B, C = torch.randn(2, 2, L, n, generator=generator, dtype=torch.float64).unbind(0)
    parts = [part.requires_grad_() for part in (a, B, C)]
    op = Recurrence(Diagonal(a), B, C, read=read)
    weights = torch.randn(2, len(at), generator=generator, dtype=torch.float64)
    ours, dense = measure(op, at), measure(op.matrix(), at)
    torch.testing.assert_close(ours, dense)
    found = torch.autograd.grad((weights * ours).sum(), parts)
    expected = torch.autograd.grad((weights * dense).sum(), parts)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


def test_factors_with_resets_padding_and_unequal_features():
    """Gates of 0, padding, and a feature that is written 1e9 times more strongly than it is read."""
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 1, 16, 4, generator=generator, dtype=torch.float64)
    g = torch.rand(1, 1, 16, 4, generator=generator, dtype=torch.float64).log()
    g[..., 6, :] = -torch.inf
    scale = torch.tensor([1e9, 1.0, 1.0, 1e-9], dtype=torch.float64)
    valid = torch.arange(16) > 2
    q, k = (q / scale).requires_grad_(), (k * scale).requires_grad_()
    op = gated_linear_attention(q, k, g, valid=valid)
    at = [1, 5, 6, 7, 10]
    torch.testing.assert_close(entropy_ess(op, at), ew.ess(op, positions=at), rtol=1e-7, atol=1e-9)
    ours = torch.autograd.grad(entropy_ess(op, at).sum(), [q, k])
    assert all(torch.isfinite(x).all() and x.any() for x in ours)
    assert entropy_ess(op, [1, 6]).tolist() == [[[0.0, 0.0]]]


def test_factors_are_differentiated_once():
    q, k = torch.randn(2, 12, 3, dtype=torch.float64).unbind()
    q.requires_grad_()
    op = gated_linear_attention(q, k, gates=torch.full((1, 1), 0.9, dtype=torch.float64))
    (slope,) = torch.autograd.grad(entropy_ess(op, [6]).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        slope.sum().backward()
