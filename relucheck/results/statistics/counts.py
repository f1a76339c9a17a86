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
import functools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relucheck.extras import require
from relucheck.results.holm import StatisticsError
from relucheck.results.statistics.means import LEVEL

Floats = npt.NDArray[np.float64]
#: The mean of a cell in which no seed has a count is taken to be that of half a count in all.
_HALF: Final = 0.5
#: Log-likelihoods that differ by less than this, relatively, are equal. Rounding makes such differences.
_EQUAL: Final = 1e-9
#: The probability with which Student's t exceeds the limit of a deviation.
_FAR: Final = 0.01


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

        Within bounds it is the count nearest to the mean of the candidate's runs [seeds, cells]. This favours the
        hypothesis that the published run is one of them.
        """
        return np.clip(np.rint(counts.mean(0)), self.low, self.high)


def _model(counts: Floats, series: Sequence[str]) -> tuple[Floats, Floats]:
    """Means and variances of one more count in each cell [..., cells], given counts [..., seeds, cells]."""
    seeds = counts.shape[-2]
    mean = np.maximum(counts.mean(-2), _HALF / seeds)
    excess = counts.var(-2, ddof=1) - mean
    relative = np.empty_like(mean)
    names = np.asarray(series)
    for name in dict.fromkeys(series):
        own = names == name
        # moments, pooled over the cells of the series; below 0 the counts vary no more than Poisson's
        pooled = excess[..., own].sum(-1) / (mean[..., own] ** 2).sum(-1)
        relative[..., own] = np.maximum(0.0, pooled)[..., None]
    return mean, (mean + relative * mean**2) * (1 + 1 / seeds)  # 1 / seeds: the mean itself is estimated


def _log_probability(low: Floats, high: Floats, mean: Floats, variance: Floats) -> Floats:
    """The log-likelihood [...] of counts within bounds [..., cells], given means and variances of the cells."""
    require("the likelihood of counts", "scipy")
    from scipy import special  # scipy.stats has the distribution, too: it takes seconds to import and checks each argument

    size, chance = mean**2 / (variance - mean), mean / variance
    # every count within the bounds; exact counts have one
    counts = low[..., None] + np.arange(int((high - low).max()) + 1)
    logs = _negative_binomial(special, counts, size[..., None], chance[..., None])
    if counts.shape[-1] == 1:
        return np.asarray(logs[..., 0].sum(-1))
    within = special.logsumexp(np.where(counts <= high[..., None], logs, -np.inf), axis=-1)
    return np.asarray(within.sum(-1))


def _negative_binomial(special: Any, counts: Floats, size: Floats, chance: Floats) -> Floats:
    """Log-probabilities of counts, with the arithmetic of ``scipy.stats.nbinom.logpmf``; all arguments broadcast."""
    ways = special.gammaln(size + counts) - special.gammaln(counts + 1) - special.gammaln(size)
    return np.asarray(ways + size * np.log(chance) + special.xlog1py(counts, -chance))


def log_likelihood(published: Published, counts: Sequence[Sequence[int]]) -> float:
    """The logarithm of the probability of the published counts, given a candidate's counts.

    Args:
        published: what is to be explained.
        counts: the candidate's counts, [seeds, cells].

    Raises:
        StatisticsError: for fewer than 2 seeds, or another number of cells.
    """
    array = _checked(published, counts)
    return float(_log_probability(*_bounds(published), *_model(array, published.series)))


def surprise(published: Published, counts: Sequence[Sequence[int]]) -> float:
    """The p-value of the hypothesis that the published run is one more run of the candidate.

    This is a permutation test. Each of the n + 1 runs (the candidate's and the published one) is left out in turn, and its
    likelihood under the model of the n others is computed. If the hypothesis is true, the published run is as likely as
    any other to have the lowest likelihood, whatever the distribution of the counts and however cells depend on each other.
    The p-value is the share of runs whose likelihood is at most that of the published one. So it is at least 1 / (n + 1).
    Where a published count is known by bounds only, the count within them that is nearest to the candidate's mean is used.
    This favours the hypothesis.

    Source: G. Shafer, V. Vovk, A Tutorial on Conformal Prediction, Journal of Machine Learning Research 9 (2008).

    Raises:
        StatisticsError: as for ``log_likelihood``.
    """
    array = _checked(published, counts)
    values = _left_out(published, np.vstack([published.nearest(array), array]))
    return float(np.mean(values <= values[0] + _EQUAL * abs(values[0])))


def deviation(published: Published, counts: Sequence[Sequence[int]]) -> float:
    """How far the published run lies below the candidate's runs, in standard deviations.

    Runs are measured by their log-likelihoods. That of each of the candidate's runs is computed under the model of the
    others. The standard deviation is that of one more run. The measure tells candidates apart that ``surprise`` rejects
    alike. It is infinite if the candidate's runs all have the same log-likelihood and the published run has a lower one.

    Raises:
        StatisticsError: for fewer than 3 seeds, or another number of cells.
    """
    array = _checked(published, counts, least=3)
    own, nearest = _left_out(published, array), published.nearest(array)
    mean, spread = float(own.mean()), float(own.std(ddof=1)) * math.sqrt(1 + 1 / len(own))
    below = mean - float(_log_probability(nearest, nearest, *_model(array, published.series)))
    if spread > _EQUAL * abs(mean):
        return below / spread
    return math.inf if below > _EQUAL * abs(mean) else 0.0


def plausible(seeds: int, surprise: float, deviation: float) -> bool:
    """Whether published counts do not exclude a candidate.

    With 20 seeds or more the p-value decides, at the level of all tests. With fewer seeds no p-value is below that level.
    Then the deviation decides: it has to be below ``limit``.

    Args:
        seeds: the number of the candidate's runs.
        surprise, deviation: of the functions of these names.
    """
    return surprise >= LEVEL if 1 / (seeds + 1) < LEVEL else deviation < limit(seeds)


@functools.cache
def limit(seeds: int) -> float:
    """The deviation from which on a candidate with few seeds is excluded.

    Student's t exceeds it with a probability of 1 %. Log-likelihoods are skewed, so the true candidate is excluded more
    often, in up to 10 % of simulations.
    """
    require("the likelihood of counts", "scipy")
    from scipy.special import stdtrit

    return float(-stdtrit(seeds - 1, _FAR))


def _left_out(published: Published, runs: Floats) -> Floats:
    """The likelihood of each run [runs, cells] under the model of the others."""
    others = np.array([np.delete(runs, place, 0) for place in range(len(runs))])
    return _log_probability(runs, runs, *_model(others, published.series))


def best_shares(
    published: Published, candidates: Sequence[Sequence[Sequence[int]]], *, resamples: int = 1000, seed: int = 0
) -> list[float]:
    """The share of bootstrap samples in which each candidate is the likeliest.

    Seeds are drawn with replacement, for each candidate by itself, because candidates may have different seeds. Candidates
    that are equally likely in a sample share it. Two candidates that both have a share of some size are not told apart by
    the published counts.

    Args:
        published: what is to be explained.
        candidates: of each candidate, counts [seeds, cells].
        resamples: the number of bootstrap samples.
        seed: of the random generator.

    Raises:
        StatisticsError: as for ``log_likelihood``, and without a candidate.
    """
    if not candidates:
        raise StatisticsError("no candidates; give the counts of at least one")
    random = np.random.default_rng(seed)
    values = []
    for counts in candidates:
        array = _checked(published, counts)
        drawn = array[random.integers(len(array), size=(resamples, len(array)))]
        low, high = (np.broadcast_to(bound, (resamples, len(bound))) for bound in _bounds(published))
        values.append(_log_probability(low, high, *_model(drawn, published.series)))
    table = np.array(values)  # [candidates, resamples]
    highest = table.max(0)
    best = table >= highest - _EQUAL * np.abs(highest)
    return [float(share) for share in (best / best.sum(0)).mean(1)]


def _bounds(published: Published) -> tuple[Floats, Floats]:
    return np.asarray(published.low, float), np.asarray(published.high, float)


def _checked(published: Published, counts: Sequence[Sequence[int]], least: int = 2) -> Floats:
    array = np.asarray(counts, dtype=float)
    if array.ndim != 2 or len(array) < least or array.shape[1] != len(published.low):
        raise StatisticsError(
            f"counts of shape {array.shape} for {len(published.low)} cells; give [seeds, cells] with at least {least} seeds"
        )
    return array
