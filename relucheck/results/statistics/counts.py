"""Whether published counts could be one more run of a way to compute.

A *candidate* is a way to compute. It was run with several seeds, and each run gives a count in each of several cells (a
cell is, for example, one epoch of one training run). A publication gives one count in each cell, from one run. If the
candidate is what the publication ran, then the published counts are one more draw of the same kind.

The model of a cell is the negative binomial distribution: counts vary from seed to seed more than Poisson's distribution
allows. Its mean is the mean over the seeds. Its relative variance beyond Poisson's is the same in all cells of a series (a
series is one training run). Cells of one seed are not independent. The likelihood treats them as if they were, so it only
ranks candidates. The test ``surprise`` does not need independence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from relucheck.extras import require
from relucheck.results.holm import StatisticsError

Floats = npt.NDArray[np.float64]
#: The mean of a cell in which no seed has a count is taken to be that of half a count in all.
_HALF: Final = 0.5


@dataclasses.dataclass(frozen=True)
class Published:
    """Published counts of one run.

    Attributes:
        low: for each cell the count, or its lower bound.
        high: for each cell the count, or its upper bound.
        series: for each cell a label; cells with one label have the same relative variance.
    """

    low: Sequence[int]
    high: Sequence[int]
    series: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.series) > 0:
            raise StatisticsError(
                f"published counts: {len(self.low)} lower bounds, {len(self.high)} upper bounds and {len(self.series)} "
                "series; give one of each per cell, and at least one cell"
            )
        if any(not 0 <= low <= high for low, high in zip(self.low, self.high, strict=True)):
            raise StatisticsError(f"published counts: bounds {self.low} and {self.high}; need 0 <= low <= high")

    def nearest(self, counts: Floats) -> Floats:
        """One count for each cell: the published one, or one within its bounds.

        Within bounds it is the count nearest to the mean of the others. This favours the hypothesis that the published run
        is one of them.
        """
        return np.clip(np.rint(counts.mean(0)), self.low, self.high)


def _model(counts: Floats, series: Sequence[str]) -> tuple[Floats, Floats]:
    """Means and variances of one more count in each cell, given counts [seeds, cells]."""
    seeds = len(counts)
    mean = np.maximum(counts.mean(0), _HALF / seeds)
    excess = counts.var(0, ddof=1) - mean
    relative = np.empty_like(mean)
    names = np.asarray(series)
    for name in dict.fromkeys(series):
        own = names == name
        # moments, pooled over the cells of the series; below 0 the counts vary no more than Poisson's
        relative[own] = max(0.0, float(excess[own].sum() / (mean[own] ** 2).sum()))
    return mean, (mean + relative * mean**2) * (1 + 1 / seeds)  # 1 / seeds: the mean itself is estimated


def _log_probability(low: Floats, high: Floats, mean: Floats, variance: Floats) -> float:
    require("the likelihood of counts", "scipy")
    from scipy import stats

    size, chance = mean**2 / (variance - mean), mean / variance
    exact = low == high
    logs = stats.nbinom.logpmf(np.rint(low), size, chance)
    if not exact.all():
        between = stats.nbinom.cdf(high, size, chance) - stats.nbinom.cdf(low - 1, size, chance)
        logs = np.where(exact, logs, np.log(np.maximum(between, np.finfo(float).tiny)))
    return float(logs.sum())


def log_likelihood(published: Published, counts: Sequence[Sequence[int]]) -> float:
    """The logarithm of the probability of the published counts, given a candidate's counts.

    Args:
        published: what is to be explained.
        counts: the candidate's counts, [seeds, cells].

    Raises:
        StatisticsError: for fewer than 2 seeds, or another number of cells.
    """
    array = _checked(published, counts)
    return _log_probability(
        np.asarray(published.low, float), np.asarray(published.high, float), *_model(array, published.series)
    )


def surprise(published: Published, counts: Sequence[Sequence[int]]) -> float:
    """The p-value of the hypothesis that the published run is one more run of the candidate.

    This is a permutation test. Each of the n + 1 runs (the candidate's and the published one) is left out in turn, and its
    likelihood under the model of the n others is computed. If the hypothesis is true, the published run is as likely as
    any other to have the lowest likelihood, whatever the distribution of the counts and however cells depend on each other.
    The p-value is the share of runs whose likelihood is at most that of the published one. So it is at least 1 / (n + 1).
    Where a published count is known by bounds only, the count within them that is nearest to the candidate's mean is used,
    which makes the p-value larger.

    Source: G. Shafer, V. Vovk, A Tutorial on Conformal Prediction, Journal of Machine Learning Research 9 (2008).

    Raises:
        StatisticsError: as for ``log_likelihood``.
    """
    array = _checked(published, counts)
    values = _left_out(published, np.vstack([published.nearest(array), array]))
    return sum(value <= values[0] + 1e-9 * abs(values[0]) for value in values) / len(values)


def deviation(published: Published, counts: Sequence[Sequence[int]]) -> float:
    """How far the published run lies below the candidate's runs, in standard deviations.

    Both are measured by their log-likelihoods. It tells candidates apart that ``surprise`` rejects alike. Each of the
    candidate's runs is compared with the model of the others.

    Raises:
        StatisticsError: for fewer than 3 seeds, or another number of cells.
    """
    array = _checked(published, counts, least=3)
    own, nearest = _left_out(published, array), published.nearest(array)
    spread = float(np.std(own, ddof=1)) * math.sqrt(1 + 1 / len(own))
    below = float(np.mean(own)) - _log_probability(nearest, nearest, *_model(array, published.series))
    return below / spread if spread else math.inf * below if below else 0.0


def _left_out(published: Published, runs: Floats) -> list[float]:
    """The likelihood of each run [runs, cells] under the model of the others."""
    return [
        _log_probability(run, run, *_model(np.delete(runs, place, 0), published.series)) for place, run in enumerate(runs)
    ]


def best_shares(
    published: Published, candidates: Sequence[Sequence[Sequence[int]]], *, resamples: int = 1000, seed: int = 0
) -> list[float]:
    """The share of bootstrap samples in which each candidate is the likeliest.

    Seeds are drawn with replacement, for each candidate by itself, because candidates may have different seeds. Two
    candidates that both have a share of some size are not told apart by the published counts.

    Args:
        published: what is to be explained.
        candidates: of each candidate, counts [seeds, cells].
        resamples: the number of bootstrap samples.
        seed: of the random generator.

    Raises:
        StatisticsError: as for ``log_likelihood``.
    """
    random = np.random.default_rng(seed)
    arrays = [_checked(published, counts) for counts in candidates]
    low, high = np.asarray(published.low, float), np.asarray(published.high, float)
    wins = np.zeros(len(arrays))
    for _ in range(resamples):
        values = []
        for array in arrays:
            drawn = array[random.integers(len(array), size=len(array))]
            values.append(_log_probability(low, high, *_model(drawn, published.series)))
        wins[int(np.argmax(values))] += 1
    return [float(share) for share in wins / resamples]


def _checked(published: Published, counts: Sequence[Sequence[int]], least: int = 2) -> Floats:
    array = np.asarray(counts, dtype=float)
    if array.ndim != 2 or len(array) < least or array.shape[1] != len(published.low):
        raise StatisticsError(
            f"counts of shape {array.shape} for {len(published.low)} cells; give [seeds, cells] with at least {least} seeds"
        )
    return array
