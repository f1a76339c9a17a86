"""Statistics of nudges, endpoints and power: closed forms, simulated error rates, and faults that they find.

Simulations are seeded. A rate is accepted if the 99.9 % Clopper-Pearson interval of what was counted holds the rate that
is promised, or, where at most or at least is promised, does not exclude it.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from scipy import stats

from relucheck.results import statistics as healthy
from relucheck.results.holm import StatisticsError
from relucheck.results.proportions import interval
from relucheck.results.statistics import BeyondChaos, Paired, judge, paired

ERROR = 0.001


@dataclasses.dataclass(frozen=True)
class Suite:
    """The functions under test, so that a mutant can take the place of one."""

    beyond_chaos: Callable[..., BeyondChaos] = healthy.beyond_chaos
    prediction: Callable[..., tuple[float, float] | None] = healthy.prediction
    seeds_for_power: Callable[..., int] = healthy.seeds_for_power
    second_half: Callable[..., float] = healthy.second_half


def _bounds(count: int, draws: int) -> tuple[float, float]:
    found = interval(count, draws, 1 - ERROR)
    return found.low, found.high


def _runs(draw: random.Random, seeds: int, between: float, within: float, count: int) -> list[list[float]]:
    """For each seed, the accuracies of runs that differ in chaos alone."""
    groups = []
    for _ in range(seeds):
        seed = draw.gauss(97.0, between)
        groups.append([seed + draw.gauss(0.0, within) for _ in range(count)])
    return groups


# ---------------------------------------------------------------- beyond chaos


def law_the_effect_is_the_difference_to_the_mean_of_the_nudges(s: Suite) -> None:
    """Written out with s = 0, as the definition has it: (member - s = 0) - mean over nudges of (nudge - s = 0)."""
    draw = random.Random(1)
    groups = _runs(draw, 7, 0.4, 0.1, 7)
    reference, values, nudges = [g[0] for g in groups], [g[1] + 0.1 for g in groups], [g[2:] for g in groups]
    numbers = [(v - r) - sum(n - r for n in ns) / 5 for r, v, ns in zip(reference, values, nudges, strict=True)]
    expected = stats.ttest_1samp(numbers, 0.0)
    found = s.beyond_chaos(values, nudges)
    assert (found.paired.n, found.paired.lost, found.quiet) == (7, 0, 0)
    assert found.paired.difference.mean == pytest.approx(sum(numbers) / 7, abs=1e-9)
    assert found.paired.p_difference == pytest.approx(float(expected.pvalue), rel=1e-6)


def law_seeds_without_a_live_hit_are_counted_apart(s: Suite) -> None:
    found = s.beyond_chaos([97.0, 97.1, 97.3, 97.2], [[96.9] * 5, None, [97.0] * 5, None])
    assert (found.quiet, found.paired.n, found.paired.lost) == (2, 2, 0)
    assert found.paired.difference.mean == pytest.approx(0.2)
    nothing = s.beyond_chaos([97.0, 97.1], [None, None])
    assert (nothing.quiet, nothing.paired.n, nothing.paired.verdict) == (2, 0, "undecided")


def law_a_missing_value_loses_its_seed(s: Suite) -> None:
    values = [97.0, None, 97.3, 97.2, 97.4]
    nudges = [[96.9] * 5, [96.8] * 5, [97.0, None, 97.1], [], [97.1, math.nan]]
    found = s.beyond_chaos(values, nudges)
    assert (found.quiet, found.paired.n, found.paired.lost) == (0, 1, 4)
    assert judge({0: found.paired})[0].verdict == "undecided"


def law_what_a_nudge_does_too_is_no_effect(s: Suite) -> None:
    """Member and nudges alike: 5 % false alarms over 5 seeds with 5 nudges, 400 simulations."""
    draw, count, draws = random.Random(2), 0, 400
    for _ in range(draws):
        groups = _runs(draw, 5, 0.4, 0.2, 6)
        p = s.beyond_chaos([g[0] for g in groups], [g[1:] for g in groups]).paired.p_difference
        assert p is not None
        count += p < 0.05
    low, high = _bounds(count, draws)
    assert low <= 0.05 <= high


def law_a_report_has_few_false_alarms(s: Suite) -> None:
    """8 members that share the nudges of 5 seeds, with Holm's correction: any alarm in at most 5 % of 60 reports."""
    draw, count, draws = random.Random(3), 0, 60
    for _ in range(draws):
        groups = _runs(draw, 5, 0.4, 0.2, 13)
        family = {k: s.beyond_chaos([g[k] for g in groups], [g[8:] for g in groups]).paired for k in range(8)}
        count += any(result.verdict == "differs" for result in judge(family).values())
    assert _bounds(count, draws)[0] <= 0.05


