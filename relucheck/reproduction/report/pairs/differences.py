"""Pairs of tuned and default subgradients: differences beside those of nudges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

from relucheck.reproduction.report.summary import final_accuracy
from relucheck.reproduction.scenario import Comparison
from relucheck.results.statistics import BeyondChaos, Paired, beyond_chaos, difference_for_power, judge, paired
from relucheck.search.space import Draw
from relucheck.training.results.result import MemberResult, Result

#: The power with which a difference counts as one that pairs can show.
POWER: Final = 0.8
RULES: Final = ("injected", "chain")
Runs = Sequence[tuple[Comparison, Result]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One draw, with accuracies in % of the images held out, after the last epoch.

    An accuracy is None for a run that diverged.

    Attributes:
        draw: what was drawn.
        default: of (0, 0).
        tuned: of (alpha, beta), by rule.
        nudges: of the nudges; None without a live hit.
        departed: by rule, whether the run with (alpha, beta) departs from (0, 0) in any bit.
    """

    draw: Draw
    default: float | None
    tuned: dict[str, float | None]
    nudges: tuple[float | None, ...] | None
    departed: dict[str, bool]

    def difference(self, rule: str) -> float | None:
        """Tuned less default, in points."""
        return less(self.tuned[rule], self.default)

    @property
    def nudged(self) -> list[float]:
        """The differences of the nudges from (0, 0), in points, of those that have an accuracy."""
        found = [less(one, self.default) for one in self.nudges or ()]
        return [one for one in found if one is not None]


@dataclasses.dataclass(frozen=True)
class Group:
    """The pairs of one network in one arithmetic.

    Attributes:
        part: names the network and the length.
        arithmetic: in which they compute.
        pairs: in the order of the draws, without void ones.
        planned: how many pairs there are once all have finished.
        void: how many are void.
    """

    part: str
    arithmetic: str
    pairs: tuple[Pair, ...]
    planned: int
    void: int


@dataclasses.dataclass(frozen=True)
class Effect:
    """What tuned subgradients do to the accuracy over the pairs of a group, in points.

    A pair that does not depart is the same run twice. It says how often subgradients change anything, and nothing about how
    much. Its difference is 0 by construction, and would make those of other pairs look certain.

    Attributes:
        part, arithmetic, planned, void: of the group.
        rule: "chain" or "injected".
        pairs: how many pairs there are that are not void.
        found: tuned less default over the pairs that depart: mean, interval and verdict, corrected over all groups and
            rules; over all pairs if none departs.
        beyond: the same less the mean difference of the nudges of each pair, corrected in the same way.
        departed: number of pairs in which tuned subgradients change a run at all.
        nudges: mean, least and greatest difference of a nudge from (0, 0); None without a nudge.
        shown: the true mean difference that so many departing pairs show with a power of :data:`POWER`, if they spread as
            these do (uncorrected, level 0.05); None with fewer than 2 of them.
    """

    part: str
    arithmetic: str
    rule: str
    pairs: int
    found: Paired
    beyond: BeyondChaos
    departed: int
    nudges: tuple[float, float, float] | None
    shown: float | None
    planned: int
    void: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def less(value: float | None, reference: float | None) -> float | None:
    """The difference of two accuracies, or None if one is missing."""
    return None if value is None or reference is None else value - reference


def groups(runs: Runs) -> list[Group]:
    """The pairs by network and arithmetic; a group has one at least that is not void."""
    every: dict[tuple[str, str], list[tuple[Comparison, Result]]] = {}
    for comparison, result in runs:
        if comparison.pairs:
            every.setdefault((comparison.part, result.settings.arithmetic.name), []).append((comparison, result))
    found = []
    for key, members in every.items():
        pairs = tuple(_pair(comparison, result) for comparison, result in members if not result.void)
        if pairs:
            found.append(Group(*key, pairs, members[0][0].pairs, len(members) - len(pairs)))
    return found


def _pair(comparison: Comparison, result: Result) -> Pair:
    (seed,) = result.settings.seeds
    tuned = {one.member.rule: one for one in result.members if one.member.s}
    alpha, beta = next(iter(tuned.values())).member.subgradients
    number = int(comparison.name.partition("-pair-")[2].partition("-")[0])
    drawn = Draw(number - 1, seed, result.settings.batch_size, result.settings.optimiser.lr, alpha, beta)
    reference = next(one for one in result.members if one.member.is_reference)
    nudges = result.nudges(seed)
    return Pair(
        draw=drawn,
        default=final_accuracy(reference),
        tuned={rule: final_accuracy(tuned[rule]) for rule in RULES},
        nudges=None if nudges is None else tuple(map(_of_nudge, nudges)),
        departed={rule: tuned[rule].first_difference is not None for rule in RULES},
    )


def _of_nudge(one: MemberResult) -> float | None:
    return None if one.nudge is None or one.nudge.parameter is None else final_accuracy(one)


def effects(found: Sequence[Group]) -> list[Effect]:
    """Test tuned against default in each group under each rule, and against nudges.

    Both tests are Student's paired t-test, one over the pairs that depart, the other over those with a live hit. Each is
    corrected by Holm over all groups and rules.
    """
    made = [_effect(group, rule) for group in found for rule in RULES]
    judged = judge({place: one.found for place, one in enumerate(made)})
    beyond = judge({place: one.beyond.paired for place, one in enumerate(made)})
    return [
        dataclasses.replace(one, found=judged[place], beyond=dataclasses.replace(one.beyond, paired=beyond[place]))
        for place, one in enumerate(made)
    ]


def _effect(group: Group, rule: str) -> Effect:
    departed = [one for one in group.pairs if one.departed[rule]]
    tested = departed or group.pairs
    found = paired([one.tuned[rule] for one in tested], [one.default for one in tested], same_run=not departed)
    nudges = [difference for one in group.pairs for difference in one.nudged]
    sd = found.difference.sd
    return Effect(
        part=group.part,
        arithmetic=group.arithmetic,
        rule=rule,
        pairs=len(group.pairs),
        found=found,
        beyond=beyond_chaos([one.tuned[rule] for one in group.pairs], [one.nudges for one in group.pairs]),
        departed=len(departed),
        nudges=(math.fsum(nudges) / len(nudges), min(nudges), max(nudges)) if nudges else None,
        shown=None if not sd or found.identical else difference_for_power(sd, found.n, POWER),
        planned=group.planned,
        void=group.void,
    )
