"""Shares of several groups of draws: trends, differences, pairs, chances of counts.

Groups are independent unless a function says otherwise. scipy is imported on first use.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

from relucheck.extras import require
from relucheck.results.holm import StatisticsError
from relucheck.results.proportions import CONFIDENCE, Interval, interval

#: The chi-square distribution fits the test of several shares if every expected count is at least this (Cochran 1954).
_EXPECTED: Final = 5.0


@dataclasses.dataclass(frozen=True)
class Trend:
    """Whether a share rises or falls along groups.

    Attributes:
        slope: the sign says in which direction: the covariance of rank and outcome, per draw.
        p: two-sided.
    """

    slope: float
    p: float


def trend(counts: Sequence[int], draws: Sequence[int]) -> Trend | None:
    """The Cochran-Armitage test of a trend, with the ranks of the groups as scores.

    The variance is that of all ways to deal the counted draws out to the groups. The p-value takes their distribution as
    normal. The tests of this module simulate its level for groups of the size that reports have.

    Source: P. Armitage (1955), "Tests for linear trends in proportions and frequencies", Biometrics 11.

    Args:
        counts: how many draws of each group have the property, in the order of the groups.
        draws: the number of draws of each group.

    Returns:
        None if all draws agree, or if there is one group: such counts can show no trend.

    Raises:
        StatisticsError: for counts that are no counts.
    """
    total, hits = _checked(counts, draws)
    if hits in (0, total) or len(counts) < 2:
        return None
    require("a test of a trend", "scipy")
    from scipy.stats import norm

    share = hits / total
    mean = sum(rank * n for rank, n in enumerate(draws)) / total
    slope = sum((rank - mean) * count for rank, count in enumerate(counts)) / total
    spread = sum(n * (rank - mean) ** 2 for rank, n in enumerate(draws)) / total
    deviation = math.sqrt(share * (1 - share) * spread / (total - 1))
    return Trend(slope, float(2 * norm.sf(abs(slope) / deviation)))


def same_share(counts: Sequence[int], draws: Sequence[int]) -> float | None:
    """The p-value of the chi-square test that all groups have one share.

    Args:
        counts: how many draws of each group have the property.
        draws: the number of draws of each group.

    Returns:
        None where an expected count is below 5, for which the chi-square distribution does not fit.

    Raises:
        StatisticsError: for counts that are no counts.
    """
    total, hits = _checked(counts, draws)
    if len(counts) < 2 or min(draws) * min(hits, total - hits) / total < _EXPECTED:
        return None
    require("a test of several shares", "scipy")
    from scipy.stats import chi2_contingency

    rest = [n - count for count, n in zip(counts, draws, strict=True)]
    return float(chi2_contingency([list(counts), rest], correction=False).pvalue)


def share_difference(
    count: int, draws: int, other_count: int, other_draws: int, confidence: float = CONFIDENCE
) -> Interval:
    """The confidence interval of a share less another one, of independent draws.

    It combines Wilson's intervals of both shares.

    Source: R. G. Newcombe (1998), "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17, method 10.

    Args:
        count: how many of the first draws have the property.
        draws: the number of first draws.
        other_count: how many of the second draws have the property.
        other_draws: the number of second draws.
        confidence: of the interval.

    Raises:
        StatisticsError: for counts that are no counts.
    """
    _checked((count, other_count), (draws, other_draws))
    require("an interval of a difference", "scipy")
    from scipy.stats import binomtest

    one, two = count / draws, other_count / other_draws
    mine = binomtest(count, draws).proportion_ci(confidence, method="wilson")
    theirs = binomtest(other_count, other_draws).proportion_ci(confidence, method="wilson")
    below, above = math.hypot(one - mine.low, theirs.high - two), math.hypot(mine.high - one, two - theirs.low)
    return Interval(one - two - below, one - two + above)


@dataclasses.dataclass(frozen=True)
class Matched:
    """Two decisions on each of several networks.

    Attributes:
        pairs: the number of networks.
        first: how many have the property by the first decision only.
        second: how many have it by the second decision only.
        p: of McNemar's exact test, two-sided; 1 where the decisions are the same for every network.
        low, high: the 95 % interval of the second share less the first one. It is that of the share of ``second`` among
            the networks whose decisions differ (Clopper-Pearson), so it is conditional on their number.
    """

    pairs: int
    first: int
    second: int
    p: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """The second share less the first one."""
        return (self.second - self.first) / self.pairs


def matched(first: Sequence[bool], second: Sequence[bool]) -> Matched:
    """Compare two decisions on the same networks, by McNemar's exact test.

    Source: Q. McNemar (1947), Psychometrika 12; exact by the binomial distribution of the pairs that differ.

    Args:
        first: for each network, whether it has the property by the first decision.
        second: the same by the second decision.

    Raises:
        StatisticsError: for no networks, or different numbers of them.
    """
    if not first or len(first) != len(second):
        raise StatisticsError(f"matched: {len(first)} and {len(second)} decisions; give two for each network")
    require("a test of pairs", "scipy")
    from scipy.stats import binomtest

    only_first = sum(one and not two for one, two in zip(first, second, strict=True))
    only_second = sum(two and not one for one, two in zip(first, second, strict=True))
    differ = only_first + only_second
    if not differ:
        return Matched(len(first), 0, 0, 1.0, 0.0, 0.0)
    bounds, scale = interval(only_second, differ), differ / len(first)
    p = float(binomtest(only_second, differ, 0.5).pvalue)
    return Matched(len(first), only_first, only_second, p, scale * (2 * bounds.low - 1), scale * (2 * bounds.high - 1))


def log_chance(count: int, draws: int, own_count: int, own_draws: int) -> float:
    """The logarithm of the probability of a count, given other draws with the same share.

    The share is unknown. Its distribution is that which the other draws leave of Jeffreys' prior, so the count has a
    beta-binomial distribution. A few draws of one's own say little, and this probability says so.

    Args:
        count: how many of the draws have the property.
        draws: the number of draws.
        own_count: how many of the other draws have it.
        own_draws: the number of other draws.

    Raises:
        StatisticsError: for counts that are no counts.
    """
    _checked((count, own_count), (draws, own_draws))
    require("the chance of a count", "scipy")
    from scipy.stats import betabinom

    return float(betabinom.logpmf(count, draws, own_count + 0.5, own_draws - own_count + 0.5))


def _checked(counts: Sequence[int], draws: Sequence[int]) -> tuple[int, int]:
    """The number of all draws, and of those that have the property."""
    if not counts or len(counts) != len(draws) or any(not 0 <= k <= n or n < 1 for k, n in zip(counts, draws, strict=True)):
        raise StatisticsError(f"counts {list(counts)} of {list(draws)} draws: each needs 0 <= count <= draws, draws >= 1")
    return sum(draws), sum(counts)
