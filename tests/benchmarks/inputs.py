"""Operators to measure: made from a fixed seed, ``heads`` of them, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from ess_widgets.operators import Convolution, Recurrence, delta_rule, selective_ssm, short_convolution

STATE = 16
WINDOW = 64
RANK = 16


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(20)


def softmax(length: int, heads: int) -> Tensor:
    """Causal softmax attention with standard normal scores, float32 as a model computes it."""
    scores = torch.randn(heads, length, length, generator=_seeded())
    future = torch.ones(length, length, dtype=torch.bool).triu_(1)
    return scores.masked_fill_(future, -torch.inf).softmax(dim=-1)


def window(length: int, heads: int) -> Tensor:
    """The same where each output reads the last ``WINDOW`` inputs."""
    scores = torch.randn(heads, length, length, generator=_seeded())
    allowed = torch.ones(length, length, dtype=torch.bool).tril_().triu_(1 - WINDOW)
    return scores.masked_fill_(~allowed, -torch.inf).softmax(dim=-1)


def mamba(length: int, heads: int) -> Recurrence:
    """Channels of a Mamba layer with its usual initialisation: ``A = -1 .. -n``, steps around 1e-3 to 1e-1."""
    seeded = _seeded()
    step = torch.exp(torch.empty(heads, 1).uniform_(-6.9, -2.3, generator=seeded))
    bias = step + torch.log(-torch.expm1(-step))
    delta = softplus(bias + torch.randn(heads, length, generator=seeded))
    A = -torch.arange(1.0, STATE + 1).expand(heads, STATE)
    B, C = torch.randn(2, length, STATE, generator=seeded)
    return selective_ssm(delta, A, B, C)


def delta(length: int, heads: int) -> Recurrence:
    """Heads of a DeltaNet layer, ``d_k = 64``."""
    seeded = _seeded()
    q, k = normalize(torch.randn(2, heads, length, 64, generator=seeded), dim=-1)
    return delta_rule(q, k, torch.rand(heads, length, generator=seeded))


def convolution(length: int, heads: int) -> Convolution:
    """A depthwise convolution with four taps."""
    return short_convolution(torch.randn(heads, 1, 4, generator=_seeded()), length)


def low_rank(length: int, heads: int) -> Tensor:
    """Linear attention without decay as a matrix: ``H_i`` has rank ``RANK``."""
    q, k = torch.randn(2, heads, length, RANK, generator=_seeded(), dtype=torch.float64)
    return (q @ k.mT).tril_()


def permutation(length: int, heads: int) -> Tensor:
    """Half of the inputs each copied to one later output: every singular value is 0 or 1."""
    seeded = _seeded()
    T = torch.zeros(heads, length, length)
    for head in T:
        pairs = torch.randperm(length, generator=seeded)[: length // 2 * 2].reshape(2, -1)
        head[pairs.amax(dim=0), pairs.amin(dim=0)] = 1.0
    return T


def huge(length: int, heads: int) -> Tensor:
    """Softmax attention with one entry of 1e9, 1e12 times the usual tolerance."""
    T = softmax(length, heads).double()
    T[:, 3 * length // 4, length // 4] = 1e9
    return T
