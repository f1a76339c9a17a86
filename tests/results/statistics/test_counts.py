"""The likelihood of counts: closed forms, simulated error rates and power, and faults that the simulations find.

The simulated runs have cells that depend on each other and counts that vary more than Poisson's. All draws are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from relucheck.errors import RelucheckError
from relucheck.results.proportions import interval
from relucheck.results.statistics import counts
from relucheck.results.statistics.counts import (
    Published,
    best_shares,
    deviation,
    limit,
    log_likelihood,
    plausible,
    surprise,
)

#: Two series of four epochs.
MEANS = np.array([700.0, 800.0, 900.0, 950.0, 400.0, 120.0, 60.0, 40.0])
SERIES = ["s = 0"] * 4 + ["s = 1"] * 4
DRAWS = 600
CONFIDENCE = 0.999


def runs(count: int, seed: int, means: np.ndarray[Any, Any] = MEANS, spread: float = 0.1) -> list[list[list[int]]]:
    """DRAWS experiments of ``count`` runs: all cells of a run rise and fall together, beside noise of each cell."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((DRAWS, count, 1))
    alone = random.standard_normal((DRAWS, count, len(means)))
    drawn: list[list[list[int]]] = random.poisson(means * np.exp(spread * (common + 0.5 * alone))).tolist()
    return drawn


def exact(values: Sequence[int], series: Sequence[str] = SERIES) -> Published:
    return Published(list(values), list(values), list(series))


# ---------------------------------------------------------------- closed forms


def _negative_binomial(count: int, mean: float, variance: float) -> float:
    """The logarithm of the probability, with gamma functions, as a mixture of Poisson distributions has it."""
    size = mean**2 / (variance - mean)
    return (
        math.lgamma(count + size)
        - math.lgamma(size)
        - math.lgamma(count + 1)
        + size * math.log(size / (size + mean))
        + count * math.log(mean / (size + mean))
    )


def _by_hand(published: Sequence[int], table: Sequence[Sequence[int]], series: Sequence[str]) -> float:
    """The likelihood of exact counts, cell by cell, without numpy."""
    seeds, cells = len(table), range(len(published))
    means = [max(sum(row[c] for row in table) / seeds, 0.5 / seeds) for c in cells]
    excess = [
        sum((row[c] - sum(r[c] for r in table) / seeds) ** 2 for row in table) / (seeds - 1) - means[c] for c in cells
    ]
    total = 0.0
    for c in cells:
        own = [d for d in cells if series[d] == series[c]]
        relative = max(0.0, sum(excess[d] for d in own) / sum(means[d] ** 2 for d in own))
        variance = (means[c] + relative * means[c] ** 2) * (1 + 1 / seeds)
        total += _negative_binomial(published[c], means[c], variance)
    return total


def test_the_likelihood_is_that_of_the_negative_binomial() -> None:
    for number, table in enumerate(runs(6, 1)[:20]):
        published, *others = table
        assert log_likelihood(exact(published), others) == pytest.approx(_by_hand(published, others, SERIES), rel=1e-9)
        alone = [str(cell) for cell in range(len(published))]
        assert log_likelihood(exact(published, alone), others) != pytest.approx(
            log_likelihood(exact(published), others), rel=1e-3
        ), f"{number}: series have one relative variance each"


def test_the_likelihood_without_overdispersion_is_nearly_poissons() -> None:
    """Counts that vary less than Poisson's: only the estimated mean widens the distribution, by 1 / seeds."""
    table = [[20, 30]] * 1000
    expected = sum(n * math.log(m) - m - math.lgamma(n + 1) for n, m in ((25, 20), (28, 30)))
    assert log_likelihood(exact([25, 28], ["a", "a"]), table) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("bounds", [(0, 3), (1, 4), (0, 40), (12, 12), (55, 60)])
