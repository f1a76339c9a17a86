"""Recognise activations by their values, whatever they are written with.

A function is fed with chosen numbers in place of a pre-activation. It is a ReLU, ReLU6 or leaky ReLU, up to a factor, if
its values are those of one. It *has a kink at 0* if its slopes left and right of 0 differ; the gradient there depends on a
choice. The names of functions do not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Set
from typing import Any, Final

import torch
from torch import Tensor

from relucheck.bifurcation.forward.trace import Trace, Value, chain_of, run_again

#: A function of one tensor, which returns a tensor of the same shape and dtype if it is an activation.
Function = Callable[[Tensor], Any]

# numbers at which the outputs of the three activations differ from each other and from those of smooth functions
_PROBES: Final = (-7.0, -1.0, -0.5, 0.0, 0.25, 1.0, 5.75, 6.0, 6.25, 9.0)
_ALIKE: Final = 0.01  # slopes that differ by less, relative to the larger one, are no kink


@dataclasses.dataclass(frozen=True)
class WrittenOut:
    """An activation that several calls, or one of another name, compute.

    Attributes:
        site: the site of the last of these calls.
        module: its module.
        kind: "ReLU", "ReLU6" or "LeakyReLU", or "kink at 0" (or 6) for another function.
        value: the value of its result.
        inside: the values that the calls have computed.
    """

    site: str
    module: str
    kind: str
    value: Value
    inside: frozenset[Value]


def recognised(function: Function, like: Tensor) -> str | None:
    """Name the activation that a function computes for inputs like a tensor, or None.

    Args:
        function: called under ``torch.no_grad``; what it raises means that it is no activation.
        like: the shape, dtype and device of the inputs.

    Returns:
        "ReLU", "ReLU6" or "LeakyReLU" for this function times a positive or negative number, else None.
    """
    try:
        return _piecewise(function, like)
    except Exception:  # an elementwise activation accepts any values
        return None


def _piecewise(function: Function, like: Tensor) -> str | None:
    slopes: dict[float, Tensor] = {}
    small = 2.0**-20 if torch.finfo(like.dtype).eps < 1e-6 else 2.0**-10
    tolerance = 4 * torch.finfo(like.dtype).eps
    for at in (0.0, 1.0, -1.0, small, -small, *_PROBES):
        y = _at(function, like, at)
        if y is None:
            return None
        if at == 0:
            if bool((y != 0).any()):
                return None
            continue
        slopes[at] = slope = y / at
        first = slopes[1.0 if at > 0 else -1.0] if abs(at) != 1 else slope
        if at == -1:  # a linear function, and an absolute value, are no such activation
            right, left = slopes[1.0].abs(), slope.abs()
            if bool(((right - left).abs() <= _ALIKE * right.maximum(left)).any()):
                return None
        if at < 6 and bool(((slope - first).abs() > tolerance * first.abs()).any()):
            return None
    right, left = slopes[1.0], slopes[-1.0]
    flat = bool((left == 0).all())
    clipped = flat and all(
        bool(((slopes[at] * at - 6 * right).abs() <= 6 * tolerance * right.abs()).all()) for at in _PROBES if at >= 6
    )
    straight = all(bool(((slopes[at] - right).abs() <= tolerance * right.abs()).all()) for at in _PROBES if at >= 6)
    if not (straight or clipped) or not _elementwise(function, like, left, right, clipped):
        return None
    return "ReLU6" if clipped else "ReLU" if flat or bool((right == 0).all()) else "LeakyReLU"


def _at(function: Function, like: Tensor, at: float) -> Tensor | None:
    """The value in float64 where every input is ``at``; None for another shape or dtype."""
    y = function(torch.full_like(like, at))
    same = isinstance(y, Tensor) and y.shape == like.shape and y.dtype == like.dtype
    return y.double() if same else None


def _elementwise(function: Function, like: Tensor, left: Tensor, right: Tensor, clipped: bool) -> bool:
    """Whether every element of the result depends on its input alone."""
    probes = torch.tensor(_PROBES, dtype=like.dtype, device=like.device)
    order = torch.arange(like.numel(), device=like.device)
    for shift in (0, 3):
        x = probes[(order + shift) % len(_PROBES)].reshape(like.shape)
        y, z = function(x.clone()).double(), x.double()
        expected = torch.where(z > 0, right * (z.clamp(max=6) if clipped else z), left * z)
        if bool(((y - expected).abs() > 4 * torch.finfo(like.dtype).eps * expected.abs()).any()):
            return False
    return True


def bends(function: Function, like: Tensor, at: float = 0.0) -> bool:
    """Whether a function has a kink for inputs like a tensor: one-sided slopes that differ.

    ``f(a + h) + f(a - h) - 2 f(a)`` is h times the difference of the slopes at a kink, of the order of h squared where the
    function is smooth, and does not shrink with h where it jumps.

    Args:
        function: as for ``recognised``.
        like: the shape, dtype and device of the inputs.
        at: the position of the kink.
    """
    try:
        middle = _at(function, like, at)
        if middle is None:
            return False
        found = []
        short = torch.finfo(like.dtype).eps > 1e-6
        steps = (2.0**-4, 2.0**-6) if short else (2.0**-6, 2.0**-8)
        if at:
            steps = (4 * steps[0], 4 * steps[1])  # numbers of 16 bits are farther apart there
        tiny = () if at or short else (2.0**-20,)  # tells a rounded corner from a kink, where the function is 0
        for step in (*steps, *tiny):
            up, down = _at(function, like, at + step), _at(function, like, at - step)
            assert up is not None
            assert down is not None
            found.append((up + down - 2 * middle) / step)
        noise = 8 * torch.finfo(like.dtype).eps * (middle.abs() + found[1].abs() * steps[1]) / steps[1]
        bent = (found[1].abs() > _ALIKE + noise) & ((found[0] - found[1]).abs() < 0.5 * found[1].abs())
        if len(found) == 3:
            bent &= ((found[2] - found[1]).abs() < 0.5 * found[1].abs()) | (middle.abs() > 2.0**-12)
        return bool(bent.any())
    except Exception:
        return False


def written_out(trace: Trace, nodes: Set[Any], *, kinks: bool = False) -> Iterator[WrittenOut]:
    """Yield the activations written out among the candidates of a forward.

    Args:
        trace: the calls of the forward.
        nodes: the autograd nodes below the result. A candidate without one of them passes no gradient.
        kinks: whether other functions with a kink at 0 or 6 are yielded, too.
    """
    found: set[Value] = set()
    for value in trace.candidates:
        if value.node not in nodes or value.producer is None:
            continue
        steps = chain_of(value, found)
        if not any(step.results and _may_bend(step) for step in steps):
            continue
        inside = frozenset(result for step in steps for result in (*step.results, *step.changed.values()))
        for kind, below in _kinds(value, steps, kinks):
            found.add(value)
            yield WrittenOut(value.producer.site, value.producer.module, kind, value, inside - below)
            break


def _may_bend(step: Any) -> bool:
    return any(result.behind == 0 for result in (*step.results, *step.changed.values()))


def _kinds(value: Value, steps: Any, kinks: bool) -> Iterator[tuple[str, frozenset[Value]]]:
    """Try each value of the same shape from which a value may be computed, the nearest first."""
    tried: dict[Value, Tensor] = {}
    for step in reversed(steps):
        for tensor, given in step.given:
            if given.shape == value.shape and given.dtype == value.dtype and given is not value:
                tried.setdefault(given, tensor)
    for given, tensor in tried.items():

        def function(x: Tensor, given: Value = given) -> Tensor:
            return run_again(steps, value, given, x)

        kind = recognised(function, tensor)
        if kind is None and kinks:
            kind = next((f"kink at {at:g}" for at in (0.0, 6.0) if bends(function, tensor, at)), None)
        if kind is not None:
            below = {result for step in chain_of(given) for result in (*step.results, *step.changed.values())}
            yield kind, frozenset(below)
