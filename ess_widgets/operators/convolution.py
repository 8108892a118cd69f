"""Causal convolutions, short and long, with and without gates: ``T_ij = g_i h_{i-j} b_j``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ess_widgets.operators._state_size import count_from_last_reader
from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import as_tensor, broadcast_valid, drop_padding, leading_index

__all__ = ["Convolution", "gated_convolution", "long_convolution", "short_convolution"]


class Convolution(Operator):
    """A causal convolution, ``y_i = g_i Σ_k h_k b_{i-k} u_{i-k}``, hence ``T_ij = g_i h_{i-j} b_j``.

    Parameters
    ----------
    kernel : Tensor or ndarray, ``(..., K)``
        The taps ``h_0 .. h_{K-1}``; ``h_0`` is on the diagonal. Taps beyond the length have no effect.
    input_gate, output_gate : Tensor or ndarray, ``(..., L)``, optional
        ``b`` and ``g``, one number per position.
    length : int, optional
        ``L``. By default that of the gates or of ``valid``, else the number of taps.
    D : Tensor or ndarray, broadcastable to ``(..., L)``, optional
        Added to the diagonal, outside of the gates; a skip that the gates act on belongs in ``h_0``.
    valid : bool Tensor, ``(..., L)``, optional
        A sample's own tokens; rows and columns of ``matrix()`` outside (padding) are zero.

    Attributes
    ----------
    kernel, input_gate, output_gate, D : Tensor or None
        As given, broadcast to common leading dimensions without copying.
    taps : int
        ``K``.
    gated : bool

    Notes
    -----
    Leading dimensions, such as batch and channels, broadcast against each other and are not copied. The
    matrix is float64 where a part of it is, else float32; half precision is cast up first. TSS counts the
    past inputs that an output from ``i`` on can read: ``min(i, K - 1)`` without padding.

    Raises
    ------
    TypeError
        If a part is not a real numeric tensor or array.
    ValueError
        If shapes or devices do not fit, or values are not finite.

    Examples
    --------
    >>> import torch
    >>> op = Convolution(torch.tensor([3.0, 2.0, 1.0]), length=4)
    >>> op
    Convolution(taps=3, shape=(4, 4), dtype=float32, device=cpu)
    >>> op.matrix()
    tensor([[3., 0., 0., 0.],
            [2., 3., 0., 0.],
            [1., 2., 3., 0.],
            [0., 1., 2., 3.]])
    >>> op.state_size
    tensor([0, 1, 2, 2])
    """

    splittable = True
    kernel: Tensor
    input_gate: Tensor | None
    output_gate: Tensor | None
    D: Tensor | None

    def __init__(
        self,
        kernel: Any,
        *,
        input_gate: Any = None,
        output_gate: Any = None,
        length: int | None = None,
        D: Any = None,
        valid: Any = None,
    ) -> None:
        kernel = _real(kernel, "kernel")
        if kernel.ndim < 1 or 0 in kernel.shape:
            raise ValueError(
                f"kernel must hold at least one tap, (..., K), but its shape is {tuple(kernel.shape)}."
            )
        _check_finite(kernel, "kernel", None)
        given = {"input_gate": input_gate, "output_gate": output_gate, "D": D}
        parts = {name: _real(part, name) for name, part in given.items() if part is not None}
        for name, part in parts.items():
            if part.device != kernel.device:
                raise ValueError(
                    f"{name} is on {part.device} and the kernel on {kernel.device}; move them to one device."
                )
        own = {} if valid is None else {"valid": as_tensor(valid, "valid")}
        L = _length(length, kernel.shape[-1], {**parts, **own})
        lead = _common_lead({"kernel": kernel, **parts, **own})
        self._length = L
        self.valid = broadcast_valid(valid, torch.Size([*lead, L]), kernel.device)
        self.kernel = kernel.expand(*lead, kernel.shape[-1])
        expanded = {name: _to_length(part, name, lead, L) for name, part in parts.items()}
        for name, part in expanded.items():
            _check_finite(part, name, self.valid)
        self.input_gate = expanded.get("input_gate")
        self.output_gate = expanded.get("output_gate")
        self.D = expanded.get("D")

    def matrix(self) -> Tensor:
        """``T``, ``(..., L, L)``. Where all leading entries share it, an expanded view of one matrix."""
        L, lead = self._length, self.shape[:-2]
        T = toeplitz(_compact(self.kernel).to(self.dtype), L)
        # What padding holds, NaN included, is dropped before it can spread.
        if self.output_gate is not None:
            T = T * _own(self.output_gate, self.valid, self.dtype).unsqueeze(-1)
        if self.input_gate is not None:
            T = T * _own(self.input_gate, self.valid, self.dtype).unsqueeze(-2)
        if self.D is not None:
            T = T + torch.diag_embed(_own(self.D, self.valid, self.dtype))
        return drop_padding(T.expand(*lead, L, L), self.valid)

    @property
    def taps(self) -> int:
        return self.kernel.shape[-1]

    @property
    def gated(self) -> bool:
        return self.input_gate is not None or self.output_gate is not None

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.kernel.shape[:-1], self._length, self._length])

    @property
    def state_size(self) -> Tensor:
        """TSS: the own inputs before ``i`` that an own output within reach of the taps can read from ``i`` on."""
        position = torch.arange(self._length, device=self.device)
        reach = (position + self.taps - 1).clamp(max=self._length - 1)
        if self.valid is None:
            return count_from_last_reader(reach)
        latest = torch.where(self.valid, position, -1).cummax(dim=-1).values
        return count_from_last_reader(torch.where(self.valid, latest[..., reach], -1))

    @property
    def dtype(self) -> torch.dtype:
        parts = (self.kernel, self.input_gate, self.output_gate, self.D)
        wide = any(part is not None and part.dtype is torch.float64 for part in parts)
        return torch.float64 if wide else torch.float32

    @property
    def device(self) -> torch.device:
        return self.kernel.device

    def to(self, device: torch.device | str) -> Convolution:
        return self._each(lambda part: part.to(device))

    def __getitem__(self, index: Any) -> Convolution:
        where = leading_index(index, self.kernel.ndim - 1)
        return self._each(lambda part: part[where])

    def _each(self, f: Callable[[Tensor], Tensor]) -> Convolution:
        """The operator with ``f`` applied to every part, without checking again."""
        op = type(self).__new__(type(self))
        op._length = self._length
        op.kernel = f(self.kernel)
        for name in ("input_gate", "output_gate", "D", "valid"):
            part = getattr(self, name)
            setattr(op, name, None if part is None else f(part))
        return op

    def __repr__(self) -> str:
        gates = [name for name in ("input", "output") if getattr(self, f"{name}_gate") is not None]
        gated = f", gated={' and '.join(gates)}" if gates else ""
        return super().__repr__().replace("(", f"(taps={self.taps}{gated}, ", 1)


def short_convolution(
    weight: Any,
    length: int | None = None,
    *,
    dilation: int = 1,
    input_gate: Any = None,
    output_gate: Any = None,
    valid: Any = None,
) -> Convolution:
    """The causal depthwise convolution of a ``torch.nn.Conv1d``, as it stands in front of many mixers.

    ``y_t = Σ_m w_m u_{t-(K-1-m)·dilation}``: torch correlates, so its last weight is the tap ``h_0``.

    Parameters
    ----------
    weight : Tensor or ndarray, ``(channels, 1, K)`` or ``(channels, K)``
        As ``Conv1d(channels, channels, K, groups=channels, padding=(K - 1) * dilation).weight`` holds it,
        where the layer cuts its outputs to the first ``length``.
    length : int, optional
        ``L``; by default that of the gates or of ``valid``.
    dilation : int
        Steps from one weight to the next.
    input_gate, output_gate, valid
        As in :class:`Convolution`; ``(batch, channels, L)``.

    Returns
    -------
    Convolution
        Leading dimensions ``(channels,)``, broadcast against those of the gates and of ``valid``. A bias is
        no part of ``T``.

    Raises
    ------
    ValueError
        If nothing says the length, or the weight mixes channels.

    Examples
    --------
    >>> import torch
    >>> conv = torch.nn.Conv1d(8, 8, 4, groups=8, padding=3)
    >>> short_convolution(conv.weight, 16)
    Convolution(taps=4, shape=(8, 16, 16), dtype=float32, device=cpu)
    """
    weight = _real(weight, "weight")
    if isinstance(dilation, bool) or not isinstance(dilation, int) or dilation < 1:
        raise ValueError(f"dilation must be a positive integer, but is {dilation!r}.")
    if weight.ndim not in (2, 3) or 0 in weight.shape:
        raise ValueError(
            f"weight must be (channels, 1, K) or (channels, K), but its shape is {tuple(weight.shape)}."
        )
    if weight.ndim == 3:
        if weight.shape[1] != 1:
            raise ValueError(
                f"weight of shape {tuple(weight.shape)} is not (channels, 1, K): the layer mixes channels. "
                "Give the matrix of the whole layer as Dense(T, block=channels)."
            )
        weight = weight[:, 0]
    if length is None and input_gate is None and output_gate is None and valid is None:
        raise ValueError("length is needed: the number of positions that the convolution runs over.")
    kernel = weight.flip(-1)
    if dilation > 1:
        spread = kernel.new_zeros(*kernel.shape[:-1], (kernel.shape[-1] - 1) * dilation + 1)
        spread[..., ::dilation] = kernel
        kernel = spread
    return Convolution(kernel, input_gate=input_gate, output_gate=output_gate, length=length, valid=valid)


def long_convolution(
    kernel: Any, length: int | None = None, *, D: Any = None, valid: Any = None
) -> Convolution:
    """A convolution with a kernel as long as the sequence: Hyena's filters, S4 in its convolutional view.

    ``y_t = Σ_k h_k u_{t-k} + D u_t``, what an FFT convolution with zero padding computes.

    Parameters
    ----------
    kernel : Tensor or ndarray, ``(..., K)``
        Taps from ``h_0`` on; ``K`` may be shorter or longer than the length.
    length : int, optional
        ``L``, by default ``K``.
    D : Tensor or ndarray, ``(...)``, optional
        The skip, one number per leading entry of the kernel, such as a channel.
    valid : bool Tensor, ``(..., L)``, optional
        A sample's own tokens.

    Returns
    -------
    Convolution

    References
    ----------
    Poli et al., "Hyena Hierarchy", ICML 2023, arXiv:2302.10866; Gu et al., "Efficiently Modeling Long
    Sequences with Structured State Spaces", ICLR 2022, arXiv:2111.00396.

    Examples
    --------
    >>> import torch
    >>> long_convolution(0.5 ** torch.arange(3.0), D=1.0).matrix()
    tensor([[2.0000, 0.0000, 0.0000],
            [0.5000, 2.0000, 0.0000],
            [0.2500, 0.5000, 2.0000]])
    """
    if D is not None:
        D = _real(torch.tensor(D) if isinstance(D, int | float) else D, "D").unsqueeze(-1)
    return Convolution(kernel, length=length, D=D, valid=valid)


def gated_convolution(kernel: Any, input_gate: Any, output_gate: Any, *, valid: Any = None) -> Convolution:
    """A convolution between two gates, ``y = g ⊙ (h * (b ⊙ u))``: H3, one order of Hyena, LFM2's mixer.

    Parameters
    ----------
    kernel : Tensor or ndarray, ``(..., K)``
        Taps from ``h_0`` on; of a ``Conv1d``'s weight take :func:`short_convolution` with its gates.
    input_gate, output_gate : Tensor or ndarray, ``(..., L)``
        ``b`` and ``g``, usually ``(batch, channels, L)``.
    valid : bool Tensor, ``(..., L)``, optional
        A sample's own tokens.

    Returns
    -------
    Convolution

    References
    ----------
    Fu et al., "Hungry Hungry Hippos", ICLR 2023, arXiv:2212.14052; Poli et al., arXiv:2302.10866.

    Examples
    --------
    >>> import torch
    >>> gate = torch.rand(2, 5, 32)
    >>> gated_convolution(torch.randn(5, 32), gate, 1 - gate)
    Convolution(taps=32, gated=input and output, shape=(2, 5, 32, 32), dtype=float32, device=cpu)
    """
    return Convolution(kernel, input_gate=input_gate, output_gate=output_gate, valid=valid)


def toeplitz(kernel: Tensor, L: int) -> Tensor:
    """``T_ij = h_{i-j}``: ``(..., K)`` to ``(..., L, L)``, zero above the diagonal and beyond the taps."""
    kernel = kernel[..., :L]
    line = torch.nn.functional.pad(kernel, (L - 1, L - kernel.shape[-1]))
    # Row i of the windows is h_{i-L+1} .. h_i.
    return line.unfold(-1, L, 1).flip(-1)


def _own(part: Tensor, valid: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A per-position part in the dtype of the matrix, zero at padding."""
    part = _compact(part).to(dtype)
    return part if valid is None else part.masked_fill(~valid, 0.0)


