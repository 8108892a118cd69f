"""What is known about single torch calls: which write, which draw random numbers, how to repeat one in full precision."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BARRIERS",
    "CASTS",
    "CURVES",
    "DATA",
    "EXPONENTIALS",
    "HALF",
    "PRODUCTS",
    "RANDOM",
    "REPEATABLE",
    "TRANSPOSES",
    "VIEWS",
    "repeat",
    "storage",
    "version",
    "writes",
]

HALF = frozenset({torch.float16, torch.bfloat16})

PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "addmm", "einsum"})
EXPONENTIALS = frozenset({"softmax", "_softmax", "softmin", "exp", "exp_", "exp2"})
# Functions that make something other than linear attention of scores.
_CURVES = """
    sigmoid sigmoid_ relu relu_ relu6 softplus softplus_ tanh tanh_ pow pow_ __pow__ square square_ gelu silu elu elu_
    leaky_relu selu celu mish hardtanh hardsigmoid hardswish logsigmoid erf sqrt exp expm1 log softsign
"""
CURVES = frozenset(_CURVES.split())
CASTS = frozenset({"to", "type", "type_as", "float", "half", "bfloat16", "double", "cpu", "cuda"})

# Views, element by element functions and reductions along the keys, which mean the same in any precision.
_VIEWS = """
    __getitem__ alias as_strided broadcast_to cat chunk clone concat concatenate contiguous detach diagonal expand
    expand_as flatten flip gather hstack index_select moveaxis movedim narrow pad permute repeat repeat_interleave
    reshape reshape_as roll select split split_with_sizes squeeze stack swapaxes swapdims t take_along_dim tensor_split
    tile transpose tril triu unbind unflatten unfold unsqueeze view view_as vstack where masked_fill masked_scatter
    index_fill index_add scatter scatter_add index_put copy_ fill_ zero_ tril_ triu_ masked_fill_ index_fill_ scatter_
    index_put_ transpose_ squeeze_ unsqueeze_ constant_pad_nd nan_to_num nan_to_num_ detach_ __setitem__ slice_scatter
    select_scatter diagonal_scatter
"""
_ELEMENTWISE = """
    add sub mul div true_divide neg abs sqrt rsqrt square pow exp exp2 expm1 log log1p log2 tanh sigmoid relu softplus
    clamp clamp_min clamp_max clip minimum maximum max min amax amin sum mean logsumexp log_softmax softmax _softmax
    softmin cumsum cumprod rsub __radd__ __rsub__ __rmul__ __rdiv__ __rtruediv__ __rpow__ __add__ __sub__ __mul__
    __truediv__ __neg__ __pow__ subtract multiply divide negative reciprocal addcmul addcdiv lerp logsigmoid logaddexp
    elu leaky_relu relu6 selu celu mish hardsigmoid hardswish softsign
    hardtanh cos sin erf dropout alpha_dropout feature_dropout topk sort gelu silu normalize
    elu_ add_ sub_ mul_ div_ neg_ exp_ tanh_ clamp_ clamp_min_ clamp_max_ sqrt_ pow_ relu_ sigmoid_ softplus_ __iadd__
    __isub__ __imul__ __itruediv__ subtract_ multiply_ divide_ true_divide_ reciprocal_ square_ log_
"""
VIEWS = frozenset(_VIEWS.split())
REPEATABLE = VIEWS | frozenset(_ELEMENTWISE.split()) | CASTS

# Behind these it is no longer scores or weights.
BARRIERS = frozenset(
    {
        "linear", "bilinear", "layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "embedding",
        "conv1d", "conv2d", "conv3d", "cross_entropy", "nll_loss", "scaled_dot_product_attention",
        "multi_head_attention_forward",
    }
)  # fmt: skip

_RANDOM = """
    rand randn randint randperm rand_like randn_like randint_like normal bernoulli multinomial poisson binomial
    bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_ rrelu rrelu_ gumbel_softmax
    fractional_max_pool2d fractional_max_pool3d trunc_normal_ xavier_uniform_ xavier_normal_ kaiming_uniform_
    kaiming_normal_ orthogonal_ sparse_
"""
RANDOM = frozenset(_RANDOM.split())

# Writing through ``tensor.data`` leaves no trace in the tensor's version.
DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
TRANSPOSES = tuple(getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH"))


def storage(tensor: Tensor) -> int | None:
    """Where a tensor's memory lies, or None for those without ordinary memory."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def writes(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a call of this name writes to one of its arguments."""
    if kwargs and (kwargs.get("out") is not None or kwargs.get("inplace") is True):
        return True
    return _writes(name)


@functools.lru_cache(maxsize=4096)
def _writes(name: str) -> bool:
    if name.endswith("__"):
        return name == "__setitem__" or (
            name.startswith("__i") and name not in ("__index__", "__invert__", "__int__")
        )
    return name.endswith("_")


def repeat(func: Any, name: str, args: Any, kwargs: Any, dtype: torch.dtype) -> Any:
    """Do a recorded call once more, with arguments of ``dtype``; a cast to another float type stays in ``dtype``."""
    if name in CASTS:
        return _cast(name, args, kwargs)
    if kwargs.get("dtype") is not None:
        kwargs = {**kwargs, "dtype": dtype if kwargs["dtype"].is_floating_point else kwargs["dtype"]}
    return func(*args, **kwargs)


def _cast(name: str, args: Any, kwargs: Any) -> Tensor:
    """Keep the float type; follow a move to another device or to integers."""
    tensor: Tensor = args[0]
    for item in (*args[1:], *kwargs.values()):
        if isinstance(item, torch.dtype) and not item.is_floating_point:
            return tensor.to(item)
        if isinstance(item, torch.device) or (isinstance(item, str) and not item.startswith("torch.")):
            tensor = tensor.to(item)
        elif isinstance(item, Tensor):
            tensor = tensor.to(item.device)
    return tensor.cpu() if name == "cpu" else tensor.cuda() if name == "cuda" else tensor
