"""A statistic on pairs: comparisons of one draw each, with tuned and default subgradients.

A draw decides learning rate, batch size, seed and subgradients. Nudges are members of the same comparison.
"""

from __future__ import annotations

import dataclasses

from relucheck.reproduction.claims import Finding
from relucheck.reproduction.report.deciding.cases import Trained
from relucheck.reproduction.report.deciding.evidence import said
from relucheck.reproduction.report.deciding.registry import statistic
from relucheck.reproduction.report.summary import final_accuracy
from relucheck.results.statistics import grows, mean_of_all
from relucheck.results.tables import with_verb
from relucheck.training.results.result import MemberResult


@dataclasses.dataclass(frozen=True)
class PairsCase:
    """Comparisons of one draw each under one rule.

    Attributes:
        runs: the comparisons; none is void.
        rule: "chain" or "injected".
        void: how many more comparisons are void.
    """

    runs: tuple[Trained, ...]
    rule: str
    void: int = 0

    @property
    def live(self) -> tuple[Trained, ...]:
        """The comparisons with a live hit, which are those with nudges."""
        return tuple(run for run in self.runs if self.nudges(run) is not None)

    def tuned(self, run: Trained) -> float | None:
        """The accuracy of tuned subgradients in %; None if the run diverged."""
        (found,) = [one for one in run.result.members if one.member.s and one.member.rule == self.rule]
        return final_accuracy(found)

    def nudges(self, run: Trained) -> list[MemberResult] | None:
        """The nudges of a comparison; None without a live hit."""
        (seed,) = run.result.settings.seeds
        return run.result.nudges(seed)

    def nudged(self, run: Trained) -> float | None:
        """The mean accuracy of the nudges in %; None if one has none."""
        return mean_of_all([final_accuracy(one) if one.epochs else None for one in self.nudges(run) or ()])


@statistic("pairs", direction=("larger", "smaller"), margin=float)
def tuned_differs_beyond_nudges(case: PairsCase, direction: str, margin: float) -> Finding:
    """Whether tuned subgradients change the mean accuracy by the margin more than nudges do.

    Only pairs with a live hit count, because the others have no nudges.
    """
    levels = [[case.nudged(run) for run in case.live], [case.tuned(run) for run in case.live]]
    found = grows(levels if direction == "larger" else levels[::-1], margin)
    quiet = len(case.runs) - len(case.live)
    rest = f"; {with_verb(quiet, 'more pair has', 'more pairs have')} no live hit" if quiet else ""
    rest += f"; {with_verb(case.void, 'more pair is', 'more pairs are')} void" if case.void else ""
    measured = said({"": found}).replace("seed", "pair")  # a pair is what repeats here
    return Finding(found, f"accuracy, {direction} than that of the nudges by: {measured}{rest}")
