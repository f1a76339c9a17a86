"""The autograd nodes of torch's functions with kinks or ties, where backward makes a choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from relucheck.activations import functional

# torch's own ReLU and its relatives
_ACTIVATIONS: Final = ("Relu", "LeakyRelu", "PreluKernel", "RreluWithNoise")
# without trailing digits
_KINKED: Final = frozenset(
    f"{name}Backward"
    for name in (
        *(*_ACTIVATIONS, "Threshold", "Hardtanh", "Elu", "Celu"),
        *("Hardswish", "Hardsigmoid", "Softshrink", "Hardshrink", "Abs", "Clamp", "ClampMin", "ClampMax", "Copysign"),
        *("Maximum", "Minimum", "Fmax", "Fmin", "Max", "Min", "Amax", "Amin", "Aminmax", "Topk", "Sort", "Mode"),
        *("Median", "Nanmedian", "Kthvalue", "Cummax", "Cummin"),
        *("MaxPool2DWithIndices", "MaxPool3DWithIndices"),
        *("AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "FractionalMaxPool2D", "FractionalMaxPool3D"),
        *("LinalgVectorNorm", "Norm", "Dist", "Cdist", "Pdist", "Renorm", "Std", "StdMean"),
        *("MultiMarginLoss", "MultilabelMarginLoss"),
    )
)
# functions that have ties in one of their modes only
_KINKED_IF: Final[dict[str, Callable[[Any], bool]]] = {
    "EmbeddingBagBackward": lambda node: node._saved_mode == 2,
    **{
        f"{name}Backward": lambda node: node._saved_reduce in ("max", "min", "amax", "amin")
        for name in ("ScatterReduce", "IndexReduce", "SegmentReduce")
    },
}


def _name(node: Any) -> str:
    return type(node).__name__.rstrip("0123456789")


def has_kink(node: Any) -> bool:
    """Whether a node is that of a function with kinks or ties and torch's subgradient."""
    name = _name(node)
    kinked = name in _KINKED or (name in _KINKED_IF and _KINKED_IF[name](node))
    return kinked and not functional.has_chosen_subgradient(node)


def is_activation(node: Any) -> bool:
    """Whether a node is that of torch's ReLU or a relative, with torch's subgradient."""
    return _name(node).removesuffix("Backward") in _ACTIVATIONS and not functional.has_chosen_subgradient(node)
