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
