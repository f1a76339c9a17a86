"""The rules on published claims: closed forms and published tables, and seeded faults that they find."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from scipy import stats

from relucheck.results.holm import StatisticsError, holm
from relucheck.results.proportions import ProportionError
from relucheck.results.statistics import evidence as healthy
from relucheck.results.statistics.evidence import Evidence

ERRORS = (7.5, 7.9, 7.6, 7.8, 7.4)
AT = (0.0, 0.5, 0.8, 1.0)
GROWING = ((2.0, 2.1, 1.9, 2.0, 2.2), (6.9, 7.4, 7.0, 7.2, 7.1), (9.0, 9.3, 8.8, 9.4, 9.1), (11.2, 11.0, 10.8, 11.3, 10.9))
#: Accuracies of 8 seeds whose spread rises from 0.1 to 2 points.
SPREADING = tuple(
    tuple(90 + scale * x for x in (-1.2, 0.9, -0.7, 1.3, 0.4, -1.0, 1.1, -0.5)) for scale in (0.1, 1.0, 1.6, 2.0)
)


@dataclasses.dataclass(frozen=True)
class Suite:
    """The functions under test, so that a mutant can take the place of one."""

    decide: Callable[..., dict[Any, Evidence]] = healthy.decide
    near: Callable[..., Evidence] = healthy.near
    larger: Callable[..., Evidence] = healthy.larger
    grows: Callable[..., Evidence] = healthy.grows
    spread_grows: Callable[..., Evidence] = healthy.spread_grows
    without_exception: Callable[..., Evidence] = healthy.without_exception


def law_near_is_two_tests_about_the_reading(s: Suite) -> None:
    """scipy's t-tests against the value ± (margin - reading), and beyond the value ± (margin + reading)."""
    for value in (6.9, 7.0, 8.9, 12.0):
        found = s.near(ERRORS, value, reading=1.0, margin=2.5)
        above = stats.ttest_1samp(ERRORS, value - 1.5, alternative="greater").pvalue
        below = stats.ttest_1samp(ERRORS, value + 1.5, alternative="less").pvalue
        assert found.p_for == pytest.approx(max(above, below))
        over = stats.ttest_1samp(ERRORS, value + 3.5, alternative="greater").pvalue
        under = stats.ttest_1samp(ERRORS, value - 3.5, alternative="less").pvalue
        assert found.p_against == pytest.approx(min(1.0, 2 * min(over, under)))
        assert found.estimate.mean == pytest.approx(7.64)


def law_near_holds_both_ways(s: Suite) -> None:
    """Above the published value and below it."""
    for verdict, values in {"confirmed": (7.0, 8.3), "undecided": (9.5, 6.0), "refuted": (12.0, 3.0)}.items():
        for value in values:
            assert s.decide({0: s.near(ERRORS, value, 1.0, 2.0)})[0].verdict == verdict


def law_equal_errors_are_a_sign_test(s: Suite) -> None:
    assert s.near([7.0] * 5, 7.0, 1.0, 2.0).p_for == 1 / 2**5
    assert s.near([17.0] * 5, 7.0, 1.0, 2.0).p_against == 2 / 2**5


def law_larger_is_the_sign_test(s: Suite) -> None:
    """scipy's binomial test; a tie is neither higher nor lower, and the size of a difference does not matter."""
    for wins, losses, ties in ((9, 1, 0), (5, 0, 0), (3, 4, 2), (0, 6, 0)):
        values = [1e6] * wins + [-1.0] * losses + [0.0] * ties
        found = s.larger(values, [0.0] * len(values))
        assert found.p_for == pytest.approx(stats.binomtest(wins, len(values), alternative="greater").pvalue)
        assert found.p_against == pytest.approx(stats.binomtest(losses, len(values), alternative="greater").pvalue)
    assert s.decide({0: s.larger([3.0] * 5, [1.0] * 5)})[0].verdict == "confirmed"
    assert s.decide({0: s.larger([1.0] * 5, [3.0] * 5)})[0].verdict == "refuted"
    assert s.decide({0: s.larger([3.0] * 4, [1.0] * 4)})[0].verdict == "undecided"
    outlier = s.larger([1e9, 1.0, 1.0, 1.0, 1.0, 1.0], [2.0] * 6)
    assert (outlier.p_for, outlier.p_against) == (pytest.approx(63 / 64), pytest.approx(7 / 64))


