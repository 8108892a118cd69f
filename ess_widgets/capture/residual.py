"""How far an operator is from what the model computed."""

from __future__ import annotations

import torch
from torch import Tensor

from ess_widgets.operators import Deferred, MimoConvolution, Operator

__all__ = ["residual"]

# Entries of T that are in memory at once, where heads can be taken one by one.
_CHUNK = 2**25


@torch.no_grad()
def residual(operator: Operator, inputs: Tensor, outputs: Tensor, valid: Tensor | None = None) -> Tensor:
    """``‖T u - y‖ / ‖y‖`` per sample and group, over the sample's own tokens.

    Parameters
    ----------
    operator : Operator
        Leading dimensions ``(batch, groups)``.
    inputs, outputs : Tensor, ``(batch, groups, L, width)``, or ``(batch, groups, d * L, width)`` with blocks of ``d``
        ``u``, and ``y`` as the model computed it, in any float type.
    valid : bool Tensor ``(batch, L)``, optional
        A sample's own tokens.

    Returns
    -------
    Tensor
        ``(batch, groups)``, float64 (float32 where the device knows no more). 0 where ``T u`` and ``y`` are both 0.

    Examples
    --------
    >>> import torch
    >>> from ess_widgets.operators import Dense
    >>> T = torch.ones(1, 1, 3, 3).tril()
    >>> u = torch.randn(1, 1, 3, 2)
    >>> residual(Dense(T), u, 2 * (T @ u))
    tensor([[0.5000]], dtype=torch.float64)
    """
    batch, groups, L, _ = outputs.shape
    if valid is not None and operator.block > 1:
        valid = valid.repeat_interleave(operator.block, -1)
    if isinstance(operator, MimoConvolution) and L * L > _CHUNK:
        return _applied(operator, inputs, outputs, valid)
    whole = isinstance(operator, Deferred) or batch * groups * L * L <= _CHUNK
    if whole:
        T = operator.matrix()
        pieces = [
            _relative(T[b], inputs[b], outputs[b], None if valid is None else valid[b]) for b in range(batch)
        ]
        return torch.stack(pieces)
    rows = []
    step = max(1, _CHUNK // (L * L))
    for b in range(batch):
        own = None if valid is None else valid[b]
        parts = []
        for g in range(0, groups, step):
            part = slice(g, g + step)
            parts.append(_relative(operator[b, part].matrix(), inputs[b, part], outputs[b, part], own))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _applied(operator: MimoConvolution, inputs: Tensor, outputs: Tensor, valid: Tensor | None) -> Tensor:
    """The same for channels that are too many for a matrix."""
    wide = torch.float32 if outputs.device.type == "mps" else torch.float64
    mixed, target = operator.apply(inputs.to(wide)), outputs.to(wide)
    if valid is not None:
        target = torch.where(valid[:, None, :, None], target, 0)
    error = torch.linalg.vector_norm(mixed - target, dim=(-2, -1))
    return torch.where(error == 0, error, error / torch.linalg.vector_norm(target, dim=(-2, -1)))


def _relative(T: Tensor, u: Tensor, y: Tensor, own: Tensor | None) -> Tensor:
    """The relative error per group of one sample."""
    wide = torch.float32 if T.device.type == "mps" else torch.float64
    errors = []
    for matrix, x, target in zip(T, u, y, strict=True):
        if own is not None:
            matrix, x, target = matrix[own][:, own], x[own], target[own]
        target = target.to(wide)
        error = torch.linalg.vector_norm(matrix.to(wide) @ x.to(wide) - target)
        norm = torch.linalg.vector_norm(target)
        errors.append(torch.where(error == 0, error, error / norm))
    return torch.stack(errors)
