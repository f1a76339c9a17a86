"""Small results constructed by formula, for the statistics that decide claims: every verdict at will."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from relucheck.networks.network import Network
from relucheck.reproduction.claims import Claim, Decision
from relucheck.reproduction.report.deciding.cases import Trained
from relucheck.reproduction.report.deciding.decide import decide
from relucheck.reproduction.report.deciding.registry import STATISTICS
from relucheck.reproduction.scenario import Comparison
from relucheck.training.members import Member, members_of
from relucheck.training.results.result import NO_LIVE_HIT, MemberResult, Result
from relucheck.training.settings import Settings, nudged
from tests.helpers import made_up

SUBGRADIENTS = (0.5, 0.8, 1.0)
#: What each epoch of a run has: (accuracy from 0 to 1, training loss, hits), from the member and the epoch from 0 on.
Epochs = Callable[[Member, int], tuple[float, float, int]]
#: What each recorded step of a run has: the distance, from the member and the step.
Steps = Callable[[Member, int], float]


def jitter(member: Member, size: float = 0.001) -> float:
    """A small number that depends on the member alone."""
    return random.Random(f"{member}").gauss(0, size)


def settings(
    arithmetic: str = "bfloat16", seeds: int = 8, subgradients: tuple[float, ...] = SUBGRADIENTS, epochs: int = 4
) -> Settings:
    """A comparison of a small network."""
    network, members = Network("mlp", (4,)), members_of(range(seeds), subgradients)
    return Settings("digits", network, members, arithmetic=arithmetic, epochs=epochs, every=5)  # type: ignore[arg-type]


def flat(member: Member, epoch: int) -> tuple[float, float, int]:
    """A run that s does not touch."""
    return 0.9 + jitter(member, 1e-4), 0.1 + jitter(member, 1e-4), 5


def trained(
    of: Settings | None = None,
    epochs: Epochs = flat,
    steps: Steps = lambda member, step: 0.0 if member.subgradient == 0 else float(step),
    *,
    name: str = "bfloat16",
    nudges: bool = True,
    quiet: tuple[int, ...] = (),
    lost: Callable[[Member], bool] = lambda member: False,
    identical: bool = False,
    void: str | None = None,
) -> Trained:
    """A comparison with its nudges."""
    one = settings() if of is None else of
    results = [_result(each, epochs, steps, lost, identical, void) for each in (one, nudged(one))]
    for member in results[1].members:
        if member.member.nudge is not None and member.member.seed in quiet:
            member.__dict__.update(vars(MemberResult(member.member, NO_LIVE_HIT)))
    return Trained(Comparison(name, "part", one), results[0], results[1] if nudges else None)


def _result(
    of: Settings, epochs: Epochs, steps: Steps, lost: Callable[[Member], bool], identical: bool, void: str | None
) -> Result:
    result = made_up.result(of, diverged=lost, identical=identical, void=void)
    for run in result.members:
        same = Member(run.member.seed, 0.0) if run.member.control else run.member
        for number, epoch in enumerate(run.epochs):
            epoch.test_accuracy, epoch.train_loss, hits = epochs(same, number)
            run.hits[number] = [[hits]]
        for row, step in enumerate(run.steps.step):
            run.steps.l1[row] = 0.0 if run.member.is_reference or run.member.control else steps(run.member, step)
    return result


def claim(statistic: str, scenario: str = "E2", /, **fields: Any) -> Claim:
    """A claim on the comparison "bfloat16" under the injected rule, with both controls."""
    known: dict[str, Any] = {"arms": ("bfloat16",), "rules": ("injected",), "controls": ("0-0", "nudges")}
    texts = {"id": "a-claim", "source": "R22", "place": "Figure 1", "statement": "It grows."}
    return Claim(**texts, scenario=scenario, statistic=statistic, **{**known, **fields})


def decisions(of: Claim, *runs: Trained) -> tuple[Decision, ...]:
    """The decisions on one claim from the results of its scenario."""
    return decide([of], STATISTICS, {of.scenario: runs}, {})


def verdict(of: Claim, *runs: Trained) -> str:
    """The verdict in the only case."""
    (decision,) = decisions(of, *runs)
    return decision.said


def without(run: Trained, **changes: Any) -> Trained:
    """The same with other fields of its result."""
    return dataclasses.replace(run, result=dataclasses.replace(run.result, **changes))
