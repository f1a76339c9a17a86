"""What a piecewise linear activation does forward and backward, and which subgradients it can be given."""

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

#: A subgradient as users give it: a real number, or a tensor with one per ensemble member that broadcasts to the input.
Subgradient = float | Tensor


class SubgradientError(RelucheckError, ValueError):
    """A value that cannot be a subgradient, or whose shape does not fit the input."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a piecewise linear activation does forward and backward; every function here is torch's own kernel.

    Attributes:
        name: as in :data:`relucheck.activations.kinks.CATALOGUE`.
        kinks: where the kinks are.
        names: what the subgradients at the kinks are called, in the same order.
        forward: out-of-place forward, ``(x, slope)``.
        forward_: in-place forward, ``(x, slope)``.
        backward: torch's own backward, ``(cotangent, saved, slope, saved_is_result)``.
        flat: where backward does not pass the cotangent on as it is, ``(x)``: the condition in the decomposition that
            torch's own compiled backward has (at NaN, eager kernels of hardtanh differ from it, and among themselves).
        saves_result: whether torch's own function saves its result rather than its input (in-place always does).
        leaky: whether the part left of 0 has a slope, which is also torch's own subgradient there.
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
    """A subgradient as the float64 tensor that modules keep (NaN for None, torch's own value).

    Args:
        value: a finite real number, or a tensor of finite real numbers (one per ensemble member).
        owner: what the error calls the input.
        optional: whether None is allowed.

    Raises:
        SubgradientError: for anything else.
    """
    number = None
    # on the CPU whatever the default device is (0-dimensional CPU tensors mix with any device, meta holds no value), and
    # never an inference tensor, which no later backward could save
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
            f"{owner}={value!r}: a subgradient is a finite real number, or a tensor of them, one per ensemble member; "
            "pass a float such as 0.0, 0.5 or -0.5"
        )
    return number


@overload
def at_hits(gradient: Tensor, cotangent: Tensor, subgradient: float, own: float, injects: bool = False) -> Tensor: ...
@overload
def at_hits(
    gradient: Tensor,
    cotangent: Tensor,
    subgradient: Tensor,
    own: float,
    injects: Tensor | None = None,
    *,
    hit: Tensor | None = None,
) -> Tensor: ...
def at_hits(
    gradient: Tensor,
    cotangent: Tensor,
    subgradient: float | Tensor,
    own: float,
    injects: Any = None,
    *,
    hit: Tensor | None = None,
) -> Tensor:
    """Torch's own gradient with the elements at hits put right: the gradient at a hit is defined here and nowhere else.

    By the chain rule it is ``subgradient * cotangent``: the product is taken in the compute dtype and rounded once, as
    ATen multiplies a tensor by a number. Torch's own subgradient keeps torch's own result, because 0 * cotangent is not 0
    for an infinite cotangent. Under the published rule, which injects, it is ``subgradient``, whatever the cotangent,
    torch's own as well; NaN, which is no number to inject, means torch's own result under either rule.

    Args:
        gradient: what torch's own backward returned.
        cotangent: of the same shape.
        subgradient: a number, or a tensor that broadcasts to the cotangent; NaN: torch's own.
        own: torch's own subgradient at this kink.
        injects: whether the published rule holds. With a tensor of subgradients, a mask that broadcasts to the cotangent
            gives each member its own rule.
        hit: a mask of the hits; None where every element is one.
    """
    if not isinstance(subgradient, Tensor):  # the host knows what holds: no selection by tensors
        if math.isnan(subgradient) or (subgradient == own and not injects):
            return gradient
        return torch.full_like(cotangent, subgradient) if injects else _product(cotangent, subgradient)
    keep = subgradient == own
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


#: A subgradient for a whole model: one number for every kink, ``(at 0, at the upper kink)``, or None for torch's own.
ModelSubgradient = float | tuple[float, float] | None


def as_model_subgradient(value: Any) -> ModelSubgradient:
    """Checks a subgradient setting: a finite number, a pair of them, or None.

    Raises:
        SubgradientError: names the input, the rule and the fix.
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