def law_an_effect_is_seen_as_often_as_the_power_says(s: Suite) -> None:
    """0.2 points with 5 nudges: the seeds for 80 % power, 300 simulations."""
    sd = 0.25 * math.sqrt(1 + 1 / 5)  # of a member minus the mean of 5 nudges
    seeds = s.seeds_for_power(sd, 0.2)
    draw, count, draws = random.Random(4), 0, 300
    for _ in range(draws):
        groups = _runs(draw, seeds, 0.4, 0.25, 6)
        p = s.beyond_chaos([g[0] + 0.2 for g in groups], [g[1:] for g in groups]).paired.p_difference
        assert p is not None
        count += p < 0.05
    low, high = _bounds(count, draws)
    assert low <= 0.83
    assert high >= 0.8


# ---------------------------------------------------------------- the band


def law_one_nudge_a_seed_gives_students_interval(s: Suite) -> None:
    """Textbook: mean ± t √(1 + 1/n) sd. t(0.975, 4) = 2.776445, and the sd of 1 to 5 is √2.5."""
    half = 2.776445 * math.sqrt(1 + 1 / 5) * math.sqrt(2.5)
    assert s.prediction([[1.0], [2.0], [3.0], [4.0], [5.0]]) == pytest.approx((3 - half, 3 + half), abs=1e-5)


def law_the_band_of_a_few_numbers(s: Suite) -> None:
    """By hand: means 1, 3, 8, so m = 4 and B = 13; W = (2 + 0 + 2) / 3; T = 13 + W / 2; t(0.975, 2) = 4.302653."""
    half = 4.302653 * math.sqrt(13 + 2 / 3 + 13 / 3)
    assert s.prediction([[0.0, 2.0], [3.0, 3.0], [7.0, 9.0]]) == pytest.approx((4 - half, 4 + half), abs=1e-5)
    assert s.prediction([[1.0, 2.0]]) is None
    assert s.prediction([]) is None
    assert s.prediction([[2.0, 2.0], [2.0]]) == (2.0, 2.0)


def _coverage(s: Suite, seeds: int, between: float, within: float, nudges: int) -> tuple[float, float]:
    draw, count, draws = random.Random(5), 0, 1500
    for _ in range(draws):
        groups = _runs(draw, seeds, between, within, nudges)
        band = s.prediction(groups)
        assert band is not None
        count += band[0] <= _runs(draw, 1, between, within, 1)[0][0] <= band[1]
    return _bounds(count, draws)


def law_the_band_holds_a_new_run(s: Suite) -> None:
    """At least 95 % of new runs in new seeds, 1,500 simulations each; exactly 95 % where theory says so."""
    for seeds, between, within, nudges in ((3, 0.3, 0.1, 5), (5, 0.3, 0.3, 5), (10, 0.0, 0.3, 5)):
        assert _coverage(s, seeds, between, within, nudges)[1] >= 0.95
    for seeds, between, within, nudges in ((5, 0.2, 0.2, 1), (4, 0.3, 0.0, 5)):
        low, high = _coverage(s, seeds, between, within, nudges)
        assert low <= 0.95 <= high


def law_the_band_is_no_wider_than_it_must_be(s: Suite) -> None:
    """10 seeds: below 99 % even where the seeds do not differ, which is the worst case."""
    assert _coverage(s, 10, 0.0, 0.3, 5)[0] < 0.99


# ---------------------------------------------------------------- endpoints and power


def law_seeds_for_power(s: Suite) -> None:
    """Cohen's d of 0.2, 0.5, 0.8 and 1 take 199, 34, 15 and 10 pairs (G*Power 3.1, two-sided paired t, 80 %, 0.05)."""
    assert [s.seeds_for_power(1.0, d) for d in (0.2, 0.5, 0.8, 1.0, -1.0)] == [199, 34, 15, 10, 10]
    assert s.seeds_for_power(0.4) == 34
    assert s.seeds_for_power(0.0) == 2
    assert s.seeds_for_power(1e-6) == 2


def law_second_half(s: Suite) -> None:
    assert s.second_half([1.0, 2.0, 3.0, 5.0]) == 4.0
    assert s.second_half([1.0, 2.0, 3.0]) == 2.5
    assert s.second_half([1.0]) == 1.0


LAWS = {name.removeprefix("law_"): function for name, function in list(globals().items()) if name.startswith("law_")}


SIMULATED = {
    "what_a_nudge_does_too_is_no_effect",
    "a_report_has_few_false_alarms",
    "an_effect_is_seen_as_often_as_the_power_says",
    "the_band_holds_a_new_run",
}


@pytest.mark.parametrize("law", [pytest.param(law, marks=[pytest.mark.slow] * (law in SIMULATED)) for law in LAWS])
def test_law(law: str) -> None:
    LAWS[law](Suite())


# ---------------------------------------------------------------- seeded faults


def _each_nudge_is_a_repetition(values: Any, nudges: Any, *rest: Any) -> BeyondChaos:
    pairs = [(v, n) for v, group in zip(values, nudges, strict=True) for n in group or ()]
    return BeyondChaos(paired([v for v, _ in pairs], [n for _, n in pairs], *rest), sum(g is None for g in nudges))


def _quiet_seeds_are_zeros(values: Any, nudges: Any, *rest: Any) -> BeyondChaos:
    return healthy.beyond_chaos(values, [[v] if g is None else g for v, g in zip(values, nudges, strict=True)], *rest)