def _compact(part: Tensor) -> Tensor:
    """The same with leading dimensions that were only broadcast cut back to size 1."""
    for dim in range(part.ndim - 1):
        if part.stride(dim) == 0:
            part = part.narrow(dim, 0, 1)
    return part


def _real(value: Any, name: str) -> Tensor:
    """A real tensor, of floating-point numbers of any precision."""
    tensor = as_tensor(value, name)
    if tensor.is_complex():
        raise TypeError(
            f"{name} must hold real numbers, but its dtype is {tensor.dtype}; take its real part."
        )
    return tensor if tensor.is_floating_point() else tensor.to(torch.float32)


def _check_finite(part: Tensor, name: str, valid: Tensor | None) -> None:
    bad = ~torch.isfinite(_compact(part))
    if valid is not None:
        bad = bad & valid
    if bool(bad.any()):
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} is not finite: NaN or infinity in {int(bad.sum())} of {bad.numel()} entries, the first "
            f"at {first}."
        )


def _length(length: Any, taps: int, parts: dict[str, Tensor]) -> int:
    """``L`` as it is given, else as gates or the mask of valid tokens have it, else the number of taps."""
    if length is not None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"length must be a positive integer, but is {length!r}.")
        return length
    # A skip may be one number per channel; the others have one entry per position.
    sizes = [
        part.shape[-1]
        for name, part in parts.items()
        if part.ndim and not (name == "D" and part.shape[-1] == 1)
    ]
    return max(sizes, default=taps)


def _common_lead(parts: dict[str, Tensor]) -> torch.Size:
    try:
        return torch.Size(np.broadcast_shapes(*(part.shape[:-1] for part in parts.values())))
    except ValueError:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        raise ValueError(f"the leading dimensions do not broadcast against each other: {shapes}.") from None


def _to_length(part: Tensor, name: str, lead: torch.Size, L: int) -> Tensor:
    try:
        return part.expand(*lead, L)
    except RuntimeError:
        raise ValueError(
            f"{name} must have one number per position, (..., L) = (..., {L}), but its shape is "
            f"{tuple(part.shape)}."
        ) from None