def test_bounds_have_the_probability_of_all_counts_between(bounds: tuple[int, int]) -> None:
    table = [[10, 3], [14, 2], [9, 2], [17, 0]]
    low, high = bounds
    every = [log_likelihood(exact([count, 2], ["a", "b"]), table) for count in range(low, high + 1)]
    found = log_likelihood(Published([low, 2], [high, 2], ["a", "b"]), table)
    assert found == pytest.approx(math.log(math.fsum(math.exp(value) for value in every)), abs=1e-9)


def test_bounds_far_from_all_counts_are_told_apart() -> None:
    """Differences of a distribution function would be 0 in both tails."""
    table = [[1000], [1010], [990]]
    low = [log_likelihood(Published([bound], [bound + 3], ["a"]), table) for bound in (10, 100, 5_000, 9_000)]
    assert all(math.isfinite(value) for value in low)
    assert low[0] < low[1] < -50
    assert low[3] < low[2] < -50


def test_a_cell_without_counts_has_the_mean_of_half_a_count() -> None:
    table = [[0], [0], [0], [0], [0]]
    assert log_likelihood(exact([0], ["a"]), table) == pytest.approx(_by_hand([0], table, ["a"]))
    assert math.exp(log_likelihood(exact([0], ["a"]), table)) == pytest.approx(1 - 0.1, abs=0.02)


# ---------------------------------------------------------------- the test of one more run


def _p_values(measure: Callable[..., float], seeds: int, of: int, shift: float = 1.0) -> list[float]:
    """The p-values of experiments with a published run and a candidate with ``seeds`` runs, whose means are shifted."""
    published = [table[0] for table in runs(1, of)]
    candidates = runs(seeds, of + 1000, MEANS * shift)
    return [measure(exact(one), table) for one, table in zip(published, candidates, strict=True)]


def _is_uniform(values: Sequence[float], seeds: int) -> bool:
    """Each of the n + 1 possible p-values is as frequent as the others, and no p-value is another one.

    Of each, the 99.9 % Clopper-Pearson interval of its frequency holds 1 / (n + 1).
    """
    places = [round(value * (seeds + 1)) for value in values]
    if any(abs(value * (seeds + 1) - place) > 1e-6 for value, place in zip(values, places, strict=True)):
        return False
    found = [interval(places.count(place), len(places), CONFIDENCE) for place in range(1, seeds + 2)]
    return sum(map(places.count, range(1, seeds + 2))) == len(places) and all(
        one.low <= 1 / (seeds + 1) <= one.high for one in found
    )


@pytest.mark.parametrize("seeds", [4, 9])
def test_the_p_value_is_uniform_if_the_published_run_is_one_more_seed(seeds: int) -> None:
    assert _is_uniform(_p_values(surprise, seeds, 2), seeds)


def test_the_p_value_is_uniform_for_dependent_cells_with_heavy_tails() -> None:
    values = [
        surprise(exact(table[0]), table[1:])
        for table in np.rint(MEANS * np.exp(0.2 * np.random.default_rng(5).standard_t(2, (DRAWS, 8, 1)).clip(-9, 9)))
    ]
    assert _is_uniform(values, 7)


def _not_left_out(published: Published, table: Any) -> float:
    """A fault: the candidate's runs are judged by a model that knows them, the published run by one that does not."""
    array = np.asarray(table, float)
    model = counts._model(array, published.series)
    nearest = published.nearest(array)
    own = [float(counts._log_probability(run, run, *model)) for run in array]
    mine = float(counts._log_probability(nearest, nearest, *model))
    return float(np.mean([value <= mine for value in [mine, *own]]))


def _independent(published: Published, table: Any) -> float:
    """A fault: a p-value from the chi-squared distribution, as if cells did not depend on each other."""
    from scipy import stats

    mean, variance = counts._model(np.asarray(table, float), published.series)
    return float(stats.chi2.sf(((np.asarray(published.low) - mean) ** 2 / variance).sum(), len(mean)))


