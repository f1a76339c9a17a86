"""Where runs depart from s = 0, beside where s = 0 meets an exact zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from relucheck.reproduction.scenario import Comparison
from relucheck.training.results.result import MemberResult, Result


class Departure(NamedTuple):
    """What happens in a seed.

    Attributes:
        met: whether s = 0 meets an exact zero.
        departed: whether a run departs from s = 0.
        late: whether a run departs after a step by which s = 0 had met one.
    """

    met: bool
    departed: bool
    late: bool


def departure(reference: MemberResult, runs: Sequence[MemberResult], witnesses: Sequence[MemberResult]) -> Departure | None:
    """Whether the reference of a seed meets an exact zero, and whether runs depart from it then.

    Until it departs, a run is the reference, bit for bit. It departs at an exact zero alone, which the reference meets
    too. So the first departure of any run of a seed is a step by which the reference has met one.

    Args:
        reference: s = 0.
        runs: those that a claim is about.
        witnesses: every run of the seed with another s, under any rule.

    Returns:
        None if the reference diverged: its hits end there, and the others go on.
    """
    if reference.diverged:
        return None
    met = any(kink for epoch in reference.hits for layer in epoch for kink in layer)
    steps = [run.first_difference for run in runs if run.first_difference is not None]
    known = [run.first_difference for run in (*runs, *witnesses) if run.first_difference is not None]
    return Departure(met, bool(steps), any(step > min(known) for step in steps))


@dataclasses.dataclass(frozen=True)
class Departures:
    """Counts of runs of s = 1 beside their s = 0, without void runs and diverged references.

    Attributes:
        seeds: how many.
        met: those in which s = 0 meets an exact zero.
        departed: those in which the parameters of s = 1 differ from those of s = 0.
        without: those of them in which s = 0 meets no exact zero.
    """

    seeds: int
    met: int
    departed: int
    without: int


def departures(runs: Sequence[tuple[Comparison, Result]]) -> Departures:
    """Count the seeds of all comparisons in which s = 1 departs, and in which s = 0 has a hit."""
    found = []
    for _, result in runs:
        for seed in () if result.void else result.settings.seeds:
            others = [m for m in result.members if m.member.seed == seed and m.member.s]
            one = departure(result.find(seed, 0.0), others, ())
            found += [] if one is None else [one]
    return Departures(
        len(found),
        sum(one.met for one in found),
        sum(one.departed for one in found),
        sum(one.departed and not one.met for one in found),
    )
