"""Means, intervals and paired tests over seeds, and the verdict on a subgradient.

The unit of repetition is the seed. Runs with one seed share the initialisation, the order of mini-batches and the dropout
masks. A subgradient is therefore compared with s = 0 on the same seed, and the tests are paired. Mini-batches or epochs of
one run are not independent repetitions, so nothing here pools them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Final, Literal, TypeVar

from relucheck.extras import require
from relucheck.results.holm import StatisticsError, holm

Verdict = Literal["differs", "equivalent", "undecided"]
#: Test accuracies closer than this, in percentage points, count as equivalent.
MARGIN: Final = 0.2
#: The significance level of all tests, after correction. Confidence intervals have the confidence 1 - LEVEL.
LEVEL: Final = 0.05
_DIGITS: Final = 9  # decimals kept of a difference; later ones are rounding errors of the subtraction
_Key = TypeVar("_Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The mean of values over seeds with its spread, in the unit of the values.

    Attributes:
        n: the number of values.
        mean: the mean; None without values.
        sd: the standard deviation, with the divisor n - 1; None with fewer than 2 values.
        low: the lower bound of Student's t-interval of the mean; None with fewer than 2 values.
        high: the upper bound of that interval; None with fewer than 2 values.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Paired:
    """Paired differences (value minus reference on the same seed), and two tests of their mean.

    Attributes:
        n: the number of pairs.
        lost: the number of seeds on which one of the two runs has no value, because it diverged. With any such seed the
            verdict is "undecided": the remaining seeds would be a biased selection.
        difference: the mean, standard deviation and t-interval of the differences.
        p_difference: the p-value of the two-sided test that the mean is 0; None with fewer than 2 pairs.
        p_equivalence: the p-value of the two one-sided tests (TOST) that the mean lies outside the margin; None with fewer
            than 2 pairs.
        identical: whether both runs are known to be bitwise identical on every seed.
        adjusted_difference: ``p_difference`` after Holm's correction, see ``judge``. For identical runs it is
            ``p_difference`` itself. None if nothing can be concluded.
        adjusted_equivalence: ``p_equivalence`` after Holm's correction, in the same way.
        family: the number of comparisons over which the p-values are corrected.
        verdict: "differs" if the mean is significantly different from 0, whatever its size, which the interval shows;
            "equivalent" if it is significantly within the margin and not significantly different from 0; else "undecided".
    """

    n: int
    lost: int
    difference: Summary
    p_difference: float | None
    p_equivalence: float | None
    identical: bool
    adjusted_difference: float | None = None
    adjusted_equivalence: float | None = None
    family: int = 1
    verdict: Verdict = "undecided"


def summarise(values: Sequence[float], level: float = LEVEL) -> Summary:
    """Compute the mean, standard deviation and t-interval of values, one per seed.

    Args:
        values: finite numbers.
        level: the interval has the confidence 1 - level.

    Raises:
        StatisticsError: for a value that is not finite.
    """
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise StatisticsError(
            f"summarise: {numbers} holds a value that is not finite; leave diverged runs out and count them"
        )
    count = len(numbers)
    if count < 2:
        return Summary(count, numbers[0] if numbers else None, None, None, None)
    if len(set(numbers)) == 1:  # else rounding in the mean could give equal values a spread of an ulp
        return Summary(count, numbers[0], 0.0, numbers[0], numbers[0])
    require("a test or interval of a mean", "scipy")
    from scipy import stats

    mean = math.fsum(numbers) / count
    error = stats.sem(numbers)
    low, high = stats.t.interval(1 - level, count - 1, loc=mean, scale=error)
    return Summary(count, mean, float(error) * math.sqrt(count), float(low), float(high))


def paired(
    values: Sequence[float | None],
    reference: Sequence[float | None],
    margin: float = MARGIN,
    level: float = LEVEL,
    *,
    same_run: bool = False,
) -> Paired:
    """Compare values with a reference on the same seeds.

    ``judge`` adds the correction and the verdict. The tests are Student's t-tests on the differences. If all differences
    are equal (they may all be 0), the t-test is undefined, and the exact sign test takes its place. Identical runs are
    tested in this way, too: that no kink changed the result on a few seeds says little about the next seed.

    Args:
        values: one number per seed; None, NaN or infinity if the run has no value.
        reference: the same of the reference, in the same order of seeds.
        margin: the half-width of the range that counts as equivalent, in the unit of the values.
        level: the interval of the difference has the confidence 1 - level.
        same_run: whether the runs of both are known to be bitwise identical on every seed. It sets ``identical`` and does
            not change the tests.

    Raises:
        StatisticsError: for sequences of different length, for a margin that is not positive, and for ``same_run`` with
            different values.
    """
    if len(values) != len(reference):
        raise StatisticsError(
            f"paired: {len(values)} values against {len(reference)}; give one of each per seed, None if missing"
        )
    if not margin > 0:
        raise StatisticsError(f"paired: margin={margin!r}; nothing is equivalent within it, pass a positive number")
    pairs = [(a, b) for a, b in zip(values, reference, strict=True) if _finite(a) and _finite(b)]
    # rounded so that 97.3 - 97.2 equals 97.5 - 97.4; the smallest real difference, one image of 10,000, is 0.01 points
    differences = [round(float(a) - float(b), _DIGITS) for a, b in pairs]  # type: ignore[arg-type]
    count, lost = len(differences), len(values) - len(differences)
    summary = summarise(differences, level)
    if same_run and any(differences):
        raise StatisticsError(
            f"paired: same_run=True with differences {differences}; runs that are the same have the same values"
        )
    identical = count > 0 and same_run
    if count < 2:
        return Paired(count, lost, summary, None, None, identical)
    if summary.sd == 0.0:
        return Paired(count, lost, summary, *_sign_tests(differences[0], count, margin), identical)
    from scipy import stats  # which summarise has asked for

    two_sided = stats.ttest_1samp(differences, 0.0).pvalue
    below = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return Paired(count, lost, summary, float(two_sided), float(max(below, above)), False)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _sign_tests(constant: float, count: int, margin: float) -> tuple[float, float]:
    """The p-values of difference and equivalence for equal differences, by the sign test."""
    require("a test or interval of a mean", "scipy")
    from scipy import stats

    two_sided = stats.binomtest(count, count).pvalue if constant else 1.0
    inside = stats.binomtest(count, count, alternative="greater").pvalue if abs(constant) < margin else 1.0
    return float(two_sided), float(inside)


def judge(comparisons: Mapping[_Key, Paired], level: float = LEVEL) -> dict[_Key, Paired]:
    """Correct the p-values of several comparisons by Holm's method, and give the verdicts.

    Tests of difference and tests of equivalence are corrected separately. The family is all comparisons passed here: all
    subgradients, arithmetics and rules that a reader sees side by side. Comparisons with fewer than 2 pairs or with lost
    runs conclude nothing. They do not count in the family and stay "undecided". Identical runs do not count either, because
    they are all one event (no hit changed any run) however many subgradients and rules share it. Their uncorrected p-values
    of the sign test decide whether there are enough seeds.

    Args:
        comparisons: results of ``paired``, by any key.
        level: the significance level.

    Returns:
        The same keys, with the fields ``adjusted_difference``, ``adjusted_equivalence``, ``family`` and ``verdict`` set.
    """

    def concludes(result: Paired) -> bool:
        return result.p_difference is not None and not result.lost

    tested = [key for key, result in comparisons.items() if concludes(result) and not result.identical]
    difference = dict(zip(tested, holm([_p(comparisons[key].p_difference) for key in tested]), strict=True))
    equivalence = dict(zip(tested, holm([_p(comparisons[key].p_equivalence) for key in tested]), strict=True))
    for key, result in comparisons.items():
        if concludes(result) and result.identical:
            difference[key], equivalence[key] = _p(result.p_difference), _p(result.p_equivalence)
    judged = {}
    for key, result in comparisons.items():
        verdict: Verdict = "undecided"
        if key in difference:
            if difference[key] < level:
                verdict = "differs"
            elif equivalence[key] < level:
                verdict = "equivalent"
        judged[key] = dataclasses.replace(
            result,
            adjusted_difference=difference.get(key),
            adjusted_equivalence=equivalence.get(key),
            family=len(tested),
            verdict=verdict,
        )
    return judged


def _p(value: float | None) -> float:
    assert value is not None
    return value


# ---------------------------------------------------------------- nudges


@dataclasses.dataclass(frozen=True)
class BeyondChaos:
    """The effect of a subgradient beyond that of a nudge, over seeds with a live hit.

    Attributes:
        paired: the member's difference to s = 0 minus the mean of its seed's nudges' differences, see ``paired``.
        quiet: the number of seeds without a live hit. There the subgradient has no effect at all, and no nudge exists.
    """

    paired: Paired
    quiet: int


def beyond_chaos(
    values: Sequence[float | None],
    nudges: Sequence[Sequence[float | None] | None],
    margin: float = MARGIN,
    level: float = LEVEL,
) -> BeyondChaos:
    """Compare a member with the nudges of the same seeds.

    ``judge`` adds Holm's correction and the verdict.

    Each seed gives one number: the member's difference to s = 0 minus the mean of the nudges' differences to s = 0. The
    value of s = 0 is in both and cancels, so it is not an argument. If the subgradient does what a nudge does, member and
    nudges of a seed have the same distribution, and the mean over seeds is 0. The test is Student's paired t-test over the
    seeds. It assumes that the numbers of different seeds are independent and nearly normal. Nudges of one seed need not be
    independent of each other.

    Args:
        values: one number per seed; None, NaN or infinity if the run has no value.
        nudges: the numbers of each seed's nudges, in the same order of seeds. None for a seed without a live hit, which is
            counted as ``quiet`` and not tested. A seed counts as lost if it has no nudges or one of them has no value.
        margin: as for ``paired``.
        level: as for ``paired``.

    Raises:
        StatisticsError: for sequences of different length, and as for ``paired``.
    """
    if len(values) != len(nudges):
        raise StatisticsError(
            f"beyond_chaos: {len(values)} values against the nudges of {len(nudges)} seeds; give one of each per seed"
        )
    live = [(value, group) for value, group in zip(values, nudges, strict=True) if group is not None]
    means = [_mean_of_all(group) for _, group in live]
    return BeyondChaos(paired([value for value, _ in live], means, margin, level), len(values) - len(live))


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean of values, or None without values or if one is missing."""
    numbers = [float(value) for value in values if value is not None and math.isfinite(value)]
    return math.fsum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def prediction(groups: Sequence[Sequence[float]], level: float = LEVEL) -> tuple[float, float] | None:
    """The prediction interval for one new nudge in a new seed, from the nudges of several seeds.

    The band of a figure consists of these intervals, one for each step or epoch. The model is a mean, plus a deviation of
    the seed, plus a deviation of the nudge within its seed. Both deviations are assumed to be normal, independent between
    seeds, and of equal variance in all seeds. For quantities that are positive and skewed, such as distances, pass
    logarithms. The interval is for a single run in a seed of its own; it is no interval for the mean over several seeds.

    With k nudges a seed (the harmonic mean where seeds differ), m the mean of the seeds' means, B the variance between
    these means, W the pooled variance within seeds and n seeds, a new run has the variance T = B + (1 - 1/k) W about the
    mean, and the interval is m ± t √(T + B/n). Student's t has n - 1 degrees of freedom, because the seeds are the unit.
    With one nudge a seed the interval is exact. With more it holds a new run at least as often as it says, and more often
    the less the seeds differ.

    Args:
        groups: for each seed with a live hit, finite numbers, one for each nudge.
        level: the interval has the confidence 1 - level.

    Returns:
        The lower and the upper bound; None with fewer than 2 seeds.

    Raises:
        StatisticsError: for a seed without numbers, and for a number that is not finite.
    """
    numbers = [[float(value) for value in group] for group in groups]
    if not all(group and all(map(math.isfinite, group)) for group in numbers):
        raise StatisticsError(
            f"prediction: {numbers} holds a seed without numbers, or a number that is not finite; leave such seeds out and "
            "count them"
        )
    if len(numbers) < 2:
        return None
    require("a test or interval of a mean", "scipy")
    from scipy import stats

    seeds = len(numbers)
    means = [math.fsum(group) / len(group) for group in numbers]
    middle = math.fsum(means) / seeds
    between = math.fsum((mean - middle) ** 2 for mean in means) / (seeds - 1)
    inside = sum(len(group) - 1 for group in numbers)
    squares = [math.fsum((x - mean) ** 2 for x in group) for group, mean in zip(numbers, means, strict=True)]
    share = 1 - math.fsum(1 / len(group) for group in numbers) / seeds
    within = share * math.fsum(squares) / inside if inside else 0.0
    half = float(stats.t.ppf(1 - level / 2, seeds - 1)) * math.sqrt(between + within + between / seeds)
    return middle - half, middle + half


# ---------------------------------------------------------------- endpoints and power


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
    require("a test or interval of a mean", "scipy")
    from scipy import stats

    def reached(seeds: int) -> bool:
        critical, shift = stats.t.ppf(1 - level / 2, seeds - 1), abs(difference) / sd * math.sqrt(seeds)
        # the other tail counts too; as ncp grows it is lost in rounding, where scipy gives NaN
        tail = stats.nct.cdf(-critical, seeds - 1, shift)
        return float(stats.nct.sf(critical, seeds - 1, shift)) + (0.0 if math.isnan(tail) else float(tail)) >= power

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
