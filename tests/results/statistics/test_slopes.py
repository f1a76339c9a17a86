"""The slope of a rate: known ones, an independent maximum, few counts, and bad input."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from scipy import optimize

from relucheck.results.holm import StatisticsError
from relucheck.results.statistics import rate_slope


def test_a_constant_rate_has_no_slope() -> None:
    assert rate_slope([50] * 6, [1e6] * 6) == pytest.approx(0.0, abs=1e-9)
    assert rate_slope([5000, 10_000, 20_000], [1e6, 2e6, 4e6]) == pytest.approx(0.0, abs=1e-3), "exposure counts"


def test_a_geometric_series_has_the_slope_of_its_factor() -> None:
    many = [round(1e7 * 1.1**epoch) for epoch in range(10)]
    assert rate_slope(many, [1e9] * 10) == pytest.approx(math.log(1.1), abs=1e-6)
    assert rate_slope([many[0], many[1], many[9]], [1.0] * 3, [1, 2, 10]) == pytest.approx(math.log(1.1), abs=1e-6)


def _penalised(counts: Sequence[int], exposures: Sequence[float], a: float, b: float) -> float:
    """Firth's penalised log-likelihood, as its definition has it."""
    means = [size * math.exp(a + b * epoch) for epoch, size in enumerate(exposures, 1)]
    likelihood = sum(count * math.log(mean) - mean for count, mean in zip(counts, means, strict=True))
    moments = [sum(mean * epoch**power for epoch, mean in enumerate(means, 1)) for power in range(3)]
    return likelihood + 0.5 * math.log(moments[0] * moments[2] - moments[1] ** 2)


@pytest.mark.parametrize("counts", [[5, 2, 0, 1], [0, 0, 3], [40, 10, 12, 3, 0, 1], [1, 0, 0, 0, 0]])
def test_it_is_where_the_penalised_likelihood_is_largest(counts: list[int]) -> None:
    exposures = [1.0 + 0.1 * place for place in range(len(counts))]
    found = optimize.minimize(
        lambda at: -_penalised(counts, exposures, at[0], at[1]),
        [0.0, 0.0],
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-13, "maxiter": 10_000},
    )
    assert rate_slope(counts, exposures) == pytest.approx(found.x[1], abs=1e-5)


@pytest.mark.parametrize("counts", [[10**6, 1, 0, 0], [0] * 29 + [100_000], [1, 0] * 15, [3, 0], [0, 1]])
def test_it_is_finite_wherever_the_counts_lie(counts: list[int]) -> None:
    slope = rate_slope(counts, [1.0] * len(counts))
    assert slope is not None
    assert math.isfinite(slope)


def _poisson(draw: random.Random, mean: float) -> int:
    count, product = 0, draw.random()
    while product > math.exp(-mean):
        count, product = count + 1, product * draw.random()
    return count


@pytest.mark.parametrize("true", [0.0, 0.2, -0.3])
def test_few_counts_do_not_bias_it(true: float) -> None:
    """About two counts an epoch; the mean of 1,000 slopes has a standard error of about 0.003."""
    draw, found = random.Random(1), []
    for _ in range(1000):
        counts = [_poisson(draw, 2 * math.exp(true * (epoch - 5.5))) for epoch in range(1, 11)]
        slope = rate_slope(counts, [1.0] * 10)
        if slope is not None:
            found.append(slope)
    assert len(found) > 990
    assert sum(found) / len(found) == pytest.approx(true, abs=0.012)


def test_no_count_has_no_slope() -> None:
    assert rate_slope([0, 0, 0], [1.0] * 3) is None


@pytest.mark.parametrize(
    ("counts", "exposures", "epochs", "says"),
    [
        ([1], [1.0], None, "1 counts, 1 exposures, 1 different epochs"),
        ([1, 2], [1.0], None, "2 counts, 1 exposures"),
        ([1, 2], [1.0, 1.0], [3, 3], "1 different epochs; give one of each for at least 2"),
        ([1, -2], [1.0, 1.0], None, "a count is at least 0"),
        ([1, 2], [1.0, 0.0], None, "an exposure above 0"),
        ([1, 2], [1.0, math.nan], None, "an exposure above 0"),
    ],
)
def test_bad_input(counts: list[int], exposures: list[float], epochs: list[float] | None, says: str) -> None:
    with pytest.raises(StatisticsError, match=says):
        rate_slope(counts, exposures, epochs)
