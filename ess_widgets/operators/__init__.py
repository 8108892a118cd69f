"""What the operator ``T`` of a causal sequence mixer ``y = T u`` is."""

from ess_widgets.operators.attention import SoftmaxAttention, softmax_attention
from ess_widgets.operators.base import Operator
from ess_widgets.operators.deferred import Deferred
from ess_widgets.operators.dense import Dense

__all__ = ["Deferred", "Dense", "Operator", "SoftmaxAttention", "softmax_attention"]
