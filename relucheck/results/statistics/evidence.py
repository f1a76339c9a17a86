"""Rules that decide whether results over seeds confirm a published claim.

Each rule returns the evidence for the claim and against it, as two p-values. ``decide`` corrects them over a family of
claims and gives the verdicts. A verdict is wrong if it is "confirmed" and the claim is false, or "refuted" and the claim is
true. Each of these has at most the probability of the level; what is neither is "undecided". The t-tests among the rules
assume that the noise over seeds is not too skewed. docs/statistics.md has the simulated error rates.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

from relucheck.results.holm import StatisticsError, holm
from relucheck.results.proportions import interval
from relucheck.results.statistics.means import (
    LEVEL,
    MARGIN,
    Summary,
    above,
    below,
    beyond,
    difference,
    has_value,
    summarise,
    within,
)

#: The words for what results say of a published claim or figure; docs/glossary.md explains them.
Outcome = Literal["confirmed", "refuted", "undecided", "not run"]
_Key = TypeVar("_Key", bound=Hashable)
_Values = Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the seeds say for a published claim, and against it.

    Attributes:
        n: the number of seeds (for ``without_exception``, of cases) that were tested.
        lost: the number of seeds on which a run has no value, because it diverged.
        estimate: of the quantity that the rule tests.
        p_for: the p-value of the test that the claim is false; None if nothing is tested: with fewer than 2 seeds, or with
            lost ones, which would leave a biased selection.
        p_against: the p-value of the test that the claim is true; None in the same cases.
        adjusted_for: ``p_for`` after Holm's correction, see ``decide``; None if nothing is tested.
        adjusted_against: ``p_against`` after Holm's correction, in the same way.
        family: the number of claims over which the p-values are corrected.
        verdict: "confirmed" or "refuted" if the evidence for the claim or against it is significant. Otherwise "undecided",
            and always so with a lost seed or a single one; "not run" without any.
    """

    n: int
    lost: int
    estimate: Summary
    p_for: float | None
    p_against: float | None
    adjusted_for: float | None = None
    adjusted_against: float | None = None
    family: int = 1
    verdict: Outcome = "undecided"


def decide(evidence: Mapping[_Key, Evidence], level: float = LEVEL) -> dict[_Key, Evidence]:
    """Correct the p-values of several claims by Holm's method, and give the verdicts.

    Tests for claims and tests against them are corrected separately. The family is all claims passed here: those of one
    kind that a reader sees side by side. Claims that were not tested do not count in it.

    Args:
        evidence: results of the rules of this module, by any key.
        level: the significance level.

    Returns:
        The same keys, with the fields ``adjusted_for``, ``adjusted_against``, ``family`` and ``verdict`` set.
    """
    p_for = {key: found.p_for for key, found in evidence.items() if found.p_for is not None}
    p_against = {key: found.p_against for key, found in evidence.items() if found.p_against is not None}
    support = dict(zip(p_for, holm(list(p_for.values())), strict=True))
    refutal = dict(zip(p_against, holm(list(p_against.values())), strict=True))
    decided = {}
    for key, found in evidence.items():
        verdict: Outcome = "undecided"
        if key in support:
            verdict = "confirmed" if support[key] < level else "refuted" if refutal[key] < level else "undecided"
        elif not found.n and not found.lost:
            verdict = "not run"
        decided[key] = dataclasses.replace(
            found,
            adjusted_for=support.get(key),
            adjusted_against=refutal.get(key),
            family=len(support),
            verdict=verdict,
        )
    return decided


# ---------------------------------------------------------------- rules


