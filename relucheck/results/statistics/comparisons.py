"""Paired comparisons of subgradients with s = 0, and the verdicts on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

from relucheck.results.holm import StatisticsError, holm
from relucheck.results.proportions import interval
from relucheck.results.statistics.means import LEVEL, MARGIN, Summary, beyond, difference, has_value, summarise, within

Verdict = Literal["differs", "equivalent", "identical", "undecided"]
_Key = TypeVar("_Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Paired:
    """Paired differences (value minus reference on the same seed), and two tests of their mean.

    Attributes:
        n: the number of pairs.
        lost: the number of seeds on which one of the two runs has no value, because it diverged. With any such seed the
            verdict is "undecided": the remaining seeds would be a biased selection.
        difference: the mean, standard deviation and t-interval of the differences.
        p_difference: the p-value of the two-sided test that the mean is 0; None with fewer than 2 pairs, and for identical
            runs.
        p_equivalence: the p-value of the two one-sided tests (TOST) that the mean lies outside the margin; None with fewer
            than 2 pairs, and for identical runs.
        identical: whether both runs are known to be bitwise identical on every seed.
        differs_at_most: for identical runs, the upper bound of the share of all seeds on which the two runs differ
            (Clopper-Pearson); None for others, and if a seed is lost.
        adjusted_difference: ``p_difference`` after Holm's correction, see ``judge``. None if nothing is tested.
        adjusted_equivalence: ``p_equivalence`` after Holm's correction, in the same way.
        family: the number of comparisons over which the p-values are corrected.
        verdict: "identical" for identical runs without a lost seed, however few they are: it says what was seen, and
            ``differs_at_most`` what follows from it. "differs" if the mean is significantly different from 0, whatever its
            size, which the interval shows; "equivalent" if it is significantly within the margin and not significantly
            different from 0; else "undecided".
    """

    n: int
    lost: int
    difference: Summary
    p_difference: float | None
    p_equivalence: float | None
    identical: bool
    differs_at_most: float | None = None
    adjusted_difference: float | None = None
    adjusted_equivalence: float | None = None
    family: int = 1
    verdict: Verdict = "undecided"


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
    are equal (they may all be 0), the t-test is undefined, and the exact sign test takes its place. Runs that are known to
    be bitwise identical are not tested. Their differences are 0 because no kink changed a run, and a test would take the
    seeds on which one does for impossible. What n identical seeds bound is the share of such seeds.

    Args:
        values: one number per seed; None, NaN or infinity if the run has no value.
        reference: the same of the reference, in the same order of seeds.
        margin: the half-width of the range that counts as equivalent, in the unit of the values.
        level: the interval of the difference, and that of the share of seeds, have the confidence 1 - level.
        same_run: whether the runs of both are known to be bitwise identical on every seed.

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
    differences = [difference(a, b) for a, b in zip(values, reference, strict=True) if has_value(a) and has_value(b)]
    count, lost = len(differences), len(values) - len(differences)
    summary = summarise(differences, level)
    if same_run and any(differences):
        raise StatisticsError(
            f"paired: same_run=True with differences {differences}; runs that are the same have the same values"
        )
    if same_run and count:
        bound = None if lost else interval(0, count, 1 - level).high
        return Paired(count, lost, summary, None, None, identical=True, differs_at_most=bound)
    if count < 2:
        return Paired(count, lost, summary, None, None, identical=False)
    tests = beyond(summary, 0.0, 0.0), within(summary, -margin, margin)
    return Paired(count, lost, summary, *tests, identical=False)


def judge(comparisons: Mapping[_Key, Paired], level: float = LEVEL) -> dict[_Key, Paired]:
    """Correct the p-values of several comparisons by Holm's method, and give the verdicts.

    Tests of difference and tests of equivalence are corrected separately. The family is all comparisons passed here: all
    subgradients, arithmetics and rules that a reader sees side by side. Comparisons with fewer than 2 pairs, with lost
    runs, or of identical runs test nothing. They do not count in the family.

    Args:
        comparisons: results of ``paired``, by any key.
        level: the significance level.

    Returns:
        The same keys, with the fields ``adjusted_difference``, ``adjusted_equivalence``, ``family`` and ``verdict`` set.
    """
    tested = [key for key, result in comparisons.items() if result.p_difference is not None and not result.lost]
    difference = dict(zip(tested, holm([_p(comparisons[key].p_difference) for key in tested]), strict=True))
    equivalence = dict(zip(tested, holm([_p(comparisons[key].p_equivalence) for key in tested]), strict=True))
    judged = {}
    for key, result in comparisons.items():
        verdict: Verdict = "undecided"
        if result.identical and not result.lost:
            verdict = "identical"
        elif key in difference and difference[key] < level:
            verdict = "differs"
        elif key in equivalence and equivalence[key] < level:
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
