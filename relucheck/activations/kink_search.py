"""Numerical search for points where a function of one variable, or its derivative, jumps.

The search decides from forward values alone whether there is a kink, because the gradient is what is under test. It has
three steps. A scan in float64 finds cells in which the slope changes. Repeated magnification of these cells separates kinks
from smooth bends: a kink keeps its change of slope under magnification, while that of a bend shrinks in proportion. A
bisection then narrows each kink down to neighbouring floats.

One-sided derivatives come from one-sided difference formulas of fifth order (Fornberg 1988, "Generation of finite
difference formulas on arbitrarily spaced grids").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from relucheck.errors import SettingsError
from relucheck.numerics.bits import from_ordinals, ordinals

#: Default range of the scan.
SCAN_RANGE: Final = (-32.0, 32.0)
#: Widths of the cells of the scan inside and outside [-4, 4].
_FINE, _COARSE = 2.0**-7, 2.0**-5
#: Smallest change of slope or value that counts as a kink. torch's Softplus jumps by 2e-9 where it becomes linear.
SMALLEST_JUMP: Final = 1e-5
#: Magnification per round and number of rounds; a cell of width 2**-7 ends as a bracket of about 6e-6.
_ZOOM, _ROUNDS = 8, 4
#: Weights of the one-sided derivative at 0 from values at 1..6; at 0 itself a function that jumps may take any value.
_ONE_SIDED: Final = (-8.7, 29.25, -127 / 3, 33.0, -13.5, 137 / 60)
#: Weights of the one-sided derivative at 0 from values at 0..4.
_FORWARD: Final = (-25 / 12, 4.0, -3.0, 4 / 3, -1 / 4)

Function = Callable[[Tensor], Tensor]


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


def resolution(y: Tensor) -> float:
    """Return the machine epsilon of the precision that values were computed in.

    It is that of float64 or of float32.

    A module that always computes in float32 returns float64 tensors of float32 numbers. Their differences have a larger
    rounding error than those of values computed in float64.

    Args:
        y: values of a function, float64, any shape.
    """
    finite = y[y.isfinite()]
    # values with few distinct numbers (a step function, a clamp) may be float32 numbers by chance
    if finite.unique().numel() > 0.2 * finite.numel() and bool(
        (finite.to(torch.float32).to(torch.float64) == finite).all()
    ):
        return float(torch.finfo(torch.float32).eps)
    return float(torch.finfo(torch.float64).eps)


def _grid(low: float, high: float) -> Tensor:
    inner_low, inner_high = max(low, -4.0), min(high, 4.0)
    parts = [torch.arange(low, min(inner_low, high), _COARSE, dtype=torch.float64)]
    if inner_low < inner_high:
        parts.append(torch.arange(inner_low, inner_high, _FINE, dtype=torch.float64))
    if inner_high < high:
        parts.append(torch.arange(max(inner_high, low), high, _COARSE, dtype=torch.float64))
    parts.append(torch.tensor([high], dtype=torch.float64))
    # kinks lie at short decimal or binary fractions; this offset keeps them off the nodes, where two cells would share one
    return torch.cat(parts) + _FINE * 0.381966


def _change(y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the change of slope over every three cells, and the scale of its rounding error.

    ``y`` has the shape (..., n + 1), the widths ``h`` end in n, both results in n - 2.
    """
    slope = y.diff(dim=-1) / h
    size = y.abs().unfold(-1, 4, 1).amax(-1)
    return (slope[..., 2:] - slope[..., :-2]).abs(), size / h[..., : size.shape[-1]]


def _brackets(f: Function, low: float, high: float) -> tuple[Tensor, Tensor, float]:
    """Find disjoint brackets [a, b], about 6e-6 wide, each with a jump of value or slope.

    Returns the ends a and b of all brackets, and the machine epsilon of the values.
    """
    x = _grid(low, high)
    y = f(x)
    unit = resolution(y)
    change, noise = _change(y, x.diff())
    # cells with non-finite values drop out, because NaN compares false
    keep = change > SMALLEST_JUMP + 64 * unit * noise
    a, b, parent = x[:-3][keep], x[3:][keep], change[keep]
    rounds = _ROUNDS if unit < 1e-10 else 2
    steps = torch.linspace(0, 1, 3 * _ZOOM + 1, dtype=torch.float64)
    for _ in range(rounds):
        if a.numel() == 0:
            break
        nodes = a[:, None] + (b - a)[:, None] * steps
        values = f(nodes.reshape(-1)).reshape(nodes.shape)
        change, noise = _change(values, nodes.diff(dim=-1))
        kept = (change >= 0.6 * parent[:, None]) & (change > SMALLEST_JUMP + 64 * unit * noise)
        row, column = kept.nonzero(as_tuple=True)
        a, b, parent = nodes[row, column], nodes[row, column + 3], change[row, column]
    order = a.argsort()
    a, b = a[order], b[order]
    if a.numel() > 1:
        # overlapping brackets contain the same kink
        start = torch.cat([torch.tensor([True]), a[1:] > torch.cummax(b, 0).values[:-1]])
        group = start.cumsum(0) - 1
        count = int(group[-1]) + 1
        a, b = (
            torch.full((count,), math.inf, dtype=torch.float64).scatter_reduce(0, group, a, "amin"),
            torch.full((count,), -math.inf, dtype=torch.float64).scatter_reduce(0, group, b, "amax"),
        )
    return a, b, unit


