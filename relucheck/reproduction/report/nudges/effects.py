"""What nudges do in each comparison, and what a subgradient does beyond that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from relucheck.reproduction.report.summary import Effect, NudgeGroup, Spread, final_accuracy, group, label
from relucheck.reproduction.scenario import Comparison
from relucheck.results.holm import StatisticsError
from relucheck.results.statistics import (
    BeyondChaos,
    Paired,
    beyond_chaos,
    beyond_in_these_seeds,
    judge,
    second_half,
    seeds_for_power,
)
from relucheck.training.results.result import NO_EFFECT, MemberResult, Result

#: The names of the endpoints.
LAST: Final = "last epoch"
HALF: Final = "second half"
_Runs = Sequence[tuple[Comparison, Result]]


def half_accuracy(member: MemberResult) -> float | None:
    """Mean test accuracy in % over the second half of the epochs, or None if the run diverged."""
    if member.diverged or not member.epochs:
        return None
    return second_half([100 * epoch.test_accuracy for epoch in member.epochs])


def endpoints(epochs: int) -> Mapping[str, Callable[[MemberResult], float | None]]:
    """The endpoints of a run by name.

    Up to 2 epochs, the second half is the last epoch and not listed again.
    """
    return {LAST: final_accuracy} if epochs <= 2 else {LAST: final_accuracy, HALF: half_accuracy}


def nudge_groups(runs: _Runs, nudges: Mapping[str, Result]) -> list[NudgeGroup]:
    """Say what nudges do, for each comparison that is not void and has them.

    Seeds without nudges are left out, here and in ``effects``: their nudges have not run yet.

    Args:
        runs: comparisons with their results.
        nudges: the results of their nudges, by the name of the comparison.
    """
    return [
        _group(comparison.name, result, nudges[comparison.name])
        for comparison, result in runs
        if comparison.name in nudges and not result.void
    ]


def _group(name: str, result: Result, nudges: Result) -> NudgeGroup:
    if nudges.void:
        return NudgeGroup(name, 0, 0, 0, 0, 0, 0, 0, 0, None, {}, nudges.void)
    by_seed = {seed: nudges.nudges(seed) for seed in result.settings.seeds if seed in nudges.settings.seeds}
    quiet = [seed for seed, members in by_seed.items() if members is None]
    every = [member for members in by_seed.values() for member in members or ()]
    moved = [member.nudge for member in every if member.nudge is not None]
    departed = [m for m in result.members if m.member.seed in quiet and m.first_difference is not None]
    live = {seed: members for seed, members in by_seed.items() if members is not None}
    accuracy = {
        endpoint: _spread([[_less(value(m), value(result.find(seed, 0.0))) for m in live[seed]] for seed in live])
        for endpoint, value in endpoints(result.settings.epochs).items()
    }
    return NudgeGroup(
        comparison=name,
        live=len(live),
        quiet=len(quiet),
        departed=len(departed),
        nudges=sum(nudge.parameter is not None for nudge in moved),
        again=sum(nudge.attempts - (nudge.parameter is not None) for nudge in moved),
        ineffective=sum(member.outcome == NO_EFFECT for member in every),
        returned=sum(_last_distance(member) == 0 for member in every),
        diverged=sum(member.diverged for member in every),
        l1=_spread([[_last_distance(member) for member in members] for members in live.values()]),
        accuracy=accuracy,
        void=None,
    )


def _less(value: float | None, zero: float | None) -> float | None:
    return None if value is None or zero is None else value - zero


def _last_distance(member: MemberResult) -> float | None:
    return None if member.diverged or not member.steps.l1 else member.steps.l1[-1]


def _spread(seeds: Sequence[Sequence[float | None]]) -> Spread | None:
    """The spread of the numbers of each seed's nudges, without those that have none."""
    groups = [known for numbers in seeds if (known := [number for number in numbers if number is not None])]
    if not groups:
        return None
    means = [math.fsum(numbers) / len(numbers) for numbers in groups]
    every = [number for numbers in groups for number in numbers]
    return Spread(math.fsum(means) / len(means), min(every), max(every))


def effects(runs: _Runs, nudges: Mapping[str, Result], *, within_seeds: bool = False) -> list[Effect]:
    """Test each subgradient against the nudges of its seeds.

    All effects are one family for Holm's correction: both endpoints and all comparisons, rules and subgradients.

    Args:
        runs: comparisons with their results.
        nudges: the results of their nudges, by the name of the comparison; void ones are left out.
        within_seeds: whether the tests speak of the seeds at hand alone.
    """
    test = beyond_in_these_seeds if within_seeds else beyond_chaos
    found = []
    for comparison, result in runs:
        beside = nudges.get(comparison.name)
        if beside is not None and not (result.void or beside.void):
            found += _effects(comparison.name, result, beside, test)
    judged = judge({index: effect.beyond.paired for index, effect in enumerate(found)})
    return [
        dataclasses.replace(effect, beyond=dataclasses.replace(effect.beyond, paired=judged[index]))
        for index, effect in enumerate(found)
    ]


def _effects(name: str, result: Result, nudges: Result, test: Callable[..., BeyondChaos]) -> list[Effect]:
    seeds = [seed for seed in result.settings.seeds if seed in nudges.settings.seeds]
    by_seed = [nudges.nudges(seed) for seed in seeds]
    found = []
    for (subgradient, rule, _), members in group(result).items():
        if not subgradient:
            continue
        for endpoint, value in endpoints(result.settings.epochs).items():
            beside = [None if of_seed is None else [value(nudge) for nudge in of_seed] for of_seed in by_seed]
            beyond = test([value(member) for member in members if member.member.seed in seeds], beside)
            needed = _seeds_for_power(beyond.paired)
            found.append(Effect(name, label(result.settings), rule, subgradient, endpoint, beyond, needed))
    return found


def _seeds_for_power(paired: Paired) -> int | None:
    if paired.difference.sd is None:
        return None
    try:
        return seeds_for_power(paired.difference.sd)
    except StatisticsError:  # more than a million
        return None
