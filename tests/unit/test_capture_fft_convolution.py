"""Long convolutions by Fourier transforms: Hyena, H3, S4 and their kin, written as their authors write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import CaptureError
from ess_widgets.capture.residual import residual
from ess_widgets.operators import Convolution

B, C, L = 3, 5, 16


def direct(u: Tensor, kernel: Tensor) -> Tensor:
    """The causal convolution along the last dimension, sum by sum, in float64."""
    u, kernel = torch.broadcast_tensors(u.double(), kernel.double()[..., : u.shape[-1]])
    y = torch.zeros_like(u)
    for k in range(u.shape[-1]):
        y[..., k:] += kernel[..., k, None] * u[..., : u.shape[-1] - k]
    return y


def hyena_convolution(u: Tensor, k: Tensor, D: Tensor) -> Tensor:
    """``fftconv_ref`` of the Hyena repository."""
    seqlen = u.shape[-1]
    fft_size = 2 * seqlen
    k_f = torch.fft.rfft(k, n=fft_size) / fft_size
    u_f = torch.fft.rfft(u.to(dtype=k.dtype), n=fft_size)
    if len(u.shape) > 3:
        k_f = k_f.unsqueeze(1)
    y = torch.fft.irfft(u_f * k_f, n=fft_size, norm="forward")[..., :seqlen]
    return (y + u * D.unsqueeze(-1)).to(u.dtype)


class Hyena(nn.Module):
    """Order ``order``: a short convolution, implicit filters, gates between long convolutions."""

    def __init__(self, width: int = C, order: int = 2) -> None:
        super().__init__()
        self.order, inner = order, (order + 1) * width
        self.in_proj, self.out_proj = nn.Linear(width, inner), nn.Linear(width, width)
        self.short_filter = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.filter = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, order * width))
        self.positions = nn.Parameter(torch.randn(64, 4))
        self.D = nn.Parameter(torch.randn(order, width))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        z = self.short_filter(self.in_proj(x).mT)[..., :length]
        *gates, v = z.split(x.shape[-1], dim=1)
        decay = torch.linspace(0, -4, length, device=x.device).exp()
        k = self.filter(self.positions[:length]).T.reshape(self.order, -1, length) * decay
        for i, gate in enumerate(gates):
            v = hyena_convolution(v * gate, k[i], self.D[i])
        return self.out_proj(v.mT)


class Model(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, C)
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("batch", [1, B])
def test_hyena(batch: int) -> None:
    model = Model(Hyena(), Hyena(order=3))
    cap = ew.capture(model, torch.randint(0, 11, (batch, 20)))
    assert list(cap) == [
        "layers.0.short_filter", "layers.0", "layers.0#1",
        "layers.1.short_filter", "layers.1", "layers.1#1", "layers.1#2",
    ]  # fmt: skip
    for name, layer in cap.items():
        assert layer.family == "convolution"
        assert layer.group == "channel"
        assert layer.residual.max() <= 1e-5
        T = layer.operator.matrix()
        assert torch.equal(T, T.tril())
        assert layer.state_size.max() == (2 if "short" in name else 19)
    long = cap["layers.0"]
    assert long.operator.shape == (batch, C, 20, 20)
    # One kernel serves all samples and is not copied.
    assert batch == 1 or long.operator.kernel.stride(0) == 0
    y = direct(long.inputs.squeeze(-1), long.operator.kernel)
    torch.testing.assert_close(long.outputs.squeeze(-1).double(), y, atol=1e-5, rtol=1e-5)


class H3(nn.Module):
    """Shift and diagonal state-space models as convolutions, gated by ``k``, ``v`` and ``q``."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(C, C) for _ in range(3))
        self.shift = nn.Parameter(torch.randn(C, 4))
        self.C = nn.Parameter(torch.randn(C, 6, 2))
        self.log_dt = nn.Parameter(torch.rand(C) - 3)
        self.A = nn.Parameter(torch.stack([torch.full((6,), -0.7), torch.arange(6.0)], -1))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        q, k, v = (layer(x).mT for layer in (self.q, self.k, self.v))
        k = self.run(k, F.pad(self.shift, (0, length - 4)))
        A, dt = torch.view_as_complex(self.A), self.log_dt.exp()
        powers = torch.exp(A[None, :, None] * dt[:, None, None] * torch.arange(length))
        kernel = 2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(self.C), powers).real
        return (q * self.run(k * v, kernel)).mT

    def run(self, u: Tensor, kernel: Tensor) -> Tensor:
        n = 2 * u.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(kernel, n=n) * torch.fft.rfft(u, n=n), n=n)[..., : u.shape[-1]]


