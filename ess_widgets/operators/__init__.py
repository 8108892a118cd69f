"""What the operator ``T`` of a causal sequence mixer ``y = T u`` is."""

from ess_widgets.operators.algebra import Gated, Product, Sum, gate
from ess_widgets.operators.attention import SoftmaxAttention, softmax_attention
from ess_widgets.operators.base import Operator
from ess_widgets.operators.contribution import contribution_weights
from ess_widgets.operators.convolution import (
    Convolution,
    gated_convolution,
    long_convolution,
    short_convolution,
)
from ess_widgets.operators.convolution_mimo import MimoConvolution
from ess_widgets.operators.convolution_varying import VaryingConvolution
from ess_widgets.operators.deferred import Deferred
from ess_widgets.operators.delta_product import delta_product, gated_delta_product
from ess_widgets.operators.delta_rule import delta_rule, gated_delta_rule, generalised_delta_rule
from ess_widgets.operators.dense import Dense
from ess_widgets.operators.gated_linear_attention import (
    gated_linear_attention,
    gla_s6,
    hgrn2,
    weighted_linear_attention,
)
from ess_widgets.operators.kda import kda
from ess_widgets.operators.linear_attention import lightning_attention, linear_attention, retention
from ess_widgets.operators.mlstm import mlstm
from ess_widgets.operators.preconditioned import (
    preconditioned_delta_rule,
    preconditioned_gated_delta_rule,
    preconditioned_kda,
)
from ess_widgets.operators.recurrence import Recurrence
from ess_widgets.operators.rg_lru import rg_lru
from ess_widgets.operators.rwkv import rwkv4, rwkv5, rwkv6
from ess_widgets.operators.rwkv7 import rwkv7
from ess_widgets.operators.selective_ssm import selective_ssm, ssd
from ess_widgets.operators.state_space import s4d
from ess_widgets.operators.state_space_mimo import lru, s5
from ess_widgets.operators.transitions import DenseTransition, Diagonal, DiagonalPlusLowRank, Transition

__all__ = [
    "Convolution",
    "Deferred",
    "Dense",
    "DenseTransition",
    "Diagonal",
    "DiagonalPlusLowRank",
    "Gated",
    "MimoConvolution",
    "Operator",
    "Product",
    "Recurrence",
    "SoftmaxAttention",
    "Sum",
    "Transition",
    "VaryingConvolution",
    "contribution_weights",
    "delta_product",
    "delta_rule",
    "gate",
    "gated_convolution",
    "gated_delta_product",
    "gated_delta_rule",
    "gated_linear_attention",
    "generalised_delta_rule",
    "gla_s6",
    "hgrn2",
    "kda",
    "lightning_attention",
    "linear_attention",
    "long_convolution",
    "lru",
    "mlstm",
    "preconditioned_delta_rule",
    "preconditioned_gated_delta_rule",
    "preconditioned_kda",
    "retention",
    "rg_lru",
    "rwkv4",
    "rwkv5",
    "rwkv6",
    "rwkv7",
    "s4d",
    "s5",
    "selective_ssm",
    "short_convolution",
    "softmax_attention",
    "ssd",
    "weighted_linear_attention",
]
