"""Forward and backward of piecewise linear activations, and validation of subgradients."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, Final, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from relucheck.errors import RelucheckError
from relucheck.numerics.dtypes import compute_dtype

#: A subgradient as users write it: a real number, or a tensor of one per ensemble member that broadcasts to the input.
Subgradient = float | Tensor


class SubgradientError(RelucheckError, ValueError):
    """A subgradient that is not a finite real number, or whose shape does not fit the input."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Forward and backward of one piecewise linear activation, by torch's kernels.

    Attributes:
        name: the activation's name, as in ``relucheck.activations.catalogue.CATALOGUE``.
        kinks: positions of the kinks, in increasing order.
        names: attribute names of the subgradients at the kinks, in the same order.
        forward: out-of-place forward, called with ``(x, slope)``.
        forward_: in-place forward, called with ``(x, slope)``.
        backward: torch's backward, called with ``(cotangent, saved, slope, saved_is_result)``.
        flat: mask of the elements of ``x`` whose cotangent backward changes. It is the condition in the decomposition of
            torch's compiled backward. At NaN the eager kernels of hardtanh differ from it and from each other.
        saves_result: whether torch's out-of-place function saves its result for backward instead of its input. The
            in-place function always saves its result.
        leaky: whether the branch left of 0 has a slope; the slope is then also torch's subgradient at 0.
    """

    name: str
    kinks: tuple[float, ...]
    names: tuple[str, ...]
    forward: Callable[[Tensor, float], Tensor]
    forward_: Callable[[Tensor, float], Tensor]
    backward: Callable[[Tensor, Tensor, float, bool], Tensor]
    flat: Callable[[Tensor], Tensor]
    saves_result: bool
    leaky: bool = False


RELU: Final = Rule(
    "ReLU",
    (0.0,),
    ("subgradient",),
    lambda x, slope: torch.relu(x),
    lambda x, slope: torch.relu_(x),
    lambda g, saved, slope, is_result: torch.ops.aten.threshold_backward(g, saved, 0),
    lambda x: x <= 0,
    saves_result=True,
)

RELU6: Final = Rule(
    "ReLU6",
    (0.0, 6.0),
    ("alpha", "beta"),
    lambda x, slope: F.relu6(x),
    lambda x, slope: F.relu6(x, inplace=True),
    lambda g, saved, slope, is_result: torch.ops.aten.hardtanh_backward(g, saved, 0, 6),
    lambda x: (x <= 0) | (x >= 6),
    saves_result=False,
)

LEAKY_RELU: Final = Rule(
    "LeakyReLU",
    (0.0,),
    ("subgradient",),
    lambda x, slope: F.leaky_relu(x, slope),
    lambda x, slope: F.leaky_relu_(x, slope),
    lambda g, saved, slope, is_result: torch.ops.aten.leaky_relu_backward(g, saved, slope, is_result),
    lambda x: ~(x > 0),
    saves_result=False,
    leaky=True,
)


def as_subgradient(value: Any, *, owner: str = "subgradient", optional: bool = False) -> Tensor:
    """Convert a subgradient to the float64 tensor that modules keep.

    Args:
        value: a finite real number, or a tensor of finite real numbers, one per ensemble member.
        owner: the name of the value in the error message.
        optional: whether None is allowed; it means torch's subgradient and is kept as NaN.

    Returns:
        A new tensor: 0-dimensional on the CPU for a number, of the shape and device of ``value`` for a tensor.

    Raises:
        SubgradientError: for any other value.
    """
    number = None
    # A 0-dimensional CPU tensor mixes with tensors on any device, while one on the default device might be on meta and hold
    # no value. Outside inference mode, because autograd cannot save an inference tensor for a later backward.
    with torch.inference_mode(False):
        if value is None and optional:
            return torch.tensor(math.nan, dtype=torch.float64, device="cpu")
        if isinstance(value, Tensor):
            if not value.is_complex() and value.dtype != torch.bool and value.device.type != "meta":
                number = value.detach().to(torch.float64).clone()
        elif not isinstance(value, bool) and isinstance(value, numbers.Real):
            with contextlib.suppress(OverflowError):  # an integer beyond every float
                number = torch.tensor(float(value), dtype=torch.float64, device="cpu")
    if number is None or number.numel() == 0 or not bool(number.isfinite().all()):
        raise SubgradientError(
            f"{owner}={value!r}: a subgradient is a finite real number, or a tensor of such numbers, one per ensemble "
            "member; pass a float such as 0.0, 0.5 or -0.5"
        )
    return number


@overload
def at_hits(gradient: Tensor, cotangent: Tensor, subgradient: float, default: float, injects: bool = False) -> Tensor: ...
@overload
def at_hits(
    gradient: Tensor,
    cotangent: Tensor,
    subgradient: Tensor,
    default: float,
    injects: Tensor | None = None,
    *,
    hit: Tensor | None = None,
) -> Tensor: ...
def at_hits(
    gradient: Tensor,
    cotangent: Tensor,
    subgradient: float | Tensor,
    default: float,
    injects: Any = None,
    *,
    hit: Tensor | None = None,
) -> Tensor:
    """Replace torch's gradient at hits by the gradient for a chosen subgradient.

    This function alone defines the gradient at a hit. Under the chain rule it is ``subgradient * cotangent``, multiplied in
    the compute dtype and rounded once, as ATen multiplies a tensor by a number. Where the subgradient is torch's default,
    torch's gradient stays as it is, because 0 times an infinite cotangent would be NaN. Under the injected rule, which is
    that of the code published with Bertoin et al. (2021), the gradient is ``subgradient``, whatever the cotangent.

    Args:
        gradient: the gradient that torch's backward returned, any shape and floating dtype.
        cotangent: the upstream gradient, of the same shape and dtype.
        subgradient: a number, or a tensor that broadcasts to the cotangent. NaN keeps torch's gradient under either rule.
        default: torch's subgradient at this kink.
        injects: whether the injected rule holds; with a tensor of subgradients, a boolean mask that broadcasts to the
            cotangent, so that each ensemble member has its rule.
        hit: boolean mask of the hits; None if every element is a hit.

    Returns:
        The gradient, of the shape and dtype of ``gradient``; ``gradient`` itself where nothing changes.
    """
    if not isinstance(subgradient, Tensor):  # a Python number can be branched on, which is cheaper than torch.where
        if math.isnan(subgradient) or (subgradient == default and not injects):
            return gradient
        return torch.full_like(cotangent, subgradient) if injects else _product(cotangent, subgradient)
    keep = subgradient == default
    value = _product(cotangent, subgradient)
    if injects is not None:
        value = torch.where(injects, subgradient.to(cotangent.dtype), value)
        keep = keep & ~injects
    keep = keep | subgradient.isnan()
    return torch.where(keep, gradient, value) if hit is None else torch.where(hit & ~keep, value, gradient)


def _product(cotangent: Tensor, subgradient: float | Tensor) -> Tensor:
    compute = compute_dtype(cotangent.dtype)
    factor = subgradient.to(compute) if isinstance(subgradient, Tensor) else subgradient
    return (cotangent.to(compute) * factor).to(cotangent.dtype)


#: A subgradient for a whole model: one number for every kink, a pair ``(at 0, at the upper kink)``, or None for torch's.
ModelSubgradient = float | tuple[float, float] | None


def as_model_subgradient(value: Any) -> ModelSubgradient:
    """Validate the subgradient of a model: a finite number, a pair of them, or None.

    Raises:
        SubgradientError: for any other value.
    """
    if value is None:
        return None
    if isinstance(value, tuple):
        if len(value) != 2:
            raise SubgradientError(
                f"subgradient={value!r}: a tuple holds two numbers, (at 0, at the upper kink); pass one number or a pair"
            )
        return _number(value[0]), _number(value[1])
    return _number(value)


def _number(value: Any) -> float:
    tensor = as_subgradient(value)
    if tensor.ndim:
        raise SubgradientError(f"subgradient={value!r}: one number is needed here, not one per member; pass a float")
    return float(tensor)
