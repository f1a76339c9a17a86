"""Results made up by formula, for what reads results: no training, every outcome at will."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from relucheck.networks.sites import chosen
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.scenario import Comparison
from relucheck.training.members import Member
from relucheck.training.results import seed_store
from relucheck.training.results.result import NO_LIVE_HIT, Distances, Epoch, MemberResult, Nudge, Result, SeedResult
from relucheck.training.settings import Settings, nudged

E2 = SCENARIOS["E2"]
VERSIONS = {"relucheck": "0", "torch": "0", "python": "0"}


def keep(made: Result, folder: Path) -> None:
    """Stores a made-up result, seed by seed, as the engine does."""
    origin = {"device": made.device, "executor": made.executor, **made.versions}
    seeds = {
        seed: SeedResult([m for m in made.members if m.member.seed == seed], made.void, made.wall_s, origin)
        for seed in made.settings.seeds
    }
    seed_store.keep(made.settings, folder, made.executor, seeds)


def accuracy(member: Member, noise: float = 0.001) -> float:
    """Test accuracy as the published picture has it: the injected rule costs a few points, the chain rule none."""
    jitter = random.Random(f"{member.seed} {member.subgradient} {member.rule}").gauss(0, noise)
    cost = 0.08 * abs(member.subgradient) if member.rule == "injected" else 0.0
    return min(1.0, 0.975 - cost + jitter)


def result(
    settings: Settings,
    accuracy: Callable[[Member], float] = accuracy,
    diverged: Callable[[Member], bool] = lambda member: False,
    void: str | None = None,
    identical: bool = False,
    hits: Mapping[str, int] | None = None,
    executor: str = "none",
    device: str = "cpu (made up)",
) -> Result:
    """A result of ``settings``; ``identical`` gives every member the reference's run; ``hits`` per layer by rule."""
    members = []
    for member in settings.members:
        same = identical or member.is_reference or member.control
        source = Member(member.seed, 0.0) if same else member
        final = accuracy(source)
        lost = diverged(member)
        steps = list(range(settings.every, settings.epochs * 20 + 1, settings.every)) or [1]
        scale = 0.0 if same else 0.01 if member.rule == "chain" else 300.0
        distances = Distances(
            steps, [scale * step for step in steps], [scale / 9 * step for step in steps], [scale / 7 for _ in steps]
        )
        epochs = [
            Epoch(2.0 / epoch, 2.2 / epoch, final - 0.1 / epoch + 0.1 / settings.epochs, [final, max(0.0, final - 0.02)])
            for epoch in range(1, settings.epochs + 1)
        ]
        count = (hits or {}).get(member.rule, 7)
        places = chosen(settings.network)
        members.append(
            MemberResult(
                member,
                "diverged: non-finite at step 1" if lost else "finished",
                None if same else 3 + member.seed % 5,
                steps=Distances([], [], [], []) if lost else distances,
                hits=[[[count for _ in site.kinks] for site in places] for _ in epochs],
                activations=[[1000 for _ in places] for _ in epochs],
                epochs=[] if lost else epochs,
            )
        )
    return Result(settings, device, executor, dict(VERSIONS), 1.5, void, members)


def with_nudges(settings: Settings, seed: int = 0, quiet: Collection[int] = ()) -> tuple[Result, Result]:
    """A comparison and its nudges, with another accuracy in each epoch of each member and other distances at each step.

    In quiet seeds every member is the reference, and there are no nudges.
    """
    comparison, nudges = (result(each, executor="forking") for each in (settings, nudged(settings)))
    zeros = {one: _walk(Member(one, 0.0), settings, seed) for one in settings.seeds}
    for member in (*comparison.members, *nudges.members):
        which = member.member
        if which.is_reference or which.control or which.seed in quiet:
            accuracies, distances = zeros[which.seed][0], [0.0] * len(zeros[which.seed][1])
            member.first_difference = None
        else:
            accuracies, distances = _walk(which, settings, seed)
        for epoch, accuracy in zip(member.epochs, accuracies, strict=True):
            epoch.test_accuracy, epoch.train_loss = accuracy, 1 - accuracy
        steps = [settings.every * row for row in range(1, len(distances) + 1)]
        member.steps = Distances(steps, *(list(distances) for _ in range(3)))
        if which.nudge is not None:
            member.nudge = Nudge(3, which.nudge + which.seed % 2, "0.weight", which.nudge)
            if which.seed in quiet:
                member.__dict__.update(vars(MemberResult(which, NO_LIVE_HIT)))
    return comparison, nudges


def _walk(member: Member, settings: Settings, seed: int) -> tuple[list[float], list[float]]:
    """Test accuracies by epoch, and distances by recorded step: 0 at the first two, then above 0."""
    draw = random.Random(f"{seed} {member}")
    cost = 0.05 * abs(member.subgradient) * (member.rule == "injected")
    accuracies = [0.9 - cost + draw.gauss(0, 0.002) for _ in range(settings.epochs)]
    rows = range(1, 120 * settings.epochs + 1)  # more than the 200 that a figure draws, so that a run can be thinned
    return accuracies, [0.0 if row < 3 else row * draw.lognormvariate(0, 0.3) for row in rows]


def runs_of_e2(
    scale: str = "cpu", only: tuple[str, ...] = ("float32", "bfloat16"), **options: Any
) -> list[tuple[Comparison, Result]]:
    """Results of E2's comparisons at a scale; ``options`` are those of :func:`result`."""
    return [(comparison, result(comparison.settings, **options)) for comparison in E2.comparisons(scale, only)]
