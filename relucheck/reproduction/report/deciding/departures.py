"""Where runs depart from s = 0, beside where s = 0 meets an exact zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from relucheck.reproduction.scenario import Comparison
from relucheck.training.result import MemberResult, Result


def departure(reference: MemberResult, others: Sequence[MemberResult]) -> tuple[bool, bool] | None:
    """Whether the reference of a seed meets a kink, and whether another run departs from it.

    None if the reference diverged: its hits end there, and the others go on.
    """
    if reference.diverged:
        return None
    met = any(kink for epoch in reference.hits for layer in epoch for kink in layer)
    return met, any(member.first_difference is not None for member in others)


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
            others = [m for m in result.members if m.member.seed == seed and m.member.subgradient]
            one = departure(result.find(seed, 0.0), others)
            found += [] if one is None else [one]
    return Departures(
        len(found),
        sum(met for met, _ in found),
        sum(departed for _, departed in found),
        sum(departed and not met for met, departed in found),
    )
