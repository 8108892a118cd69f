"""What each token contributes to a layer's output, where attention weights tell only how much it is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ess_widgets.operators.base import Operator
from ess_widgets.operators.checks import as_tensor
from ess_widgets.operators.dense import Dense

__all__ = ["contribution_weights"]


def contribution_weights(
    op: Any, values: Any, outputs: Any = None, *, projection: Any = None, share: bool = True
) -> Tensor:
    """Each token's part in each output, ``c_hij = <W_h v_hj α_hij, o_i> / <o_i, o_i>``.

    The scalar projection of what head ``h`` carries from token ``j`` to output ``i`` on the direction of the layer's
    output ``o_i``, as a share of its norm. It is negative where a token works against the output, and over all heads
    and tokens of an output the shares add up to 1. Attention sinks carry much attention and contribute little.

    Parameters
    ----------
    op : Operator, Tensor or ndarray, ``(..., H, L, L)`` or ``(L, L)``
        The attention weights ``α``. All ``H`` heads of the layer, unless ``outputs`` is given.
    values : Tensor or ndarray, ``(..., Hkv, L, d_v)`` or ``(L, d_v)``
        What the heads mix. ``H`` may be a multiple of ``Hkv``: head ``h`` then uses values ``h * Hkv // H``.
    outputs : Tensor or ndarray, ``(..., L, d)``, optional
        ``o``, the layer's output. By default the sum over the heads given, ``Σ_h W_h Σ_j α_hij v_hj``. One that holds
        more than that, such as a bias or the residual stream, gets the rest of the share.
    projection : Tensor or ndarray, ``(d, H * d_v)`` or ``(H, d, d_v)``, optional
        The output projection ``W``, as ``torch.nn.Linear`` holds it, or head by head. By default heads are
        concatenated, ``d = H * d_v``.
    share : bool
        False leaves out the second division by the norm of ``o_i``: the scalar projection itself.

    Returns
    -------
    Tensor, ``(..., H, L, L)`` or ``(L, L)``
        In the dtype of ``op``, computed in float64 (float32 on MPS). Rows where ``o_i = 0`` are 0.

    Raises
    ------
    TypeError
        If a part is not a real numeric tensor or array.
    ValueError
        If shapes do not fit.

    References
    ----------
    Cunningham and Cirone, "Contribution Weights: A Geometrical Analysis of Self-Attention Transformers", 2026,
    arXiv:2606.07604.

    Examples
    --------
    The first value opposes the second output, and the second one makes it.

    >>> import torch
    >>> attention = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    >>> contribution_weights(attention, torch.tensor([[-1.0], [3.0]]))[1]
    tensor([-0.5000,  1.5000])
    """
    op = op if isinstance(op, Operator) else Dense(op)
    if op.block != 1:
        raise ValueError(f"op mixes {op.block} rows per position; contribution weights are for single heads.")
    work = torch.float32 if op.device.type == "mps" else torch.float64
    single = len(op.shape) == 2
    T = op.matrix().to(work)
    v = _real(values, "values", op.device).to(work)
    if single:
        T, v = T.unsqueeze(0), v.unsqueeze(0) if v.ndim == 2 else v
    heads, L = T.shape[-3], T.shape[-1]
    if v.ndim < 3 or v.shape[-2] != L or heads % v.shape[-3] or v.shape[-1] == 0:
        raise ValueError(
            f"values must be (..., Hkv, L, d_v) with L = {L} and {heads} heads a multiple of Hkv, but their shape is "
            f"{tuple(v.shape[1:] if single else v.shape)}."
        )
    v = v.repeat_interleave(heads // v.shape[-3], dim=-3)
    valid = None if op.valid is None else op.valid.unsqueeze(-1)
    if valid is not None:
        v = v.masked_fill(~valid, 0.0)
    W = _per_head(projection, heads, v.shape[-1], op.device, work)
    with torch.autocast(op.device.type, enabled=False):
        if outputs is None:
            o = (T @ v @ W.mT).sum(dim=-3)
        else:
            o = _real(outputs, "outputs", op.device).to(work)
            if o.ndim < 2 or o.shape[-2:] != (L, W.shape[-2]):
                raise ValueError(
                    f"outputs must be (..., L, d) = (..., {L}, {W.shape[-2]}), as the projection makes them, but "
                    f"their shape is {tuple(o.shape)}."
                )
        size = torch.linalg.vector_norm(o, dim=-1, keepdim=True)
        direction = (o / size.where(size > 0, 1.0)).unsqueeze(-3)
        if valid is not None:
            direction = direction.masked_fill(~valid, 0.0)
        along = (direction @ W) @ v.mT
    weights = T * along
    if share:
        weights = weights / size.where(size > 0, 1.0).unsqueeze(-3)
    if valid is not None:
        weights = weights.masked_fill(~valid, 0.0)
    result: Tensor = weights.to(op.dtype)
    return result.squeeze(0) if single and result.ndim == 3 else result


def _real(value: Any, name: str, device: torch.device) -> Tensor:
    tensor = as_tensor(value, name)
    if tensor.is_complex():
        raise TypeError(f"{name} must hold real numbers, but the dtype is {tensor.dtype}.")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} and op on {device}; move them to one device.")
    return tensor


def _per_head(projection: Any, heads: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The output projection of each head, ``(H, d, d_v)``."""
    if projection is None:
        return torch.eye(heads * width, dtype=dtype, device=device).view(-1, heads, width).transpose(0, 1)
    W = _real(projection, "projection", device).to(dtype)
    if W.ndim == 2 and W.shape[1] == heads * width:
        return W.view(-1, heads, width).transpose(0, 1)
    if W.ndim == 3 and (W.shape[0], W.shape[2]) == (heads, width):
        return W
    raise ValueError(
        f"projection must be (d, H * d_v) = (d, {heads * width}) or (H, d, d_v) = ({heads}, d, {width}), but its "
        f"shape is {tuple(W.shape)}."
    )
