"""Results of E7 made up by formula: accuracies of every member at will, no training."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

from relucheck.reproduction.experiments.searches.pairs import E7
from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.scenario import Comparison
from relucheck.training.members import Member
from relucheck.training.results.result import NO_LIVE_HIT, MemberResult, Nudge, Result
from tests.helpers import made_up

#: The accuracy of a member, from 0 to 1.
Accuracy = Callable[[Member], float]


def result(of: Comparison, accuracy: Accuracy, *, quiet: bool = False, void: str | None = None) -> Result:
    """A result in which every member has this accuracy after the last epoch.

    A quiet one has no live hit: every run is that of (0, 0).
    """
    found = made_up.result(of.settings, identical=quiet, void=void)
    for one in found.members:
        which = one.member
        if quiet and which.nudge is not None:
            one.__dict__.update(vars(MemberResult(which, NO_LIVE_HIT)))
            continue
        one.nudge = Nudge(3, 1, "0.weight", which.nudge) if which.nudge is not None else None
        if one.epochs:
            one.epochs[-1].test_accuracy = accuracy(Member(which.seed, 0.0) if quiet else which)
    return found


def reproduction(accuracy: Accuracy, pattern: str, scale: str = "cpu", *, quiet: bool = False) -> Reproduction:
    """What a folder with these comparisons would hold."""
    runs = tuple((one, result(one, accuracy, quiet=quiet)) for one in E7.comparisons(scale, [pattern]))
    return Reproduction(E7, scale, Path("folder"), runs)


@functools.cache
def noise(text: str) -> float:
    """A small number that differs from text to text."""
    return random.Random(text).gauss(0, 0.0004)


def worse_if_injected(member: Member) -> float:
    """The injected rule costs 3 points, the chain rule and nudges do what noise does."""
    base = 0.9 + 20 * noise(f"{member.seed}")
    own = 0.0 if member.control else noise(f"{member}")
    return base + own - 0.03 * (member.rule == "injected")
