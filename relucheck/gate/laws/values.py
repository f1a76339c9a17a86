"""Laws about values: finite where the function is, and equal in every dtype."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from relucheck.errors import error_text
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import REACHED, ROOM, THRESHOLDS, first
from relucheck.gate.cases.violation import LawViolation, NotApplicable
from relucheck.gate.frameworks.script import within
from relucheck.gate.laws.law import law
from relucheck.numerics.floats import FORMATS, FloatFormat, Floats, Mask

#: Relative width up to which a gap counts as one point: squares underflow to 0 that near to a kink at 0.
_POINT: Final = 1e-6
#: Distances from the end of a gap, as shares, at which the function must converge.
_DISTANCES: Final = 2.0 ** -np.arange(4, 44)
#: Distances from it, as shares, at which a gap must go on.
_INSIDE: Final = np.asarray(1e-3 * (np.arange(1, 17) * 0.6180339887498949 % 1), dtype=np.float64)
#: Distances, in machine epsilons, of the inputs at which a function is called to see how far it moves. Multiples of the
#: golden ratio are spread evenly, and at no equal distances, at which a periodic function could take one value.
_NEAR: Final = np.asarray(8 * (np.arange(64) * 0.6180339887498949 % 1) - 4, dtype=np.float64)
#: Number of inputs around which it is called at once, which limits the memory.
_AT_ONCE: Final = 2048


@law(cause="an intermediate result overflows, or is 0 / 0", group="range")
def finite_value(case: Case) -> None:
    """The value is finite at a finite input where the function is, or has finite limits.

    Three kinds of inputs are judged. Where the function is finite in float64, the value must be finite in the dtype under
    test. At a single point without a value, such as 0 for x / |x|, the function must not have finite limits on both sides.
    Beyond an input from which on there is no finite value, such as 709.8 for exp(x) / (1 + exp(x)), an overflow inside the
    function must not be the reason: the function must not converge to a finite limit before it becomes infinite, and NaN
    must begin at the same input in float32. Domains (the logarithm), poles, and results beyond the dtype's range are right.

    Inputs of at most a million and at most 1/64 of the largest number are judged. So the square in sqrt(x * x + 1) is an
    error in float16, where it overflows at 256. In the other dtypes it overflows beyond 1e19, which is a notice: published
    activations are written so, and no network has such inputs. Near the largest number a product with an ordinary constant
    overflows as well.
    """
    x, y = case.everywhere
    inner = np.abs(x) <= case.largest / ROOM
    unfinished = ~np.isfinite(y)
    notice = None
    for found in _losses(case, x, y, unfinished & inner, inner):
        if found.level == "error":
            raise found
        notice = notice or found
    if notice is not None:
        raise notice
    # an infinite value is right where the function is as large
    outer = unfinished & ~inner
    if outer.any():
        outer[outer] = np.isnan(y[outer]) | (np.abs(case.exact(x[outer])) <= case.largest / ROOM)
    if outer.any():
        raise _unjudged(case, x, y, outer, "near the largest number")


def _losses(case: Case, x: Floats, y: Floats, bad: Mask, inner: Mask) -> Iterator[LawViolation]:
    """Yield a violation for each kind of input at which a finite value is lost, or seems undefined."""
    if not bad.any():
        return
    true = case.exact(x)
    lost = bad & (np.abs(true) <= case.largest / ROOM) & _far_from_gaps(case, x)
    if lost.any():
        index = _smallest(x, lost)
        reason = f"the function is finite there, {float(true[index]):g} at {float(x[index]):g}"
        yield _failure(case, _begin(case, x, y, index), reason, lost[inner])
    for gap in _gaps(case, x[inner], ~np.isfinite(true[inner])):
        inside = bad & (x >= gap.low) & (x <= gap.high)
        if inside.any() and (reason := _artefact(case, gap)):
            yield _failure(case, float(x[_smallest(x, inside)]), reason, inside[inner])
    undefined = bad & np.isnan(true)
    if undefined.any():
        yield _unjudged(case, x, y, undefined, "where the function seems undefined")


def _unjudged(case: Case, x: Floats, y: Floats, bad: Mask, where: str) -> LawViolation:
    index = _smallest(x, bad)
    what = f"the value is {_kind(float(y[index]))} at {int(bad.sum())} of {x.size} finite inputs, {where}"
    return case.fail(what, x=float(x[index]), got=float(y[index]), level="notice")


def _kind(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite"


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
            low = _edge(_infinite(case.exact), FORMATS["float64"], float(x[start - 1]), float(x[start]))
        if end < x.size:
            high = _edge(_infinite(case.exact), FORMATS["float64"], float(x[end]), float(x[end - 1]))
        at = low if math.isfinite(low) else high
        gaps.append(_Gap(low, high, math.isnan(float(case.exact(np.array([at]))[0]))))
    return gaps


def _edge(wrong: Callable[[Floats], Mask], kind: FloatFormat, good: float, bad: float) -> float:
    """Return the number between two inputs, neighbouring in a format, at which a function begins to be wrong."""
    before, after = kind.ordinals(np.array([good, bad])).tolist()
    while abs(after - before) > 1:
        step = max(1, abs(after - before) // 64)
        between = np.arange(before, after, step if after > before else -step)[1:]
        found = wrong(kind.from_ordinals(between))
        index = first(found) if found.any() else between.size
        before, after = (
            int(between[index - 1]) if index else before,
            int(between[index]) if index < between.size else after,
        )
    return float(kind.from_ordinals(np.array([after]))[0])


def _infinite(f: Callable[[Floats], Floats]) -> Callable[[Floats], Mask]:
    return lambda x: ~np.isfinite(f(x))


def _begin(case: Case, x: Floats, y: Floats, index: int) -> float:
    """Return the first input without a finite value on the way from the next smaller one that has one."""
    inner = np.isfinite(y) & (np.abs(x) < abs(float(x[index]))) & (np.signbit(x) == np.signbit(x[index]))
    if not inner.any():
        return float(x[index])
    start = int(np.where(inner, np.abs(x), -1.0).argmax())
    return _edge(_infinite(case.value), case.format, float(x[start]), float(x[index]))


def _artefact(case: Case, gap: _Gap) -> str:
    """Say why a gap in the exact function's values is no property of the function; empty if it may be one."""
    sides = [(end, side) for end, side in ((gap.low, -1), (gap.high, 1)) if math.isfinite(end)]
    if not sides or not all(_converges(case, end, side) for end, side in sides):
        return ""
    if gap.point:
        return "the function has finite limits on both sides"
    end, side = sides[0]
    width = gap.high - gap.low if math.isfinite(gap.high - gap.low) else abs(end)
    if np.isfinite(case.exact(end - side * width * _INSIDE)).any():
        return ""  # single inputs, such as the poles of the logarithm of the gamma function
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
    """Whether the activation in float32 is finite beyond an end of a gap, or is not before it.

    An end beyond float32's range is compared with its large inputs: a square that overflows in one does in the other.
    """
    kind = FORMATS["float32"]
    beyond = 0.05 * side * np.sign(end)
    points = kind.rounded(end * np.array([1 + beyond, 0.5, 1 - beyond, 2.0]))
    points = points[np.isfinite(points)] if np.isfinite(points).any() else np.sign(end) * np.array([kind.largest / ROOM])
    f = case.subject.function("float32", case.device)
    try:
        narrow = case.framework.value(f, points)
    except case.framework.errors:
        return False
    return bool((np.isfinite(narrow) != np.isfinite(case.exact(points))).any())


