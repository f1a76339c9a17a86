"""The exact place of a kink in a bracket, from the values on both sides.

The gradient is what is under test, so where it changes is no evidence of a kink. Values decide, as exactly as they can. In
``relu((x + 3) - 3.1)`` rounding leaves some floats open. Only among these the gradient decides, because it follows the
comparison inside the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from relucheck.numerics.floats import FORMATS, Floats, Mask

#: Smallest change of slope or value that counts as a kink. torch's Softplus jumps by 2e-9 where it becomes linear.
SMALLEST_JUMP: Final = 1e-5
#: Number of distances outside a bracket at which values show a branch.
_OUTSIDE: Final = 6
#: Number of cells into which a bracket is divided in each round.
_CELLS: Final = 64

Function = Callable[[Floats], Floats]
_FLOAT64: Final = FORMATS["float64"]


def simplest(low: float, high: float, unit: float = _FLOAT64.eps) -> float:
    """Return the float in [low, high] with the shortest decimal form.

    For example, 0.7 in place of 0.7000000000000001.

    Args:
        low: the lower end.
        high: the upper end.
        unit: machine epsilon of the values that gave the two ends.
    """
    # rounding inside the function (x + 3 for x just below 3) shifts the kink that its values show by a few ulps
    margin = 4 * unit * max(1.0, abs(low))
    for digits, slack in [*((digits, margin) for digits in range(1, 9)), *((digits, 0.0) for digits in range(9, 18))]:
        if low - slack <= 0.0 <= high + slack:
            return 0.0
        for candidate in (float(f"{low:.{digits - 1}e}"), float(f"{high:.{digits - 1}e}")):
            if low - slack <= candidate <= high + slack:
                return candidate
    return low


def last_where(predicate: Callable[[Floats], Mask], low: float, high: float) -> tuple[float, float]:
    """Find neighbouring floats p < q where a predicate turns from true to false.

    The predicate must change once in [low, high].
    """
    p, q = (_ordinal(value) for value in (low, high))
    while q - p > 1:
        step = max(1, (q - p) // 32)
        order = np.array([*range(p + step, q, step)][:64], dtype=np.int64)
        true = predicate(_FLOAT64.from_ordinals(order))
        first_false = int((~true).argmax()) if not true.all() else len(order)
        p, q = (
            (int(order[first_false - 1]) if first_false else p),
            (int(order[first_false]) if first_false < len(order) else q),
        )
    left, right = _FLOAT64.from_ordinals(np.array([p, q])).tolist()
    return left, right


def located(
    f: Function, gradient: Function | None, a: float, b: float, left: float, right: float, jump: float, unit: float
) -> float:
    """Locate the kink inside a bracket.

    Args:
        f: the function, (n,) to (n,).
        gradient: its gradient for cotangent 1, (n,) to (n,); None if there is none.
        a: lower end of the bracket.
        b: upper end.
        left: derivative of the left branch.
        right: derivative of the right branch.
        jump: value from the right minus value from the left; it decides if it is larger than ``SMALLEST_JUMP``.
        unit: machine epsilon of the values.

    Returns:
        The place, to neighbouring floats of the precision of the values if values or gradients allow it.
    """
    if abs(jump) > SMALLEST_JUMP:
        ends = f(np.array([a, b]))
        middle = float(ends.mean())
        upwards = bool(ends[1] > ends[0])
        low, high = last_where(lambda x: (f(x) < middle) == upwards, a, b)
        return simplest(low, high, unit)
    a, b, narrowed = _turn(f, a, b, left, right, unit)
    if gradient is not None:
        # rounding inside decides between the floats of the bracket, and the gradient shows how
        tolerance = 0.25 * abs(right - left)
        ends = gradient(np.array([a, b]))
        if abs(float(ends[0]) - left) <= tolerance and abs(float(ends[1]) - right) <= tolerance:
            last_left, _ = last_where(lambda x: np.abs(gradient(x) - left) <= tolerance, a, b)
            _, first_right = last_where(lambda x: ~(np.abs(gradient(x) - right) <= tolerance), a, b)
            # a gradient that takes a third value over many floats does not mark one point
            if last_left < first_right and int(_ordinal(first_right) - _ordinal(last_left)) <= 4:
                return simplest(last_left, first_right, unit)
    if narrowed or left == right or not math.isfinite(right - left):
        return simplest(a, b, unit)
    # neither shows the place: intersect the two branches, extended as straight lines
    ya, yb = f(np.array([a, b])).tolist()
    meet = (ya - yb + right * b - left * a) / (right - left)
    width = 1e-13 * max(1.0, abs(a)) / min(1.0, abs(right - left)) + (b - a) ** 2
    return simplest(max(a, meet - width), min(b, meet + width), unit)


def _turn(f: Function, a: float, b: float, left: float, right: float, unit: float) -> tuple[float, float, bool]:
    """Narrow a bracket down to where values leave the branch on its left for the one on its right.

    Each branch is extended into the bracket as a straight line through values outside. An input at which the two lines are
    as near to each other as to their error may be on either. Where a function is continuous, this is where they intersect.

    Args:
        f: the function.
        a: lower end of the bracket.
        b: upper end.
        left: derivative of the left branch.
        right: derivative of the right branch.
        unit: machine epsilon of the values.

    Returns:
        The ends of the narrowed bracket, and whether it is narrower.
    """
    start = a, b
    while b - a > unit * max(1.0, abs(a)):
        x, outside = a + (b - a) * np.linspace(0.0, 1.0, _CELLS + 1), np.arange(_OUTSIDE) * (b - a)
        y, beyond = f(x), f(np.concatenate([a - outside, b + outside])).reshape(2, _OUTSIDE)
        slopes = (beyond[:, 0] - beyond[:, 1]) * np.array([1.0, -1.0]) / outside[1]
        lines = beyond[0, 0] + slopes[0] * (x - a), beyond[1, 0] + slopes[1] * (x - b)
        # second differences show curvature and rounding, as far as the values are not rounded alike
        error = 2 * float(np.abs(np.diff(beyond, 2)).max())
        error += 4 * unit * float(np.abs(beyond).max() + max(abs(a), abs(b)) * max(abs(left), abs(right)))
        apart = np.abs(lines[1] - lines[0])
        on_left, on_right = (np.abs(y - line) <= 0.25 * apart for line in lines)
        known = apart > 8 * error
        if not (known[[0, -1]].all() and (on_left | on_right | ~known).all()):
            break  # nothing more is known, or there is a third branch
        last, first = int(np.flatnonzero(known & on_left)[-1]), int((known & on_right).argmax())
        if not last < first or (last, first) == (0, _CELLS):
            break
        a, b = float(x[last]), float(x[first])
    return a, b, (a, b) != start


def _ordinal(value: float) -> int:
    return int(_FLOAT64.ordinals(np.array([value]))[0])