def law_growth_needs_every_step(s: Suite) -> None:
    def verdict(*levels: Any, **options: Any) -> str:
        return s.decide({0: s.grows(levels, **options)})[0].verdict

    assert verdict(*GROWING) == "confirmed"
    assert verdict(*GROWING[::-1]) == "refuted"
    low, second, third, high = GROWING
    assert verdict(low, third, second, high) == "refuted", "a step falls"
    assert verdict(low, high, high, high) == "undecided", "a difference to the first level is no growth"
    assert verdict(low, low) == "undecided", "a sign test of 5 seeds alike, for one of two tests"
    nearly = [value + 0.01 * (-1) ** seed for seed, value in enumerate(low)]
    assert verdict(low, nearly, low, nearly) == "refuted", "no rise of 0.2 points"
    assert verdict(low, nearly, low, nearly, margin=0.0) == "undecided"
    small = [[value + step + 0.001 * ((3 * seed + k) % 5) for seed, value in enumerate(low)] for k, step in enumerate(AT)]
    assert verdict(*small) == "confirmed"
    assert verdict(*small, margin=2.0) == "refuted", "a rise of 1 point"


def law_growth_is_the_largest_of_its_tests(s: Suite) -> None:
    """scipy's paired t-tests of each step, and of the whole rise; the p-value against is four times the smallest."""
    pairs = list(itertools.pairwise(GROWING))
    rise = [high - low for low, high in zip(GROWING[0], GROWING[-1], strict=True)]
    up = [stats.ttest_rel(high, low, alternative="greater").pvalue for low, high in pairs]
    up.append(stats.ttest_1samp(rise, 0.2, alternative="greater").pvalue)
    found = s.grows(GROWING)
    assert found.p_for == pytest.approx(max(up), rel=1e-6)
    assert found.estimate.mean == pytest.approx(math.fsum(rise) / 5)
    down = [stats.ttest_rel(low, high, alternative="less").pvalue for low, high in pairs]
    down.append(stats.ttest_1samp([-value for value in rise], 0.2, alternative="less").pvalue)
    assert s.grows(GROWING[::-1]).p_against == pytest.approx(4 * min(down), rel=1e-6)


def law_spread_is_a_slope_of_absolute_deviations(s: Suite) -> None:
    """By hand: medians 10 and 10; deviations (1, 0, 3) and (4, 0, 1), times 3/2; with two levels, their differences."""
    found = s.spread_grows([[9.0, 10.0, 13.0], [6.0, 10.0, 11.0]], [0.0, 2.0], 0.2)
    rises = [4.5, 0.0, -3.0]
    assert found.estimate.mean == pytest.approx(0.5)
    above = stats.ttest_1samp(rises, 0.2, alternative="greater").pvalue
    below = stats.ttest_1samp(rises, 0.2, alternative="less").pvalue
    assert (found.p_for, found.p_against) == (pytest.approx(2 * above), pytest.approx(min(1.0, 2 * below)))
    line = s.spread_grows([[89.0, 90.0, 91.0], [87.0, 90.0, 93.0], [88.0, 90.0, 92.0]], [0.0, 1.0, 3.0], 0.0)
    slopes = [stats.linregress([0.0, 1.0, 3.0], [1.0, 3.0, 2.0]).slope, 0.0]
    assert line.estimate.mean == pytest.approx(3 / 2 * 3 * (2 * slopes[0]) / 3)


def law_spread(s: Suite) -> None:
    def verdict(levels: Any, **options: Any) -> str:
        return s.decide({0: s.spread_grows(levels, AT, **options)})[0].verdict

    assert verdict(SPREADING) == "confirmed"
    assert verdict(SPREADING[::-1]) == "refuted"
    assert verdict([SPREADING[0]] * 4) == "refuted", "no rise of 0.2 points"
    assert verdict(SPREADING, margin=5.0) == "refuted"
    moved = [[value + 7 * k for value in level] for k, level in enumerate([SPREADING[0]] * 4)]
    assert verdict(moved) == "refuted", "a mean that moves is no spread"
    assert verdict([level[:3] for level in SPREADING]) == "undecided"


