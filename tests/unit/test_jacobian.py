"""Operators by Jacobian: against closed forms, autograd's own Jacobian, and the module's finite differences."""

from __future__ import annotations

import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import ess_widgets as ew
from ess_widgets.capture import CaptureError, NotCausalError, UnknownLayerError
from ess_widgets.capture.linearisation import differentiate
from ess_widgets.capture.linearisation.precise import cast
from tests.unit.models import Fused, InPlace, forbidden


def autograd(f: Any, u: Tensor) -> Tensor:
    """``∂y/∂u`` of each sample by torch's own function in float64, ``(batch, L d_out, L d_in)``."""
    batch, L, d = u.shape
    J = torch.autograd.functional.jacobian(f, u.double())
    own = torch.stack([J[b, :, :, b] for b in range(batch)])
    return own.reshape(batch, -1, L * d)


def rank(layer: ew.LayerCapture) -> Tensor:
    return ew.ess(layer.operator, kind="tolerance", tol=1e-9)


class Loop(nn.Module):
    """A recurrence written by the user, one step after the other, into a tensor made beforehand."""

    def __init__(self, d: int = 1, n: int = 3, f: Any = torch.tanh) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(n, n) / n)
        self.B, self.C = nn.Parameter(torch.randn(n, d)), nn.Parameter(torch.randn(d, n))
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), len(self.A))
        y = torch.zeros_like(x)
        for t in range(x.shape[1]):
            state = self.f(state @ self.A.T + x[:, t] @ self.B.T)
            y[:, t] = state @ self.C.T
        return y


def identity(x: Tensor) -> Tensor:
    return x


# Closed forms -------------------------------------------------------------------------------------------------------


def test_a_linear_recurrence_gives_its_own_operator() -> None:
    module = Loop(f=identity)
    layer = ew.jacobian(module, torch.randn(2, 9, 1), state_size=3)
    A, B, C = (p.detach().double() for p in (module.A, module.B, module.C))
    expected = ew.operators.Recurrence(A.expand(9, 3, 3), B.mT.expand(9, 3), C.expand(9, 3))
    torch.testing.assert_close(layer.operator.matrix()[:, 0], expected.matrix().expand(2, 9, 9))
    assert torch.equal(layer.state_size, expected.state_size)
    assert layer.linearity is not None and layer.linearity.max() < 1e-10
    assert layer.family == "jacobian" and "linearised" in layer.note


def test_what_mixes_no_tokens_is_block_diagonal() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 3))
    layer = ew.jacobian(module, torch.randn(2, 6, 3))
    blocks = layer.operator.matrix()[:, 0].reshape(2, 6, 3, 6, 3)
    outside = blocks.masked_fill(torch.eye(6, dtype=torch.bool)[None, :, None, :, None], 0.0)
    assert not outside.any()
    assert not rank(layer).any()


def test_causal_convolution() -> None:
    class Conv(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (3, 0)))

    module = Conv(2, 2, 4)
    layer = ew.jacobian(module, torch.randn(1, 2, 11))
    T = layer.operator.matrix()[0, 0].reshape(11, 2, 11, 2)
    for i in range(11):
        for j in range(11):
            expected = (
                module.weight[:, :, 3 - i + j].double() if 0 <= i - j < 4 else torch.zeros(2, 2).double()
            )
            torch.testing.assert_close(T[i, :, j], expected)
    assert rank(layer).max() == 6


def test_gru_with_open_and_with_closed_gates() -> None:
    """Update gate shut: nothing enters. Open, reset shut: nothing is kept. Both open: a plain recurrence."""
    x = torch.randn(1, 7, 2)
    gru = nn.GRU(2, 3, batch_first=True)
    gates = gru.bias_ih_l0.data.view(3, 3)  # reset, update, candidate
    gates[1] = 60.0
    assert ew.jacobian(gru, x).operator.matrix().abs().max() < 1e-12
    gates[0], gates[1] = -60.0, -60.0
    assert not rank(ew.jacobian(gru, x)).any()
    gates[0] = 60.0
    plain = nn.RNN(2, 3, batch_first=True)
    for name, p in plain.named_parameters():
        p.data = getattr(gru, name).data[6:]
    expected = ew.jacobian(plain, x).operator.matrix()
    torch.testing.assert_close(ew.jacobian(gru, x).operator.matrix(), expected, atol=1e-9, rtol=0)


