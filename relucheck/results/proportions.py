"""Proportions: exact confidence intervals, sample sizes, and the test of two counts.

All of it is exact for the binomial distribution. The quantiles and the test are those of scipy, which is imported on first
use.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Final

from relucheck.errors import RelucheckError, whole
from relucheck.extras import require

#: The default confidence of intervals.
CONFIDENCE: Final = 0.95
#: The default significance level of verdicts.
LEVEL: Final = 0.05
DIFFERS: Final = "differs"
NOT_DISTINGUISHED: Final = "not distinguished"

_SMALLEST: Final = 5e-4  # the smallest half-width: it takes about four million draws, and the search looks at each number
_BLOCK: Final = 4096  # numbers of draws that the search looks at together


class ProportionError(RelucheckError, ValueError):
    """An invalid count, share, half-width or confidence."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval of a share.

    Attributes:
        low: the lower bound, from 0 to 1.
        high: the upper bound, from ``low`` to 1.
    """

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval. The interval is not symmetric about the observed share."""
        return (self.high - self.low) / 2


def interval(count: int, draws: int, confidence: float = CONFIDENCE) -> Interval:
    """The Clopper-Pearson confidence interval of a share.

    It contains the true share with a probability of at least ``confidence``. The bounds are quantiles of beta
    distributions.

    Source: C. J. Clopper, E. S. Pearson (1934), Biometrika 26.

    Args:
        count: how many draws have the property.
        draws: the number of draws.
        confidence: of the interval.

    Raises:
        ProportionError: unless 0 <= count <= draws, draws >= 1 and 0 < confidence < 1.
    """
    _check_counts(count, draws)
    return _interval(count, draws, _tail(confidence))


@functools.lru_cache(maxsize=1 << 16)
def _interval(count: int, draws: int, tail: float) -> Interval:
    low, high = _bounds(count, draws, tail)
    return Interval(float(low), float(high))


def _bounds(count: Any, draws: Any, tail: float) -> tuple[Any, Any]:
    """Compute both bounds, for numbers or numpy arrays.

    ``scipy.stats.binomtest(...).proportion_ci`` is not used. It finds the same bounds by iteration: a thousand times
    slower, with an error of 4e-13, and not for arrays.
    """
    require("an interval of a share", "scipy")
    import numpy as np
    from scipy.special import betaincinv

    # the bound is 0 for no success and 1 for no failure by definition; there the quantile does not exist
    low = np.where(count > 0, betaincinv(np.maximum(count, 1), draws - count + 1, tail), 0.0)
    high = np.where(count < draws, betaincinv(count + 1, np.maximum(draws - count, 1), 1 - tail), 1.0)
    return low, high


def draws_for(half_width: float, share: float | None = None, confidence: float = CONFIDENCE) -> int:
    """The smallest number of draws whose Clopper-Pearson interval is short enough.

    Args:
        half_width: half of the interval's length, at least 0.0005 and less than 0.5.
        share: the anticipated share. A number of draws n is enough if both integers next to ``n * share``, taken as counts,
            give an interval that is short enough. None is the worst case, a share of 1/2, which gives the longest interval.
        confidence: of the interval.

    Raises:
        ProportionError: for a half-width, share or confidence out of range.
    """
    import numpy as np

    if not _SMALLEST <= half_width < 0.5:
        raise ProportionError(f"half-width {half_width!r}: must be at least {_SMALLEST} and less than 0.5")
    if share is not None and not 0 <= share <= 1:
        raise ProportionError(f"share {share!r}: must be from 0 to 1, or None for the worst case")
    tail = _tail(confidence)
    anticipated = 0.5 if share is None else share
    start = 1
    while True:  # counts are integers, so the half-width is not monotone in n: every n has to be looked at
        n = np.arange(start, start + _BLOCK, dtype=np.float64)
        fits = np.ones(len(n), dtype=bool)
        for count in (np.floor(n * anticipated), np.ceil(n * anticipated)):
            low, high = _bounds(count, n, tail)
            fits &= (high - low) / 2 <= half_width
        if fits.any():
            return start + int(np.argmax(fits))
        start += _BLOCK


def exact_test(count: int, draws: int, other_count: int, other_draws: int) -> float:
    """The two-sided p-value of Fisher's exact test that two counts have the same share.

    Boschloo's test has more power but is not used. Fisher's p-value is a finite sum, the same on every machine, and its
    level holds for every common share. scipy computes Boschloo's by sampling a maximum over the unknown share, which takes
    seconds for a thousand draws a side. Fisher's test errs towards "not distinguished".

    Args:
        count: how many of the first draws have the property.
        draws: the number of first draws.
        other_count: how many of the second draws have the property.
        other_draws: the number of second draws.

    Raises:
        ProportionError: for a count below 0 or above its number of draws, or fewer than 1 draw.
    """
    require("a test of two shares", "scipy")
    from scipy.stats import fisher_exact

    _check_counts(count, draws)
    _check_counts(other_count, other_draws)
    table = [[count, draws - count], [other_count, other_draws - other_count]]
    return min(1.0, float(fisher_exact(table).pvalue))


def larger_share(count: int, draws: int, other_count: int, other_draws: int) -> float:
    """The one-sided p-value of Fisher's exact test of two shares.

    A small value shows that the first share is larger than the second.

    Raises:
        ProportionError: as for ``exact_test``.
    """
    require("a test of two shares", "scipy")
    from scipy.stats import fisher_exact

    _check_counts(count, draws)
    _check_counts(other_count, other_draws)
    table = [[count, draws - count], [other_count, other_draws - other_count]]
    return min(1.0, float(fisher_exact(table, alternative="greater").pvalue))


def share_tests(count: int, draws: int, share: float) -> tuple[float, float]:
    """The p-values of the two one-sided binomial tests against a share.

    Returns:
        The p-value of the test that shows a share above ``share``, and of the one that shows a share below it.

    Raises:
        ProportionError: for invalid counts, and for a share that is not from 0 to 1.
    """
    require("a test of a share", "scipy")
    from scipy.stats import binomtest

    _check_counts(count, draws)
    if not 0 <= share <= 1:
        raise ProportionError(f"share {share!r}: must be from 0 to 1")
    above, below = (binomtest(count, draws, share, alternative=side).pvalue for side in ("greater", "less"))
    return float(above), float(below)


def verdict(adjusted: float, level: float = LEVEL) -> str:
    """Put an adjusted p-value into words: ``DIFFERS`` or ``NOT_DISTINGUISHED``."""
    return DIFFERS if adjusted <= level else NOT_DISTINGUISHED


def _check_counts(count: int, draws: int) -> None:
    whole("draws", draws, error=ProportionError)
    whole("count", count, 0, error=ProportionError)
    if count > draws:
        raise ProportionError(f"count={count!r}: must be at most the number of draws, {draws}")


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1 or math.isnan(confidence):
        raise ProportionError(f"confidence {confidence!r}: must lie between 0 and 1, for example {CONFIDENCE}")
    return (1 - confidence) / 2
