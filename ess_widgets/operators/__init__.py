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

__all__ = [
    "Convolution",
    "Deferred",
    "Dense",
    "Operator",
    "SoftmaxAttention",
    "gated_convolution",
    "long_convolution",
    "short_convolution",
    "softmax_attention",
]
