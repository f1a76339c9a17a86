"""The law about values: a function that is finite around an input has a finite value there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final

import numpy as np

from relucheck.gate.cases.case import THRESHOLDS, Case
from relucheck.gate.cases.probing import first
from relucheck.gate.cases.violation import LawViolation
from relucheck.gate.laws.law import law
from relucheck.numerics.floats import FORMATS, FloatFormat, Floats, Mask

#: Relative width up to which a gap counts as one point: squares underflow to 0 that near to a kink at 0.
_POINT: Final = 1e-6
#: Inputs up to this size are judged: larger ones occur in no network that works, and x * x overflows at 1.8e19 in float32.
_LARGEST_INPUT: Final = 1e6
#: Inputs and values are judged up to this share of the dtype's range, because x * relu6(x + 3) / 6 overflows before its
#: result does, in float16 at 10920.
_ROOM: Final = 64.0
#: Distances from the end of a gap, as shares, at which the function must converge.
_DISTANCES: Final = 2.0 ** -np.arange(4, 44)


@law()
def finite_value(case: Case) -> None:
    """The value is finite at a finite input where the function is, or has finite limits.

    Three kinds of inputs are judged. Where the function is finite in float64, the value must be finite in the dtype under
    test. At a single point without a value, such as 0 for x / |x|, the function must not have finite limits on both sides.
    Beyond an input from which on there is no finite value, such as 709.8 for exp(x) / (1 + exp(x)), an overflow inside the
    function must not be the reason: the function must not converge to a finite limit before it becomes infinite, and NaN
    must begin at the same input in float32. Domains (the logarithm), poles, and results beyond the dtype's range are right.
    """
    x = np.unique(np.concatenate([case.finite_values, case.x]) + 0.0)
    x = x[np.abs(x) <= min(_LARGEST_INPUT, case.largest / _ROOM)]
    y = case.value(x)
    bad = ~np.isfinite(y)
    if not bad.any():
        return
    true = case.exact(x)
    lost = bad & (np.abs(true) <= case.largest / _ROOM) & _far_from_gaps(case, x)
    if lost.any():
        index = _smallest(x, lost)
        reason = f"the function is finite there, {float(true[index]):g} at {float(x[index]):g}"
        raise _failure(case, _begin(case, x, y, index), reason, lost)
    for gap in _gaps(case, x, ~np.isfinite(true)):
        inside = bad & (x >= gap.low) & (x <= gap.high)
        if inside.any() and (reason := _artefact(case, gap)):
            raise _failure(case, float(x[_smallest(x, inside)]), reason, inside)
    undefined = bad & np.isnan(true)
    if undefined.any():
        index = _smallest(x, undefined)
        what = f"the value is NaN at {int(undefined.sum())} of {x.size} finite inputs, where the function seems undefined"
        raise case.fail(what, x=float(x[index]), got=float(y[index]), level="notice")


def _smallest(x: Floats, mask: Mask) -> int:
    """Return the index of the masked input of the smallest size, which is the likeliest to occur in a network."""
    return int(np.where(mask, np.abs(x), math.inf).argmin())


def _far_from_gaps(case: Case, x: Floats) -> Mask:
    """Return a mask of the inputs around which the exact function is finite, as far as rounding in the dtype reaches."""
    reach = 8 * case.eps * np.maximum(np.abs(x), 1.0)
    mask: Mask = np.isfinite(case.exact(x - reach)) & np.isfinite(case.exact(x + reach))
    return mask


@dataclasses.dataclass(frozen=True)
class _Gap:
    """A range of inputs at which the exact function is not finite.

    Attributes:
        low: its lowest float64 number; minus infinity if it does not end.
        high: its highest float64 number; infinity if it does not end.
        is_nan: whether the value is NaN, and not infinite, at its ends.
    """

    low: float
    high: float
    is_nan: bool

    @property
    def point(self) -> bool:
        """Whether it is one point, or nearly."""
        size = max(1e-6, abs(self.low), abs(self.high))
        return math.isfinite(size) and self.high - self.low <= _POINT * size


def _gaps(case: Case, x: Floats, bad: Mask) -> list[_Gap]:
    """Find the ranges of inputs at which the exact function is not finite, from its values at sorted inputs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]])))
    gaps = []
    for start, end in edges.reshape(-1, 2).tolist():
        low, high = -math.inf, math.inf
        if start > 0:
            low = _edge(case.exact, FORMATS["float64"], float(x[start - 1]), float(x[start]))
        if end < x.size:
            high = _edge(case.exact, FORMATS["float64"], float(x[end]), float(x[end - 1]))
        at = low if math.isfinite(low) else high
        gaps.append(_Gap(low, high, math.isnan(float(case.exact(np.array([at]))[0]))))
    return gaps


