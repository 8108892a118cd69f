"""The time mixing of RWKV-7."""

from __future__ import annotations

from typing import Any

from ess_widgets.operators._attention_checks import check_number
from ess_widgets.operators._delta_inputs import Inputs, unit
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import DiagonalPlusLowRank

__all__ = ["rwkv7"]


def rwkv7(
    r: Any,
    w: Any,
    k: Any,
    kk: Any,
    a: Any,
    *,
    scale: float = 1.0,
    normalise: bool = False,
    norm_eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """RWKV-7: decay and erase side by side, and a key of its own for the input.

    ``s_t = (Diag(exp(w_t)) - (a_t ⊙ κ_t) κ_tᵀ) s_{t-1} + k_t u_t``, ``y_t = scale · r_tᵀ s_t``: ``κ`` reads
    the state as it was *before* the decay. The state is a column over keys here; the paper writes its
    transpose, ``Diag(w) - κᵀ(a ⊙ κ)`` applied from the right.

    Parameters
    ----------
    r : Tensor or ndarray, ``(..., L, d_k)``
        Receptance: the query.
    w : Tensor or ndarray, ``(..., L, d_k)``
        **Logarithm** of the decay of each feature, at most 0 (``-exp(...)`` in the layer).
    k : Tensor or ndarray, ``(..., L, d_k)``
        Input key, after it was scaled by the in-context learning rate.
    kk : Tensor or ndarray, ``(..., L, d_k)``
        Removal key ``κ``, after its L2 normalisation (or give ``normalise=True``).
    a : Tensor or ndarray, ``(..., L, d_k)``
        In-context learning rate, after its sigmoid.
    scale : float
        Factor on ``r``; 1 as in the layer.
    normalise : bool
        Normalise ``kk`` here, ``x / sqrt(|x|² + norm_eps)``.
    norm_eps : float
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
        As in :func:`~ess_widgets.operators.delta_rule`.

    Returns
    -------
    Recurrence
        Of order ``d_k``. The bonus ``(r · ρ ⊙ k) v`` that the layer adds comes after its group norm and so
        stays outside.

    Raises
    ------
    ValueError, TypeError
        As :func:`~ess_widgets.operators.gated_delta_rule`.

    References
    ----------
    Peng et al., "RWKV-7 'Goose' with Expressive Dynamic State Evolution", arXiv:2503.14456;
    ``fused_mul_recurrent_rwkv7`` of flash-linear-attention.

    Examples
    --------
    >>> import torch
    >>> k = torch.eye(2)
    >>> w = torch.zeros(2, 2)
    >>> rwkv7(k + 1, w, k, k.flip(0), torch.ones(2, 2)).matrix()
    tensor([[2., 0.],
            [0., 2.]], dtype=torch.float64)
    """
    x = Inputs(r, k, (w, 2), (kk, 2), (a, 2), valid=valid, names=("r", "k"))
    removal, rate = x.per_feature(kk, "kk"), x.per_feature(a, "a")
    if normalise:
        removal = unit(removal, norm_eps)
    decay = x.decay(w, "w", features=True)
    A = DiagonalPlusLowRank(decay, -(rate * removal).unsqueeze(-1), removal.unsqueeze(-1))
    return Recurrence(A, x.k, check_number(scale, "scale") * x.q, valid=x.valid, name="RWKV-7")
