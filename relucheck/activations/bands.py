"""Search for bands that are narrower than the steps of the kink search, at 0 and at kinks.

People write such bands to keep a quotient or a square root finite: ``where(|x| < 1e-6, 0 * x, x)``, ``min(x, -1e-6)``. At
0, the commonest exact value in a network, the gradient is then that of the band, however small the band is.

Gradients on a logarithmic scale show a band, and forward values judge it. A smooth function may have structure near 0 as
well (``x**3 / (x**2 + 1e-12)``); only a gradient that jumps between neighbouring floats ends a band.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from relucheck.activations.kink_place import SMALLEST_JUMP, Function, last_where, simplest
from relucheck.activations.kink_search import FoundKink, difference_step, one_sided, resolution, to_few_decimals
from relucheck.numerics.floats import Floats, Mask

#: Offsets from 0 or a kink that are searched, relative to its size, from the step of the scan on.
_OFFSETS: Final = 2.0**-7 * 10.0 ** -np.arange(0.0, 11.0, 0.25)
#: Smallest of these offsets: beside a kink at 1, a few hundred floats. Smaller bands at 0 lie within the steps by which
#: ``derivatives`` looks for oscillations, and it takes them for single points.
_SMALLEST: Final = 1e-13
#: Widest band that counts as a constant against division by 0. ``|x| < 1e-3`` is the widest of these in use.
_NARROW: Final = 2.1e-3
#: Part of the slopes by which a gradient must differ from them to be another one.
_DIFFERENT: Final = 0.05
#: Largest error of the outer slopes, as a part of them. Beyond it (square root, logarithm) they are unknown.
_KNOWN: Final = 0.02


@dataclasses.dataclass(frozen=True)
class Band:
    """Inputs between two jumps of the gradient, where it fits the function on neither side.

    Attributes:
        low: the lowest input of the band, float64.
        high: the highest input of the band, float64.
        left: derivative of the function left of the band.
        right: derivative of the function right of the band.
        error: estimated error of the two derivatives.
        hole: whether the function on the left and that on the right, as straight lines, meet in the band. A narrow band is
            then a hole in a function that is resolved without it.
        kinks: the ends of the band at which forward values show a kink.
    """

    low: float
    high: float
    left: float
    right: float
    error: float
    hole: bool
    kinks: tuple[FoundKink, ...] = ()

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest gradient that fits the function outside the band."""
        slack = _DIFFERENT * (1 + max(abs(self.left), abs(self.right))) + 10 * self.error
        return min(self.left, self.right) - slack, max(self.left, self.right) + slack

    @property
    def ends(self) -> tuple[float, float]:
        """The two ends as people write them: 0 in place of the smallest number above or below it."""
        step = math.ulp(0.0)
        return simplest(self.low - step, self.low), simplest(self.high, self.high + step)

    @property
    def narrow(self) -> bool:
        """Whether ordinary inputs do not resolve the band."""
        return self.high - self.low <= _NARROW * max(1.0, abs(self.low))

    def holds(self, x: Floats, eps: float) -> Mask:
        """Return a mask of the inputs in the band that rounding cannot carry over an end.

        Args:
            x: inputs, any shape.
            eps: machine epsilon of the rounding.
        """
        inside: Mask = (x >= self.low + 4 * eps * abs(self.low)) & (x <= self.high - 4 * eps * abs(self.high))
        return inside


@np.errstate(all="ignore")
def find_bands(f: Function, gradient: Function, kinks: Sequence[FoundKink]) -> list[Band]:
    """Find the narrow bands at 0 and at kinks in which the gradient fits neither side.

    Args:
        f: elementwise function, float64 of shape (n,) in and out.
        gradient: gradient of ``f`` for cotangent 1, float64 of shape (n,) in and out.
        kinks: the kinks that the search at ordinary scale found.

    Returns:
        The bands by increasing position.
    """
    result: list[Band] = []
    for centre in sorted({0.0, *(kink.at for kink in kinks)}):
        size = max(1.0, abs(centre))
        # kinks that are nearer may be the ends of a band
        distances = [abs(centre - kink.at) for kink in kinks]
        gap = min((distance for distance in distances if distance > _NARROW * size), default=math.inf)
        offsets = min(size, 32 * gap) * _OFFSETS
        offsets = offsets[offsets >= _SMALLEST * size]
        if not offsets.size:
            continue
        x = np.concatenate([centre - offsets, [centre], centre + offsets[::-1]])
        g = gradient(x)
        far = _outside(g, g[[0, -1]])
        # a single point may have any subgradient, so it is part of a band only beside other inputs
        middle = offsets.size
        far[middle] &= far[middle - 1] or far[middle + 1]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], far, [False]])))
        for start, end in edges.reshape(-1, 2).tolist():
            if start > 0 and end < x.size:
                band = _band(f, gradient, x[start - 1 : end + 1], g[[0, -1]], gap)
                if band is not None and all((band.low, band.high) != (other.low, other.high) for other in result):
                    result.append(band)
    return sorted(result, key=lambda band: band.low)


