"""What nudges say of a subgradient: the effect beyond theirs, and the band of one more."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from relucheck.results.holm import StatisticsError
from relucheck.results.statistics.comparisons import Paired, paired
from relucheck.results.statistics.means import LEVEL, MARGIN, Summary, has_value, student


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
    means = [mean_of_all(group) for _, group in live]
    return BeyondChaos(paired([value for value, _ in live], means, margin, level), len(values) - len(live))


def beyond_in_these_seeds(
    values: Sequence[float | None],
    nudges: Sequence[Sequence[float | None] | None],
    margin: float = MARGIN,
    level: float = LEVEL,
) -> BeyondChaos:
    """Compare a member with the nudges of the same seeds, for these seeds alone.

    ``beyond_chaos`` asks what a subgradient does in any seed, for which three seeds are few. This asks whether the runs
    that were made are like nudges. It says nothing about other seeds.

    Each seed gives the member's number minus the mean of its k nudges. If the subgradient does what a nudge does, the k + 1
    runs of a seed are independent draws from one distribution. It is assumed to be normal, with a mean of the seed's own
    and the same variance in every seed. This variance is estimated by that of the nudges within their seeds, W, with the
    sum of k - 1 degrees of freedom. The mean over n seeds then has the standard error √(W Σ(1 + 1/k)) / n, and is tested by
    Student's t. In the result, ``sd`` is this standard error times √n.

    Args:
        values, nudges, margin, level: as for ``beyond_chaos``.

    Returns:
        The same as ``beyond_chaos``. The p-values are None without two nudges in a seed, and if the nudges of each seed
        have one number.

    Raises:
        StatisticsError: as for ``beyond_chaos``.
    """
    found = beyond_chaos(values, nudges, margin, level)
    live = [(value, group) for value, group in zip(values, nudges, strict=True) if group is not None]
    groups = [
        [float(one) for one in group if has_value(one)]
        for value, group in live
        if has_value(value) and mean_of_all(group) is not None
    ]
    freedom, mean = sum(len(group) - 1 for group in groups), found.paired.difference.mean
    means = [math.fsum(group) / len(group) for group in groups]
    squares = math.fsum((one - middle) ** 2 for group, middle in zip(groups, means, strict=True) for one in group)
    if mean is None or not freedom or not squares:
        bare = Summary(found.paired.n, mean, None, None, None)
        untested = dataclasses.replace(found.paired, difference=bare, p_difference=None, p_equivalence=None)
        return dataclasses.replace(found, paired=untested)
    seeds = len(groups)
    error = math.sqrt(squares / freedom * math.fsum(1 + 1 / len(group) for group in groups)) / seeds
    cumulative, quantile = student()
    half = float(quantile(freedom, 1 - level / 2)) * error
    difference = Summary(seeds, mean, error * math.sqrt(seeds), mean - half, mean + half)
    apart = min(1.0, 2 * float(cumulative(freedom, -abs(mean) / error)))
    like = float(cumulative(freedom, (abs(mean) - margin) / error))
    tested = dataclasses.replace(found.paired, difference=difference, p_difference=apart, p_equivalence=like)
    return dataclasses.replace(found, paired=tested)


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean of values, or None without values or if one is missing."""
    numbers = [float(value) for value in values if has_value(value)]
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
    _, quantile = student()
    seeds = len(numbers)
    means = [math.fsum(group) / len(group) for group in numbers]
    middle = math.fsum(means) / seeds
    between = math.fsum((mean - middle) ** 2 for mean in means) / (seeds - 1)
    inside = sum(len(group) - 1 for group in numbers)
    squares = [math.fsum((x - mean) ** 2 for x in group) for group, mean in zip(numbers, means, strict=True)]
    share = 1 - math.fsum(1 / len(group) for group in numbers) / seeds
    within = share * math.fsum(squares) / inside if inside else 0.0
    half = float(quantile(seeds - 1, 1 - level / 2)) * math.sqrt(between + within + between / seeds)
    return middle - half, middle + half