def near(values: _Values, published: float, reading: float, margin: float, level: float = LEVEL) -> Evidence:
    """The claim that the mean over seeds is a published value, to within a margin.

    The published value is known to within an error of reading, so the claim is tested for each value that it may be. The
    test for the claim shows that the mean is within ``margin - reading`` of the value read (two one-sided t-tests, TOST).
    The test against it shows that the mean is further away than ``margin + reading``. The distance from a published value
    of one run also holds the chance of that run, for which the margin has to leave room.

    An overlap of intervals is no such test: the fewer the seeds, the wider the interval, and the more often it overlaps.

    Args:
        values: one number per seed; None, NaN or infinity if the run diverged.
        published: the value read.
        reading: the largest error of reading, in the unit of the values.
        margin: the largest distance that counts as agreement, stated before the runs; larger than ``reading``.
        level: the interval of the estimate has the confidence 1 - level.

    Returns:
        Evidence whose estimate is that of the values.

    Raises:
        StatisticsError: unless 0 <= reading < margin.
    """
    if not 0 <= reading < margin:
        raise StatisticsError(
            f"near: reading={reading!r}, margin={margin!r}; with such an error of reading nothing can agree, pass a margin "
            "that is larger"
        )
    known = [float(value) for value in values if has_value(value)]
    lost, summary = len(values) - len(known), summarise(known, level)
    if len(known) < 2 or lost:
        return Evidence(len(known), lost, summary, None, None)
    inner, outer = margin - reading, margin + reading
    return Evidence(
        len(known),
        lost,
        summary,
        within(summary, published - inner, published + inner),
        beyond(summary, published - outer, published + outer),
    )


def larger(values: _Values, reference: _Values, level: float = LEVEL) -> Evidence:
    """The claim that values are larger than a reference on more than half of all seeds.

    The test is the exact sign test, which needs no assumption on the distribution. It is for quantities of any scale, such
    as distances of weights, where one seed can outweigh all others in a mean. A tie counts against both directions. It
    takes 5 seeds to decide.

    Args:
        values: one number per seed; None, NaN or infinity if the run diverged.
        reference: the same of the reference, in the same order of seeds.
        level: the interval of the estimate has the confidence 1 - level.

    Returns:
        Evidence whose estimate is that of the differences.

    Raises:
        StatisticsError: for sequences of different length.
    """
    rows, lost = _complete("larger", (reference, values))
    differences = [difference(high, low) for low, high in rows]
    summary = summarise(differences, level)
    if len(rows) < 2 or lost:
        return Evidence(len(rows), lost, summary, None, None)
    higher, lower = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Evidence(len(rows), lost, summary, _half_or_fewer(higher, len(rows)), _half_or_fewer(lower, len(rows)))


def _half_or_fewer(count: int, cases: int) -> float:
    """The probability of at least so many cases if each has the probability 1/2."""
    return sum(math.comb(cases, many) for many in range(count, cases + 1)) / 2**cases


def grows(levels: Sequence[_Values], margin: float = MARGIN, level: float = LEVEL) -> Evidence:
    """The claim that each step up raises the mean, and that all together reach a margin.

    The levels are subgradients in increasing order, for example. The tests are paired t-tests on the differences of
    neighbours and on the rise from the first level to the last. The test for the claim needs every one of them to be
    significant: that each step rises, and that the whole rise exceeds the margin. Because all of them are needed, this
    intersection-union test has the level of a single one. The test against the claim needs one of them, that some step
    falls or that the whole rise stays below the margin, so it is corrected by their number (Bonferroni).

    A slope, a rank correlation or Page's trend test asks for less: values that differ from the first level, but not among
    each other, have an upward trend, too. With two levels, this is a one-sided paired t-test.

    Source: R. L. Berger, Multiparameter hypothesis testing and acceptance sampling, Technometrics 24 (1982) 295-300.

    Args:
        levels: for each level one number per seed, in the same order of seeds; None, NaN or infinity if a run diverged.
        margin: the smallest rise that counts, in the unit of the values; at least 0.
        level: the interval of the estimate has the confidence 1 - level.

    Returns:
        Evidence whose estimate is that of the rise from the first level to the last.

    Raises:
        StatisticsError: with fewer than 2 levels, levels of different length, or a negative margin.
    """
    rows, lost = _complete("grows", levels)
    _check_margin("grows", margin)
    rise = summarise([difference(row[-1], row[0]) for row in rows], level)
    if len(rows) < 2 or lost:
        return Evidence(len(rows), lost, rise, None, None)
    steps = [
        summarise([difference(row[upper], row[lower]) for row in rows])
        for lower, upper in itertools.pairwise(range(len(levels)))
    ]
    up = max(above(rise, margin), *(above(step, 0.0) for step in steps))
    down = min(below(rise, margin), *(below(step, 0.0) for step in steps))
    return Evidence(len(rows), lost, rise, up, min(1.0, (len(steps) + 1) * down))