def test_h3_with_kernels_of_state_space_models() -> None:
    cap = ew.capture(Model(H3()), torch.randint(0, 11, (2, 24)))
    assert list(cap) == ["layers.0", "layers.0#1"]
    assert max(layer.residual.max() for layer in cap.values()) <= 1e-5
    shift, diagonal = cap["layers.0"].operator, cap["layers.0#1"].operator
    assert ew.ess(shift, kind="tolerance", tol=1e-5).max() == 3
    # Six complex modes, of which two share a real pole or not: at most twelve real states.
    assert ew.ess(diagonal, kind="tolerance", tol=1e-4).max() <= 12


def variants() -> dict[str, Any]:
    fft, rfft, ifft, irfft = torch.fft.fft, torch.fft.rfft, torch.fft.ifft, torch.fft.irfft

    def in_place(u: Tensor, k: Tensor) -> Tensor:
        f = rfft(u, n=2 * L)
        f *= rfft(k, n=2 * L)
        return irfft(f)[..., :L]

    return {
        "plain": lambda u, k: irfft(rfft(u, n=2 * L) * rfft(k, n=2 * L), n=2 * L)[..., :L],
        "kernel first": lambda u, k: irfft(rfft(k, n=2 * L) * rfft(u, n=2 * L), n=2 * L)[..., :L],
        "einsum": lambda u, k: irfft(torch.einsum("bcf,cf->bcf", rfft(u, 2 * L), rfft(k, 2 * L)))[..., :L],
        "both sides": lambda u, k: ifft(fft(u, n=2 * L) * fft(k, n=2 * L)).real[..., :L],
        "ortho": lambda u, k: irfft(
            rfft(u, n=2 * L, norm="ortho") * rfft(k, n=2 * L, norm="ortho") * (2 * L) ** 0.5, norm="ortho"
        )[..., :L],
        "forward": lambda u, k: irfft(
            rfft(u, n=2 * L, norm="forward") * rfft(k, n=2 * L), n=2 * L, norm="forward"
        )[..., :L],
        "padded": lambda u, k: irfft(rfft(F.pad(u, (0, L))) * rfft(F.pad(k, (0, L))))[..., :L],
        "in place": in_place,
        "first dimension": lambda u, k: irfft(
            rfft(u.mT, n=2 * L, dim=1) * rfft(k.T, n=2 * L, dim=0)[None], n=2 * L, dim=1
        )[:, :L].mT,
        "stored spectrum": lambda u, k: irfft(
            rfft(u, n=2 * L) * torch.view_as_complex(torch.view_as_real(rfft(k, n=2 * L)) + 0)
        )[..., :L],
        "reshaped": lambda u, k: irfft(rfft(u, n=2 * L) * rfft(k, n=2 * L).reshape(1, C, L + 1))[..., :L],
        "just long enough": lambda u, k: irfft(
            rfft(u, n=L + 9) * rfft(k[:, :10], n=L + 9), n=L + 9
        )[..., :L],
        "kept whole": lambda u, k: irfft(rfft(u, n=2 * L) * rfft(k, n=2 * L), n=2 * L),
        "by convolution": lambda u, k: F.conv1d(
            F.pad(u, (k.shape[-1] - 1, 0)), k.flip(-1).unsqueeze(1), groups=C
        ),
    }  # fmt: skip


class Long(nn.Module):
    def __init__(self, run: Any, taps: int = 40) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.randn(C, taps) * torch.linspace(0, -3, taps).exp())
        self.run = run

    def forward(self, u: Tensor) -> Tensor:
        return self.run(u, self.k[..., : u.shape[-1]])


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("name", variants())
def test_every_way_to_write_it(name: str, batch: int) -> None:
    model, u = Long(variants()[name]), torch.randn(batch, C, L)
    cap = ew.capture(model, u)
    assert list(cap) == ["Long"]
    layer = cap["Long"]
    assert layer.operator.shape == (batch, C, L, L)
    assert layer.residual.max() <= 1e-5
    torch.testing.assert_close(layer.inputs.squeeze(-1), u)
    taps = 10 if name == "just long enough" else L
    kernel = model.k.detach()[:, :taps]
    torch.testing.assert_close(layer.operator.kernel[0, :, :taps], kernel, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        layer.outputs.squeeze(-1).double(),
        direct(u, kernel if taps == L else F.pad(kernel, (0, L - taps))),
        atol=1e-5,
        rtol=1e-4,
    )
    assert layer.state_size.max() == min(taps, L) - 1


