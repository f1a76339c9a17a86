"""proportions: exact intervals, planned draws, the exact test, and Holm's correction, each against another way to it."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from relucheck.results import proportions
from relucheck.results.holm import holm
from relucheck.results.proportions import Interval, ProportionError


@pytest.mark.parametrize(
    ("count", "draws"), [(0, 1), (1, 1), (0, 30), (30, 30), (54, 1000), (463, 1000), (3, 100), (99, 100)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_scipys_exact_one(count: int, draws: int, confidence: float) -> None:
    expected = stats.binomtest(count, draws).proportion_ci(confidence, method="exact")
    found = proportions.interval(count, draws, confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_hits_in_100_draws_is_the_textbook_interval() -> None:
    """With none of n the upper bound solves (1 - p)**n = 0.025."""
    assert proportions.interval(0, 100) == Interval(0.0, pytest.approx(1 - 0.025 ** (1 / 100)))


@given(draws=st.integers(1, 60), share=st.floats(0, 1))
def test_intervals_cover_with_at_least_their_confidence(draws: int, share: float) -> None:
    covered = sum(
        math.comb(draws, count) * share**count * (1 - share) ** (draws - count)
        for count in range(draws + 1)
        if proportions.interval(count, draws).low - 1e-12 <= share <= proportions.interval(count, draws).high + 1e-12
    )
    assert covered >= 0.95 - 1e-9


@given(draws=st.integers(1, 300), data=st.data())
def test_intervals_mirror_and_contain_the_share(draws: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, draws))
    found, mirrored = proportions.interval(count, draws), proportions.interval(draws - count, draws)
    assert found.low <= count / draws <= found.high
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-9)


def _widest(draws: int, share: float | None) -> float:
    counts = range(draws + 1) if share is None else {math.floor(draws * share), math.ceil(draws * share)}
    return max(proportions.interval(count, draws).half_width for count in counts)


@pytest.mark.parametrize("share", [None, 0.0, 0.03, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("half_width", [0.3, 0.12])
def test_planned_draws_are_the_smallest_that_suffice(share: float | None, half_width: float) -> None:
    brute = next(n for n in itertools.count(1) if _widest(n, share) <= half_width)
    assert proportions.draws_for(half_width, share) == brute


def test_planned_draws_past_one_block() -> None:
    planned = proportions.draws_for(0.01)
    middle = [proportions.interval(n // 2, n).half_width for n in (planned - 1, planned)]
    assert planned > 2 * proportions._BLOCK
    assert middle[0] > 0.01 >= middle[1]


@pytest.mark.parametrize("half_width", [0.0, 1e-5, 0.5, math.nan, -0.1])
def test_a_half_width_out_of_range_is_refused(half_width: float) -> None:
    with pytest.raises(ProportionError, match=r"half-width .* must be at least 0\.0005 and less than 0\.5"):
        proportions.draws_for(half_width)


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ProportionError, match=r"share 1\.5: must be from 0 to 1, or None"):
        proportions.draws_for(0.1, 1.5)


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ProportionError, match=r"confidence .* must lie between 0 and 1"):
        proportions.interval(1, 2, confidence)


@pytest.mark.parametrize(("count", "draws"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(count: int, draws: int) -> None:
    with pytest.raises(ProportionError, match=r"must be a whole number of at least|must be at most the number of draws, 5"):
        proportions.interval(count, draws)


def test_counts_are_whole_numbers() -> None:
    with pytest.raises(ProportionError, match=r"count=0\.5: must be a whole number"):
        proportions.exact_test(0.5, 3, 1, 3)  # type: ignore[arg-type]


def _fisher(count: int, draws: int, other_count: int, other_draws: int) -> float:
    """From the definition: the hypergeometric probability of the tables that are no more likely than this one."""
    total, drawn = draws + other_draws, count + other_count

    def probability(first: int) -> float:
        return math.comb(draws, first) * math.comb(other_draws, drawn - first) / math.comb(total, drawn)

    possible = range(max(0, drawn - other_draws), min(draws, drawn) + 1)
    limit = probability(count) * (1 + 1e-9)
    return sum(chance for chance in map(probability, possible) if chance <= limit)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_test_is_fishers(draws: int, other_draws: int, data: st.DataObject) -> None:
    count, other = data.draw(st.integers(0, draws)), data.draw(st.integers(0, other_draws))
    assert proportions.exact_test(count, draws, other, other_draws) == pytest.approx(
        _fisher(count, draws, other, other_draws), abs=1e-9
    )


@pytest.mark.parametrize("share", [0.03, 0.3, 0.5])
def test_the_test_keeps_its_level(share: float) -> None:
    """Over all outcomes of 40 against 60 draws of one share, p <= 0.05 has at most that probability."""
    rejected = 0.0
    for count in range(41):
        chance = float(stats.binom.pmf(count, 40, share))
        if chance > 1e-9:
            rejected += chance * sum(
                float(stats.binom.pmf(other, 60, share))
                for other in range(61)
                if stats.binom.pmf(other, 60, share) > 1e-9 and proportions.exact_test(count, 40, other, 60) <= 0.05
            )
    assert 0 < rejected <= 0.05


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, corrected in zip(p_values, adjusted, strict=True):
        assert p <= corrected <= min(1.0, len(p_values) * p)
    ordered = [corrected for _, corrected in sorted(zip(p_values, adjusted, strict=True))]
    assert ordered == sorted(ordered)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_stepwise_procedure_rejects(p_values: list[float], level: float) -> None:
    """The procedure as Holm states it: go up through the p-values and stop at the first above level / (how many remain)."""
    rejected: set[int] = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda position: p_values[position])):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_what_is_no_p_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p-value 1\.5: must be from 0 to 1"):
        holm([0.5, 1.5])


def test_verdicts_say_no_more_than_they_may() -> None:
    assert proportions.verdict(0.0) == proportions.verdict(0.05) == "differs"
    assert proportions.verdict(0.0501) == proportions.verdict(1.0) == "not distinguished"