def with_ends(kinks: Sequence[FoundKink], bands: Sequence[Band]) -> list[FoundKink]:
    """Return the kinks at ordinary scale and the ends of bands, by increasing position.

    The ends take the place of a kink without a derivative, as which the search at ordinary scale sees a dead zone whose two
    sides do not meet. Any other kink in a band stands for both ends.
    """
    result = list(kinks)
    for band in bands:
        slack = 1e-6 * (band.high - band.low)
        at_band = [kink for kink in result if band.low - slack <= kink.at <= band.high + slack]
        if band.kinks and all(kink.singular for kink in at_band):
            result = [kink for kink in result if kink not in at_band] + list(band.kinks)
    return sorted(result, key=lambda kink: kink.at)


def _outside(g: Floats, ends: Floats) -> Mask:
    """Return a mask of the gradients that differ from both of two gradients and all between them."""
    slack = _DIFFERENT * (1 + np.abs(ends).max())
    outside: Mask = np.isfinite(g) & ((g < ends.min() - slack) | (g > ends.max() + slack))
    return outside


def _band(f: Function, gradient: Function, x: Floats, ends: Floats, gap: float) -> Band | None:
    """Measure a band, of whose nodes the first and the last lie outside it; None if it is none."""
    before, low = last_where(lambda x: ~_outside(gradient(x), ends), float(x[0]), float(x[1]))
    high, after = last_where(lambda x: _outside(gradient(x), ends), float(x[-2]), float(x[-1]))
    at_ends = gradient(np.array([before, low, high, after]))
    if not (np.abs(at_ends[[1, 2]] - at_ends[[0, 3]]) >= _DIFFERENT * (1 + np.abs(ends).max())).all():
        return None  # the gradient changes smoothly
    unit = resolution(f(np.concatenate([x, x + 1e-3 / 3])))
    h = min(difference_step(unit) * max(1.0, abs(low)), gap / 16)
    left, left_error, _ = one_sided(f, before, -1, h, unit)
    right, right_error, _ = one_sided(f, after, 1, h, unit)
    error, size = max(left_error, right_error), 1 + max(abs(left), abs(right))
    if not error <= _KNOWN * size:
        return None
    y_before, y_low, y_high, y_after = f(np.array([before, low, high, after])).tolist()
    width = after - before
    # the distance of the two lines at both ends of the band
    apart = y_after - right * width - y_before, y_after - left * width - y_before
    slack = _DIFFERENT * width * size + 8 * unit * max(abs(y_before), abs(y_after))
    hole = apart[0] * apart[1] <= 0 or min(map(abs, apart)) <= slack
    ours = Band(low, high, to_few_decimals(left, 10 * left_error), to_few_decimals(right, 10 * right_error), error, hole)
    lowest, highest = ours.bounds
    inside = gradient(x[1:-1])
    if not ((inside < lowest) | (inside > highest)).any():
        return None
    found = (
        _end(f, before, low, y_low - y_before, width / 16, unit),
        _end(f, high, after, y_after - y_high, width / 16, unit),
    )
    return dataclasses.replace(ours, kinks=tuple(kink for kink in found if kink is not None))


def _end(f: Function, p: float, q: float, jump: float, h: float, unit: float) -> FoundKink | None:
    """Measure the kink between two neighbouring floats; None if values show none."""
    left, left_error, _ = one_sided(f, p, -1, h, unit)
    right, right_error, _ = one_sided(f, q, 1, h, unit)
    error = max(left_error, right_error)
    if not abs(right - left) > 10 * error + _DIFFERENT * (1 + min(abs(left), abs(right))):
        return None
    left, right = to_few_decimals(left, 10 * left_error), to_few_decimals(right, 10 * right_error)
    return FoundKink(simplest(p, q, unit), left, right, error, jump if abs(jump) > SMALLEST_JUMP else 0.0)