FAULTY = {
    "circular": (lambda u, k: torch.fft.irfft(torch.fft.rfft(u) * torch.fft.rfft(k), n=L), "circular"),
    "one point too few": (
        lambda u, k: torch.fft.irfft(
            torch.fft.rfft(u, n=L + 8) * torch.fft.rfft(k[:, :10], n=L + 8), n=L + 8
        )[..., :L],
        "24 points is too short for 16 positions and 10 taps",
    ),
    "correlation": (
        lambda u, k: torch.fft.irfft(
            torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(k, n=2 * L).conj(), n=2 * L
        )[..., :L],
        "reads the future",
    ),
    "both directions": (
        lambda u, k: torch.fft.irfft(
            torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(F.pad(k, (0, L)) + F.pad(k.flip(-1), (L, 0)))
        )[..., :L],
        "the first outputs read the last inputs",
    ),
    "late cut": (
        lambda u, k: torch.fft.irfft(torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(k, n=2 * L))[..., 3 : L + 3],
        "3 steps of the future",
    ),
    "another length back": (
        lambda u, k: torch.fft.irfft(torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(k, n=2 * L), n=3 * L)[..., :L],
        "another number of points",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_what_is_not_causal_has_a_reason(name: str) -> None:
    run, reason = FAULTY[name]
    with pytest.raises(CaptureError) as error:
        ew.capture(Long(run), torch.randn(B, C, L))
    assert reason in str(error.value)
    good = variants()["plain"]
    both = nn.Sequential(Long(good), Long(lambda u, k: run(u, k)))
    cap = ew.capture(both, torch.randn(B, C, L))
    assert list(cap) == ["0"]
    assert reason in cap.skipped["1"]


def test_transforms_that_mix_no_sequence_are_ignored() -> None:
    class Features(nn.Module):
        """A circular convolution of features, at every position by itself."""

        def __init__(self) -> None:
            super().__init__()
            self.long, self.k = Hyena(), nn.Parameter(torch.randn(C))

        def forward(self, x: Tensor) -> Tensor:
            x = self.long(x)
            return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(self.k), n=C)

    cap = ew.capture(Model(Features()), torch.randint(0, 11, (2, 20)))
    assert len(cap) == 3
    assert cap.skipped == {}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.randn(C, 40))

        def forward(self, x: Tensor) -> Tensor:
            return hyena_convolution(x.mT, self.k[:, : x.shape[1]], self.k[:, 0]).mT

    mask = torch.ones(2, L, dtype=torch.long)
    own = slice(5, None) if side == "left" else slice(None, -5)
    mask[1, slice(None, 5) if side == "left" else slice(-5, None)] = 0
    model, ids = Model(Plain()), torch.randint(0, 11, (2, L))
    layer = ew.capture(model, ids, attention_mask=mask)[0]
    alone = ew.capture(model, ids[1:, own])[0]
    assert layer.residual.max() <= 1e-5
    assert torch.equal(layer.valid, mask.bool())
    torch.testing.assert_close(layer.operator.matrix()[1][:, own, own], alone.operator.matrix()[0])
    torch.testing.assert_close(layer.state_size[1][:, own], alone.state_size.expand(C, -1))


