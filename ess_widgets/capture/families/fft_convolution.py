"""Long convolutions by Fourier transforms: Hyena, S4 and its kin, and their fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets.capture.attention.layout import Layout
from ess_widgets.capture.convolution.spectra import Factor, Product
from ess_widgets.capture.families._activations import before
from ess_widgets.capture.families._expected import takes
from ess_widgets.capture.families.convolution import Window
from ess_widgets.capture.reading import Call, ModuleCall, ModuleRecogniser, Reading, first_tensor, without
from ess_widgets.operators import Convolution, Operator, gated_convolution

__all__ = ["FUNCTIONS", "MODULES", "OPEN", "FourierConvolution"]

# What is left of zeros after a transform and back, relative to the largest value.
_ROUNDING = 1e-5


class FourierConvolution:
    """A transform back of a product of two spectra, ``y = F⁻¹(F u · F h)``.

    Parameters
    ----------
    product : Product
    name : str
        "fft_irfft" or "fft_ifft".
    call : dict
        Arguments of the transform back.
    result : Tensor
        What it returned.
    is_weight : callable
        Whether a tensor is a parameter of the model.
    """

    def __init__(
        self,
        product: Product,
        name: str,
        call: Mapping[str, Any],
        result: Tensor,
        is_weight: Callable[[Tensor], bool],
    ) -> None:
        self.product, self.result = product, result
        spectrum = call["input"]
        self.dim: int = call["dim"] - spectrum.ndim if call["dim"] >= 0 else call["dim"]
        self.onesided = name == "fft_irfft"
        self.points: int = result.shape[self.dim]
        inverse = {"ortho": self.points**0.5, "forward": float(self.points)}.get(call["norm"], 1.0)
        self.scale = product.scale * product.left.scale * product.right.scale * inverse
        self.frequencies = spectrum.shape[self.dim]
        left, right = product.left, product.right
        swapped = self._is_kernel(left, right, is_weight)
        self.u, self.h = (right, left) if swapped else (left, right)

    @property
    def positions(self) -> int | None:
        """How many positions the transformed input had."""
        return self.u.length

    def _is_kernel(self, left: Factor, right: Factor, is_weight: Callable[[Tensor], bool]) -> bool:
        """Whether the left factor is the kernel: it was not transformed, serves all samples, or is a parameter."""
        if (left.length is None) != (right.length is None):
            return left.length is None
        if (sizes := (self._rows(left), self._rows(right)))[0] != sizes[1]:
            return sizes[0] < sizes[1]
        if left.rank != right.rank:
            return left.rank < right.rank
        learned = [f.source is not None and is_weight(f.source.tensor) for f in (left, right)]
        return learned[0] and not learned[1]

    def _rows(self, factor: Factor) -> int:
        leaf = factor.source or factor.spectrum
        assert leaf is not None
        shape: torch.Size = leaf.tensor.shape
        return shape.numel() // max(shape[self.dim], 1)

    def empty_behind(self, length: int) -> bool:
        """Whether the input is zero from a position on."""
        u = self._time(self.u)
        rest, limit = u[..., length:], 0.0 if self.u.source is not None else _ROUNDING * float(u.abs().max())
        return not bool((rest.abs() > limit).any())

    def why_not(self, length: int) -> str | None:
        """Why a convolution along the sequence cannot be captured."""
        u, h = self.u, self.h
        if u.conjugate or h.conjugate:
            return "a correlation by Fourier transform: it reads the future"
        expected = self.points // 2 + 1 if self.onesided else self.points
        if any(f.points not in (None, self.points) for f in (u, h)) or self.frequencies != expected:
            return "a product of spectra that is transformed back to another number of points"
        if self.points < length:
            return f"a transform of {self.points} points, fewer than the {length} positions"
        kernel = self._time(h)[..., : self.points]
        wrapped = kernel[..., self.points - length + 1 :]
        limit = 0.0 if h.source is not None else _ROUNDING * float(kernel.abs().max())
        if bool((wrapped.abs() > limit).any()):
            return (
                f"a circular convolution: its transform of {self.points} points is too short for {length} positions and "
                f"{kernel.shape[-1]} taps, so the first outputs read the last inputs"
            )
        return None

    def _time(self, factor: Factor) -> Tensor:
        """A factor as a function of time, ``dim`` last."""
        leaf = factor.source or factor.spectrum
        assert leaf is not None
        values: Tensor = leaf.tensor.movedim(self.dim, -1)
        return values if factor.source is not None else back(values, self.points, self.onesided)

    def read(self, length: int, batch: int | None, window: Window) -> Reading:
        """The reading, for a sequence of this length."""
        y = self.result.movedim(self.dim, -1)
        lead = y.shape[:-1]
        layout = Layout.of(lead, batch)
        samples, groups = layout.shape
        points, onesided, scale = self.points, self.onesided, self.scale
        parts = {
            name: (f.source or f.spectrum, f.source is not None) for name, f in (("u", self.u), ("h", self.h))
        }
        tensors: dict[str, Any] = {"y": y, "window": window}
        for name, (leaf, _) in parts.items():
            assert leaf is not None
            tensors[name] = leaf.tensor.movedim(self.dim, -1)
        known = {name: in_time for name, (_, in_time) in parts.items()}

        def time(t: Mapping[str, Any], name: str) -> Tensor:
            part: Tensor = t[name] if known[name] else back(t[name], points, onesided)
            part = part[..., : min(length, points)]
            return part.expand(*lead, part.shape[-1])

        def inputs(t: Mapping[str, Any]) -> Tensor:
            return layout.apply(time(t, "u"), 1).unsqueeze(-1)

        def outputs(t: Mapping[str, Any]) -> Tensor:
            y: Tensor = t["y"].real if t["y"].is_complex() else t["y"]
            start = t["window"].start
            return layout.apply(y[..., start : start + length], 1).unsqueeze(-1)

        def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
            kernel = time(t, "h")
            kernel = F.pad(kernel, (t["window"].delay, 0)) if t["window"].delay else kernel
            kernel = layout.apply(kernel, 1)
            return Convolution(kernel if scale == 1 else kernel * scale, length=length, valid=valid)

        return Reading(
            "convolution", (samples, groups, length), tensors, operator, inputs, outputs, group="channel"
        )


def back(spectrum: Tensor, points: int, onesided: bool) -> Tensor:
    """The real signal of a spectrum, frequencies last."""
    signal: Tensor = (
        torch.fft.irfft(spectrum, n=points) if onesided else torch.fft.ifft(spectrum, n=points).real
    )
    return signal


# Fused kernels ------------------------------------------------------------------------------------------------


@takes("u: 3", "k: 2")
def _fftconv(call: Call) -> Reading | str:
    """``fftconv_func(u, k, D, dropout_mask, gelu, …)``, ``u`` ``(batch, channels, L)``, ``k`` ``(channels, taps)``."""
    u, k, D, y = call.first("u"), call.first("k"), call.first("D"), call.output
    if u is None or k is None or y is None or u.ndim != 3 or k.ndim != 2 or u.shape != y.shape:
        return "u (batch, channels, L) and k (channels, taps) were expected"
    given = [name for name in ("v", "q", "k_rev", "dropout_mask") if call.first(name) is not None]
    if given or call.first("output_hbl_layout"):
        return f"its option {given[0] if given else 'output_hbl_layout'} is not known"
    batch, channels, L = u.shape
    again = call.again
    gelu = bool(call.first("gelu"))
    tensors = {"y": y, "u": u, "k": k, "D": D, "arguments": dict(call.arguments)}

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        return Convolution(t["k"].expand(batch, channels, -1), length=L, valid=valid)

    def outputs(t: Mapping[str, Any]) -> Tensor:
        change = {"D": None if D is None else torch.zeros_like(D), "gelu": False}
        bare = first_tensor(
            again(**{**t["arguments"], **{k: v for k, v in change.items() if k in t["arguments"]}})
        )
        assert bare is not None
        skip = None if t["D"] is None else t["u"] * t["D"].unsqueeze(-1).to(t["u"].dtype)
        y = before("gelu", t["y"], bare if skip is None else bare + skip) if gelu else t["y"]
        return without(y, bare, skip, None).unsqueeze(-1)

    return Reading(
        "convolution",
        (batch, channels, L),
        tensors,
        operator,
        lambda t: t["u"].unsqueeze(-1),
        outputs,
        group="channel",
        computed=lambda t: t["y"].unsqueeze(-1),
    )


def _is_flash(module: nn.Module) -> bool:
    """FlashFFTConv, whose kernels are all there is to see of it."""
    points, butterfly, dtype = (
        getattr(module, name, None) for name in ("seqlen", "use_32_butterfly", "dtype")
    )
    return isinstance(points, int) and isinstance(butterfly, bool) and isinstance(dtype, torch.dtype)


def _flash(call: ModuleCall) -> Reading | str:
    """``postgate ⊙ (k * (pregate ⊙ u))``, transforms of ``seqlen`` points."""
    given = {**dict(zip(("u", "k", "pregate", "postgate"), call.args, strict=False)), **call.kwargs}
    u, k, y = given.get("u"), given.get("k"), call.output
    if not isinstance(u, Tensor) or not isinstance(k, Tensor) or y is None or u.ndim != 3 or k.ndim != 2:
        return "u (batch, channels, L) and k (channels, taps) were expected"
    batch, channels, L = u.shape
    points = int(call.module.seqlen)  # type: ignore[arg-type]
    if k.shape[-1] > points - L + 1 and bool(k[..., points - L + 1 :].any()):
        return f"a circular convolution: {points} points are too few for {L} positions and {k.shape[-1]} taps"
    tensors = {"y": y, "u": u, "k": k, "pre": given.get("pregate"), "post": given.get("postgate")}

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        kernel = t["k"].expand(batch, channels, -1)
        if t["pre"] is None or t["post"] is None:
            return Convolution(kernel, length=L, valid=valid)
        return gated_convolution(kernel, t["pre"], t["post"], valid=valid)

    return Reading(
        "convolution",
        (batch, channels, L),
        tensors,
        operator,
        lambda t: t["u"].unsqueeze(-1),
        lambda t: t["y"].unsqueeze(-1),
        group="channel",
    )


FUNCTIONS = {"fftconv_func": _fftconv}
OPEN = frozenset(FUNCTIONS)
MODULES = (ModuleRecogniser(_is_flash, _flash, exclusive=True),)
