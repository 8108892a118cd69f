"""The real-gated linear recurrent unit of Griffin and RecurrentGemma."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ess_widgets.operators._arguments import broadcast_to, cast_up, check_finite, check_range, real, silence
from ess_widgets.operators._attention_checks import check_number, floating
from ess_widgets.operators.checks import as_tensor, broadcast_valid
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import Diagonal

__all__ = ["rg_lru"]


def rg_lru(
    recurrence_gate: Any,
    input_gate: Any,
    recurrent_param: Any,
    *,
    c: float = 8.0,
    reset: Any = None,
    valid: Any = None,
) -> Recurrence:
    """RG-LRU (Griffin, RecurrentGemma), one operator per channel with a state of one number.

    ``h_t = a_t h_{t-1} + sqrt(1 - a_t²) i_t x_t``, ``y_t = h_t``, with ``log a_t = -c softplus(Λ) r_t``. So
    ``T_ij = a_i … a_{j+1} sqrt(1 - a_j²) i_j`` for ``j ≤ i``. Where the state is reset, ``a_t`` is 0 but the
    factor on the input 1 whatever the gates.

    Parameters
    ----------
    recurrence_gate : Tensor or ndarray, ``(..., channels, L)``
        ``r_t = sigmoid(W_a x_t + b_a)``, in [0, 1], the channels before the positions.
    input_gate : Tensor or ndarray, broadcastable to ``(..., channels, L)``
        ``i_t = sigmoid(W_x x_t + b_x)``.
    recurrent_param : Tensor or ndarray, broadcastable to ``(..., channels)``
        ``Λ``, before the softplus.
    c : float
        Positive.
    reset : bool Tensor, broadcastable to ``(..., channels, L)``, optional
        Where a document starts. By default position 0 alone, as in RecurrentGemma.
    valid : bool Tensor, broadcastable to ``(..., channels, L)``, optional
        A sample's own tokens; padding neither reads nor is read, and leaves the state as it is.

    Returns
    -------
    Recurrence
        Leading dimensions ``(..., channels)``; TSS is 1.

    Raises
    ------
    TypeError, ValueError
        If tensors are of the wrong kind or shape or not finite, or gates are outside [0, 1].

    References
    ----------
    De et al., Griffin, 2024 (arXiv 2402.19427).

    Examples
    --------
    >>> import math, torch
    >>> r, i = torch.ones(1, 3), torch.ones(1, 3)
    >>> rg_lru(r, i, torch.zeros(1), c=1.0)[0].matrix()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.8660, 0.0000],
            [0.2500, 0.4330, 0.8660]], dtype=torch.float64)
    """
    r = floating(recurrence_gate, "recurrence_gate")
    if r.ndim < 1 or 0 in r.shape:
        raise ValueError(
            f"recurrence_gate must be (..., channels, L) and not empty, but its shape is {tuple(r.shape)}."
        )
    shape, layout = tuple(r.shape), "(..., channels, L)"
    valid = broadcast_valid(valid, r.shape, r.device)
    r = silence(cast_up(r), valid, inner=0)
    check_range(r, "recurrence_gate", 0.0, 1.0, "apply the sigmoid before.")
    i = broadcast_to(real(input_gate, "input_gate"), shape, "input_gate", layout)
    i = silence(i, valid, inner=0)
    check_range(i, "input_gate", 0.0, 1.0, "apply the sigmoid before.")
    param = real(recurrent_param, "recurrent_param")
    param = broadcast_to(param, shape[:-1], "recurrent_param", "(..., channels)")[..., None]
    check_finite(param, "recurrent_param")
    log_a = -check_number(c, "c", positive=True) * F.softplus(param) * r
    if reset is None:
        starts = torch.zeros(shape[-1], dtype=torch.bool, device=r.device)
        starts[0] = True
    else:
        starts = as_tensor(reset, "reset").to(r.device)
        if starts.dtype is not torch.bool:
            raise TypeError(
                f"reset must be boolean (True where the state starts anew), but is {starts.dtype}."
            )
        broadcast_to(starts, shape, "reset", layout)
    a = torch.where(starts, 0.0, torch.exp(log_a))
    # -expm1(2 log a) is 1 - a² without cancellation for slow decays.
    entering = torch.where(starts, 1.0, torch.sqrt(-torch.expm1(2.0 * log_a))) * i
    return Recurrence(
        Diagonal(a[..., None]), entering[..., None], torch.ones_like(r)[..., None], valid=valid, name="RG-LRU"
    )
