"""Means over seeds: intervals, and tests that a mean lies within bounds or beyond them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeGuard

from relucheck.extras import require
from relucheck.results.holm import StatisticsError

#: Test accuracies closer than this, in percentage points, count as equivalent.
MARGIN: Final = 0.2
#: The significance level of all tests, after correction. Confidence intervals have the confidence 1 - LEVEL.
LEVEL: Final = 0.05
_DIGITS: Final = 9  # decimals kept of a difference; later ones are rounding errors of the subtraction


@dataclasses.dataclass(frozen=True)
class Summary:
    """The mean of values over seeds with its spread, in the unit of the values.

    Attributes:
        n: the number of values.
        mean: the mean; None without values.
        sd: the standard deviation, with the divisor n - 1; None with fewer than 2 values.
        low: the lower bound of Student's t-interval of the mean; None with fewer than 2 values.
        high: the upper bound of that interval; None with fewer than 2 values.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


def summarise(values: Sequence[float], level: float = LEVEL) -> Summary:
    """Compute the mean, standard deviation and t-interval of values, one per seed.

    Args:
        values: finite numbers.
        level: the interval has the confidence 1 - level.

    Raises:
        StatisticsError: for a value that is not finite.
    """
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise StatisticsError(
            f"summarise: {numbers} holds a value that is not finite; leave diverged runs out and count them"
        )
    count = len(numbers)
    if count < 2:
        return Summary(count, numbers[0] if numbers else None, None, None, None)
    if len(set(numbers)) == 1:  # else rounding in the mean could give equal values a spread of an ulp
        return Summary(count, numbers[0], 0.0, numbers[0], numbers[0])
    _, quantile = student()
    mean = math.fsum(numbers) / count
    sd = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (count - 1))
    half = float(quantile(count - 1, 1 - level / 2)) * sd / math.sqrt(count)
    return Summary(count, mean, sd, mean - half, mean + half)


@functools.cache
def student() -> tuple[Callable[[int, float], Any], Callable[[int, float], Any]]:
    """The distribution function of Student's t, from degrees of freedom and t, and its inverse."""
    require("a test or interval of a mean", "scipy")
    from scipy.special import stdtr, stdtrit

    return stdtr, stdtrit


def has_value(value: float | None) -> TypeGuard[float]:
    """Whether a run has a value: it is neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def difference(value: float, reference: float) -> float:
    """The difference of two values, rounded so that 97.3 - 97.2 equals 97.5 - 97.4.

    The smallest real difference of accuracies, one image of 10,000, is 0.01 points.
    """
    return round(float(value) - float(reference), _DIGITS)


# ---------------------------------------------------------------- p-values


def below(values: Summary, bound: float) -> float:
    """The p-value of a one-sided t-test that a mean is less than a bound.

    If all values are equal, the t-test is undefined, and the exact sign test takes its place. It is a test of the median:
    n values below the bound have the p-value 1 / 2 ** n.

    Args:
        values: at least 2 of them.
        bound: in the unit of the values.
    """
    assert values.mean is not None
    return _tail(values, values.mean - bound)


def above(values: Summary, bound: float) -> float:
    """The p-value of a one-sided t-test that a mean is greater than a bound, see ``below``."""
    assert values.mean is not None
    return _tail(values, bound - values.mean)


def _tail(values: Summary, distance: float) -> float:
    """The p-value of a mean that lies beyond a bound by ``-distance``."""
    assert values.sd is not None
    if values.sd == 0:
        return 0.5**values.n if distance < 0 else 1.0
    cumulative, _ = student()
    return float(cumulative(values.n - 1, distance / values.sd * math.sqrt(values.n)))


def within(values: Summary, low: float, high: float) -> float:
    """The p-value of two one-sided tests (TOST) that a mean lies between two bounds.

    Source: D. J. Schuirmann, A comparison of the two one-sided tests procedure and the power approach for assessing the
    equivalence of average bioavailability, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987) 657-680.
    """
    return max(above(values, low), below(values, high))


def beyond(values: Summary, low: float, high: float) -> float:
    """The p-value of a two-sided test that a mean does not lie from ``low`` to ``high``.

    With equal bounds this is the usual two-sided test. It is twice the smaller of two one-sided p-values, which is valid
    whatever the distance of the bounds.
    """
    return min(1.0, 2 * min(below(values, low), above(values, high)))
