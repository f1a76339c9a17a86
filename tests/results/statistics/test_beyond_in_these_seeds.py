"""Runs against the nudges of their own seeds: closed form, error rates by simulation, and faults that these find."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from relucheck.results.holm import StatisticsError
from relucheck.results.proportions import interval
from relucheck.results.statistics import BeyondChaos, Paired, Summary, beyond_chaos, beyond_in_these_seeds

Test = Callable[..., BeyondChaos]


def _draw(random: random.Random, effect: float, seeds: int = 3, nudges: int = 5) -> tuple[list[float], list[list[float]]]:
    """Accuracies of a run and of nudges; seeds lie far apart, runs of a seed do not."""
    middles = [random.gauss(97, 1) for _ in range(seeds)]
    values = [random.gauss(middle + effect, 0.1) for middle in middles]
    return values, [[random.gauss(middle, 0.1) for _ in range(nudges)] for middle in middles]


def _rate(test: Test, effect: float, of: Callable[[Paired], bool], draws: int = 700) -> tuple[float, float]:
    """The 99.9 % interval of how often something is so."""
    source = random.Random(5)
    count = sum(of(test(*_draw(source, effect)).paired) for _ in range(draws))
    found = interval(count, draws, 0.999)
    return found.low, found.high


def law_of_the_closed_form(test: Test) -> None:
    values, nudges = [97.0, 96.0, 98.0], [[97.2, 97.4], [96.1, 96.3, 96.2], [98.1, 98.3]]
    found = test(values, nudges).paired
    w = (0.02 + 0.02 + 0.02) / 4
    error = np.sqrt(w * (1.5 + 4 / 3 + 1.5)) / 3
    mean = -(0.3 + 0.2 + 0.2) / 3
    assert (found.n, found.lost) == (3, 0)
    assert found.difference.mean == pytest.approx(mean)
    assert found.p_difference == pytest.approx(2 * stats.t.sf(abs(mean) / error, 4))
    half = stats.t.ppf(0.975, 4) * error
    assert (found.difference.low, found.difference.high) == pytest.approx((mean - half, mean + half))
    assert found.p_equivalence == pytest.approx(stats.t.cdf((abs(mean) - 0.2) / error, 4))


def law_of_the_level(test: Test) -> None:
    """What nudges do too is called different in 5 % of cases, and the interval misses 0 as often."""
    low, high = _rate(test, 0.0, lambda found: (found.p_difference or 1.0) < 0.05)
    assert low < 0.05 < high
    low, high = _rate(test, 0.3, lambda found: not (found.difference.low or 0) < 0.3 < (found.difference.high or 0))
    assert low < 0.05 < high


def law_of_equivalence(test: Test) -> None:
    """At the margin, equivalence is claimed in 5 % of cases; without an effect nearly always, with so little noise."""
    low, _ = _rate(test, 0.2, lambda found: (found.p_equivalence or 1.0) < 0.05)
    assert low < 0.05
    low, _ = _rate(test, 0.0, lambda found: (found.p_equivalence or 1.0) < 0.05)
    assert low > 0.5


def law_of_power(test: Test) -> None:
    """Three seeds find what three paired differences often do not."""
    low, _ = _rate(test, 0.3, lambda found: (found.p_difference or 1.0) < 0.001)
    _, paired = _rate(beyond_chaos, 0.3, lambda found: (found.p_difference or 1.0) < 0.001)
    assert low > 0.5 > paired


def _changed(found: BeyondChaos, **changes: Any) -> BeyondChaos:
    return dataclasses.replace(found, paired=dataclasses.replace(found.paired, **changes))


def _without_the_runs_own_spread(values: Any, nudges: Any) -> BeyondChaos:
    """The error of the nudges' mean alone."""
    found = beyond_in_these_seeds(values, nudges)
    freedom = sum(len(group) - 1 for group in nudges)
    share = np.sqrt(sum(1 / len(g) for g in nudges) / sum(1 + 1 / len(g) for g in nudges))
    error, mean = found.paired.difference.sd / np.sqrt(found.paired.n) * share, found.paired.difference.mean  # type: ignore[operator]
    half = stats.t.ppf(0.975, freedom) * error
    difference = Summary(found.paired.n, mean, error, mean - half, mean + half)
    return _changed(found, difference=difference, p_difference=2 * float(stats.t.sf(abs(mean) / error, freedom)))


def _normal_for_student(values: Any, nudges: Any) -> BeyondChaos:
    found = beyond_in_these_seeds(values, nudges)
    error = found.paired.difference.sd / np.sqrt(found.paired.n)  # type: ignore[operator]
    return _changed(found, p_difference=2 * float(stats.norm.sf(abs(found.paired.difference.mean) / error)))


def _one_sided_equivalence(values: Any, nudges: Any) -> BeyondChaos:
    found = beyond_in_these_seeds(values, nudges)
    return _changed(found, p_equivalence=(found.paired.p_equivalence or 0) / 4)


LAWS = {name.removeprefix("law_"): law for name, law in globals().copy().items() if name.startswith("law_")}


@pytest.mark.parametrize("law", LAWS)
def test_law(law: str) -> None:
    LAWS[law](beyond_in_these_seeds)


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        ("of_the_closed_form", _without_the_runs_own_spread),
        ("of_the_level", _without_the_runs_own_spread),
        ("of_the_closed_form", _normal_for_student),
        ("of_equivalence", _one_sided_equivalence),
        ("of_power", beyond_chaos),
    ],
)
def test_a_fault_is_found(law: str, mutant: Test) -> None:
    with pytest.raises(AssertionError):
        LAWS[law](mutant)


def test_what_cannot_be_tested_is_not() -> None:
    one_each = beyond_in_these_seeds([97.0, 96.0], [[97.1], [96.2]]).paired
    assert (one_each.p_difference, one_each.difference.low) == (None, None)
    assert one_each.difference.mean == pytest.approx(-0.15)
    alike = beyond_in_these_seeds([97.0, 96.0], [[97.1] * 5, [96.2] * 5]).paired
    assert (alike.p_difference, alike.p_equivalence) == (None, None)
    found = beyond_in_these_seeds([97.0, None, 96.0], [[97.1, 97.2], [96.0, 96.1], None])
    assert (found.paired.n, found.paired.lost, found.quiet) == (1, 1, 1)
    assert found.paired.p_difference is not None, "one seed with two nudges has a spread"
    with pytest.raises(StatisticsError, match="2 values against the nudges of 1 seeds"):
        beyond_in_these_seeds([1.0, 2.0], [[1.0, 2.0]])
