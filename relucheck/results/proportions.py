"""Shares of draws: exact intervals, how many draws a wanted interval needs, and tests of one count against another.

Everything here is exact for the binomial distribution; the quantiles and the test are scipy's, imported when first needed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

from relucheck.errors import RelucheckError, whole
from relucheck.extras import require

#: The confidence of every interval and the level of every verdict, by default.
CONFIDENCE: Final = 0.95
LEVEL: Final = 0.05
DIFFERS: Final = "differs"
NOT_DISTINGUISHED: Final = "not distinguished"

_SMALLEST: Final = 5e-4  # half-width that some four million draws reach
_BLOCK: Final = 4096


class ProportionError(RelucheckError, ValueError):
    """Counts, a share or a half-width that cannot be."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval of a share: 0 <= low <= high <= 1."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of its length; the interval is not symmetric about the share."""
        return (self.high - self.low) / 2


def interval(count: int, draws: int, confidence: float = CONFIDENCE) -> Interval:
    """The Clopper-Pearson interval of ``count`` in ``draws``: it covers the true share with at least ``confidence``.

    Source: C. J. Clopper, E. S. Pearson (1934), Biometrika 26; the bounds are quantiles of beta distributions.

    Raises:
        ProportionError: unless 0 <= count <= draws, draws >= 1 and 0 < confidence < 1.
    """
    _check_counts(count, draws)
    low, high = _bounds(count, draws, _tail(confidence))
    return Interval(float(low), float(high))


def _bounds(count: Any, draws: Any, tail: float) -> tuple[Any, Any]:
    """Both bounds, of numbers or arrays.

    scipy's quantiles and not its ``binomtest(...).proportion_ci``, which solves for the same bounds, a thousand times
    slower, with an error of 4e-13, and takes no arrays.
    """
    require("an interval of a share", "scipy")
    import numpy as np
    from scipy.special import betaincinv

    # the quantiles are undefined where a bound is 0 or 1 by definition
    low = np.where(count > 0, betaincinv(np.maximum(count, 1), draws - count + 1, tail), 0.0)
    high = np.where(count < draws, betaincinv(count + 1, np.maximum(draws - count, 1), 1 - tail), 1.0)
    return low, high


def draws_for(half_width: float, share: float | None = None, confidence: float = CONFIDENCE) -> int:
    """The smallest number of draws whose Clopper-Pearson interval has at most the wanted half-width.

    Args:
        half_width: half of the interval's length, at least 0.0005 and less than 0.5.
        share: the anticipated share. A number of draws n counts when both whole counts nearest to ``n * share`` give an
            interval that is short enough. None is the worst case: every count does (the widest is the one in the middle).
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
    while True:  # the half-width is not monotone in n, as counts are whole: so every n is looked at, a block at a time
        n = np.arange(start, start + _BLOCK, dtype=np.float64)
        fits = np.ones(len(n), dtype=bool)
        for count in (np.floor(n * anticipated), np.ceil(n * anticipated)):
            low, high = _bounds(count, n, tail)
            fits &= (high - low) / 2 <= half_width
        if fits.any():
            return start + int(np.argmax(fits))
        start += _BLOCK


def exact_test(count: int, draws: int, other_count: int, other_draws: int) -> float:
    """The two-sided p-value of Fisher's exact test that two independent counts have one share.

    Fisher's and not Boschloo's, which has more power: Fisher's p-value is a finite sum, the same on every machine, and
    its level holds whatever the common share is; scipy finds Boschloo's as a maximum over the unknown share by sampling,
    and takes seconds for a thousand draws a side. Fisher's errs towards "not distinguished".

    Raises:
        ProportionError: for counts that cannot be.
    """
    require("a test of two shares", "scipy")
    from scipy.stats import fisher_exact

    _check_counts(count, draws)
    _check_counts(other_count, other_draws)
    table = [[count, draws - count], [other_count, other_draws - other_count]]
    return min(1.0, float(fisher_exact(table).pvalue))


def verdict(adjusted: float, level: float = LEVEL) -> str:
    """What an adjusted p-value allows to say: that two shares differ, or that these draws do not distinguish them."""
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
