"""Recognise activations by their values, whatever they are written with.

A function is fed with chosen numbers in place of a pre-activation. It is a ReLU, ReLU6 or leaky ReLU, up to a factor, if
its values are those of one. It *has a kink at 0* if its slopes left and right of 0 differ; the gradient there depends on a
choice. The names of functions do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from relucheck.numerics.determinism import generator

#: A function of one tensor, which returns a tensor of the same number of elements if it is an activation.
Function = Callable[[Tensor], Any]
Array = npt.NDArray[np.float64]
#: The values of a function, in float64, where all its inputs are one number; None if they have another shape.
Values = Callable[[float], Array | None]

# numbers at which the outputs of the three activations differ from each other and from those of smooth functions
_PROBES: Final = (-7.0, -1.0, -0.5, 0.0, 0.25, 1.0, 5.75, 6.0, 6.25, 9.0)
_TINY: Final = (2.0**-20, 2.0**-16, 2.0**-12)
_ALIKE: Final = 0.01  # slopes that differ by less, relative to the larger one, are no kink


def recognised(function: Function, like: Tensor) -> str | None:
    """Name the activation that a function computes for inputs like a tensor, or None.

    Args:
        function: called under ``torch.no_grad``; what it raises means that it is no activation.
        like: the shape, dtype and device of the inputs.

    Returns:
        "ReLU", "ReLU6" or "LeakyReLU" for this function times a positive or negative number, else None.
    """
    try:
        kind = kind_of(_values(function, like), resolution(like.dtype))
        return kind if kind is not None and elementwise(function, like, kind) else None
    except Exception:  # an elementwise activation accepts any values
        return None


def bends(function: Function, like: Tensor, at: float = 0.0) -> bool:
    """Whether a function has a kink for inputs like a tensor: one-sided slopes that differ.

    Args:
        function: as for ``recognised``.
        like: the shape, dtype and device of the inputs.
        at: the position of the kink.
    """
    try:
        return is_bent(_values(function, like), resolution(like.dtype), at)
    except Exception:
        return False


def resolution(*dtypes: torch.dtype) -> float:
    """The largest distance from 1 to the next number, over some dtypes."""
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _values(function: Function, like: Tensor) -> Values:
    def values(at: float) -> Array | None:
        y = function(torch.full_like(like, at))
        same = isinstance(y, Tensor) and y.shape == like.shape and y.dtype == like.dtype
        return array(y) if same else None

    return values


def array(tensor: Tensor) -> Array:
    """The values of a tensor in one dimension, in float64."""
    return tensor.detach().double().reshape(-1).cpu().numpy()


def kind_of(values: Values, eps: float) -> str | None:
    """The activation whose values these are, up to a factor for each element.

    Args:
        values: the values of the function.
        eps: the resolution of the dtypes.
    """
    slopes: dict[float, Array] = {}
    tolerance, small = 4 * eps, _small(eps)
    for at in (0.0, 1.0, -1.0, small, -small, *_PROBES):
        y = values(at)
        if y is None or (at == 0 and (y != 0).any()):
            return None
        if at == 0:
            continue
        slopes[at] = slope = y / at
        first = slopes[1.0 if at > 0 else -1.0] if abs(at) != 1 else slope
        if at == -1 and alike(slopes[1.0], slope).any():
            return None
        if at < 6 and (abs(slope - first) > tolerance * abs(first)).any():
            return None
    right, left = slopes[1.0], slopes[-1.0]
    flat = bool((left == 0).all())
    clipped = flat and all(
        (abs(slopes[at] * at - 6 * right) <= 6 * tolerance * abs(right)).all() for at in _PROBES if at >= 6
    )
    straight = all((abs(slopes[at] - right) <= tolerance * abs(right)).all() for at in _PROBES if at >= 6)
    if not straight and not clipped:
        return None
    return "ReLU6" if clipped else "ReLU" if flat or (right == 0).all() else "LeakyReLU"


def is_bent(values: Values, eps: float, at: float = 0.0) -> bool:
    """Whether a function with these values has a kink in some element.

    ``f(a + h) + f(a - h) - 2 f(a)`` is h times the difference of the slopes at a kink, of the order of h squared where the
    function is smooth, and does not shrink with h where it jumps.

    Args:
        values: the values of the function.
        eps: the resolution of the dtypes.
        at: the position of the kink.
    """
    middle = values(at)
    if middle is None:
        return False
    far, near = steps_of(eps, at)

    def bend(step: float) -> Array:
        up, down = values(at + step), values(at - step)
        assert up is not None
        assert down is not None
        return (up + down - 2 * middle) / step

    first = bend(near)
    noise = 8 * eps * (abs(middle) + abs(first) * near) / near
    bent = abs(first) > _ALIKE + noise
    if not bent.any():
        return False
    bent &= abs(bend(far) - first) < 0.5 * abs(first)
    if not at:  # tells a rounded corner from a kink, where rounding does not hide it
        for step in _tiny(eps):
            hidden = 8 * eps * abs(middle) / step > 0.1 * abs(first)
            bent &= (abs(bend(step) - first) < 0.5 * abs(first)) | hidden
    return bool(bent.any())


def may_be_bent(values: Values, eps: float, at: float) -> bool:
    """Whether a function may have a kink, or be an activation, by its values at three numbers."""
    step = steps_of(eps, at)[1]
    middle, up, down = values(at), values(at + step), values(at - step)
    if middle is None or up is None or down is None:
        return False
    right, left = (up - middle) / step, (middle - down) / step
    if not at and (middle == 0).all() and not alike(right, left).any():
        return True
    return bool((abs(right - left) > _ALIKE).any())


def points(resolutions: Iterable[float]) -> tuple[list[float], list[float]]:
    """The numbers at which functions are evaluated: those of ``may_be_bent``, and all others.

    Args:
        resolutions: those of the dtypes.
    """
    first: dict[float, None] = {}
    further = dict.fromkeys(_PROBES)
    for eps in resolutions:
        first |= dict.fromkeys(at + sign * steps_of(eps, at)[1] for at in (0.0, 6.0) for sign in (0, 1, -1))
        steps = (*steps_of(eps, 0.0), *_tiny(eps), _small(eps))
        around = ((0.0, steps), (6.0, steps_of(eps, 6.0)))
        further |= dict.fromkeys(at + sign * step for at, all in around for step in all for sign in (1, -1))
    return list(first), [at for at in further if at not in first]


def elementwise(function: Function, like: Tensor, kind: str, *, permuted: bool = False) -> bool:
    """Whether a function is an activation of each element alone.

    Args:
        function: the function.
        like: the shape, dtype and device of the inputs.
        kind: the kind that it is at inputs of one number.
        permuted: whether its result may have the elements in another order.
    """
    right, left = array(function(torch.full_like(like, 1.0))), -array(function(torch.full_like(like, -1.0)))
    if alike(right, left).any() or (kind != "LeakyReLU" and (left != 0).any() and (right != 0).any()):
        return False
    probes = np.array(_PROBES)
    order: Any = slice(None)
    for seed in (0, 1):  # random numbers, because a period could be that of the elements that a function mixes
        drawn = torch.randint(len(_PROBES), (like.numel(),), generator=generator(seed), device="cpu")
        x = probes[drawn.numpy()]
        y = function(torch.from_numpy(x).to(like.device, like.dtype).reshape(like.shape))
        computed, eps = array(y), resolution(like.dtype, y.dtype)
        if permuted and not _fits(x[order], computed, right, left, kind, eps):
            order = _order(function, like, right, left)
        if not _fits(x[order], computed, right, left, kind, eps):
            return False
    return True


def _fits(x: Array, y: Array, right: Array, left: Array, kind: str, eps: float) -> bool:
    expected = np.where(x > 0, right * (x.clip(max=6) if kind == "ReLU6" else x), left * x)
    return bool((abs(y - expected) <= 4 * eps * abs(expected)).all())


def _order(function: Function, like: Tensor, right: Array, left: Array) -> npt.NDArray[np.int64]:
    """The places of inputs by those of outputs, of which each has one: from outputs at the digits of their indices."""
    sign = 1 if (right != 0).all() else -1
    slope = right if sign > 0 else -left
    index = np.arange(like.numel())
    order, unit = np.zeros(like.numel(), np.int64), 1
    while unit <= like.numel():
        digits = 1 + (index // unit) % 4  # below the upper kink of ReLU6, and exact in 16 bits
        x = torch.from_numpy(sign * digits.astype(float)).to(like.device, like.dtype).reshape(like.shape)
        order += (np.rint(array(function(x)) / slope).astype(np.int64) - 1) * unit
        unit *= 4
    if not np.array_equal(np.sort(order), index):
        raise ValueError("elements are mixed")
    return order


def alike(right: Array, left: Array) -> npt.NDArray[np.bool_]:
    """Where slopes are those of a linear function or of an absolute value."""
    right, left = abs(right), abs(left)
    different: npt.NDArray[np.bool_] = abs(right - left) <= _ALIKE * np.maximum(right, left)
    return different


def _short(eps: float) -> bool:
    return eps > 1e-6


def _tiny(eps: float) -> tuple[float, ...]:
    """Distances from 0 that tell a rounded corner from a kink; dtypes of 16 bits have none."""
    return () if _short(eps) else _TINY


def _small(eps: float) -> float:
    return 2.0**-10 if _short(eps) else 2.0**-20


def steps_of(eps: float, at: float) -> tuple[float, float]:
    """Two distances from a kink; at 6, where numbers of 16 bits are farther apart, larger ones."""
    far, near = (2.0**-4, 2.0**-6) if _short(eps) else (2.0**-6, 2.0**-8)
    return (4 * far, 4 * near) if at else (far, near)