def _failure(case: Case, value: float, reason: str, bad: Mask) -> LawViolation:
    got, beyond = float(case.value(np.array([value]))[0]), abs(value) > REACHED
    what = f"the value is {_kind(got)} at a finite input, {int(bad.sum())} of {bad.size} that were tried; {reason}"
    return case.fail(
        what + f" (all beyond {REACHED:g}, hence a notice)" * beyond,
        x=value,
        got=got,
        allowed="a finite value",
        script=case.script.text(
            f"y = {case.script.value}.item()", 'print("value", y)', 'assert abs(y) < float("inf"), y', x=[value]
        ),
        level="notice" if beyond else "error",
    )


@law(per_channel=True)
def dtype_agreement(case: Case) -> None:
    """Values, and gradients at kinks and at large inputs, equal those in float64.

    Both are computed by the same activation, at the same inputs. They may differ by rounding: by some machine epsilons, by
    as much as the function moves between neighbouring inputs, and by what a sum loses to cancellation
    (``Resolution.of_cancellation``). ``x / sqrt(1 + x * x)`` differs by more in float32 from 1.8e19 on: the square
    overflows, and the quotient is 0 in place of 1. Values and gradients that are not finite are for other laws, and so are
    gradients at ordinary inputs. From one input to the next, where the difference begins, one of the two results jumps, and
    its dtype is to blame. If that is float64, the difference is a notice. So is one at inputs above 1/64 of the dtype's
    largest number.
    """
    if case.dtype == "float64":
        raise NotApplicable("the law compares the other dtypes with float64")
    try:
        case.reverse(case.x[:4], f=case.wide)
    except Exception as error:
        raised = error_text(getattr(error, "raised", error))
        raise NotApplicable(f"the law compares with float64, in which the activation does not run: {raised}") from None
    _subgradients_agree(case)
    violations = [_disagreement(case, _Quantity("value", case.value, case.exact), *case.everywhere)]
    # a value that is not finite is for another law, whatever gradient comes with it
    far = (np.abs(case.x) > case.resolution.decidable) & np.isfinite(case.y)
    if far.any():
        slopes = _Quantity("gradient", case.reverse, lambda x: case.reverse(x, f=case.wide))
        violations.append(_disagreement(case, slopes, case.x[far], case.g[far]))
    for level in ("error", "notice"):
        for found in violations:
            if found is not None and found.level == level:
                raise found