@pytest.mark.parametrize("fault", [_not_left_out, _independent])
def test_a_p_value_with_a_fault_is_not_uniform(fault: Callable[..., float]) -> None:
    assert not _is_uniform(_p_values(fault, 9, 2), 9)
    small = sum(value <= 0.1 for value in _p_values(fault, 9, 2))
    assert interval(small, DRAWS, CONFIDENCE).low > 0.1, "it excludes the true candidate too often"


def test_another_candidate_has_small_p_values() -> None:
    """50 % more hits, with a standard deviation of 11 % between seeds: the smallest p-value in most experiments."""
    smallest = sum(value == pytest.approx(0.05) for value in _p_values(surprise, 19, 3, shift=1.5))
    assert interval(smallest, DRAWS, CONFIDENCE).low > 0.5
    same = sum(value == pytest.approx(0.05) for value in _p_values(surprise, 19, 3))
    assert interval(same, DRAWS, CONFIDENCE).low < 0.05


def test_an_absurd_run_has_the_smallest_p_value() -> None:
    for table in runs(7, 4)[:10]:
        assert surprise(exact([10 * value for value in table[0]]), table) == 1 / 8
        assert surprise(exact([0] * 8), table) == 1 / 8


def test_within_bounds_the_count_nearest_to_the_candidate_counts() -> None:
    table = [[5], [7], [9], [6], [8]]
    assert [
        Published([low], [high], ["a"]).nearest(np.array(table, float))[0] for low, high in ((1, 4), (6, 8), (9, 9))
    ] == [
        4,
        7,
        9,
    ]
    assert surprise(Published([0], [100], ["a"]), table) == 1
    assert surprise(Published([0], [7], ["a"]), table) == surprise(exact([7], ["a"]), table)
    assert surprise(Published([50], [100], ["a"]), table) == 1 / 6


# ---------------------------------------------------------------- deviation


def test_the_deviation_is_that_of_one_more_run() -> None:
    published, *table = runs(9, 6)[0]
    own = [log_likelihood(exact(run), [other for other in table if other is not run]) for run in table]
    mean = sum(own) / 8
    sd = math.sqrt(sum((value - mean) ** 2 for value in own) / 7)
    expected = (mean - log_likelihood(exact(published), table)) / (sd * math.sqrt(1 + 1 / 8))
    assert deviation(exact(published), table) == pytest.approx(expected)
    assert deviation(exact([2 * value for value in published]), table) > 5


def test_the_deviation_orders_what_the_p_value_rejects_alike() -> None:
    table = runs(8, 7)[0]
    shifted = [exact(np.rint(MEANS * factor).astype(int).tolist()) for factor in (1.6, 2.0, 3.0)]
    assert {surprise(one, table) for one in shifted} == {1 / 9}
    values = [deviation(one, table) for one in shifted]
    assert 3 < values[0] < values[1] < values[2]


def test_runs_that_are_all_the_same_leave_no_room() -> None:
    table = [[0, 5]] * 4
    assert deviation(exact([40, 5], ["a", "b"]), table) == math.inf
    assert deviation(exact([0, 5], ["a", "b"]), table) == 0
    assert deviation(Published([0, 4], [3, 6], ["a", "b"]), table) == 0


# ---------------------------------------------------------------- the rule


def test_with_twenty_seeds_the_p_value_decides_and_with_fewer_the_deviation() -> None:
    assert not plausible(20, 1 / 21, 0.0)
    assert plausible(20, 2 / 21, 5.0)
    assert plausible(19, 1 / 20, 2.5)
    assert not plausible(19, 1 / 20, 2.6)
    assert [round(limit(seeds), 2) for seeds in (3, 5, 10)] == [6.96, 3.75, 2.82], "Student's t, in any book"
    assert plausible(10, 1 / 11, 2.8)
    assert not plausible(3, 1 / 4, math.inf)


