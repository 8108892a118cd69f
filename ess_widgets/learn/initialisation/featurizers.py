"""What makes an operator of Gaussian input, by the paper's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ess_widgets.operators import (
    Operator,
    gated_delta_rule,
    gated_linear_attention,
    gla_s6,
    linear_attention,
    selective_ssm,
    softmax_attention,
    weighted_linear_attention,
)

__all__ = ["FEATURIZERS", "Featurizer", "gaussian"]

# From u (samples, L, width), the state-size n, a source of weights, and options.
Featurizer = Callable[..., Operator]


def gaussian(samples: int, length: int, width: int, generator: torch.Generator) -> Tensor:
    """Standard Gaussian ``u``, ``(samples, length, width)``, float64."""
    return torch.randn(samples, length, width, generator=generator, dtype=torch.float64)


def _project(u: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``W u`` with a semi-orthogonal ``W`` of its own for each sample: entries of unit variance, ``(samples, L, n)``."""
    samples, _, width = u.shape
    tall = torch.randn(samples, max(n, width), min(n, width), generator=generator, dtype=u.dtype)
    Q: Tensor = torch.linalg.qr(tall).Q
    return u @ (Q if n <= width else Q.mT * math.sqrt(n / width))


def _gates(u: Tensor, n: int, spread: float, generator: torch.Generator) -> Tensor:
    """What goes into a sigmoid or softplus, ``(samples, L, n)``: 0, or Gaussian of a standard deviation."""
    if spread == 0:
        return u.new_zeros(*u.shape[:2], n)
    return spread * _project(u, n, generator)


def _la(u: Tensor, n: int, generator: torch.Generator) -> Operator:
    return linear_attention(_project(u, n, generator), _project(u, n, generator))


def _wla(u: Tensor, n: int, generator: torch.Generator, *, beta: float = 16.0) -> Operator:
    q, k = _project(u, n, generator), _project(u, n, generator)
    return weighted_linear_attention(q, k, u.new_zeros(n), beta=beta)


def _gla(
    u: Tensor, n: int, generator: torch.Generator, *, beta: float = 16.0, spread: float = 0.0
) -> Operator:
    q, k = _project(u, n, generator), _project(u, n, generator)
    return gated_linear_attention(q, k, F.logsigmoid(_gates(u, n, spread, generator)) / beta)


def _gla_s6(
    u: Tensor, n: int, generator: torch.Generator, *, alpha: float = 1.0, spread: float = 0.0
) -> Operator:
    q, k = _project(u, n, generator), _project(u, n, generator)
    return gla_s6(q, k, F.softplus(_gates(u, 1, spread, generator)), alpha=alpha)


def _s6(
    u: Tensor, n: int, generator: torch.Generator, *, alpha: float = 1.0, spread: float = 0.0
) -> Operator:
    B, C = _project(u, n, generator), _project(u, n, generator)
    rates = -torch.arange(1, n + 1, dtype=u.dtype)[None] / alpha
    return selective_ssm(F.softplus(_gates(u, 1, spread, generator)).mT, rates, B, C)


def _gdn(
    u: Tensor, n: int, generator: torch.Generator, *, beta: float = 16.0, spread: float = 0.0
) -> Operator:
    q, k = (F.normalize(_project(u, n, generator), dim=-1) for _ in range(2))
    gate, write = (_gates(u, 1, spread, generator).squeeze(-1) for _ in range(2))
    return gated_delta_rule(q, k, F.logsigmoid(gate) / beta, write.sigmoid())


def _sa(u: Tensor, n: int, generator: torch.Generator, *, temperature: float = 1.0) -> Operator:
    q, k = (_project(u, n, generator).unsqueeze(1) for _ in range(2))
    return softmax_attention(q, k, is_causal=True, scale=1 / (temperature * math.sqrt(n)))


FEATURIZERS: dict[str, Any] = {
    "LA": _la,
    "WLA": _wla,
    "GLA": _gla,
    "GLA-S6": _gla_s6,
    "S6": _s6,
    "GDN": _gdn,
    "SA": _sa,
}