def _edge(f: Callable[[Floats], Floats], kind: FloatFormat, finite: float, bad: float) -> float:
    """Return the number between two inputs, neighbouring in a format, at which a function stops to be finite."""
    good, wrong = kind.ordinals(np.array([finite, bad])).tolist()
    while abs(wrong - good) > 1:
        step = max(1, abs(wrong - good) // 64)
        between = np.arange(good, wrong, step if wrong > good else -step)[1:]
        missing = ~np.isfinite(f(kind.from_ordinals(between)))
        index = first(missing) if missing.any() else between.size
        good, wrong = (
            int(between[index - 1]) if index else good,
            int(between[index]) if index < between.size else wrong,
        )
    return float(kind.from_ordinals(np.array([wrong]))[0])


def _begin(case: Case, x: Floats, y: Floats, index: int) -> float:
    """Return the first input without a finite value on the way from the next smaller one that has one."""
    inner = np.isfinite(y) & (np.abs(x) < abs(float(x[index]))) & (np.signbit(x) == np.signbit(x[index]))
    if not inner.any():
        return float(x[index])
    start = int(np.where(inner, np.abs(x), -1.0).argmax())
    return _edge(case.value, case.format, float(x[start]), float(x[index]))


def _artefact(case: Case, gap: _Gap) -> str:
    """Say why a gap in the exact function's values is no property of the function; empty if it may be one."""
    sides = [(end, side) for end, side in ((gap.low, -1), (gap.high, 1)) if math.isfinite(end)]
    if not all(_converges(case, end, side) for end, side in sides):
        return ""
    if gap.point:
        return "the function has finite limits on both sides"
    end, side = sides[0]
    if not gap.is_nan:
        return f"the function converges to a finite limit at {end:.9g}, and is infinite from there on"
    at_threshold = (np.abs(THRESHOLDS - end) <= 1e-6 * abs(end)).any()
    if at_threshold or _begins_elsewhere(case, end, side):
        return f"an intermediate result overflows: NaN begins at {end:.9g}, and elsewhere in another dtype"
    return ""


def _converges(case: Case, end: float, side: int) -> bool:
    """Whether the exact function approaches a finite limit at an end of a gap, from the side outside it."""
    y = case.exact(np.asarray(end + side * max(1.0, abs(end)) * _DISTANCES, dtype=np.float64))
    if not np.isfinite(y).all() or np.abs(y[-1]) > case.resolution.exact_format.largest / 4:
        return False
    # the logarithm changes by the same amount whenever the distance halves, and a pole by more
    change = np.abs(np.diff(y))
    return bool(change[-8:].sum() <= 0.1 * change[8:16].sum() + 1e-9 * (1 + np.abs(y[-1])))


def _begins_elsewhere(case: Case, end: float, side: int) -> bool:
    """Whether the activation in float32 is finite beyond an end of a gap, or is not before it."""
    kind = FORMATS["float32"]
    beyond = 0.05 * side * np.sign(end)
    points = kind.rounded(end * np.array([1 + beyond, 0.5, 1 - beyond, 2.0]))
    points = points[np.isfinite(points)]
    f = case.subject.function("float32", case.device)
    try:
        narrow = case.framework.value(f, points)
    except case.framework.errors:
        return False
    return bool((np.isfinite(narrow) != np.isfinite(case.exact(points))).any())


def _failure(case: Case, value: float, reason: str, bad: Mask) -> LawViolation:
    got = float(case.value(np.array([value]))[0])
    kind = "nan" if math.isnan(got) else "infinite"
    return case.fail(
        f"the value is {kind} at a finite input, {int(bad.sum())} of {bad.size} that were tried; {reason}",
        x=value,
        got=got,
        allowed="a finite value",
        script=case.script.text(
            f"y = {case.script.value}.item()", 'print("value", y)', 'assert abs(y) < float("inf"), y', x=[value]
        ),
    )
