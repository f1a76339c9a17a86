"""The endpoint of a run, and the number of seeds that a test of it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from relucheck.extras import require
from relucheck.results.holm import StatisticsError
from relucheck.results.statistics.means import LEVEL, MARGIN


def second_half(values: Sequence[float]) -> float:
    """The mean over the second half of the epochs of one run.

    With an odd number of epochs, the middle epoch belongs to the second half.

    As an endpoint it spreads less over seeds than the last epoch does.

    Raises:
        StatisticsError: without values.
    """
    if not values:
        raise StatisticsError("second_half: no values; pass one for each epoch")
    half = values[len(values) // 2 :]
    return math.fsum(half) / len(half)


def seeds_for_power(sd: float, difference: float = MARGIN, power: float = 0.8, level: float = LEVEL) -> int:
    """The smallest number of seeds with which a paired t-test has a given power.

    The test is two-sided, and its statistic has the noncentral t-distribution. The standard deviation is taken as known,
    although an observed one is itself uncertain.

    Args:
        sd: the standard deviation of the paired differences over seeds.
        difference: the true mean of the paired differences, in the same unit.
        power: the probability with which it is to be found.
        level: the significance level of the test.

    Raises:
        StatisticsError: for a standard deviation below 0, a difference of 0, a probability that is not between 0 and 1,
            a power that is not above the level, and for a number of seeds above a million.
    """
    if not (sd >= 0 and difference and math.isfinite(difference) and 0 < level < power < 1):
        raise StatisticsError(
            f"seeds_for_power: sd={sd!r}, difference={difference!r}, power={power!r}, level={level!r}; pass sd of at least "
            "0, a difference that is not 0, and 0 < level < power < 1"
        )
    if sd == 0:
        return 2

    def reached(seeds: int) -> bool:
        return _power(seeds, abs(difference) / sd, level) >= power

    few, many = 1, 2  # never enough, perhaps enough
    while not reached(many):
        few, many = many, 2 * many
        if many > 10**6:
            raise StatisticsError(
                f"seeds_for_power: sd={sd!r} and difference={difference!r} take more than a million seeds; ask for a "
                "larger difference"
            )
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if reached(middle) else (middle, many)
    return many


def difference_for_power(sd: float, seeds: int, power: float = 0.8, level: float = LEVEL) -> float:
    """The true mean difference that a paired t-test over so many seeds finds with a given power.

    The test and the standard deviation are as for ``seeds_for_power``.

    Args:
        sd: the standard deviation of the paired differences over seeds.
        seeds: the number of pairs, at least 2.
        power: the probability with which the difference is found.
        level: the significance level of the test.

    Returns:
        The difference in the unit of the standard deviation, to within a thousandth of it; 0 for a standard deviation of 0.

    Raises:
        StatisticsError: for a standard deviation below 0, fewer than 2 seeds, a probability that is not between 0 and 1,
            and a power that is not above the level.
    """
    if not (sd >= 0 and math.isfinite(sd) and seeds >= 2 and 0 < level < power < 1):
        raise StatisticsError(
            f"difference_for_power: sd={sd!r}, seeds={seeds!r}, power={power!r}, level={level!r}; pass sd of at least 0, "
            "at least 2 seeds, and 0 < level < power < 1"
        )
    low, high = 0.0, 1.0  # in standard deviations: not enough, perhaps enough
    while _power(seeds, high, level) < power:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _power(seeds, middle, level) < power else (low, middle)
    return sd * high


def _power(seeds: int, effect: float, level: float) -> float:
    """The power of a two-sided paired t-test at a true mean of so many standard deviations."""
    require("a test or interval of a mean", "scipy")
    from scipy import stats

    critical, shift = stats.t.ppf(1 - level / 2, seeds - 1), effect * math.sqrt(seeds)
    # the other tail counts too; as ncp grows it is lost in rounding, where scipy gives NaN
    tail = stats.nct.cdf(-critical, seeds - 1, shift)
    return float(stats.nct.sf(critical, seeds - 1, shift)) + (0.0 if math.isnan(tail) else float(tail))
