"""What the operator ``T`` of a causal sequence mixer ``y = T u`` is."""

from ess_widgets.operators.attention import SoftmaxAttention, softmax_attention
from ess_widgets.operators.base import Operator
from ess_widgets.operators.convolution import (
    Convolution,
    gated_convolution,
    long_convolution,
    short_convolution,
)
from ess_widgets.operators.deferred import Deferred
from ess_widgets.operators.dense import Dense
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.transitions import DenseTransition, Diagonal, DiagonalPlusLowRank, Transition

__all__ = [
    "Convolution",
    "Deferred",
    "Dense",
    "DenseTransition",
    "Diagonal",
    "DiagonalPlusLowRank",
    "Operator",
    "Recurrence",
    "SoftmaxAttention",
    "Transition",
    "gated_convolution",
    "long_convolution",
    "short_convolution",
    "softmax_attention",
]
