"""Means, intervals and paired tests over seeds, and the verdict on a subgradient: differs, equivalent or undecided.

The unit is the seed. Members of one seed share initialisation, batch order and dropout masks, so a subgradient is compared
with s = 0 on the same seed, and the tests are paired. Test mini-batches or epochs of one run are no repetitions: nothing
here pools them.
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
#: Level of all tests, after correction; intervals hold with 1 - LEVEL.
LEVEL: Final = 0.05
_DIGITS: Final = 9  # decimals of a difference; what lies beyond is the rounding of the subtraction
_Key = TypeVar("_Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Values over seeds: how many, mean, standard deviation (n - 1) and Student's t-interval of the mean.

    ``sd``, ``low`` and ``high`` are None for fewer than 2 values, ``mean`` for none.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Paired:
    """The differences (value minus reference on the same seed), and two tests on their mean.

    Attributes:
        n: number of pairs.
        lost: pairs of which one run has no value (it diverged); with any the verdict is "undecided", because the
            remaining pairs are those that went well.
        difference: mean, standard deviation and t-interval of the differences.
        p_difference: of the two-sided test of a mean of 0; None with fewer than 2 pairs.
        p_equivalence: of the two one-sided tests (TOST) of a mean outside the margin; None with fewer than 2 pairs.
        identical: whether the runs are known to be the same, bit for bit, on every seed.
        adjusted_difference, adjusted_equivalence: after Holm's correction over the family, see :func:`judge`; the plain
            ones for identical runs, which are no part of it; None where nothing can be concluded.
        family: number of tests in the family.
        verdict: "differs": the mean is not 0 (whatever its size: the interval tells). "equivalent": it is within the
            margin, and a difference from 0 is not shown. "undecided": all else.
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
    """Mean, standard deviation and t-interval of finite values, one per seed.

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
    if len(set(numbers)) == 1:  # exactly: rounding in the mean would give identical runs a spread of an ulp
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
    """Compares values with a reference on the same seeds (same order); without correction and verdict: see :func:`judge`.

    The tests are Student's t on the differences, by scipy. Differences without any spread (which may all be 0) have no t:
    the exact sign test takes its place. That holds for identical runs too: the seed is the unit, and that a few seeds met
    no kink says little about the next one.

    Args:
        values, reference: one number per seed, None or not finite where the run has none.
        margin: half-width of the range that counts as equivalent, in the unit of the values.
        level: for the interval.
        same_run: whether every value is known to come from the very run of its reference, bit for bit; for the table, the
            test is the same.

    Raises:
        StatisticsError: for sequences of different length, a margin that is not positive, or different values of the same
            run.
    """
    if len(values) != len(reference):
        raise StatisticsError(
            f"paired: {len(values)} values against {len(reference)}; give one of each per seed, None if missing"
        )
    if not margin > 0:
        raise StatisticsError(f"paired: margin={margin!r}; nothing is equivalent within it, pass a positive number")
    pairs = [(a, b) for a, b in zip(values, reference, strict=True) if _finite(a) and _finite(b)]
    # 97.3 - 97.2 and 97.5 - 97.4 are one difference; one image of 10,000 is 0.01 points
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
    """p of a difference and of equivalence, for ``count`` equal differences, by the exact sign test."""
    require("a test or interval of a mean", "scipy")
    from scipy import stats

    two_sided = stats.binomtest(count, count).pvalue if constant else 1.0
    inside = stats.binomtest(count, count, alternative="greater").pvalue if abs(constant) < margin else 1.0
    return float(two_sided), float(inside)


def judge(comparisons: Mapping[_Key, Paired], level: float = LEVEL) -> dict[_Key, Paired]:
    """The same comparisons with p-values corrected for their number (Holm, per question) and a verdict each.

    The family is every comparison handed over that tests something: all subgradients, arithmetics and rules that are read
    side by side. Fewer than 2 pairs and lost runs conclude nothing; they do not count, and stay undecided. Identical runs
    do not count either: they are one event (no seed met a kink) however many subgradients and rules share it; their own p,
    of the exact sign test, decides whether the seeds are enough.
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
