"""relucheck.results.statistics against published examples and closed forms; every law is shown to find seeded faults."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from scipy import special

from relucheck.results import statistics as healthy
from relucheck.results.holm import StatisticsError, holm
from relucheck.results.statistics import Paired, Summary

# Student (1908), hours of sleep gained with two drugs, 10 patients: t = -4.0621, p = 0.002833, interval of the mean
# difference -2.4598858 to -0.7001142 (R: t.test(extra ~ group, data = sleep, paired = TRUE))
FIRST = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SMALL = (96.6, 96.9, 96.5, 96.9, 96.6)
SECOND = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


@dataclasses.dataclass(frozen=True)
class Suite:
    """The functions under test, so that a mutant can take the place of one."""

    summarise: Callable[..., Summary] = healthy.summarise
    paired: Callable[..., Paired] = healthy.paired
    holm: Callable[..., list[float]] = holm
    judge: Callable[..., dict[Any, Paired]] = healthy.judge


def law_interval(s: Suite) -> None:
    summary = s.summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert summary.n == 5
    assert summary.mean == 3
    assert summary.sd == pytest.approx(math.sqrt(2.5))
    # t(0.975, 4) = 2.776445
    assert (summary.low, summary.high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-6)


def law_interval_of_few(s: Suite) -> None:
    assert s.summarise([]) == Summary(0, None, None, None, None)
    assert s.summarise([97.5]) == Summary(1, 97.5, None, None, None)
    assert s.summarise([0.1] * 3) == Summary(3, 0.1, 0.0, 0.1, 0.1)


def law_paired(s: Suite) -> None:
    result = s.paired(FIRST, SECOND, margin=2.0)
    assert result.n == 10
    assert result.p_difference == pytest.approx(0.002833, abs=5e-7)
    assert result.difference.mean == pytest.approx(-1.58)
    assert (result.difference.low, result.difference.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)


def law_equivalence(s: Suite) -> None:
    """TOST in closed form: the larger of the two one-sided p-values, from the t distribution itself."""
    differences = [a - b for a, b in zip(FIRST, SECOND, strict=True)]
    mean = math.fsum(differences) / 10
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / 9 / 10)
    for margin in (1.0, 2.0, 3.0):
        above = special.stdtr(9, (mean - margin) / error)
        below = 1 - special.stdtr(9, (mean + margin) / error)
        assert s.paired(FIRST, SECOND, margin=margin).p_equivalence == pytest.approx(max(above, below), rel=1e-9)
        assert s.paired(SECOND, FIRST, margin=margin).p_equivalence == pytest.approx(max(above, below), rel=1e-9)


def law_holm(s: Suite) -> None:
    """R: p.adjust(p, "holm")."""
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert s.holm([0.9, 0.8]) == [1.0, 1.0]
    assert s.holm([]) == []


def law_identical(s: Suite) -> None:
    """Runs that are bitwise the same are not tested: n seeds bound the share that differs by 1 - 0.025 ** (1 / n)."""
    for seeds in (1, 2, 5, 10):
        values = [97.0 + seed / 10 for seed in range(seeds)]
        same = s.judge({0: s.paired(values, values, same_run=True)})[0]
        assert (same.identical, same.verdict) == (True, "identical")
        assert (same.p_difference, same.p_equivalence, same.adjusted_equivalence) == (None, None, None)
        assert same.differs_at_most == pytest.approx(1 - 0.025 ** (1 / seeds))


def law_identical_and_lost(s: Suite) -> None:
    """Runs that are the same, and diverge together on a seed, bound nothing."""
    same = s.judge({0: s.paired([97.0, 97.1, None], [97.0, 97.1, None], same_run=True)})[0]
    assert (same.lost, same.differs_at_most, same.verdict) == (1, None, "undecided")


def law_family(s: Suite) -> None:
    """Identical, lost and single runs test nothing: they change neither the p-values of the others nor their own."""
    reference = [97.0, 97.1, 96.9, 97.2, 97.0]
    alone = {"near": s.paired([97.05, 97.12, 96.88, 97.15, 97.02], reference), "far": s.paired(SMALL, reference)}
    idle = {
        **{f"same {i}": s.paired(reference, reference, same_run=True) for i in range(8)},
        **{f"lost {i}": s.paired([92.0, 92.4, 91.9, 92.2, None], reference) for i in range(8)},
        **{f"one {i}": s.paired([92.0], [97.0]) for i in range(8)},
    }
    few, many = s.judge(alone), s.judge({**alone, **idle})
    assert {result.family for result in many.values()} == {2}
    for key, result in few.items():
        assert many[key] == result
    assert all(many[f"same {i}"].verdict == "identical" for i in range(8))
    assert all(many[f"same {i}"].adjusted_equivalence is None for i in range(8))
    assert all(many[f"lost {i}"].verdict == "undecided" for i in range(8))
    assert all(many[f"lost {i}"].adjusted_difference is None for i in range(8))


def law_constant(s: Suite) -> None:
    """One difference on every seed: the sign test, whose p for n signs alike is 2 / 2**n; rounding is no spread."""
    ten = s.paired([97.0 + i / 10 + 0.1 for i in range(10)], [97.0 + i / 10 for i in range(10)])
    assert not ten.identical
    assert ten.p_difference == pytest.approx(2 / 2**10)
    assert ten.p_equivalence == pytest.approx(1 / 2**10)
    two = s.paired([97.1, 97.3], [97.0, 97.2])
    assert two.p_difference == pytest.approx(0.5)
    assert s.judge({0: two})[0].verdict == "undecided"
    assert s.paired([98.0] * 10, [97.0] * 10).p_equivalence == 1.0


def law_equal_accuracies_are_not_the_same_run(s: Suite) -> None:
    """Two different runs that classify as many images right on 3 seeds are no proof that they always will."""
    values = [97.5, 97.6, 97.4]
    three = s.paired(values, values)
    assert not three.identical
    assert (three.p_difference, three.p_equivalence) == (1.0, pytest.approx(1 / 2**3))
    assert s.judge({0: three})[0].verdict == "undecided"
    assert s.judge({0: s.paired(values * 3, values * 3)})[0].verdict == "equivalent"


def law_one_seed_decides_nothing(s: Suite) -> None:
    for values in ([], [80.0]):
        result = s.judge({0: s.paired(values, [97.0][: len(values)])})[0]
        assert result.verdict == "undecided"
        assert result.p_difference is None


def law_lost_runs_are_no_evidence(s: Suite) -> None:
    """The seeds that are left are those that went well, so nothing is concluded from them."""
    values: list[float | None] = [80.0 + i / 7 for i in range(9)]
    for lost in (None, math.nan, math.inf):
        result = s.paired([*values, lost], [97.0 + (i % 3) / 10 for i in range(10)])
        assert (result.n, result.lost) == (9, 1)
        assert s.judge({0: result})[0].verdict == "undecided"


def law_verdicts(s: Suite) -> None:
    far = s.paired([92.0, 92.4, 91.9, 92.2, 92.1], [97.0, 97.1, 96.9, 97.2, 97.0])
    near = s.paired([97.01, 97.09, 96.92, 97.19, 97.0], [97.0, 97.1, 96.9, 97.2, 97.0])
    wide = s.paired([97.9, 96.2, 97.3, 96.0, 97.8], [97.0, 97.1, 96.9, 97.2, 97.0])
    judged = s.judge({"far": far, "near": near, "wide": wide})
    assert {key: result.verdict for key, result in judged.items()} == {
        "far": "differs",
        "near": "equivalent",
        "wide": "undecided",
    }
    assert {result.family for result in judged.values()} == {3}


def law_a_small_sure_difference_differs(s: Suite) -> None:
    """0.1 points on every seed, with little spread: within the margin, and surely not 0."""
    reference = [97.0 + i / 10 for i in range(10)]
    result = s.judge({0: s.paired([r - 0.1 - (i % 2) / 100 for i, r in enumerate(reference)], reference)})[0]
    assert result.verdict == "differs"
    assert result.adjusted_equivalence is not None
    assert result.adjusted_equivalence < 0.05


def law_few_false_alarms(s: Suite) -> None:
    """8 subgradients without effect: in about 5 % of reports at most does any of them "differ" (3 standard errors)."""
    draw = random.Random(1)
    reports = 80
    alarms = 0
    for _ in range(reports):
        reference = [draw.gauss(97, 0.3) for _ in range(5)]
        family = {k: s.paired([r + draw.gauss(0, 0.3) for r in reference], reference) for k in range(8)}
        alarms += any(result.verdict == "differs" for result in s.judge(family).values())
    assert alarms <= 0.05 * reports + 3 * math.sqrt(0.05 * 0.95 * reports)


def law_seeds_are_paired(s: Suite) -> None:
    """Seeds that vary by points do not hide a difference of a tenth of that."""
    reference = [90.0, 92.0, 94.0, 96.0, 98.0]
    values = [reference[i] - 0.5 + 0.02 * (i % 2) for i in range(5)]
    assert s.judge({0: s.paired(values, reference)})[0].verdict == "differs"


LAWS = {name.removeprefix("law_"): function for name, function in list(globals().items()) if name.startswith("law_")}


@pytest.mark.parametrize("law", LAWS)
def test_law(law: str) -> None:
    LAWS[law](Suite())


# ---------------------------------------------------------------- faults


def _normal_interval(values: Any, level: float = 0.05) -> Summary:
    summary = healthy.summarise(values, level)
    if not summary.sd:
        return summary
    assert summary.mean is not None
    half = 1.96 * summary.sd / math.sqrt(summary.n)
    return dataclasses.replace(summary, low=summary.mean - half, high=summary.mean + half)


def _population_sd(values: Any, level: float = 0.05) -> Summary:
    summary = healthy.summarise(values, level)
    return dataclasses.replace(summary, sd=summary.sd * math.sqrt(1 - 1 / summary.n)) if summary.sd else summary


def _unpaired(values: Any, reference: Any, margin: float = 0.2, level: float = 0.05, **more: Any) -> Paired:
    from scipy import stats

    result = healthy.paired(values, reference, margin, level, **more)
    if result.n < 2 or result.identical or result.lost or not result.difference.sd:
        return result
    return dataclasses.replace(result, p_difference=float(stats.ttest_ind(values, reference).pvalue))


def _one_side(values: Any, reference: Any, margin: float = 0.2, level: float = 0.05, **more: Any) -> Paired:
    from scipy import stats

    result = healthy.paired(values, reference, margin, level, **more)
    if result.n < 2 or result.lost or not result.difference.sd:
        return result
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    return dataclasses.replace(
        result, p_equivalence=float(stats.ttest_1samp(differences, margin, alternative="less").pvalue)
    )


def _drops_lost(values: Any, reference: Any, margin: float = 0.2, level: float = 0.05, **more: Any) -> Paired:
    return dataclasses.replace(healthy.paired(values, reference, margin, level, **more), lost=0)


def _trusts_no_spread(values: Any, reference: Any, margin: float = 0.2, level: float = 0.05, **more: Any) -> Paired:
    result = healthy.paired(values, reference, margin, level, **more)
    if result.difference.sd == 0 and not result.identical:
        return dataclasses.replace(result, p_difference=0.0)
    return result


def _identical_is_equivalent(values: Any, reference: Any, margin: float = 0.2, level: float = 0.05, **more: Any) -> Paired:
    """The sign test of equal differences, as for runs that are not the same."""
    return healthy.paired(values, reference, margin, level)


def _identical_bounds_nothing(values: Any, reference: Any, margin: float = 0.2, level: float = 0.05, **more: Any) -> Paired:
    result = healthy.paired(values, reference, margin, level, **more)
    return dataclasses.replace(result, differs_at_most=0.0) if result.identical and not result.lost else result


def _identical_while_it_lasts(values: Any, reference: Any, margin: float = 0.2, level: float = 0.05, **more: Any) -> Paired:
    kept = [i for i, value in enumerate(values) if value is not None or not more.get("same_run")]
    return healthy.paired([values[i] for i in kept], [reference[i] for i in kept], margin, level, **more)


def _everything_counts(comparisons: Any, level: float = 0.05) -> dict[Any, Paired]:
    """Lost runs enlarge the family that the others are corrected for."""
    return healthy.judge({key: dataclasses.replace(r, lost=0) for key, r in comparisons.items()}, level)


def _equal_is_same(values: Any, reference: Any, margin: float = 0.2, level: float = 0.05, **more: Any) -> Paired:
    equal = bool(values) and list(values) == list(reference)
    return healthy.paired(values, reference, margin, level, same_run=equal)


def _bonferroni(p_values: Any) -> list[float]:
    return [min(1.0, p * len(p_values)) for p in p_values]


def _holm_not_monotonous(p_values: Any) -> list[float]:
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    for rank, index in enumerate(order):
        adjusted[index] = min(1.0, (len(p_values) - rank) * p_values[index])
    return adjusted


def _uncorrected(comparisons: Any, level: float = 0.05) -> dict[Any, Paired]:
    return {
        key: dataclasses.replace(healthy.judge({key: result}, level)[key], family=len(comparisons))
        for key, result in comparisons.items()
    }


def _equivalence_first(comparisons: Any, level: float = 0.05) -> dict[Any, Paired]:
    judged = healthy.judge(comparisons, level)
    return {
        key: dataclasses.replace(result, verdict="equivalent")
        if result.adjusted_equivalence is not None and result.adjusted_equivalence < level and not result.lost
        else result
        for key, result in judged.items()
    }


def _no_difference_is_equivalence(comparisons: Any, level: float = 0.05) -> dict[Any, Paired]:
    judged = healthy.judge(comparisons, level)
    return {
        key: dataclasses.replace(result, verdict="equivalent") if result.verdict == "undecided" else result
        for key, result in judged.items()
    }


MUTANTS: dict[str, Suite] = {
    "normal interval": Suite(summarise=_normal_interval),
    "population standard deviation": Suite(summarise=_population_sd),
    "unpaired": Suite(paired=_unpaired),
    "one side of the margin": Suite(paired=_one_side),
    "margin doubled": Suite(paired=lambda a, b, margin=0.2, **more: healthy.paired(a, b, 2 * margin, **more)),
    "lost runs dropped": Suite(paired=_drops_lost),
    "no spread taken as certainty": Suite(paired=_trusts_no_spread),
    "equal accuracies taken as one run": Suite(paired=_equal_is_same),
    "identical runs are equivalent": Suite(paired=_identical_is_equivalent),
    "identical runs bound nothing": Suite(paired=_identical_bounds_nothing),
    "identical runs without those that diverged": Suite(paired=_identical_while_it_lasts),
    "lost runs in the family": Suite(judge=_everything_counts),
    "Bonferroni for Holm": Suite(holm=_bonferroni),
    "Holm not monotonous": Suite(holm=_holm_not_monotonous),
    "no correction": Suite(judge=_uncorrected),
    "equivalent before differs": Suite(judge=_equivalence_first),
    "no difference taken as equivalence": Suite(judge=_no_difference_is_equivalence),
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


def test_values_must_be_finite() -> None:
    with pytest.raises(StatisticsError, match=r"not finite; leave diverged runs out"):
        healthy.summarise([97.0, math.nan])


def test_one_value_per_seed() -> None:
    with pytest.raises(StatisticsError, match=r"2 values against 1; give one of each per seed"):
        healthy.paired([97.0, 97.1], [97.0])


def test_the_same_run_has_the_same_values() -> None:
    with pytest.raises(StatisticsError, match=r"same_run=True with differences \[0\.1"):
        healthy.paired([97.1, 97.1], [97.0, 97.1], same_run=True)


def test_a_p_value_is_a_probability() -> None:
    with pytest.raises(StatisticsError, match=r"p-value 1\.5: must be from 0 to 1"):
        holm([0.5, 1.5])


@pytest.mark.parametrize("margin", [0.0, -0.2, math.nan])
def test_margin_is_positive(margin: float) -> None:
    with pytest.raises(StatisticsError, match="pass a positive number"):
        healthy.paired([97.0, 97.1], [97.0, 97.2], margin)
