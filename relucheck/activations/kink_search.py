"""Numerical search for points where a function of one variable, or its derivative, jumps.

The search decides from forward values alone whether there is a kink, because the gradient is what is under test. It has
three steps. A scan in float64 finds cells in which the slope changes. Repeated magnification of these cells separates kinks
from smooth bends: a kink keeps its change of slope under magnification, while that of a bend shrinks in proportion. Each
kink is then placed where values leave one branch for the other, see ``relucheck.activations.kink_place``.

One-sided derivatives come from one-sided difference formulas of fifth order (Fornberg 1988, "Generation of finite
difference formulas on arbitrarily spaced grids").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from relucheck.activations.kink_place import SMALLEST_JUMP, Function, located, simplest
from relucheck.errors import SettingsError
from relucheck.numerics.floats import FORMATS, Floats, Mask

#: Default range of the scan.
SCAN_RANGE: Final = (-32.0, 32.0)
#: Widths of the cells of the scan inside and outside [-4, 4].
_FINE, _COARSE = 2.0**-7, 2.0**-5
#: Magnification per round and number of rounds; a cell of width 2**-7 ends as a bracket of about 6e-6.
_ZOOM, _ROUNDS = 8, 4
#: Weights of the one-sided derivative at 0 from values at 1..6; at 0 itself a function that jumps may take any value.
_ONE_SIDED: Final = (-8.7, 29.25, -127 / 3, 33.0, -13.5, 137 / 60)
#: Weights of the one-sided derivative at 0 from values at 0..4.
_FORWARD: Final = (-25 / 12, 4.0, -3.0, 4 / 3, -1 / 4)

_FLOAT64: Final = FORMATS["float64"]
#: Binary digits of a product of two float32 numbers; one number in 32 of float64 has as few by chance.
_PRODUCT: Final = 48
_FLOAT64_DIGITS: Final = 53


@dataclasses.dataclass(frozen=True)
class FoundKink:
    """A kink that the numerical search found.

    Attributes:
        at: position of the kink, float64. It is exact if the function compares its input with a float64 number.
        left: one-sided derivative from the left.
        right: one-sided derivative from the right.
        error: estimated error of the two derivatives.
        jump: limit of the value from the right minus limit from the left; 0 where the function is continuous.
        singular: whether the one-sided derivatives do not converge, as for the square root at 0. There is then no Clarke
            interval.
    """

    at: float
    left: float
    right: float
    error: float = 0.0
    jump: float = 0.0
    singular: bool = False

    @property
    def hull(self) -> tuple[float, float]:
        """The interval between the one-sided derivatives, as (lowest, highest).

        It is the Clarke interval where the value does not jump.

        Source: Clarke (1983), Optimization and Nonsmooth Analysis.
        """
        return min(self.left, self.right), max(self.left, self.right)

    @property
    def minimum_norm(self) -> float:
        """The element of the Clarke interval nearest zero: PyTorch's rule for convex functions.

        Source: https://docs.pytorch.org/docs/stable/notes/autograd.html, "Gradients for non-differentiable functions".
        """
        low, high = self.hull
        return min(max(0.0, low), high)


def resolution(y: Floats) -> float:
    """Return the machine epsilon of the precision that values were computed in.

    It is that of float64 or of float32.

    A module that always computes in float32 returns float64 arrays of float32 numbers, or of their products with another
    number, such as a weight. Their differences have a larger rounding error than those of values computed in float64.

    Args:
        y: values of a function, any shape.
    """
    finite = y[np.isfinite(y)]
    # the first few numbers decide almost always, and cost less than all
    if not (_has_digits(finite[:16], _PRODUCT) and _has_digits(finite, _PRODUCT)):
        return _FLOAT64.eps
    # constants and numbers of few digits (a step function, a clamp) are float32 numbers by chance
    many_digits = np.unique(finite[~_of_digits(finite, 12)])
    if _has_digits(finite, 24):
        return FORMATS["float32"].eps if many_digits.size >= 4 else _FLOAT64.eps
    # a sum with a large constant, such as (x + 1000) - 1000.1, cuts all numbers off at one place
    products = many_digits.size >= 16 and _places(many_digits) > _FLOAT64_DIGITS
    return FORMATS["float32"].eps if products else _FLOAT64.eps


def difference_step(unit: float) -> float:
    """Return the relative step of difference formulas for a machine epsilon of values."""
    return 1e-3 if unit < 1e-10 else 2e-2


def _of_digits(x: Floats, digits: int) -> Mask:
    """Whether the significand of each number fits in so many binary digits."""
    fraction, _ = np.frexp(x)
    result: Mask = np.ldexp(fraction, digits) % 1 == 0
    return result


def _places(x: Floats) -> int:
    """The number of binary places from the first digit of the largest number to the last digit of any."""
    fraction, exponent = np.frexp(x)
    significand = np.ldexp(fraction, _FLOAT64_DIGITS).astype(np.int64)
    last = exponent + np.frexp((significand & -significand).astype(np.float64))[1]
    return int(exponent.max() - last.min() + _FLOAT64_DIGITS + 1)


def _has_digits(x: Floats, digits: int) -> bool:
    return bool(_of_digits(x, digits).all())


def _grid(low: float, high: float) -> Floats:
    inner_low, inner_high = max(low, -4.0), min(high, 4.0)
    parts = [np.arange(low, min(inner_low, high), _COARSE)]
    if inner_low < inner_high:
        parts.append(np.arange(inner_low, inner_high, _FINE))
    if inner_high < high:
        parts.append(np.arange(max(inner_high, low), high, _COARSE))
    parts.append(np.array([high]))
    # kinks lie at short decimal or binary fractions; this offset keeps them off the nodes, where two cells would share one
    return np.concatenate(parts) + _FINE * 0.381966


def _change(y: Floats, h: Floats) -> tuple[Floats, Floats]:
    """Compute the change of slope over every three cells, and the scale of its rounding error.

    ``y`` has the shape (..., n + 1), the widths ``h`` end in n, both results in n - 2.
    """
    slope = np.diff(y) / h
    size = np.abs(y)
    size = np.maximum(np.maximum(size[..., :-3], size[..., 1:-2]), np.maximum(size[..., 2:-1], size[..., 3:]))
    return np.abs(slope[..., 2:] - slope[..., :-2]), size / h[..., : size.shape[-1]]


def _brackets(f: Function, low: float, high: float) -> tuple[Floats, Floats, float]:
    """Find disjoint brackets [a, b], about 6e-6 wide, each with a jump of value or slope.

    Returns the ends a and b of all brackets, and the machine epsilon of the values.
    """
    x = _grid(low, high)
    y = f(x)
    unit = resolution(y)
    change, noise = _change(y, np.diff(x))
    # cells with non-finite values drop out, because NaN compares false
    keep = change > SMALLEST_JUMP + 64 * unit * noise
    rounds = _ROUNDS if unit < 1e-10 else 2
    a, b = _magnified(f, x[:-3][keep], x[3:][keep], change[keep], unit, rounds)
    return a, b, unit


def _magnified(f: Function, a: Floats, b: Floats, parent: Floats, unit: float, rounds: int) -> tuple[Floats, Floats]:
    """Magnify brackets, of which each shows a change of slope, and return those that keep it, disjoint and in order."""
    steps = np.linspace(0, 1, 3 * _ZOOM + 1)
    for _ in range(rounds):
        if a.size == 0:
            break
        nodes = a[:, None] + (b - a)[:, None] * steps
        values = f(nodes.reshape(-1)).reshape(nodes.shape)
        change, noise = _change(values, np.diff(nodes))
        kept = (change >= 0.6 * parent[:, None]) & (change > SMALLEST_JUMP + 64 * unit * noise)
        row, column = kept.nonzero()
        a, b, parent = nodes[row, column], nodes[row, column + 3], change[row, column]
    order = a.argsort(kind="stable")
    a, b = a[order], b[order]
    if a.size > 1:
        # overlapping brackets contain the same kink
        starts = np.flatnonzero(np.concatenate([[True], a[1:] > np.maximum.accumulate(b)[:-1]]))
        a, b = np.minimum.reduceat(a, starts), np.maximum.reduceat(b, starts)
    return a, b


def one_sided(f: Function, at: float, side: int, h: float, unit: float) -> tuple[float, float, float]:
    """Estimate a one-sided derivative of a function at a point.

    Args:
        f: elementwise function, shape (n,) in and out.
        at: the point.
        side: -1 for the derivative from the left, +1 for that from the right.
        h: step of the difference formula; the formula reaches as far as ``6 * h``.
        unit: machine epsilon of the function's values, as ``resolution`` returns it.

    Returns:
        The derivative, its estimated error, and the one-sided limit of the value.
    """
    points = np.arange(1.0, 7.0)
    steps = np.stack([points * h, points * h / 2])
    y = f((at + side * steps).reshape(-1)).reshape(2, 6)
    estimates = (y * np.array(_ONE_SIDED)).sum(1) / np.array([h, h / 2])
    noise = 100 * unit * float(np.abs(y).max()) / h
    error = float(np.abs(estimates[0] - estimates[1])) + noise
    limit = float((y[1] * np.array([6.0, -15.0, 20.0, -15.0, 6.0, -1.0])).sum())
    return side * float(estimates[1]), error, limit


def to_few_decimals(value: float, error: float) -> float:
    """Round to the fewest decimals that the error, or 1e-9 of the value, allows.

    For example, 0.010000000000012 becomes 0.01.
    """
    width = max(error, 1e-9 * max(1.0, abs(value)))
    if not math.isfinite(value) or not math.isfinite(width):
        return value
    for decimals in range(12):
        if abs(round(value, decimals) - value) <= width:
            return round(value, decimals) + 0.0
    return value


@np.errstate(all="ignore")
def find_kinks(f: Function, gradient: Function | None = None, scan: tuple[float, float] = SCAN_RANGE) -> list[FoundKink]:
    """Find the points in a range at which a function or its derivative jumps by more than 1e-5.

    Args:
        f: elementwise function, float64 of shape (n,) in and out.
        gradient: gradient of ``f`` for cotangent 1, float64 of shape (n,) in and out; None if there is none. It serves only
            to place a kink between the few floats that forward values leave open.
        scan: the range. Two kinks closer than 1/32 (1/128 inside [-4, 4]) may be missed if their jumps cancel.

    Returns:
        The kinks by increasing position.

    Raises:
        SettingsError: for a range that is empty or not finite.
    """
    low, high = scan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SettingsError(f"scan={scan!r}: a range (low, high) of finite numbers with low < high is needed")
    a, b, unit = _brackets(f, low, high)
    result: list[FoundKink] = []
    middles = ((a + b) / 2).tolist()
    for index, (lower, upper) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        middle = middles[index]
        # the difference formulas must not reach past the next kink
        gap = min([abs(middle - other) for other in middles if other != middle], default=math.inf)
        h = min(difference_step(unit) * max(1.0, abs(middle)), gap / 16)
        if h < 2 * (upper - lower):
            # kinks that are near each other need narrower brackets
            rounds = math.ceil(math.log(2 * (upper - lower) / h, _ZOOM / 3))
            narrow = _magnified(f, np.array([lower]), np.array([upper]), np.zeros(1), unit, min(rounds, 4))
            if narrow[0].size != 1:
                continue
            lower, upper = float(narrow[0][0]), float(narrow[1][0])
            if h < 2 * (upper - lower):
                continue
        left, _, value_left = one_sided(f, lower, -1, h, unit)
        right, _, value_right = one_sided(f, upper, 1, h, unit)
        jump = value_right - value_left
        # a continuous function also changes across the bracket, by slope times width
        jump = jump if abs(jump) > SMALLEST_JUMP + 2 * (upper - lower) * max(abs(left), abs(right)) else 0.0
        at = located(f, gradient, lower, upper, left, right, jump, unit)
        left, left_error, value_left = one_sided(f, at, -1, h, unit)
        right, right_error, value_right = one_sided(f, at, 1, h, unit)
        error = max(left_error, right_error)
        singular = not math.isfinite(error) or error > max(1e-3, 1e6 * unit) * (1 + max(abs(left), abs(right)))
        if singular:
            at = simplest(lower, upper, unit)
        jump = value_right - value_left if jump else 0.0
        left, right = to_few_decimals(left, 10 * left_error), to_few_decimals(right, 10 * right_error)
        if not singular and jump == 0.0 and abs(right - left) <= SMALLEST_JUMP:
            continue
        result.append(FoundKink(at, left, right, error, to_few_decimals(jump, 1e-7), singular))
    return result


@np.errstate(all="ignore")
def derivatives(f: Function, x: Floats, kinks: Sequence[FoundKink]) -> tuple[Floats, Floats, Floats]:
    """Estimate the left and right derivative of a function at given points.

    Difference formulas never reach across a known kink: a point beside a kink gets both derivatives from its side of the
    kink. At a kink that the search missed, the two derivatives differ, so the interval between them is right there as well.

    Args:
        f: elementwise function, float64 of shape (n,) in and out.
        x: the points, float64 of shape (n,).
        kinks: the known kinks of ``f``.

    Returns:
        Left derivative, right derivative and estimated error, each float64 of shape (n,); NaN where unknown.
    """
    places = np.array(sorted(kink.at for kink in kinks))
    if places.size:
        padded = np.concatenate([[-math.inf], places, [math.inf]])
        # distance to the nearest kink strictly left and strictly right of the point
        below = x - padded[np.searchsorted(places, x)]
        above = padded[np.searchsorted(places, x, side="right") + 1] - x
    else:
        below = above = np.full_like(x, math.inf)
    at_kink = np.isin(x, places)
    size = np.maximum(np.abs(x), 1.0)
    # points of a narrow format have values of few digits in any precision, so look between them
    unit = resolution(f(x + size * 1e-3 / 3))
    wanted = difference_step(unit) * size
    room = np.where(at_kink, np.minimum(below, above), np.maximum(below, above))
    h = np.minimum(wanted, room / 5)
    offsets = np.arange(0.0, 5.0)
    # small steps for large |x| reveal an oscillation that the relative step skips: the estimates then disagree
    smalls = [
        np.minimum(h / 3, np.maximum(ulps * unit * size, floor)) for ulps, floor in ((90, 1e-3), (6, 1e-3), (1e4, 0.0))
    ]
    results, errors = [], []
    for side, distance in ((-1, below), (1, above)):
        nodes = np.stack([x[:, None] + side * offsets * step[:, None] for step in (h, h / 2, *smalls)])
        y = f(nodes.reshape(-1)).reshape(nodes.shape)
        # h and x + h round, so take the step from the nodes
        steps = np.abs(nodes[:, :, 4] - nodes[:, :, 0]) / 4
        estimate = (y * np.array(_FORWARD)).sum(-1) / steps * side
        largest = np.abs(y).max((0, 2))
        error = np.abs(estimate[0] - estimate[1]) + 20 * unit * largest / h
        # of the small steps' disagreement, only what exceeds its rounding error counts
        noise = 20 * unit * largest / steps[2:]
        error += np.maximum(np.abs(estimate[1] - estimate[2:]) - noise, 0.0).max(0)
        # estimates that differ by a quarter, not just by rounding, say nothing: the function turns within the steps
        unknown = np.abs(estimate[0] - estimate[1]) > 0.25 * np.abs(estimate[:2]).max(0) + 20 * unit * largest / h + 1e-3
        error = np.where(unknown, math.inf, error)
        usable = (distance >= 4 * h) & (h > 0)
        results.append(np.where(usable, estimate[1], math.nan))
        errors.append(np.where(usable, error, math.nan))
    left, right = results
    # not nan_to_num, which would make infinite errors finite
    error = np.maximum(*(np.where(np.isnan(side), 0.0, side) for side in errors))
    left, right = np.where(np.isnan(left), right, left), np.where(np.isnan(right), left, right)
    for kink in kinks:
        here = x == kink.at
        if kink.singular:
            here = np.abs(x - kink.at) <= 0.05 * max(1.0, abs(kink.at))
        left = np.where(here, math.nan if kink.singular else kink.left, left)
        right = np.where(here, math.nan if kink.singular else kink.right, right)
        error = np.where(here, kink.error, error)
    return left, right, error
