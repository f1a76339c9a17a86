"""Results of E9 made up by formula: hits and accuracies at will, no training."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Final

from relucheck.reproduction.experiments.counts import E9
from relucheck.reproduction.published import PublishedCount, counts
from relucheck.reproduction.scenario import Comparison
from relucheck.training.members import Member
from relucheck.training.results.result import Result
from tests.helpers import made_up

#: The hits of a member at a kink (by its number) in an epoch.
Hits = Callable[[Member, int, int], int]
KINKS: Final = (0.0, 6.0)


def comparison(name: str, scale: str = "full") -> Comparison:
    (found,) = E9.comparisons(scale, [name])
    return found


def result(
    of: Comparison, hits: Hits, accuracy: Callable[[Member], float] = made_up.accuracy, void: str | None = None
) -> Result:
    """A result with these hits, shared out over the layers."""
    made = made_up.result(of.settings, accuracy=accuracy, void=void)
    layers, kinks = len(of.settings.network.widths), len(of.settings.network.kinks)
    for member in made.members:
        member.hits = []
        for epoch in range(1, of.settings.epochs + 1):
            every = [hits(member.member, kink, epoch) for kink in range(kinks)]
            shared = [[count // layers for count in every] for _ in range(layers)]
            shared[-1] = [count - (layers - 1) * (count // layers) for count in every]
            member.hits.append(shared)
    return made


def _matches(count: PublishedCount, of: str, s: float, kink: int, epoch: int) -> bool:
    experiment = {"e2": "E2", "more": "E2", "e1": "E1"}.get(of, "E9")
    if (count.experiment, count.dtype, count.kink) != (experiment, "bfloat16", KINKS[kink]) or count.epoch not in (
        epoch,
        "each",
    ):
        return False
    if experiment == "E9":
        run = "custom" if s else "default"
        return count.network == "784-128-10" and count.member == run
    return count.subgradients is None or count.subgradients[0] == s


@functools.cache
def _published(of: str, s: float, kink: int, epoch: int) -> int:
    """The published count, or that of the epoch before where there is none; of bounds the upper one."""
    known = [count.most for count in counts() if _matches(count, of, s, kink, epoch)]
    return known[0] if known else _published(of, s, kink, epoch - 1) if epoch else 0


def like_the_published(of: Comparison, factor: float = 1.0, spread: float = 0.1) -> Hits:
    """Hits that vary over seeds about a multiple of the published ones: all epochs of a seed together, and each alone."""

    def hits(member: Member, kink: int, epoch: int) -> int:
        mean = factor * _published(of.name.partition("-")[0], member.subgradient, kink, epoch)
        common = random.Random(f"{of.name} {member.seed} {factor}").gauss(0, spread)
        alone = random.Random(f"{of.name} {member} {kink} {epoch} {factor}").gauss(0, 1)
        return max(0, round(mean * (1 + common) + alone * mean**0.5))

    return hits
