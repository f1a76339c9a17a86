"""Names of torch's functions, which save time and memory and decide nothing else.

The names are those of ``name_of``, without underscores at both ends: ``mul`` for ``Tensor.mul``, ``Tensor.__mul__`` and
``Tensor.mul_``.
"""

from __future__ import annotations

from typing import Any, Final

#: Functions that mix elements, or are no part of a piecewise linear function: the chain of a candidate ends there.
ENDS: Final = frozenset(
    (
        *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("matmul", "rmatmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "bilinear", "embedding"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "log_softmax"),
        *("scaled_dot_product_attention", "cross_entropy", "nll_loss", "mse_loss", "avg_pool1d"),
        *("avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
        *("max_pool2d_with_indices", "boolean_dispatch", "interpolate", "dropout", "dropout2d"),
        *("lstm", "gru", "rnn_relu", "rnn_tanh"),
    )
)
#: Those that have an activation inside, which nothing shows where autograd is off.
HIDING: Final = frozenset({"rnn_relu"})
#: Smooth functions: a chain of these alone is no candidate.
SMOOTH: Final = frozenset(
    (
        *("add", "radd", "sub", "rsub", "mul", "rmul", "div", "truediv", "rtruediv", "true_divide", "neg"),
        *("gelu", "silu", "sigmoid", "tanh", "softplus", "mish", "erf", "logsigmoid", "logaddexp"),
        *("exp", "expm1", "sin", "cos", "sum", "mean", "addcmul", "addcdiv", "lerp", "view", "view_as"),
        *("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "movedim", "t"),
        *("expand", "expand_as", "repeat", "contiguous", "clone", "detach", "to", "type", "type_as", "float"),
        *("double", "half", "bfloat16", "cat", "concat", "stack", "chunk", "split", "unbind", "getitem"),
        *("narrow", "select", "roll", "flip", "zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "pad"),
    )
)
#: What reads properties of a tensor, or computes derivatives: no call of a function.
SKIPPED: Final = frozenset(
    (
        *("get", "set", "dim", "size", "stride", "numel", "is_floating_point", "is_complex", "item"),
        *("tolist", "grad", "backward", "register_hook", "requires_grad", "len", "format", "repr"),
        *("is_contiguous", "data_ptr", "element_size", "make_dual", "unpack_dual"),
    )
)
_IN_PLACE: Final = tuple(
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "div", "mod", "pow", "and", "or", "xor")
)


def name_of(func: Any) -> str:
    """The name of a function, without underscores at both ends."""
    name: str = getattr(func, "__name__", str(func))
    return name.strip("_")


def may_change(func: Any, kwargs: Any) -> bool:
    """Whether a function may change an argument in place, by its name and its keyword arguments."""
    name: str = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name in ("__setitem__", "__set__") or name.startswith(_IN_PLACE)
    return name.endswith("_") or kwargs.get("out") is not None