# Against autograd ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 4, 2, batch_first=True),
        lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True),
        lambda: nn.GRU(3, 4, batch_first=True, dropout=0.0),
        lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
        lambda: nn.RNN(6, 2, batch_first=True),
    ],
    ids=["lstm of two layers", "lstm with projection", "gru", "rnn relu", "rnn"],
)
def test_recurrent_layers(make: Any) -> None:
    module = make()
    u = torch.randn(2, 6, module.input_size)
    layer = ew.jacobian(module, u)
    expected = autograd(lambda x: make_double(module)(x)[0], u)
    d = layer.operator.block
    out = module.proj_size or module.hidden_size
    T = layer.operator.matrix()[:, 0].reshape(2, 6, d, 6, d)
    torch.testing.assert_close(T[:, :, :out, :, : module.input_size].reshape(expected.shape), expected)
    assert not T[:, :, out:].any() and not T[..., module.input_size :].any()
    assert layer.residual.max() < 1e-8
    assert (rank(layer) <= layer.state_size).all()


def make_double(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module).double().eval()


def test_state_of_recurrent_layers() -> None:
    x = torch.randn(1, 40, 8)
    sizes = {
        nn.LSTM(8, 3, batch_first=True): 6,
        nn.LSTM(8, 3, 2, batch_first=True): 12,
        nn.LSTM(8, 3, proj_size=2, batch_first=True): 5,
        nn.GRU(8, 3, 2, batch_first=True): 6,
        nn.RNN(8, 3, batch_first=True): 3,
    }
    for module, n in sizes.items():
        layer = ew.jacobian(module, x)
        assert layer.state_size.tolist() == [min(n, 8 * i) for i in range(40)]
        assert rank(layer).max() <= n


def test_time_first_and_without_batch() -> None:
    module = nn.GRU(3, 3)
    x = torch.randn(5, 2, 3)
    first = nn.GRU(3, 3, batch_first=True)
    first.load_state_dict(module.state_dict())
    expected = ew.jacobian(first, x.transpose(0, 1)).operator.matrix()
    torch.testing.assert_close(ew.jacobian(module, x).operator.matrix(), expected)
    alone = ew.jacobian(module, x[:, 1])
    torch.testing.assert_close(alone.operator.matrix(), expected[1:])