def law_one_exception_is_enough(s: Suite) -> None:
    def verdict(*counts: Any) -> str:
        return s.decide({0: s.without_exception(*counts)})[0].verdict

    assert [verdict(0, cases) for cases in (0, 1, 2, 4, 5)] == ["not run", *["undecided"] * 3, "confirmed"]
    assert (verdict(1, 1), verdict(1, 1000)) == ("refuted", "refuted")
    assert (verdict(0, 13, 0.2), verdict(0, 14, 0.2)) == ("undecided", "confirmed")
    found = s.without_exception(0, 10)
    assert found.p_for == pytest.approx(stats.binomtest(0, 10, 0.5, alternative="less").pvalue)
    assert (found.estimate.low, found.estimate.high) == (0.0, pytest.approx(0.308, abs=5e-4))


def law_a_family_is_corrected(s: Suite) -> None:
    """Claims for and against apart; those without a test are left alone and do not count."""
    tested = {"near": s.near(ERRORS, 8.0, 1.0, 2.0), "far": s.near(ERRORS, 11.0, 1.0, 2.0), "grows": s.grows(GROWING)}
    idle = {
        "one": s.near([7.0], 7.0, 1.0, 2.0),
        "lost": s.near([*ERRORS, None], 7.0, 1.0, 2.0),
        "none": s.near([], 7.0, 1.0, 2.0),
    }
    found = s.decide(tested | idle)
    assert [found[key].verdict for key in idle] == ["undecided", "undecided", "not run"]
    assert {result.family for result in found.values()} == {3}
    assert [found[k].adjusted_for for k in tested] == pytest.approx(holm([e.p_for or 0.0 for e in tested.values()]))
    assert [found[k].adjusted_against for k in tested] == pytest.approx(holm([e.p_against or 0.0 for e in tested.values()]))
    assert (found["one"].adjusted_for, found["lost"].adjusted_against) == (None, None)


def law_a_lost_seed_decides_nothing(s: Suite) -> None:
    for lost in (None, math.nan, math.inf):
        rows = {
            "near": s.near([*ERRORS, lost], 7.64, 1.0, 2.0),
            "larger": s.larger([3.0] * 6, [1.0] * 5 + [lost]),
            "grows": s.grows([[*GROWING[0], 2.0], [*GROWING[1], lost], [*GROWING[2], 9.0]]),
            "spread": s.spread_grows([[*SPREADING[0], lost], [*SPREADING[3], 90.0]], [0.0, 1.0]),
        }
        for found in s.decide(rows).values():
            assert (found.lost, found.p_for, found.p_against, found.verdict) == (1, None, None, "undecided")
            assert found.n >= 5


def law_one_seed_decides_nothing(s: Suite) -> None:
    rows = (
        s.near([7.0], 7.0, 1.0, 2.0),
        s.larger([2.0], [1.0]),
        s.grows([[1.0], [2.0]]),
        s.spread_grows([[1.0], [2.0]], [0.0, 1.0]),
    )
    assert [found.verdict for found in s.decide(dict(enumerate(rows))).values()] == ["undecided"] * 4


LAWS = {name.removeprefix("law_"): function for name, function in list(globals().items()) if name.startswith("law_")}


@pytest.mark.parametrize("law", LAWS)
def test_law(law: str) -> None:
    LAWS[law](Suite())


# ---------------------------------------------------------------- seeded faults


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _one_sided(values: Any, published: float, reading: float, margin: float) -> Evidence:
    found = healthy.near(values, published, reading, margin)
    if found.p_for is None:
        return found
    return dataclasses.replace(
        found, p_for=float(stats.ttest_1samp(values, published + margin - reading, alternative="less").pvalue)
    )


def _uncorrected(evidence: Any, level: float = 0.05) -> dict[Any, Evidence]:
    return {
        key: dataclasses.replace(healthy.decide({key: one}, level)[key], family=len(evidence))
        for key, one in evidence.items()
    }


def _t_test(values: Any, reference: Any) -> Evidence:
    return healthy.grows([reference, values], 0.0)


def _ends_alone(levels: Any, margin: float = 0.2) -> Evidence:
    return healthy.grows([levels[0], levels[-1]], margin)


def _steps_alone(levels: Any, margin: float = 0.2) -> Evidence:
    return healthy.grows(levels, 0.0)


def _against_uncorrected(levels: Any, margin: float = 0.2) -> Evidence:
    found = healthy.grows(levels, margin)
    return found if found.p_against is None else dataclasses.replace(found, p_against=found.p_against / len(levels))


