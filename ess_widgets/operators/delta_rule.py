"""DeltaNet, Gated DeltaNet and the generalised (diagonal plus rank one) delta rule."""

from __future__ import annotations

from typing import Any

from ess_widgets.operators._delta_inputs import Inputs, default_scale, unit
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import DiagonalPlusLowRank

__all__ = ["delta_rule", "gated_delta_rule", "generalised_delta_rule"]


def delta_rule(
    q: Any,
    k: Any,
    beta: Any,
    *,
    scale: float | None = None,
    normalise: bool = False,
    norm_eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """DeltaNet: each key's old value is erased before the new one is written.

    ``s_t = (I - β_t k_t k_tᵀ) s_{t-1} + β_t k_t u_t``, ``y_t = scale · q_tᵀ s_t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., L, d_k)``
        Queries and keys of each head as they enter the recurrence, so after their L2 normalisation (or give
        ``normalise=True``). Any floating dtype; cast up to float64 first.
    beta : Tensor or ndarray, ``(..., L)``
        Writing strength, after its sigmoid; up to 2 where negative eigenvalues are allowed.
    scale : float, optional
        Factor on the queries; ``1 / sqrt(d_k)`` by default.
    normalise : bool
        Normalise ``q`` and ``k`` here, ``x / sqrt(|x|² + norm_eps)``, as ``use_qk_l2norm_in_kernel`` does.
    norm_eps : float
    valid : bool Tensor, broadcastable to ``(..., L)``, optional
        A sample's own tokens; padding is neither read nor reads, and leaves the state as it is.

    Returns
    -------
    Recurrence
        Of order ``d_k``; leading dimensions are those of the arguments, broadcast.

    Raises
    ------
    ValueError, TypeError
        If shapes, devices or dtypes do not fit, or values are not finite.

    References
    ----------
    Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv:2406.06484;
    ``delta_rule_recurrence`` of flash-linear-attention.

    Examples
    --------
    Writing to the same key twice overwrites: the second output no longer reads the first input.

    >>> import torch
    >>> k = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> delta_rule(k, k, torch.ones(2), scale=1.0).matrix()
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    x = Inputs(q, k, (beta, 1), valid=valid)
    strength = x.per_position(beta, "beta").unsqueeze(-1)
    q_, k_ = (unit(x.q, norm_eps), unit(x.k, norm_eps)) if normalise else (x.q, x.k)
    written = strength * k_
    A = DiagonalPlusLowRank(k_.new_ones(1, 1), -written.unsqueeze(-1), k_.unsqueeze(-1))
    return Recurrence(A, written, default_scale(scale, x.d) * q_, valid=x.valid, name="delta rule")


def gated_delta_rule(
    q: Any,
    k: Any,
    g: Any,
    beta: Any,
    *,
    scale: float | None = None,
    normalise: bool = False,
    norm_eps: float = 1e-6,
    valid: Any = None,
) -> Recurrence:
    """Gated DeltaNet: the delta rule on a state that decays as a whole.

    ``s_t = exp(g_t) (I - β_t k_t k_tᵀ) s_{t-1} + β_t k_t u_t``, ``y_t = scale · q_tᵀ s_t``.

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., L, d_k)``
        As in :func:`delta_rule`.
    g : Tensor or ndarray, ``(..., L)``
        **Logarithm** of the decay, at most 0, as in flash-linear-attention; ``-inf`` empties the state.
    beta : Tensor or ndarray, ``(..., L)``
        Writing strength, after its sigmoid.
    scale, normalise, norm_eps, valid
        As in :func:`delta_rule`.

    Returns
    -------
    Recurrence
        Of order ``d_k``.

    Raises
    ------
    ValueError, TypeError
        As :func:`delta_rule`, and if ``g`` is positive somewhere (a decay in place of its logarithm).

    References
    ----------
    Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025, arXiv:2412.06464;
    ``naive_recurrent_gated_delta_rule`` of flash-linear-attention.

    Examples
    --------
    >>> import torch
    >>> q = k = torch.eye(2)
    >>> g = torch.full((2,), 0.5).log()
    >>> op = gated_delta_rule(q + 1, k, g, torch.ones(2), scale=1.0)
    >>> op.matrix()
    tensor([[2.0000, 0.0000],
            [0.5000, 2.0000]], dtype=torch.float64)
    """
    x = Inputs(q, k, (g, 1), (beta, 1), valid=valid)
    alpha = x.decay(g, "g")
    strength = x.per_position(beta, "beta").unsqueeze(-1)
    q_, k_ = (unit(x.q, norm_eps), unit(x.k, norm_eps)) if normalise else (x.q, x.k)
    written = strength * k_
    A = DiagonalPlusLowRank(alpha, -written.unsqueeze(-1), (alpha * k_).unsqueeze(-1))
    return Recurrence(A, written, default_scale(scale, x.d) * q_, valid=x.valid, name="gated delta rule")


def generalised_delta_rule(
    q: Any, k: Any, a: Any, b: Any, g: Any = None, *, scale: float | None = None, valid: Any = None
) -> Recurrence:
    """Any diagonal plus rank-one transition, with an input key of its own (DPLR; IPLR without ``g``).

    ``s_t = (Diag(exp(g_t)) + b_t a_tᵀ) s_{t-1} + k_t u_t``, ``y_t = scale · q_tᵀ s_t``: ``a`` reads the
    state as it was *before* the decay. Comba is of this form (``a = exp(g) p``, ``b = -β k``, input key
    ``β k``), and so is Gated DeltaNet-2 with erase gates ``e`` (``a = exp(g) ⊙ e ⊙ k``, ``b = -k``).

    Parameters
    ----------
    q, k : Tensor or ndarray, ``(..., L, d_k)``
        Queries and input keys, as they enter.
    a, b : Tensor or ndarray, ``(..., L, d_k)``
        What is read off the old state, and where it is added. ``a = k``, ``b = -k`` is the delta rule at β=1.
    g : Tensor or ndarray, ``(..., L, d_k)``, optional
        **Logarithm** of the decay of each feature, at most 0; no decay by default.
    scale, valid
        As in :func:`delta_rule`.

    Returns
    -------
    Recurrence
        Of order ``d_k``.

    Raises
    ------
    ValueError, TypeError
        As :func:`gated_delta_rule`.

    References
    ----------
    ``dplr_recurrence`` and ``iplr_recurrence`` of flash-linear-attention (arguments ``alpha``, ``beta``,
    ``gk``).

    Examples
    --------
    >>> import torch
    >>> k = torch.eye(2)
    >>> generalised_delta_rule(k, k, k.flip(0), k, scale=1.0).matrix()
    tensor([[1., 0.],
            [1., 1.]], dtype=torch.float64)
    """
    x = Inputs(q, k, (a, 2), (b, 2), (g, 2), valid=valid)
    read, added = x.per_feature(a, "a"), x.per_feature(b, "b")
    d = x.k.new_ones(1, 1) if g is None else x.decay(g, "g", features=True)
    A = DiagonalPlusLowRank(d, added.unsqueeze(-1), read.unsqueeze(-1))
    return Recurrence(A, x.k, default_scale(scale, x.d) * x.q, valid=x.valid, name="generalised delta rule")
