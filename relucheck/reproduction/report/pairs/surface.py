"""The response surface: the accuracy over a grid of (alpha, beta)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from relucheck.reproduction.report.pairs.differences import RULES, Runs, less
from relucheck.reproduction.report.summary import final_accuracy
from relucheck.results.statistics import Paired, judge, mean_of_all, paired
from relucheck.training.result import Result


@dataclasses.dataclass(frozen=True)
class Surface:
    """A response surface in one arithmetic, in points of the accuracy on the images held out.

    Attributes:
        comparison, part, arithmetic: of the runs.
        seeds: how many.
        differences: by rule and (alpha, beta), the mean over seeds of the difference from (0, 0); None where a run
            diverged.
        nudges: the same of each nudge, in the order of their numbers; empty without a live hit in some seed.
        means: by rule, the mean over the grid of each seed less that of (0, 0), tested over seeds and corrected over rules.
    """

    comparison: str
    part: str
    arithmetic: str
    seeds: int
    differences: dict[str, dict[tuple[float, float], float | None]]
    nudges: tuple[float, ...]
    means: dict[str, Paired]

    def outside(self, rule: str) -> int:
        """The number of points whose difference is less or greater than that of every nudge."""
        known = [one for one in self.differences[rule].values() if one is not None]
        return sum(not min(self.nudges) <= one <= max(self.nudges) for one in known) if self.nudges else 0

    def by_chance(self, rule: str) -> float:
        """The expected number of points outside of the nudges, if subgradients do what nudges do.

        A point and the nudges are then runs of one kind, and each of them is equally often the least or the greatest.
        """
        known = sum(one is not None for one in self.differences[rule].values())
        return known * 2 / (len(self.nudges) + 1) if self.nudges else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        points = [
            {"rule": rule, "alpha": alpha, "beta": beta, "difference": difference}
            for rule, grid in self.differences.items()
            for (alpha, beta), difference in grid.items()
        ]
        means = {rule: dataclasses.asdict(found) for rule, found in self.means.items()}
        return {**vars(self), "differences": points, "means": means}


def surfaces(runs: Runs) -> list[Surface]:
    """The valid response surfaces."""
    return [_surface(one.name, one.part, result) for one, result in runs if "-surface-" in one.name and not result.void]


def _surface(name: str, part: str, result: Result) -> Surface:
    seeds = result.settings.seeds
    zero = {one.member.seed: final_accuracy(one) for one in result.members if one.member.is_reference}
    grid: dict[str, dict[tuple[float, float], list[float | None]]] = {rule: {} for rule in RULES}
    same = dict.fromkeys(RULES, True)
    for one in result.members:
        which = one.member
        if which.s:
            difference = less(final_accuracy(one), zero[which.seed])
            grid[which.rule].setdefault(which.subgradients, []).append(difference)
            same[which.rule] &= one.first_difference is None
    means = {}
    for rule in RULES:
        of_seeds = [mean_of_all(column) for column in zip(*grid[rule].values(), strict=True)]
        means[rule] = paired(of_seeds, [0.0] * len(of_seeds), same_run=same[rule])
    return Surface(
        comparison=name,
        part=part,
        arithmetic=result.settings.arithmetic.name,
        seeds=len(seeds),
        differences={rule: {at: mean_of_all(values) for at, values in grid[rule].items()} for rule in RULES},
        nudges=_nudges(result, zero),
        means=judge(means),
    )


def _nudges(result: Result, zero: dict[int, float | None]) -> tuple[float, ...]:
    """The mean difference over seeds of each nudge from (0, 0)."""
    of_seeds: list[Sequence[float | None]] = []
    for seed in result.settings.seeds:
        nudges = result.nudges(seed)
        if nudges is None:
            return ()
        of_seeds.append([less(final_accuracy(one) if one.epochs else None, zero[seed]) for one in nudges])
    found = [mean_of_all(column) for column in zip(*of_seeds, strict=True)]
    return tuple(one for one in found if one is not None and math.isfinite(one))
