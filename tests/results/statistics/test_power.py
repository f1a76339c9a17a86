"""The difference that a number of seeds can show, against the number of seeds that a difference takes."""

from __future__ import annotations

import math

import pytest

from relucheck.results.holm import StatisticsError
from relucheck.results.statistics import difference_for_power, seeds_for_power


@pytest.mark.parametrize(("sd", "seeds"), [(0.3, 5), (1.0, 12), (2.5, 40)])
def test_the_difference_for_a_power_is_that_of_the_number_of_seeds(sd: float, seeds: int) -> None:
    """With a slightly larger true difference so many seeds are enough, with a slightly smaller one they are not."""
    found = difference_for_power(sd, seeds)
    assert seeds_for_power(sd, 1.005 * found) <= seeds < seeds_for_power(sd, 0.995 * found)
    assert difference_for_power(2 * sd, seeds) == pytest.approx(2 * found)
    assert difference_for_power(0.0, seeds) == 0


@pytest.mark.parametrize(
    ("sd", "seeds", "power"), [(-1.0, 5, 0.8), (math.inf, 5, 0.8), (1.0, 1, 0.8), (1.0, 5, 0.01), (1.0, 5, 1.0)]
)
def test_bad_input_of_a_difference_for_power(sd: float, seeds: int, power: float) -> None:
    with pytest.raises(StatisticsError, match="difference_for_power: sd="):
        difference_for_power(sd, seeds, power)
