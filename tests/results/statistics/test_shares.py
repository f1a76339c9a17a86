"""Shares of groups: each test against another way to it, its level by simulation, and data that make it say either."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from relucheck.results.holm import StatisticsError
from relucheck.results.statistics import log_chance, matched, same_share, share_difference, trend

#: Groups of the size that E4's sweeps have, with the shares of its rarest cells.
_GROUPS = (35, 35, 35, 30, 30)


def test_a_trend_is_the_correlation_of_rank_and_outcome() -> None:
    """z**2 = (N - 1) r**2, which is the linear-by-linear statistic of the table."""
    counts, draws = [3, 9, 12, 10, 11], list(_GROUPS)
    ranks = [rank for rank, n in enumerate(draws) for _ in range(n)]
    outcomes = [int(index < count) for count, n in zip(counts, draws, strict=True) for index in range(n)]
    z = math.sqrt(len(ranks) - 1) * stats.pearsonr(ranks, outcomes).statistic
    found = trend(counts, draws)
    assert found is not None
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert found.slope > 0
    falling = trend(counts[::-1], draws[::-1])
    assert falling is not None
    assert falling.slope == pytest.approx(-found.slope)


def test_a_trend_is_shown_and_not_shown() -> None:
    rising, level = trend([3, 9, 12, 10, 14], _GROUPS), trend([9, 10, 9, 8, 8], _GROUPS)
    assert rising is not None
    assert level is not None
    assert rising.p < 0.01 < 0.5 < level.p
    assert trend([0, 0], [10, 20]) is None
    assert trend([10, 20], [10, 20]) is None
    assert trend([3], [10]) is None


@pytest.mark.parametrize("share", [0.03, 0.1, 0.4])
def test_the_level_of_both_tests_holds_for_few_draws(share: float) -> None:
    """Of 1,000 experiments without a change at most 5 % show one, up to the error of so many."""
    draws = np.random.default_rng(0).binomial(_GROUPS, share, size=(1000, 5))
    both = [(trend(list(row), _GROUPS), same_share(list(row), _GROUPS)) for row in draws.tolist()]
    trends = sum(one is not None and one.p <= 0.05 for one, _ in both) / len(both)
    shares = [p for _, p in both if p is not None]
    assert trends <= 0.066
    assert sum(p <= 0.05 for p in shares) <= 0.066 * max(len(shares), 1) + 2


def test_one_share_is_pearsons_chi_square() -> None:
    """The published cells of [B21] by batch size, by hand."""
    counts, total = [439, 453, 488, 351, 384], 2115
    expected = total / 5
    chi = sum((count - expected) ** 2 for count in counts) * (1 / expected + 1 / (1000 - expected))
    assert same_share(counts, [1000] * 5) == pytest.approx(stats.chi2.sf(chi, 4))
    assert same_share(counts, [1000] * 5) == pytest.approx(4.6e-10, rel=0.02)
    level = same_share([439, 453, 448, 441, 450], [1000] * 5)
    assert level is not None
    assert level > 0.5
    assert same_share([0, 1, 2, 1, 0], [30] * 5) is None  # too few


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """The example of the paper: 56/70 and 48/80."""
    found = share_difference(56, 70, 48, 80)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    turned = share_difference(48, 80, 56, 70)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(("one", "two"), [(0.39, 0.46), (0.02, 0.05)])
def test_the_interval_of_a_difference_covers_it(one: float, two: float) -> None:
    draws = np.random.default_rng(1)
    counts = zip(draws.binomial(300, one, 1000).tolist(), draws.binomial(1000, two, 1000).tolist(), strict=True)
    bounds = [share_difference(mine, 300, theirs, 1000) for mine, theirs in counts]
    assert sum(b.low <= one - two <= b.high for b in bounds) / 1000 > 0.93


def test_pairs_are_mcnemars_exact_test() -> None:
    first = [True] * 3 + [False] * 10
    second = [False] * 3 + [True] * 9 + [False]
    found = matched(first, second)
    assert (found.pairs, found.first, found.second) == (13, 3, 9)
    assert found.p == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)
    assert found.difference == pytest.approx(6 / 13)
    assert found.low < 0 < found.difference < found.high
    sure = matched([False] * 20, [True] * 9 + [False] * 11)
    assert sure.p < 0.05
    assert sure.low > 0
    same = matched([True, False], [True, False])
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)


def test_pairs_that_agree_say_nothing() -> None:
    """Networks that both decisions put on one side leave the p-value as it is."""
    few, many = (
        matched([True, False, False], [False, True, True]),
        matched([True, False, False] + [True] * 50, [False, True, True] + [True] * 50),
    )
    assert few.p == many.p


def test_the_chance_of_a_count_is_that_of_the_posterior_by_simulation() -> None:
    shares = np.random.default_rng(2).beta(17.5, 18.5, 200_000)
    expected = math.log(stats.binom.pmf(61, 100, shares).mean())
    assert log_chance(61, 100, 17, 35) == pytest.approx(expected, abs=0.02)
    assert sum(math.exp(log_chance(k, 20, 3, 10)) for k in range(21)) == pytest.approx(1)
    # more draws of one's own with another share make a count less likely
    assert log_chance(100, 100, 48, 100) < log_chance(100, 100, 17, 35) < log_chance(100, 100, 35, 35)


def test_no_counts_are_refused() -> None:
    calls = [lambda: trend([], []), lambda: trend([3], [2]), lambda: same_share([-1, 2], [3, 3]), lambda: matched([], [])]
    calls += [lambda: share_difference(4, 3, 1, 3), lambda: log_chance(1, 0, 1, 2), lambda: matched([True], [])]
    for call in calls:
        with pytest.raises(StatisticsError):
            call()


def test_all_orders_of_two_groups_have_one_p_value() -> None:
    """The test does not depend on which group comes first, or on the names of the outcomes."""
    for counts, draws in itertools.product([(3, 9), (0, 5)], [(20, 30)]):
        found, turned = trend(counts, draws), trend(counts[::-1], draws[::-1])
        other = trend([n - k for k, n in zip(counts, draws, strict=True)], draws)
        assert found is not None
        assert turned is not None
        assert other is not None
        assert found.p == pytest.approx(turned.p)
        assert found.p == pytest.approx(other.p)