def _subgradients_agree(case: Case) -> None:
    """Compare subgradients at the kinks that the dtype represents."""
    corners = [kink for kink in case.corners if case.represents(kink)]
    at = np.array([kink.at for kink in corners])
    if not corners:
        return
    expected, got = case.reverse(at, f=case.wide).tolist(), case.reverse(at).tolist()
    for kink, value, right in zip(corners, got, expected, strict=True):
        tolerance = case.tolerance(kink)
        if not math.isnan(right) and not abs(value - right) <= tolerance:
            raise case.fail(
                "the subgradient differs between dtypes",
                x=kink.at,
                cotangent=1.0,
                got=value,
                allowed=f"{right!r}, as in float64",
                script=case.script.one_gradient(
                    kink.at, 1.0, within("got", right, right, tolerance), f"float64 gives {right!r}"
                ),
            )


@dataclasses.dataclass(frozen=True)
class _Quantity:
    """What is compared, ``"value"`` or ``"gradient"``: as a function in the dtype under test and in float64."""

    noun: str
    narrow: Callable[[Floats], Floats]
    wide: Callable[[Floats], Floats]

    def wrong(self, case: Case, x: Floats) -> Mask:
        """Return a mask of the inputs at which it differs from that in float64."""
        return self.bounds(case, x, self.narrow(x))[0]

    def bounds(self, case: Case, x: Floats, got: Floats) -> tuple[Mask, Floats, Floats]:
        """Return a mask of the inputs at which it differs, and its bounds, (n,) each.

        Args:
            case: the case under test.
            x: the inputs, (n,).
            got: the quantity in the dtype under test there, (n,).
        """
        true = self.wide(x)
        units = 8 if case.eps > 1e-4 else 64
        slack: Floats = units * case.eps * (1 + np.abs(true))
        wrong: Mask = np.isfinite(got) & np.isfinite(true) & (np.abs(true) <= case.largest / ROOM)
        wrong &= np.abs(got - true) > slack
        for kink in case.kinks:
            wrong &= np.abs(x - kink.at) > 8 * case.eps * max(1.0, abs(kink.at))
        low, high = true - slack, true + slack

        def outside(places: NDArray[np.int64], distances: Floats) -> NDArray[np.int64]:
            """Widen the bounds at some inputs by how far the function moves beside them; return those still outside."""
            unit = case.eps * (np.abs(x[places]) + case.tiny)
            near = self.wide((x[places] + distances[:, None] * unit).ravel()).reshape(distances.size, -1)
            bottom, top = near.min(axis=0), near.max(axis=0)
            moved = top - bottom
            low[places], high[places] = bottom - moved - slack[places], top + moved + slack[places]
            # nothing is known where the function moves by much of its size; NaN compares false
            steady = moved <= 0.5 * (1 + np.median(np.abs(near), axis=0))
            return places[steady & ((got[places] < low[places]) | (got[places] > high[places]))]

        # this costs more calls, and each step leaves fewer inputs to the next one
        candidates, wrong = np.flatnonzero(wrong), np.zeros_like(wrong)
        for start in range(0, candidates.size, _AT_ONCE):
            places = outside(candidates[start : start + _AT_ONCE], _NEAR[::9])
            if places.size:
                slack[places] += case.resolution.of_cancellation(self.wide, x[places])
                slack[places] += case.resolution.of_noise(self.wide, x[places])
                wrong[outside(places, _NEAR)] = True
        return wrong, low, high