def spread_grows(levels: Sequence[_Values], at: Sequence[float], margin: float = MARGIN, level: float = LEVEL) -> Evidence:
    """The claim that the spread over seeds grows with the level, by at least a margin.

    The spread is the mean absolute deviation from the median of the level, as in the test of Brown and Forsythe. A straight
    line is fitted to the deviations of each seed by least squares, and the t-test over the seeds is on its rise from the
    first level to the last. So runs with one seed may depend on each other. The deviations of n seeds are multiplied by
    n / (n - 1), because the median of so few values lies nearer to them than the true one. They are skewed, so both tests
    are those of a two-sided one, which leaves half of the level to each side.

    This is a test of trend, unlike ``grows``: a test of each step would take several times as many seeds.

    Source: M. B. Brown, A. B. Forsythe, Robust tests for the equality of variances, Journal of the American Statistical
    Association 69 (1974) 364-367.

    Args:
        levels: for each level one number per seed, in the same order of seeds; None, NaN or infinity if a run diverged.
        at: the position of each level, in increasing order, for example the subgradients.
        margin: the smallest rise that counts, in the unit of the values; at least 0.
        level: the interval of the estimate has the confidence 1 - level.

    Returns:
        Evidence whose estimate is that of the rise of the absolute deviation.

    Raises:
        StatisticsError: with fewer than 2 levels, levels of different length, positions that are not one for each level
            in increasing order, or a negative margin.
    """
    rows, lost = _complete("spread_grows", levels)
    _check_margin("spread_grows", margin)
    if len(at) != len(levels) or not all(low < high for low, high in itertools.pairwise(at)):
        raise StatisticsError(f"spread_grows: at={list(at)}; give a position for each level, in increasing order")
    count = len(rows)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    centre = math.fsum(at) / len(at)
    scale = (at[-1] - at[0]) / math.fsum((position - centre) ** 2 for position in at) * count / max(count - 1, 1)
    weights = [scale * (position - centre) for position in at]
    rises = [
        math.fsum(weight * abs(value - median) for weight, value, median in zip(weights, row, medians, strict=True))
        for row in rows
    ]
    rise = summarise([difference(one, 0.0) for one in rises], level)
    if count < 2 or lost:
        return Evidence(count, lost, rise, None, None)
    return Evidence(count, lost, rise, min(1.0, 2 * above(rise, margin)), min(1.0, 2 * below(rise, margin)))


def without_exception(exceptions: int, cases: int, most: float = 0.5, level: float = LEVEL) -> Evidence:
    """The claim that something always holds, by counts of cases.

    A single exception contradicts the claim. Cases without exception do not prove it; they bound the share of exceptions.
    The test for the claim is the exact binomial test that this share is less than ``most``.

    Args:
        exceptions: the number of cases in which it does not hold.
        cases: the number of cases.
        most: the share of exceptions that has to be excluded to confirm the claim; 0.5 takes 5 cases, 0.2 takes 14.
        level: the interval of the estimate has the confidence 1 - level.

    Returns:
        Evidence whose estimate is the share of exceptions with its Clopper-Pearson interval.

    Raises:
        StatisticsError: unless 0 < most < 1.
        ProportionError: unless 0 <= exceptions <= cases.
    """
    if not 0 < most < 1:
        raise StatisticsError(f"without_exception: most={most!r}; pass a share between 0 and 1")
    if not cases:
        return Evidence(0, 0, summarise([]), None, None)
    share = interval(exceptions, cases, 1 - level)
    estimate = Summary(cases, exceptions / cases, None, share.low, share.high)
    if exceptions:
        return Evidence(cases, 0, estimate, 1.0, 0.0)
    if cases < 2:
        return Evidence(cases, 0, estimate, None, None)
    return Evidence(cases, 0, estimate, (1 - most) ** cases, 1.0)


def _complete(rule: str, levels: Sequence[_Values]) -> tuple[list[list[float]], int]:
    """The values of each seed that has all of them, and the number of other seeds."""
    if len(levels) < 2 or len({len(values) for values in levels}) > 1:
        raise StatisticsError(
            f"{rule}: levels with {[len(values) for values in levels]} values; give at least 2 levels with one value per "
            "seed each, None if missing"
        )
    seeds = list(zip(*levels, strict=True))
    rows = [[float(value) for value in seed if has_value(value)] for seed in seeds]
    complete = [row for row in rows if len(row) == len(levels)]
    return complete, len(seeds) - len(complete)


def _check_margin(rule: str, margin: float) -> None:
    if not margin >= 0:
        raise StatisticsError(f"{rule}: margin={margin!r}; pass a number of at least 0")