def test_with_twenty_seeds_the_true_candidate_is_excluded_in_at_most_5_percent() -> None:
    """For runs whose cells depend on each other; the rates with fewer seeds stand in docs/statistics.md."""
    excluded = sum(
        not plausible(20, surprise(exact(table[0]), table[1:]), deviation(exact(table[0]), table[1:]))
        for table in runs(21, 8)
    )
    assert interval(excluded, DRAWS, CONFIDENCE).low <= 0.05


def test_poissons_distribution_would_exclude_the_true_candidate() -> None:
    """A fault: the share of true candidates below a Poisson likelihood that 1 % of Poisson counts fall below."""
    from scipy import stats

    random, excluded = np.random.default_rng(9), 0
    for published, *table in runs(11, 9)[:200]:
        mean = np.mean(table, 0)
        drawn = stats.poisson.logpmf(random.poisson(mean, (400, len(mean))), mean).sum(1)
        excluded += bool(stats.poisson.logpmf(published, mean).sum() < np.quantile(drawn, 0.01))
    assert interval(excluded, 200, CONFIDENCE).low > 0.3


# ---------------------------------------------------------------- candidates


def _candidates(*shifts: float, seed: int = 10) -> tuple[Published, list[list[list[int]]]]:
    """A published run of the shift 1, and candidates with ten runs of each shift."""
    published = exact(runs(1, seed, spread=0.03)[0][0])
    tables = [runs(10, seed + 1 + number, MEANS * shift, 0.03)[0] for number, shift in enumerate(shifts)]
    return published, tables


def test_shares_sum_to_1_and_pick_the_true_candidate() -> None:
    published, tables = _candidates(1.3, 1.0, 0.7)
    shares = best_shares(published, tables)
    assert sum(shares) == pytest.approx(1)
    assert shares[1] > 0.95
    assert shares == best_shares(published, tables), "the same samples each time"
    assert best_shares(published, tables[:1]) == [1.0]


def test_equal_candidates_share() -> None:
    """Each has its own bootstrap samples; where these are equally likely, they share each of them."""
    published, (table, _) = _candidates(1.0, 1.0)
    shares = best_shares(published, [table, table])
    assert sum(shares) == pytest.approx(1)
    assert all(0.4 < share < 0.6 for share in shares)
    assert best_shares(published, [[[5] * 8] * 3] * 4) == [0.25] * 4


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("low", "high", "series", "message"),
    [
        ([], [], [], "0 lower bounds, 0 upper bounds and 0 series; give one of each per cell, and at least one"),
        ([1], [1, 2], ["a"], "1 lower bounds, 2 upper bounds and 1 series"),
        ([1], [1], [], "1 lower bounds, 1 upper bounds and 0 series"),
        ([3], [2], ["a"], r"bounds \[3\] and \[2\]; need 0 <= low <= high"),
        ([-1], [2], ["a"], "need 0 <= low <= high"),
    ],
)
def test_bad_published_counts_are_refused(low: list[int], high: list[int], series: list[str], message: str) -> None:
    with pytest.raises(RelucheckError, match=message):
        Published(low, high, series)


@pytest.mark.parametrize("table", [[[1, 2]], [[1], [2]], [[1, 2, 3]] * 4, [], [1, 2]])
def test_bad_counts_are_refused(table: Any) -> None:
    published = exact([1, 2], ["a", "b"])
    for measure in (log_likelihood, surprise, deviation):
        with pytest.raises(RelucheckError, match=r"for 2 cells; give \[seeds, cells\] with at least [23] seeds"):
            measure(published, table)
    with pytest.raises(RelucheckError, match="for 2 cells"):
        best_shares(published, [[[1, 2], [3, 4]], table])


def test_a_deviation_needs_three_seeds_and_shares_a_candidate() -> None:
    published = exact([1, 2], ["a", "b"])
    assert math.isfinite(surprise(published, [[1, 2], [3, 4]]))
    with pytest.raises(RelucheckError, match="with at least 3 seeds"):
        deviation(published, [[1, 2], [3, 4]])
    with pytest.raises(RelucheckError, match="no candidates"):
        best_shares(published, [])