def simplest(low: float, high: float) -> float:
    """Return the float in [low, high] with the shortest decimal form.

    For example, 0.7 in place of 0.7000000000000001.
    """
    # rounding inside the function (x + 3 for x just below 3) shifts the kink that its values show by a few ulps
    margin = 4 * float(torch.finfo(torch.float64).eps) * max(1.0, abs(low))
    for digits, slack in [*((digits, margin) for digits in range(1, 9)), *((digits, 0.0) for digits in range(9, 18))]:
        if low - slack <= 0.0 <= high + slack:
            return 0.0
        for candidate in (float(f"{low:.{digits - 1}e}"), float(f"{high:.{digits - 1}e}")):
            if low - slack <= candidate <= high + slack:
                return candidate
    return low


def _last_where(predicate: Callable[[Tensor], Tensor], low: float, high: float) -> tuple[float, float]:
    """Find neighbouring floats p < q where a predicate turns from true to false.

    The predicate must change once in [low, high].
    """
    p, q = (int(ordinals(torch.tensor(value, dtype=torch.float64))) for value in (low, high))
    while q - p > 1:
        step = max(1, (q - p) // 32)
        order = torch.tensor([*range(p + step, q, step)][:64], dtype=torch.int64)
        true = predicate(from_ordinals(order, torch.float64))
        first_false = int((~true).to(torch.int8).argmax()) if not bool(true.all()) else len(order)
        p, q = (
            (int(order[first_false - 1]) if first_false else p),
            (int(order[first_false]) if first_false < len(order) else q),
        )
    left, right = from_ordinals(torch.tensor([p, q]), torch.float64).tolist()
    return left, right


def one_sided(f: Function, at: float, side: int, h: float, unit: float) -> tuple[float, float, float]:
    """Estimate a one-sided derivative of a function at a point.

    Args:
        f: elementwise function, float64 of shape (n,) in and out.
        at: the point.
        side: -1 for the derivative from the left, +1 for that from the right.
        h: step of the difference formula; the formula reaches as far as ``6 * h``.
        unit: machine epsilon of the function's values, as ``resolution`` returns it.

    Returns:
        The derivative, its estimated error, and the one-sided limit of the value.
    """
    points = torch.arange(1, 7, dtype=torch.float64)
    steps = torch.stack([points * h, points * h / 2])
    y = f((at + side * steps).reshape(-1)).reshape(2, 6)
    weights = torch.tensor(_ONE_SIDED, dtype=torch.float64)
    estimates = (y * weights).sum(1) / torch.tensor([h, h / 2], dtype=torch.float64)
    noise = 100 * unit * float(y.abs().max()) / h
    error = float((estimates[0] - estimates[1]).abs()) + noise
    limit = float((y[1] * torch.tensor([6.0, -15.0, 20.0, -15.0, 6.0, -1.0], dtype=torch.float64)).sum())
    return side * float(estimates[1]), error, limit


def _rounded(value: float, error: float) -> float:
    """Round to the fewest decimals that the error, at least 1e-9, allows.

    For example, 0.010000000000012 becomes 0.01.
    """
    width = max(error, 1e-9) * max(1.0, abs(value))
    if not math.isfinite(value) or not math.isfinite(width):
        return value
    for decimals in range(12):
        if abs(round(value, decimals) - value) <= width:
            return round(value, decimals) + 0.0
    return value


def _locate(f: Function, gradient: Function | None, a: float, b: float, left: float, right: float, jump: float) -> float:
    """Locate the kink inside the bracket [a, b].

    The result is exact to neighbouring floats if values or gradients allow it.
    """
    if abs(jump) > SMALLEST_JUMP:
        ends = f(torch.tensor([a, b], dtype=torch.float64))
        middle = float(ends.mean())
        upwards = bool(ends[1] > ends[0])
        low, high = _last_where(lambda x: (f(x) < middle) == upwards, a, b)
        return simplest(low, high)
    if gradient is not None:
        tolerance = 0.25 * abs(right - left)
        ends = gradient(torch.tensor([a, b], dtype=torch.float64))
        if abs(float(ends[0]) - left) <= tolerance and abs(float(ends[1]) - right) <= tolerance:
            last_left, _ = _last_where(lambda x: (gradient(x) - left).abs() <= tolerance, a, b)
            _, first_right = _last_where(lambda x: ~((gradient(x) - right).abs() <= tolerance), a, b)
            # a gradient that takes a third value over many floats does not mark one point
            if last_left < first_right and int(_ordinal(first_right) - _ordinal(last_left)) <= 4:
                return simplest(last_left, first_right)
    if left == right or not math.isfinite(right - left):
        return simplest(a, b)
    # the gradient does not show the kink: intersect the two branches, extended as straight lines
    ya, yb = f(torch.tensor([a, b], dtype=torch.float64)).tolist()
    meet = (ya - yb + right * b - left * a) / (right - left)
    width = 1e-13 * max(1.0, abs(a)) / min(1.0, abs(right - left)) + (b - a) ** 2
    return simplest(max(a, meet - width), min(b, meet + width))


def _ordinal(value: float) -> int:
    return int(ordinals(torch.tensor(value, dtype=torch.float64)))


def find_kinks(f: Function, gradient: Function | None = None, scan: tuple[float, float] = SCAN_RANGE) -> list[FoundKink]:
    """Find the points in a range at which a function or its derivative jumps by more than 1e-5.

    Args:
        f: elementwise function, float64 of shape (n,) in and out.
        gradient: gradient of ``f`` for cotangent 1, float64 of shape (n,) in and out; None if there is none. It serves only
            to place a kink between neighbouring floats, after forward values have shown that there is one.
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
        h = min((1e-3 if unit < 1e-10 else 2e-2) * max(1.0, abs(middle)), gap / 16)
        if h < 2 * (upper - lower):
            continue
        left, _, value_left = one_sided(f, lower, -1, h, unit)
        right, _, value_right = one_sided(f, upper, 1, h, unit)
        jump = value_right - value_left
        # a continuous function also changes across the bracket, by slope times width
        jump = jump if abs(jump) > SMALLEST_JUMP + 2 * (upper - lower) * max(abs(left), abs(right)) else 0.0
        at = _locate(f, gradient, lower, upper, left, right, jump)
        left, left_error, value_left = one_sided(f, at, -1, h, unit)
        right, right_error, value_right = one_sided(f, at, 1, h, unit)
        error = max(left_error, right_error)
        singular = not math.isfinite(error) or error > max(1e-3, 1e6 * unit) * (1 + max(abs(left), abs(right)))
        if singular:
            at = simplest(lower, upper)
        jump = value_right - value_left if jump else 0.0
        left, right = _rounded(left, 10 * left_error), _rounded(right, 10 * right_error)
        if not singular and jump == 0.0 and abs(right - left) <= SMALLEST_JUMP:
            continue
        result.append(FoundKink(at, left, right, error, _rounded(jump, 1e-7), singular))
    return result


def derivatives(f: Function, x: Tensor, kinks: Sequence[FoundKink]) -> tuple[Tensor, Tensor, Tensor]:
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
    places = torch.tensor(sorted(kink.at for kink in kinks), dtype=torch.float64)
    inf = torch.full_like(x, math.inf)
    if places.numel():
        index = torch.searchsorted(places, x)
        padded = torch.cat([torch.tensor([-math.inf]), places, torch.tensor([math.inf])]).to(torch.float64)
        # distance to the nearest kink strictly left and strictly right of the point
        below, above = x - padded[index], padded[torch.searchsorted(places, x, right=True) + 1] - x
    else:
        below, above = inf, inf
    at_kink = torch.isin(x, places) if places.numel() else torch.zeros_like(x, dtype=torch.bool)
    wanted = 1e-3 * x.abs().clamp(min=1.0)
    room = torch.where(at_kink, torch.minimum(below, above), torch.maximum(below, above))
    h = torch.minimum(wanted, room / 5)
    offsets = torch.arange(0, 5, dtype=torch.float64)
    weights = torch.tensor(_FORWARD, dtype=torch.float64)
    # a third, small step for large |x| reveals an oscillation that the relative step skips: the estimates then disagree
    small = torch.minimum(h / 3, (2e-14 * x.abs()).clamp(min=1e-3))
    results, errors = [], []
    for side, distance in ((-1, below), (1, above)):
        nodes = torch.stack([x[:, None] + side * offsets * step[:, None] for step in (h, h / 2, small)])
        y = f(nodes.reshape(-1)).reshape(nodes.shape)
        # h and x + h round, so take the step from the nodes
        steps = (nodes[:, :, 4] - nodes[:, :, 0]).abs() / 4
        estimate = (y * weights).sum(-1) / steps * side
        unit = resolution(y[0].reshape(-1))
        error = (estimate[0] - estimate[1]).abs() + 20 * unit * y.abs().amax((0, 2)) / h
        # of the small step's disagreement, only what exceeds its rounding error counts
        noise = 20 * unit * y.abs().amax((0, 2)) / steps[2]
        error += ((estimate[1] - estimate[2]).abs() - noise).clamp(min=0.0)
        usable = (distance >= 4 * h) & (h > 0)
        results.append(torch.where(usable, estimate[1], torch.nan))
        errors.append(torch.where(usable, error, torch.nan))
    left, right = results
    error = torch.maximum(torch.nan_to_num(errors[0], nan=0.0), torch.nan_to_num(errors[1], nan=0.0))
    left, right = torch.where(left.isnan(), right, left), torch.where(right.isnan(), left, right)
    for kink in kinks:
        here = x == kink.at
        if kink.singular:
            here = (x - kink.at).abs() <= 0.05 * max(1.0, abs(kink.at))
        left = torch.where(here, torch.nan if kink.singular else kink.left, left)
        right = torch.where(here, torch.nan if kink.singular else kink.right, right)
        error = torch.where(here, kink.error, error)
    return left, right, error
