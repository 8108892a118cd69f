"""Where an operator's weight lies: near the diagonal, on the first tokens, evenly, or growing with distance."""

from __future__ import annotations

import torch
from torch import Tensor

from .thresholds import Thresholds

__all__ = ["growth", "similarity", "weight_shape", "weights"]


def weights(T: Tensor, block: int) -> Tensor:
    """The size of each entry of ``T``, ``(groups, n, n)``, float64; of a block its Frobenius norm."""
    if block == 1:
        return T.double().abs()
    groups, rows, _ = T.shape
    n = rows // block
    return T.double().reshape(groups, n, block, n, block).square().sum(dim=(2, 4)).sqrt()


def weight_shape(W: Tensor, limits: Thresholds, *, attention: bool) -> dict[str, Tensor]:
    """Mean shares of each row's weight, ``(groups,)`` each; NaN where the sample is too short to tell.

    A row counts where chance would put at most a quarter of its weight there.

    Parameters
    ----------
    W : Tensor, ``(groups, n, n)``
        Sizes of entries among own tokens.
    limits : Thresholds
        How wide the diagonal and the sink are.
    attention : bool
        Rows are weights that add up to 1; what is missing went to a learned sink.
    """
    n = W.shape[-1]
    mass = W.sum(-1)
    total = mass.clamp_min(1.0) if attention else mass
    at = torch.arange(n, device=W.device)
    near = (at[:, None] - at < limits.local_width + 1) & (at[:, None] >= at)
    shares = {
        "local": ((W * near).sum(-1), 4 * (limits.local_width + 1) - 1),
        "diagonal": (W.diagonal(dim1=-2, dim2=-1), 3),
        "sink": (
            W[..., : limits.sink_tokens].sum(-1) + (total - mass if attention else 0.0),
            4 * limits.sink_tokens - 1,
        ),
    }
    found = {name: _mean_share(part, total, first) for name, (part, first) in shares.items()}
    found["selectivity"] = _selectivity(W, mass) if attention else torch.full_like(found["local"], torch.nan)
    return found


def _mean_share(part: Tensor, total: Tensor, first: int) -> Tensor:
    """Mean of ``part / total`` over rows from ``first`` on that have any weight."""
    part, total = part[..., first:], total[..., first:]
    some = total > 0
    share = torch.where(some, part / total.where(some, 1.0), 0.0)
    return share.sum(-1) / some.sum(-1)


def _selectivity(W: Tensor, mass: Tensor) -> Tensor:
    """How far rows are from the plain mean of what they may read: ``1 - H / log(count)``."""
    count = (W > 0).sum(-1)
    rows = (count >= 4) & (mass > 0)
    p = W / mass.where(mass > 0, 1.0).unsqueeze(-1)
    entropy = -torch.special.xlogy(p, p).sum(-1)
    value = (1 - entropy / count.clamp_min(2).double().log()).clamp_min(0)
    return torch.where(rows, value, 0.0).sum(-1) / rows.sum(-1)


def growth(W: Tensor) -> Tensor:
    """How much more an input weighs half a sequence later than at once, ``(groups,)``; NaN below 16 tokens.

    For each input of the first quarter, the root mean square of its weight at distances from L/2 to 3L/4 over that at
    distances up to L/4; the geometric mean over those inputs.
    """
    n = W.shape[-1]
    q = n // 4
    if n < 16:
        return torch.full(W.shape[:1], torch.nan, dtype=W.dtype, device=W.device)
    columns = torch.stack([W[:, j : j + 3 * q, j] for j in range(q)], dim=1)  # (groups, inputs, distance)
    near = columns[..., :q].square().mean(-1).sqrt()
    far = columns[..., 2 * q :].square().mean(-1).sqrt()
    counts = near > 0
    ratio = torch.where(counts, (far.clamp_min(1e-30) / near.where(counts, 1.0)).log(), 0.0)
    return (ratio.sum(-1) / counts.sum(-1)).exp()


def similarity(rows: Tensor) -> Tensor:
    """Cosines between flattened groups, ``(groups, groups)``; 0 for groups that are 0."""
    flat = rows.flatten(1).double()
    size = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
    flat = flat / size.where(size > 0, 1.0)
    cosines: Tensor = flat @ flat.mT
    return cosines