def _lost_nudges_are_dropped(values: Any, nudges: Any, *rest: Any) -> BeyondChaos:
    kept = [None if g is None else [n for n in g if n is not None and math.isfinite(n)] for g in nudges]
    return healthy.beyond_chaos(values, kept, *rest)


def _unpaired(values: Any, nudges: Any, *rest: Any) -> BeyondChaos:
    found = healthy.beyond_chaos(values, nudges, *rest)
    means = [sum(g) / len(g) for g in nudges if g and None not in g]
    p = float(stats.ttest_ind([v for v in values if v is not None], means).pvalue)
    changed: Paired = dataclasses.replace(found.paired, p_difference=p)
    return BeyondChaos(changed, found.quiet)


def _interval_of_the_mean(groups: Any, level: float = 0.05) -> Any:
    summary = healthy.summarise([sum(g) / len(g) for g in groups], level)
    return None if summary.low is None else (summary.low, summary.high)


def _of_the_means(groups: Any, level: float = 0.05) -> Any:
    return healthy.prediction([[sum(g) / len(g)] for g in groups], level)


def _of_all_as_one(groups: Any, level: float = 0.05) -> Any:
    return healthy.prediction([[n] for g in groups for n in g], level) if len(groups) > 1 else None


def _normal(groups: Any, level: float = 0.05) -> Any:
    band = healthy.prediction(groups, level)
    if band is None:
        return None
    half = (band[1] - band[0]) / 2 * float(stats.norm.ppf(1 - level / 2) / stats.t.ppf(1 - level / 2, len(groups) - 1))
    return sum(band) / 2 - half, sum(band) / 2 + half


def _normal_power(sd: float, difference: float = 0.2, power: float = 0.8, level: float = 0.05) -> int:
    z = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    return max(2, math.ceil((z * sd / difference) ** 2))


MUTANTS: dict[str, tuple[Suite, str]] = {
    "each nudge is a repetition": (
        Suite(beyond_chaos=_each_nudge_is_a_repetition),
        "what_a_nudge_does_too_is_no_effect",
    ),
    "seeds without a live hit are zeros": (
        Suite(beyond_chaos=_quiet_seeds_are_zeros),
        "seeds_without_a_live_hit_are_counted_apart",
    ),
    "lost nudges are dropped": (Suite(beyond_chaos=_lost_nudges_are_dropped), "a_missing_value_loses_its_seed"),
    "unpaired": (Suite(beyond_chaos=_unpaired), "what_a_nudge_does_too_is_no_effect"),
    "interval of the mean for a band": (Suite(prediction=_interval_of_the_mean), "the_band_holds_a_new_run"),
    "band of the means": (Suite(prediction=_of_the_means), "the_band_holds_a_new_run"),
    "band of all nudges as one sample": (Suite(prediction=_of_all_as_one), "the_band_holds_a_new_run"),
    "normal band": (Suite(prediction=_normal), "one_nudge_a_seed_gives_students_interval"),
    "normal power": (Suite(seeds_for_power=_normal_power), "seeds_for_power"),
    "one-sided power": (
        Suite(seeds_for_power=lambda sd, d=0.2: healthy.seeds_for_power(sd, d, level=0.1)),
        "seeds_for_power",
    ),
    "first half": (Suite(second_half=lambda values: sum(values[: len(values) // 2 + 1]) / 2), "second_half"),
}


@pytest.mark.parametrize(
    "mutant", [pytest.param(name, marks=[pytest.mark.slow] * (law in SIMULATED)) for name, (_, law) in MUTANTS.items()]
)
def test_a_fault_is_found(mutant: str) -> None:
    suite, law = MUTANTS[mutant]
    with pytest.raises(AssertionError):
        LAWS[law](suite)


# ---------------------------------------------------------------- bad input


def test_nudges_of_each_seed() -> None:
    with pytest.raises(StatisticsError, match="2 values against the nudges of 1 seeds; give one of each"):
        healthy.beyond_chaos([97.0, 97.1], [[97.0]])


@pytest.mark.parametrize("groups", [[[1.0], []], [[1.0], [math.nan]], [[math.inf], [1.0]]])
def test_a_band_needs_finite_numbers(groups: list[list[float]]) -> None:
    with pytest.raises(StatisticsError, match="leave such seeds out"):
        healthy.prediction(groups)


@pytest.mark.parametrize(
    "options",
    [{"sd": -1.0}, {"sd": math.nan}, {"difference": 0.0}, {"power": 1.0}, {"level": 0.9}, {"difference": math.inf}],
)
def test_power_needs_sensible_numbers(options: dict[str, float]) -> None:
    with pytest.raises(StatisticsError, match="pass sd of at least 0"):
        healthy.seeds_for_power(**{"sd": 1.0, **options})


def test_too_many_seeds_are_refused() -> None:
    with pytest.raises(StatisticsError, match="more than a million seeds"):
        healthy.seeds_for_power(1e6)


def test_second_half_of_nothing() -> None:
    with pytest.raises(StatisticsError, match="pass one for each epoch"):
        healthy.second_half([])
