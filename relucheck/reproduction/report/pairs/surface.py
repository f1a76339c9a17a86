"""The response surface: the accuracy over a grid of (alpha, beta)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from relucheck.reproduction.report.pairs.differences import RULES, Runs, less
from relucheck.reproduction.report.summary import final_accuracy
from relucheck.results.statistics import Paired, judge, mean_of_all, paired
from relucheck.training.results.result import MemberResult, Result

#: A point of the grid: (alpha, beta).
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Surface:
    """A response surface in one arithmetic, in points of the accuracy on the images held out.

    Attributes:
        comparison, part, arithmetic: of the runs.
        seeds: how many.
        differences: by rule and (alpha, beta), the mean over seeds of the difference from (0, 0); None where a run
            diverged.
        same: by rule, the points that are one run in every seed, in groups. The points that are (0, 0) itself bit for bit
            are in none.
        nudges: the difference of each nudge from (0, 0), a mean over seeds, in the order of their numbers; empty without a
            live hit in some seed.
        means: by rule, the mean over the grid of each seed less that of (0, 0), tested over seeds and corrected over rules.
    """

    comparison: str
    part: str
    arithmetic: str
    seeds: int
    differences: dict[str, dict[Point, float | None]]
    same: dict[str, tuple[tuple[Point, ...], ...]]
    nudges: tuple[float, ...]
    means: dict[str, Paired]

    def runs(self, rule: str) -> list[float]:
        """The differences of the runs that differ from each other and from (0, 0).

        Those that diverged are left out."""
        found = [self.differences[rule][points[0]] for points in self.same[rule]]
        return [one for one in found if one is not None]

    def outside(self, rule: str) -> int:
        """The number of these runs whose difference is less or greater than that of every nudge."""
        return sum(not min(self.nudges) <= one <= max(self.nudges) for one in self.runs(rule)) if self.nudges else 0

    def by_chance(self, rule: str) -> float:
        """How many of these runs lie outside of the nudges if subgradients do what nudges do.

        A run and the nudges are then of one kind, and each of them is equally often the least or the greatest.
        """
        return len(self.runs(rule)) * 2 / (len(self.nudges) + 1) if self.nudges else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        points = [
            {"rule": rule, "alpha": alpha, "beta": beta, "difference": difference}
            for rule, grid in self.differences.items()
            for (alpha, beta), difference in grid.items()
        ]
        means = {rule: dataclasses.asdict(found) for rule, found in self.means.items()}
        same = {rule: [[list(point) for point in points] for points in found] for rule, found in self.same.items()}
        return {**vars(self), "differences": points, "same": same, "means": means}


def surfaces(runs: Runs) -> list[Surface]:
    """The valid response surfaces."""
    return [_surface(one.name, one.part, result) for one, result in runs if "-surface-" in one.name and not result.void]


def _surface(name: str, part: str, result: Result) -> Surface:
    seeds = result.settings.seeds
    zero = {one.member.seed: final_accuracy(one) for one in result.members if one.member.is_reference}
    grid: dict[str, dict[Point, list[MemberResult]]] = {rule: {} for rule in RULES}
    for one in result.members:
        if one.member.s:
            grid[one.member.rule].setdefault(one.member.subgradients, []).append(one)
    differences = {
        rule: {at: [less(final_accuracy(one), zero[one.member.seed]) for one in found] for at, found in points.items()}
        for rule, points in grid.items()
    }
    same = {rule: _same(points) for rule, points in grid.items()}
    means = {}
    for rule in RULES:
        of_seeds = [mean_of_all(column) for column in zip(*differences[rule].values(), strict=True)]
        means[rule] = paired(of_seeds, [0.0] * len(of_seeds), same_run=not same[rule])
    return Surface(
        comparison=name,
        part=part,
        arithmetic=result.settings.arithmetic.name,
        seeds=len(seeds),
        differences={rule: {at: mean_of_all(values) for at, values in differences[rule].items()} for rule in RULES},
        same=same,
        nudges=_nudges(result, zero),
        means=judge(means),
    )


def _same(points: Mapping[Point, Sequence[MemberResult]]) -> tuple[tuple[Point, ...], ...]:
    """The points that depart from (0, 0) in a bit, those together that are one run in every seed."""
    groups: list[list[Point]] = []
    for at, runs in points.items():
        if all(one.first_difference is None for one in runs):
            continue
        known = next((group for group in groups if all(map(_one_run, points[group[0]], runs))), None)
        if known is None:
            groups.append([at])
        else:
            known.append(at)
    return tuple(map(tuple, groups))


def _one_run(one: MemberResult, two: MemberResult) -> bool:
    """Whether two members did the same in every digit, whatever their subgradients."""
    return one.same_run(dataclasses.replace(two, member=one.member))


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