def test_packed_sequences_are_padded_and_marked() -> None:
    module = nn.LSTM(2, 3, batch_first=True)
    x = torch.randn(3, 6, 2)
    lengths = [4, 6, 2]
    layer = ew.jacobian(module, pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    assert layer.valid is not None and layer.valid.sum(1).tolist() == lengths
    T = layer.operator.matrix()
    for b, n in enumerate(lengths):
        alone = ew.jacobian(module, x[b : b + 1, :n]).operator.matrix()[0, 0]
        torch.testing.assert_close(T[b, 0, : 3 * n, : 3 * n], alone)
        assert not T[b, 0, 3 * n :].any()
    assert layer.residual.max() < 1e-8


@pytest.mark.parametrize("kind", [Fused, InPlace])
def test_attention(kind: type[nn.Module]) -> None:
    """In training mode, with dropout that its author never switches off."""
    module = kind()
    u = torch.randn(2, 5, 16)
    layer = ew.jacobian(module, u)
    expected = autograd(lambda x: explicit(make_double(module), x, kind is InPlace), u)
    torch.testing.assert_close(layer.operator.matrix()[:, 0], expected)
    assert layer.residual.max() < 1e-8


def explicit(module: Any, x: Tensor, biased: bool) -> Tensor:
    q, k, v = module.split(x)
    L = x.shape[1]
    scores = q @ k.mT / module.dim**0.5
    if biased:
        scores = scores + 0.1 * (torch.arange(L) - torch.arange(L)[:, None])
    return module.merge(scores.masked_fill(forbidden(L), -torch.inf).softmax(-1) @ v)  # type: ignore[no-any-return]


def test_one_tensor_given_several_times() -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    layer = ew.jacobian(module, x, x, x, attn_mask=forbidden(5), need_weights=False)
    twin = make_double(module)
    expected = autograd(lambda u: twin(u, u, u, attn_mask=forbidden(5), need_weights=False)[0], x)
    torch.testing.assert_close(layer.operator.matrix()[:, 0], expected)


# Which channels -----------------------------------------------------------------------------------------------------


def test_channels() -> None:
    module, x = nn.GRU(4, 4, batch_first=True), torch.randn(2, 6, 4)
    T = ew.jacobian(module, x).operator.matrix()[:, 0].reshape(2, 6, 4, 6, 4)

    each = ew.jacobian(module, x, channels=[2, -4])
    assert each.operator.matrix().shape == (2, 2, 6, 6) and each.group == "channel"
    torch.testing.assert_close(each.operator.matrix(), torch.stack([T[:, :, c, :, c] for c in (2, 0)], 1))

    even = ew.jacobian(module, x, channels=2, project="even")
    torch.testing.assert_close(even.operator.matrix()[:, 0], T[:, :, ::2][..., ::2].reshape(2, 12, 12))

    P, Q = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    given = ew.jacobian(module, x, channels=(P, Q))
    expected = torch.einsum("ao,biajc,cp->bijop", Q, T, P).permute(0, 1, 3, 2, 4).reshape(2, 18, 18)
    torch.testing.assert_close(given.operator.matrix()[:, 0], expected)

    some = ew.jacobian(module, x, channels=3)
    again, other = ew.jacobian(module, x, channels=3), ew.jacobian(module, x, channels=3, seed=1)
    assert torch.equal(some.operator.matrix(), again.operator.matrix())
    assert not torch.allclose(some.operator.matrix(), other.operator.matrix())
    assert some.state_size.tolist() == [min(4, 3 * i) for i in range(6)]
    assert "3 random directions of 4 channels" in some.note
    whole = ew.jacobian(module, x, channels=4)  # a turn of the channels changes no singular value
    full = ew.jacobian(module, x)
    torch.testing.assert_close(ew.spectrum(whole.operator), ew.spectrum(full.operator))
    for layer in (each, even, given, some, whole, full):
        assert layer.residual.max() < 1e-8
        assert layer.inputs.shape == layer.outputs.shape


def test_large_modules_are_projected_by_default() -> None:
    module = nn.Linear(64, 64)
    assert ew.jacobian(module, torch.randn(1, 32, 64)).operator.block == 64
    layer = ew.jacobian(module, torch.randn(1, 33, 64))
    assert layer.operator.block == 16 and "projected on 16 random directions of 64 channels" in layer.note
    assert ew.jacobian(module, torch.randn(1, 33, 64), channels="all").operator.block == 64


@pytest.mark.parametrize(
    ("channels", "error", "says"),
    [
        (0, ValueError, "channels=0"),
        (9, ValueError, "4 channels"),
        ([4], ValueError, "indices into 4"),
        ([], ValueError, "at least one"),
        (torch.randn(3, 2), ValueError, r"\(4, k\)"),
        ("some", TypeError, "list of channel indices"),
        (2.5, TypeError, "list of channel indices"),
    ],
)
def test_channels_that_do_not_exist(channels: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ew.jacobian(nn.Linear(4, 4), torch.randn(1, 3, 4), channels=channels)


# How it is computed -------------------------------------------------------------------------------------------------


def test_the_narrow_side_is_differentiated_and_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[int] = []
    part = differentiate._Basis.part

    def watched(self: Any, start: int, stop: int) -> Tensor:
        pieces.append(stop - start)
        return part(self, start, stop)

    monkeypatch.setattr(differentiate._Basis, "part", watched)
    results = []
    x = torch.randn(1, 8, 12)
    for module in (nn.GRU(12, 3, batch_first=True), nn.RNN(12, 12, batch_first=True)):
        pieces.clear()
        whole = ew.jacobian(module, x).operator.matrix()
        assert sum(pieces) == 8 * module.hidden_size
        monkeypatch.setattr(differentiate, "_BUDGET", 20_000)
        pieces.clear()
        results.append((whole, ew.jacobian(module, x).operator.matrix()))
        assert max(pieces) < sum(pieces) / 3
        pieces.clear()
        results.append((whole, ew.jacobian(module, x, chunk=5).operator.matrix()))
        assert max(pieces) == 5
        monkeypatch.undo()
        monkeypatch.setattr(differentiate._Basis, "part", watched)
    for whole, piecewise in results:
        torch.testing.assert_close(whole, piecewise)
    pieces.clear()
    ew.jacobian(nn.LSTM(2, 12, batch_first=True), x[..., :2]).operator.matrix()
    assert sum(pieces) == 8 * 2


class Plain(torch.autograd.Function):
    """A derivative written by hand, without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Plain.apply(x).cumsum(1)


class Decides(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [x[:, 0]]
        for t in range(1, x.shape[1]):
            grow = float(x[0, t].sum()) > 0
            rows.append(rows[-1] * (0.9 if grow else 0.5) + x[:, t] ** 2)
        return torch.stack(rows, 1)


class WritesToItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x *= 2.0
        x += 1.0
        return x.cumsum(1)


@pytest.mark.parametrize("kind", [Loop, Custom, Decides, WritesToItsInput])
def test_modules_that_vmap_has_trouble_with(kind: type[nn.Module]) -> None:
    module, u = kind(), torch.randn(1, 6, 1)
    kept = u.clone()
    layer = ew.jacobian(module, u)
    expected = autograd(lambda x: make_double(module)(x.clone()), u)
    torch.testing.assert_close(layer.operator.matrix()[:, 0], expected)
    assert layer.residual.max() < 1e-8
    assert torch.equal(u, kept)


def test_what_torch_cannot_differentiate_fails_its_residual() -> None:
    class Hides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1) + (x.detach() ** 2).cumsum(1)

    layer = ew.jacobian(Hides(), torch.randn(1, 6, 2))
    assert layer.residual.min() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_float64_whatever_the_module_is(dtype: torch.dtype) -> None:
    """A norm that computes in float32, as most of them do, is differentiated in float64 all the same."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            h = x.to(torch.float32).cumsum(1)
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.weight * h.to(x.dtype)

    module = Norm().to(dtype)
    layer = ew.jacobian(module, torch.randn(2, 5, 4).to(dtype))
    assert layer.operator.dtype is torch.float64
    assert layer.residual.max() < 1e-8
    assert module.weight.dtype is dtype


def test_modules_that_take_float32_only() -> None:
    class Insists(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype is not torch.float32:
                raise RuntimeError("float32 only")
            return (x**2).cumsum(1)

    layer = ew.jacobian(Insists(), torch.randn(2, 6, 2))
    assert layer.operator.dtype is torch.float32
    assert layer.residual.max() < 1e-4
    assert torch.equal(layer.operator.matrix(), layer.operator.matrix().tril())


# What is refused ----------------------------------------------------------------------------------------------------


class LooksAhead(nn.Module):
    """Output ``at`` reads the input after it, a little."""

    def __init__(self, at: int, size: float = 1e-3) -> None:
        super().__init__()
        self.at, self.size = at, size

    def forward(self, x: Tensor) -> Tensor:
        y = x.cumsum(1)
        return torch.cat(
            [
                y[:, : self.at],
                y[:, self.at :][:, :1] + self.size * x[:, self.at + 1 : self.at + 2],
                y[:, self.at + 1 :],
            ],
            1,
        )


def test_reading_the_future_is_refused_with_the_place() -> None:
    x = torch.randn(2, 8, 3)
    with pytest.raises(NotCausalError, match="'LooksAhead' is not causal: output 3"):
        ew.jacobian(LooksAhead(3), x)
    for size in (1.0, 1e-3, 1e-7):
        layer = ew.jacobian(LooksAhead(1, size), x)
        with pytest.raises(NotCausalError, match="output 1 reads the later input 2"):
            layer.operator  # noqa: B018 - it is computed now
    with pytest.raises(NotCausalError, match="bidirectional"):
        ew.jacobian(nn.LSTM(3, 2, bidirectional=True, batch_first=True), x)
    with pytest.raises(NotCausalError):
        ew.jacobian(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.randn(1, 6, 4))


def test_rounding_of_a_long_convolution_is_not_the_future() -> None:
    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            L = x.shape[1]
            kernel = torch.exp(-0.1 * torch.arange(L))
            spectrum = torch.fft.rfft(x, 2 * L, dim=1) * torch.fft.rfft(kernel, 2 * L)[:, None]
            return torch.fft.irfft(spectrum, 2 * L, dim=1)[:, :L]

    layer = ew.jacobian(Long(), torch.randn(2, 16, 2))
    T = layer.operator.matrix()[0, 0].reshape(16, 2, 16, 2)[:, 0, :, 0]
    expected = torch.exp(-0.1 * (torch.arange(16.0)[:, None] - torch.arange(16.0))).tril().double()
    torch.testing.assert_close(T, expected, atol=1e-7, rtol=1e-6)
    assert not T.triu(1).any()


def test_samples_that_influence_each_other_are_refused() -> None:
    class Centre(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(CaptureError, match="influence each other"):
        ew.jacobian(Centre(), torch.randn(3, 4, 2)).operator  # noqa: B018
    assert ew.jacobian(Centre(), torch.randn(1, 4, 2)).operator.shape == (1, 1, 8, 8)


def test_batch_norm_runs_in_eval_mode() -> None:
    module = nn.BatchNorm1d(3)
    module(torch.randn(20, 3, 5))
    before = {name: b.clone() for name, b in module.named_buffers()}
    layer = ew.jacobian(module, torch.randn(4, 3, 6), layout="bdl")
    slope = (module.weight / (module.running_var + module.eps).sqrt()).double()
    torch.testing.assert_close(layer.operator.matrix()[0, 0], torch.diag(slope.repeat(6)))
    assert all(torch.equal(b, before[name]) for name, b in module.named_buffers()) and module.training


def test_weights_that_changed_since() -> None:
    module = nn.GRU(2, 2, batch_first=True)
    layer = ew.jacobian(module, torch.randn(1, 4, 2))
    with torch.no_grad():
        module.weight_ih_l0.mul_(2)
    with pytest.raises(CaptureError, match="have changed"):
        layer.operator  # noqa: B018


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ew.jacobian(len, torch.randn(1, 2, 3)), TypeError, "torch.nn.Module"),
        (lambda: ew.jacobian(nn.Flatten(), torch.randn(2, 3, 4)), CaptureError, "one output vector for each"),
        (lambda: ew.jacobian(nn.Linear(4, 4), torch.randn(4)), CaptureError, "no floating tensor"),
        (lambda: ew.jacobian(nn.Linear(4, 4), torch.randn(2, 0, 4)), CaptureError, "none of them 0"),
        (lambda: ew.jacobian(nn.Linear(4, 4), torch.randn(1, 2, 4), layout="ldb"), ValueError, "layout"),
        (lambda: ew.jacobian(nn.Linear(4, 4), torch.randn(1, 2, 4), chunk=0), ValueError, "chunk"),
        (lambda: ew.jacobian(nn.Linear(4, 4), torch.randn(1, 2, 4), inputs="z"), CaptureError, "inputs='z'"),
        (lambda: ew.jacobian(nn.Linear(4, 4), torch.full((1, 2, 4), torch.nan)), CaptureError, "NaN"),
    ],
)
def test_clear_errors(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


# The user's own is left alone ---------------------------------------------------------------------------------------


def test_everything_of_the_users_stays() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Tanh())
    module.train()
    heard: list[int] = []
    module[0].register_forward_hook(lambda *_: heard.append(1))
    module(torch.randn(2, 4, 3)).sum().backward()
    heard.clear()
    before = {n: (p, p.clone(), p.grad.clone(), p._version) for n, p in module.named_parameters()}
    x = torch.randn(2, 5, 3, requires_grad=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    layer = ew.jacobian(module, x)
    assert layer.residual.max() < 1e-8 and layer.linearity is not None
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert module.training and module[1].training and not heard
    for name, p in module.named_parameters():
        same, value, grad, version = before[name]
        assert p is same and torch.equal(p, value) and torch.equal(p.grad, grad) and p._version == version
    assert x.grad is None and torch.is_grad_enabled()
    with torch.inference_mode():
        assert ew.jacobian(module, x).residual.max() < 1e-8


def test_nothing_is_computed_before_it_is_asked_for_and_nothing_stays_behind() -> None:
    class Counts(nn.Linear):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            Counts.runs += 1
            return super().forward(x)

    module = nn.Sequential(Counts(3, 3), nn.GRU(3, 3, batch_first=True))
    x = torch.randn(1, 5, 3)
    cap = ew.capture(module, x, jacobian="0")
    assert Counts.runs == 1
    assert cap["0"].operator.matrix() is not None and Counts.runs > 1
    kept = weakref.ref(cap["0"])
    del cap
    assert kept() is None


# In a model ---------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.gru = nn.GRU(6, 6)
        self.mlp = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.head = nn.Linear(6, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.lstm(self.embed(ids))[0]
        x = self.gru(x.transpose(0, 1))[0].transpose(0, 1)
        x += self.mlp(x)  # in place: what the GRU returned is gone
        return self.head(x)


def test_capture_finds_recurrent_layers_in_order() -> None:
    model, ids = Model(), torch.randint(11, (2, 7))
    cap = ew.capture(model, ids)
    assert list(cap) == ["lstm", "gru"]
    assert all(layer.family == "jacobian" and layer.residual.max() < 1e-8 for layer in cap.values())
    assert cap["lstm"].state_size.tolist() == [min(12, 5 * i) for i in range(7)]
    expected = ew.jacobian(model.lstm, model.embed(ids)).operator.matrix()
    torch.testing.assert_close(cap["lstm"].operator.matrix(), expected)
    hidden = model.lstm(model.embed(ids))[0].transpose(0, 1)
    torch.testing.assert_close(cap["gru"].operator.matrix(), ew.jacobian(model.gru, hidden).operator.matrix())
    assert list(ew.capture(model, ids, layers="gru")) == ["gru"]


def test_bidirectional_layers_are_refused() -> None:
    model = nn.Sequential(nn.LSTM(3, 3, batch_first=True, bidirectional=True))
    with pytest.raises(NotCausalError, match="'0' is not causal"):
        ew.capture(model, torch.randn(1, 4, 3))


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ("mlp", ["mlp"]),
        (["head", "mlp"], ["mlp", "head"]),
        ("mlp.*", ["mlp.0", "mlp.1"]),
        (nn.Linear, ["mlp.0", "head"]),
        (lambda path: path.startswith("h"), ["head"]),
        (lambda path, module: isinstance(module, nn.ReLU), ["mlp.1"]),
        ({"head": 2, "gru": {"channels": [1]}}, ["gru", "head"]),
    ],
)
def test_modules_chosen_by_the_user(selection: Any, names: list[str]) -> None:
    model, ids = Model(), torch.randint(11, (2, 7))
    cap = ew.capture(model, ids, jacobian=selection)
    assert set(cap) == {"lstm", "gru", *names}
    for name in names:
        assert cap[name].family == "jacobian"
        assert cap[name].residual.max() < 1e-8
    if isinstance(selection, dict):
        assert cap["head"].operator.block == 2 and cap["gru"].operator.block == 1
    only = ew.capture(model, ids, layers="lstm", jacobian=selection)
    assert set(only) == {"lstm", *names}


def test_modules_that_do_not_exist_or_cannot_be_linearised() -> None:
    model, ids = Model(), torch.randint(11, (2, 7))
    with pytest.raises(UnknownLayerError, match=r"'mpl' fits no module.*'mlp'"):
        ew.capture(model, ids, jacobian="mpl")
    with pytest.raises(TypeError, match="must be paths of modules"):
        ew.capture(model, ids, jacobian=3)
    with pytest.raises(TypeError, match="options are"):
        ew.capture(model, ids, jacobian={"mlp": {"channel": 3}})
    cap = ew.capture(model, ids, jacobian="embed")
    assert "embed" not in cap and "token ids" in cap.skipped["embed"]


def test_loops_over_cells_are_reported() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            state, outputs = None, []
            for x_t in x.unbind(1):
                state = self.cell(x_t, state)
                outputs.append(state[0])
            return torch.stack(outputs, 1)

    model, x = nn.Sequential(nn.Linear(3, 3), Steps(), nn.GRU(3, 3, batch_first=True)), torch.randn(2, 6, 3)
    cap = ew.capture(model, x)
    assert list(cap) == ["2"] and "jacobian=" in cap.skipped["1"]
    cap = ew.capture(model, x, jacobian={"1": {"state_size": 6}})
    assert list(cap) == ["1", "2"] and not cap.skipped
    lstm = nn.LSTM(3, 3, batch_first=True)
    for name, p in lstm.named_parameters():
        p.data = getattr(model[1].cell, name.removesuffix("_l0")).data
    expected = ew.jacobian(lstm, model[0](x))
    torch.testing.assert_close(cap["1"].operator.matrix(), expected.operator.matrix())
    assert torch.equal(cap["1"].state_size, expected.state_size)
    with pytest.raises(CaptureError, match="recurrent cells"):
        ew.capture(model[1], x)


LLAMA: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_decoder_block_of_llama(attention: str) -> None:
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA, attn_implementation=attention))
    ids = torch.randint(3, 97, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    cap = ew.capture(model, ids, attention_mask=mask, jacobian="model.layers.*")
    assert list(cap) == [f"model.layers.{i}{part}" for i in range(2) for part in (".self_attn", "")]
    seen: list[Any] = []
    block = model.model.layers[1]
    with (
        torch.no_grad(),
        block.register_forward_pre_hook(lambda m, a, k: seen.append((a, k)), with_kwargs=True),
    ):
        model.eval()(ids, attention_mask=mask, use_cache=False)
    ((u,), kwargs) = cast(seen[0])
    block = make_double(block)
    expected = autograd(lambda x: block(x, **kwargs), u)
    own = mask.bool().repeat_interleave(16, 1)
    expected = expected.masked_fill(~(own[:, :, None] & own[:, None]), 0.0)
    layer = cap["model.layers.1"]
    torch.testing.assert_close(layer.operator.matrix()[:, 0], expected, atol=1e-6, rtol=1e-5)
    assert layer.residual.max() < 1e-8
    assert layer.valid is not None and torch.equal(layer.valid, mask.bool())


def test_blocks_that_are_given_a_cache() -> None:
    """By position and by name; what the run stored there must not be read once more."""
    config = tf.RecurrentGemmaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, lru_width=16,
        attention_window_size=8,
    )  # fmt: skip
    ids = torch.randint(3, 97, (1, 9))
    for model in (tf.RecurrentGemmaForCausalLM(config), tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA))):
        cap = ew.capture(model, ids, use_cache=True, jacobian={"model.layers.*": 3})
        blocks = [layer for name, layer in cap.items() if name.count(".") == 2]
        assert len(blocks) == len(model.model.layers)
        assert max(layer.residual.max() for layer in blocks) < 1e-8