def _of_the_values(levels: Any, at: Any, margin: float = 0.2) -> Evidence:
    """The slope of the values, not of their deviations."""
    return healthy.grows([levels[0], levels[-1]], margin)


def _equal_steps(levels: Any, at: Any, margin: float = 0.2) -> Evidence:
    return healthy.spread_grows(levels, list(range(len(levels))), margin)


def _one_sided_spread(levels: Any, at: Any, margin: float = 0.2) -> Evidence:
    found = healthy.spread_grows(levels, at, margin)
    return found if found.p_for is None else dataclasses.replace(found, p_for=found.p_for / 2)


def _rare_exceptions_are_allowed(exceptions: int, cases: int, most: float = 0.5) -> Evidence:
    found = healthy.without_exception(exceptions, cases, most)
    return dataclasses.replace(found, p_against=1.0) if exceptions < most * cases else found


MUTANTS: dict[str, Suite] = {
    "near ignores the margin": Suite(near=lambda values, value, reading, margin: healthy.near(values, value, 0.0, 50.0)),
    "near ignores the reading": Suite(near=lambda values, value, reading, margin: healthy.near(values, value, 0.0, margin)),
    "near takes the reading for the margin": Suite(
        near=lambda v, value, reading, margin: healthy.near(v, value, 0.0, reading)
    ),
    "near tests one side": Suite(near=_one_sided),
    "near drops lost seeds": Suite(near=lambda values, *rest, **more: healthy.near(_known(values), *rest, **more)),
    "no correction": Suite(decide=_uncorrected),
    "larger by means": Suite(larger=_t_test),
    "growth of the ends alone": Suite(grows=_ends_alone),
    "growth ignores the margin": Suite(grows=_steps_alone),
    "evidence against growth is not corrected": Suite(grows=_against_uncorrected),
    "spread of the values": Suite(spread_grows=_of_the_values),
    "spread ignores the positions": Suite(spread_grows=_equal_steps),
    "spread ignores the margin": Suite(spread_grows=lambda levels, at, margin=0.2: healthy.spread_grows(levels, at, 0.0)),
    "spread tests one side": Suite(spread_grows=_one_sided_spread),
    "rare exceptions are allowed": Suite(without_exception=_rare_exceptions_are_allowed),
    "exceptions of a share that is not asked": Suite(
        without_exception=lambda n, cases, most=0.5: healthy.without_exception(n, cases)
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_is_found(mutant: str) -> None:
    def fails(law: Callable[[Suite], None]) -> bool:
        try:
            law(MUTANTS[mutant])
        except AssertionError:
            return True
        return False

    assert any(fails(law) for law in LAWS.values())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("reading", "margin"), [(1.0, 1.0), (-1.0, 2.0), (math.nan, 2.0), (1.0, math.nan)])
def test_a_margin_is_larger_than_the_error_of_reading(reading: float, margin: float) -> None:
    with pytest.raises(StatisticsError, match="with such an error of reading nothing can agree"):
        healthy.near(ERRORS, 7.0, reading, margin)


def test_levels_have_one_value_for_each_seed() -> None:
    with pytest.raises(StatisticsError, match=r"larger: levels with \[1, 2\] values"):
        healthy.larger([1.0, 2.0], [1.0])
    with pytest.raises(StatisticsError, match=r"grows: levels with \[3\] values; give at least 2 levels"):
        healthy.grows([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("at", [(0.0, 1.0, 0.5, 2.0), (0.0, 0.0, 1.0, 2.0), (0.0, 1.0)])
def test_positions_increase(at: tuple[float, ...]) -> None:
    with pytest.raises(StatisticsError, match="give a position for each level, in increasing order"):
        healthy.spread_grows(SPREADING, at)


@pytest.mark.parametrize("rule", [lambda m: healthy.grows(GROWING, m), lambda m: healthy.spread_grows(SPREADING, AT, m)])
def test_a_margin_is_not_negative(rule: Callable[[float], Evidence]) -> None:
    for margin in (-0.1, math.nan):
        with pytest.raises(StatisticsError, match="pass a number of at least 0"):
            rule(margin)


def test_shares_and_counts_of_exceptions() -> None:
    with pytest.raises(StatisticsError, match="pass a share between 0 and 1"):
        healthy.without_exception(0, 5, 1.0)
    with pytest.raises(ProportionError):
        healthy.without_exception(6, 5)
