"""Recognise activations by their values, whatever they are written with.

A function is fed with chosen numbers in place of a pre-activation. It is a ReLU, ReLU6 or leaky ReLU, up to a factor, if
its values are those of one. It *has a kink at 0* if its slopes left and right of 0 differ; the gradient there depends on a
choice. The names of functions do not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from relucheck.bifurcation.forward.trace import Step, Trace, Value, chain_of, cut, run_again
from relucheck.numerics.determinism import generator

#: A function of one tensor, which returns a tensor of the same shape and dtype if it is an activation.
Function = Callable[[Tensor], Any]

# numbers at which the outputs of the three activations differ from each other and from those of smooth functions
_PROBES: Final = (-7.0, -1.0, -0.5, 0.0, 0.25, 1.0, 5.75, 6.0, 6.25, 9.0)
_TINY: Final = 2.0**-20
_MOST_ELEMENTS: Final = 5_000_000_000  # that calls compute when they are run again: about a minute on one core
_FEW: Final = (31, 7, 5)  # the sizes to which large dimensions are cut, for 2, 3 and more dimensions
_ALL: Final[Mapping[int, int]] = MappingProxyType({})
#: The kind of a candidate that was not looked at, because there are too many.
UNEXAMINED: Final = "not examined: too many candidates"
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


def recognised(function: Function, like: Tensor, *, mixing: bool = True) -> str | None:
    """Name the activation that a function computes for inputs like a tensor, or None.

    Args:
        function: called under ``torch.no_grad``; what it raises means that it is no activation.
        like: the shape, dtype and device of the inputs.
        mixing: whether it is checked that each element of the result depends on its input alone.

    Returns:
        "ReLU", "ReLU6" or "LeakyReLU" for this function times a positive or negative number, else None.
    """
    try:
        return _piecewise(function, like, mixing)
    except Exception:  # an elementwise activation accepts any values
        return None


def _piecewise(function: Function, like: Tensor, mixing: bool) -> str | None:
    slopes: dict[float, Tensor] = {}
    small = _small(like.dtype)
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
        if at == -1 and bool(_alike(slopes[1.0], slope).any()):
            return None
        if at < 6 and bool(((slope - first).abs() > tolerance * first.abs()).any()):
            return None
    right, left = slopes[1.0], slopes[-1.0]
    flat = bool((left == 0).all())
    clipped = flat and all(
        bool(((slopes[at] * at - 6 * right).abs() <= 6 * tolerance * right.abs()).all()) for at in _PROBES if at >= 6
    )
    straight = all(bool(((slopes[at] - right).abs() <= tolerance * right.abs()).all()) for at in _PROBES if at >= 6)
    if not (straight or clipped) or (mixing and not _elementwise(function, like, left, right, clipped)):
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
    for seed in (0, 1):  # random numbers, because a period could be that of the elements that a function mixes
        drawn = torch.randint(len(_PROBES), (like.numel(),), generator=generator(seed), device="cpu")
        x = probes[drawn.to(like.device)].reshape(like.shape)
        y, z = function(x.clone()).double(), x.double()
        expected = torch.where(z > 0, right * (z.clamp(max=6) if clipped else z), left * z)
        if bool(((y - expected).abs() > 4 * torch.finfo(like.dtype).eps * expected.abs()).any()):
            return False
    return True


def _small(dtype: torch.dtype) -> float:
    return 2.0**-20 if torch.finfo(dtype).eps < 1e-6 else 2.0**-10


def _steps(short: bool, at: float) -> tuple[float, ...]:
    """Two distances from a kink; larger ones at 6, because numbers of 16 bits are farther apart there."""
    steps = (2.0**-4, 2.0**-6) if short else (2.0**-6, 2.0**-8)
    return (4 * steps[0], 4 * steps[1]) if at else steps


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
        short = torch.finfo(like.dtype).eps > 1e-6
        steps = _steps(short, at)

        def bend(step: float) -> Tensor:
            up, down = _at(function, like, at + step), _at(function, like, at - step)
            assert up is not None
            assert down is not None
            return (up + down - 2 * middle) / step

        near = bend(steps[1])
        noise = 8 * torch.finfo(like.dtype).eps * (middle.abs() + near.abs() * steps[1]) / steps[1]
        bent = near.abs() > _ALIKE + noise
        if not bool(bent.any()):
            return False
        bent &= (bend(steps[0]) - near).abs() < 0.5 * near.abs()
        if not at and not short:  # tells a rounded corner from a kink, where the function is 0
            bent &= ((bend(_TINY) - near).abs() < 0.5 * near.abs()) | (middle.abs() > 2.0**-12)
        return bool(bent.any())
    except Exception:
        return False


def written_out(trace: Trace, nodes: Set[Any], *, kinks: bool = False) -> Iterator[WrittenOut]:
    """Yield the activations written out among the candidates of a forward.

    A candidate is looked at on a few elements where that is possible, and again on all of them if it seems to be an
    activation. The calls that are run again compute at most ``_MOST_ELEMENTS`` elements for a model. If that is not enough,
    the first candidate that is not looked at is yielded with the kind ``UNEXAMINED``, and the search ends.

    Args:
        trace: the calls of the forward.
        nodes: the autograd nodes below the result. A candidate without one of them passes no gradient.
        kinks: whether other functions with a kink at 0 or 6 are yielded, too.
    """
    found: set[Value] = set()
    budget = _Budget(_MOST_ELEMENTS)
    for value in trace.candidates:
        if value.node not in nodes or value.producer is None:
            continue
        steps = chain_of(value, found)
        if not any(step.results and _may_bend(step) for step in steps):
            continue
        inside = frozenset(result for step in steps for result in (*step.results, *step.changed.values()))
        for kind, below in _kinds(value, steps, kinks, budget):
            found.add(value)
            yield WrittenOut(value.producer.site, value.producer.module, kind, value, inside - below)
            break
        if budget.left <= 0:
            yield WrittenOut(value.producer.site, value.producer.module, UNEXAMINED, value, frozenset())
            return


def hides(trace: Trace, node: Any) -> bool:
    """Whether a custom autograd node may compute an activation inside.

    That is so if one is recognised in the calls inside, or if not all of these calls are known.
    """
    shown = trace.shown(node)
    if shown is None:
        return True
    _, steps = shown
    budget = _Budget(_MOST_ELEMENTS // 100)
    for index, step in enumerate(steps, 1):
        for value in (*step.results, *step.changed.values()):
            if value.producer is step and any(_kinds(value, steps[:index], kinks=False, budget=budget)):
                return True
    return budget.left <= 0


def _may_bend(step: Any) -> bool:
    return any(result.behind == 0 for result in (*step.results, *step.changed.values()))


class _Budget:
    """How many elements calls may still compute when they are run again."""

    def __init__(self, elements: int) -> None:
        self.left = elements

    def spend(self, steps: Sequence[Step], like: Tensor) -> None:
        self.left -= len(steps) * max(like.numel(), 1000)  # a call of few elements takes as long as one of a thousand


def _kinds(value: Value, steps: Sequence[Step], kinks: bool, budget: _Budget) -> Iterator[tuple[str, frozenset[Value]]]:
    """Try each value of the same shape from which a value may be computed, the nearest first."""
    tried: dict[Value, Tensor] = {}
    for step in reversed(steps):
        for tensor, given in step.given:
            if given.shape == value.shape and given.dtype == value.dtype and given is not value:
                tried.setdefault(given, tensor)
    for given, tensor in tried.items():
        between = _between(steps, given)
        if not any(_may_bend(step) for step in between):
            continue
        if budget.left <= 0:
            return
        kind = _kind(value, steps, given, tensor, kinks, budget)
        if kind is None:
            continue
        # the chain has ended at activations found before, whose results were drawn at random; what they cancel is smooth
        whole = chain_of(value)
        if len(whole) != len(steps) and _kind(value, whole, given, tensor, kinks, budget) != kind:
            continue
        below = {result for step in chain_of(given) for result in (*step.results, *step.changed.values())}
        yield kind, frozenset(below)


def _between(steps: Sequence[Step], given: Value) -> list[Step]:
    """The calls that depend on a value."""
    depending = {given}
    between = []
    for step in steps:
        if any(value in depending for _, value in step.given):
            between.append(step)
            depending.update(step.results, step.changed.values())
    return between


def _kind(value: Value, steps: Sequence[Step], given: Value, tensor: Tensor, kinks: bool, budget: _Budget) -> str | None:
    """The kind of the function from one value to another, or None."""

    def function(x: Tensor, sizes: Mapping[int, int] = _ALL) -> Tensor:
        budget.spend(steps, x)
        return run_again(steps, value, given, x, sizes=sizes)

    def named(function: Function, like: Tensor, mixing: bool = True) -> str | None:
        kind = recognised(function, like, mixing=mixing)
        if kind is None and kinks:
            kind = next((f"kink at {at:g}" for at in (0.0, 6.0) if bends(function, like, at)), None)
        return kind

    sizes = _few(value.shape)
    if not sizes:
        return named(function, tensor)
    # one run for all numbers: each row of its input has another one
    points = _points(tensor.dtype)
    few = cut(tensor, sizes)
    rows = few[:1].expand(len(points), *few.shape[1:])
    numbers = torch.tensor(points, dtype=tensor.dtype, device=tensor.device).reshape(-1, *[1] * (few.ndim - 1))
    try:
        computed = function(numbers.expand_as(rows).clone(), sizes | {value.shape[0]: -len(points)})
    except Exception:  # the calls need the sizes that they had
        return named(function, tensor)
    outputs = dict(zip(points, computed.split(1), strict=True))
    kind = named(lambda x: outputs[float(x.flatten()[0])], few[:1], mixing=False)
    if kind is None or kind.startswith("kink"):
        return kind
    return kind if _confirmed(function, tensor, kind) else None


def _points(dtype: torch.dtype) -> list[float]:
    """All numbers at which ``recognised`` and ``bends`` evaluate a function."""
    short, small = torch.finfo(dtype).eps > 1e-6, _small(dtype)
    steps = _steps(short, 0.0) + (() if short else (_TINY,)) + (small,)
    around = (at + sign * step for at, all in ((0.0, steps), (6.0, _steps(short, 6.0))) for step in all for sign in (1, -1))
    return list(dict.fromkeys((*_PROBES, *around)))


def _confirmed(function: Function, like: Tensor, kind: str) -> bool:
    """Whether what has been recognised in a few elements is so in all."""
    right, left = _at(function, like, 1.0), _at(function, like, -1.0)
    if right is None or left is None:
        return False
    left = -left
    if bool(_alike(right, left).any()) or (kind != "LeakyReLU" and not ((left == 0).all() or (right == 0).all())):
        return False
    return _elementwise(function, like, left, right, kind == "ReLU6")


def _alike(right: Tensor, left: Tensor) -> Tensor:
    """Where slopes are those of a linear function or of an absolute value."""
    right, left = right.abs(), left.abs()
    return (right - left).abs() <= _ALIKE * right.maximum(left)


def _few(shape: torch.Size) -> dict[int, int]:
    """Smaller sizes for the large dimensions of a shape.

    It is empty for a shape that has few elements, or another dimension of the size of the first.
    """
    if shape.numel() <= 256 or len(shape) < 2 or shape[0] in (1, *shape[1:]):
        return {}
    few = _FEW[min(len(shape), len(_FEW) + 1) - 2]
    return {size: few for size in shape if size > 2 * few} | {shape[0]: 1}