def test_scripted_modules() -> None:
    module = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    layer = ew.jacobian(module, torch.randn(1, 5, 3))
    assert layer.residual.max() < 1e-4 and not rank(layer).any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_padded_model(attention: str) -> None:
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA, attn_implementation=attention))
    ids = torch.randint(3, 97, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    layer = ew.jacobian(model, ids, attention_mask=mask, channels=2)
    alone = ew.jacobian(model, ids[1:], channels=2)
    torch.testing.assert_close(layer.operator.matrix()[1], alone.operator.matrix()[0])
    assert layer.operator.dtype is torch.float64 and layer.residual.max() < 1e-8
    assert not layer.operator.matrix()[0, 0, :4].any() and not layer.operator.matrix()[0, 0, :, :4].any()


def test_a_whole_model_from_token_ids() -> None:
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA))
    ids = torch.randint(3, 97, (1, 5))
    layer = ew.jacobian(model, ids, outputs="logits", channels="all")
    twin = make_double(model)
    expected = autograd(lambda e: twin(inputs_embeds=e).logits, model.get_input_embeddings()(ids))
    T = layer.operator.matrix()[:, 0].reshape(1, 5, 97, 5, 97)[..., :16].reshape(expected.shape)
    torch.testing.assert_close(T, expected, atol=1e-5, rtol=1e-4)
    assert layer.residual.max() < 1e-8