@pytest.mark.parametrize("fault", ["flipped", "late", "no gate", "circular"])
def test_planted_faults_show(fault: str) -> None:
    model = Model(Hyena())
    cap = ew.capture(model, torch.randint(0, 11, (B, L)))
    layer = cap["layers.0"]
    kernel, u = layer.operator.kernel, layer.inputs
    assert residual(layer.operator, u, layer.outputs).max() <= 1e-5
    if fault == "no gate":
        u = cap["layers.0.short_filter"].outputs[:, -C:]
        assert residual(layer.operator, u, layer.outputs).min() > 0.1
        return
    if fault == "circular":
        at = torch.arange(L)
        T = kernel[..., (at[:, None] - at) % L]
        error = T @ u - layer.outputs
        assert (error.norm(dim=(-2, -1)) / layer.outputs.norm(dim=(-2, -1))).min() > 1e-3
        return
    wrong = kernel.flip(-1) if fault == "flipped" else F.pad(kernel, (1, 0))
    assert residual(Convolution(wrong, length=L), u, layer.outputs).max() > 0.1


# Fused kernels, which torch does not see ---------------------------------------------------------------------------


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, k: Tensor, reverse: bool = False) -> Tensor:
        source, taps = u.double().numpy(), k.double().numpy()[:, :: -1 if reverse else 1]
        y = np.stack(
            [[np.convolve(row, tap)[: u.shape[-1]] for row, tap in zip(s, taps, strict=True)] for s in source]
        )
        return torch.tensor(y, dtype=torch.float32).to(u.dtype)


def fftconv_func(
    u: Tensor,
    k: Tensor,
    D: Tensor,
    dropout_mask: Tensor | None = None,
    gelu: bool = True,
    v: Tensor | None = None,
    k_rev: Tensor | None = None,
) -> Tensor:
    y = Opaque.apply(u, k) + u * D.unsqueeze(-1)
    y = F.gelu(y) if gelu else y
    return y if dropout_mask is None else y * dropout_mask[..., None]


class Fused(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.k, self.D, self.options = nn.Parameter(torch.randn(C, 12)), nn.Parameter(torch.randn(C)), options

    def forward(self, u: Tensor) -> Tensor:
        return fftconv_func(u, self.k, self.D, **self.options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [True, False])
def test_fftconv(gelu: bool, dtype: torch.dtype) -> None:
    model, u = Fused(gelu=gelu).to(dtype), torch.randn(B, C, L).to(dtype)
    layer = ew.capture(model, u)["Fused"]
    assert layer.operator.shape == (B, C, L, L)
    assert layer.residual.max() <= (1e-5 if dtype is torch.float32 else 1e-2)
    assert layer.state_size.max() == 11
    expected = direct(u.float(), F.pad(model.k.detach().float(), (0, L - 12)))
    error = (layer.outputs.squeeze(-1).double() - expected).norm() / expected.norm()
    assert error <= (1e-5 if dtype is torch.float32 else 1e-2)


def test_fftconv_with_options_that_are_not_read() -> None:
    mixed = nn.Sequential(Fused(), Fused(k_rev=torch.randn(C, 12)))
    cap = ew.capture(mixed, torch.randn(B, C, L))
    assert list(cap) == ["0"]
    assert "k_rev" in cap.skipped["1"]


class FlashFFTConv(nn.Module):
    """The attributes and the call of the package's module."""

    def __init__(self, seqlen: int, reverse: bool = False) -> None:
        super().__init__()
        self.seqlen, self.dtype, self.use_32_butterfly, self.reverse = seqlen, torch.float32, True, reverse

    def forward(
        self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None
    ) -> Tensor:
        y = Opaque.apply(u if pregate is None else u * pregate, k, self.reverse)
        return y if postgate is None else y * postgate


class Flash(nn.Module):
    def __init__(self, seqlen: int = 2 * L, reverse: bool = False) -> None:
        super().__init__()
        self.conv, self.k = FlashFFTConv(seqlen, reverse), nn.Parameter(torch.randn(C, L))

    def forward(self, u: Tensor, *gates: Tensor) -> Tensor:
        return self.conv(u, self.k, *gates)


def test_flash_fft_convolution() -> None:
    u, pre, post = torch.randn(3, B, C, L)
    plain = ew.capture(Flash(), u)["conv"]
    assert plain.residual.max() <= 1e-6
    gated = ew.capture(Flash(), u, pre, post)["conv"]
    assert gated.operator.gated
    assert gated.residual.max() <= 1e-6
    assert residual(plain.operator, gated.inputs, gated.outputs).min() > 0.1
    assert ew.capture(Flash(reverse=True), u)["conv"].residual.min() > 0.1
    with pytest.raises(CaptureError, match="circular"):
        ew.capture(Flash(seqlen=L), u)