def _disagreement(case: Case, quantity: _Quantity, x: Floats, got: Floats) -> LawViolation | None:
    """Build a violation where a quantity differs from that in float64; None if it does not."""
    wrong, low, high = quantity.bounds(case, x, got)
    if not wrong.any():
        return None
    index, count = _smallest(x, wrong), f"{int(wrong.sum())} of {x.size} inputs tried"
    beyond = bool(np.abs(x[index]) > case.largest / ROOM)
    at, noun = float(x[index]), quantity.noun
    inner = ~wrong & np.isfinite(got) & (np.abs(x) < abs(at)) & (np.signbit(x) == np.signbit(at))
    if inner.any():
        start = float(x[int(np.where(inner, np.abs(x), -1.0).argmax())])
        at = _edge(lambda x: quantity.wrong(case, x), case.format, start, at)
        x = np.array([at])
        got = quantity.narrow(x)
        # beside a jump of the function in float64 nothing is known, so it lies some steps before
        window = case.format.from_ordinals(case.format.ordinals(x) - np.arange(16) * int(np.sign(at)))
        jump, wide_jump = (float(np.ptp(f(window))) for f in (quantity.narrow, quantity.wide))
        if wide_jump > jump:
            what = f"the {noun} in float64 jumps by {wide_jump:.3g}, where that in {case.dtype} moves by {jump:.3g}"
            return case.fail(f"{what} ({count})", x=at, got=float(got[0]), level="notice")
        _, low, high = quantity.bounds(case, x, got)
        index = 0
    right, bounds = float(quantity.wide(x[index : index + 1])[0]), (float(low[index]), float(high[index]))
    comment = f"float64 gives {right!r}"
    if noun == "gradient":
        script = case.script.one_gradient(at, 1.0, within("got", *bounds, 0.0), comment)
    else:
        lines = (f"got = {case.script.value}.item()", f'print("value", got)  # {comment}')
        script = case.script.text(*lines, f"assert {within('got', *bounds, 0.0)}", x=[at])
    return case.fail(
        f"the {noun} differs from that in float64 ({count})" + ", near the largest number" * beyond,
        x=at,
        cotangent=1.0 if noun == "gradient" else "",
        got=float(got[index]),
        allowed=f"{right!r}, as in float64",
        level="notice" if beyond else "error",
        script=script,
    )
