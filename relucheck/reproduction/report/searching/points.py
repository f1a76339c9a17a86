"""Trials as tables and figures show them, whether they were run here or published."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from relucheck.reproduction.published import search_trials
from relucheck.search import SearchResult, TrialResult


@dataclasses.dataclass(frozen=True)
class Point:
    """A trial, with an accuracy in %.

    Attributes:
        name: its number here, or its name in the published files.
        batch_size, lr, alpha, beta: what it trained with.
        epochs: how many it has finished.
        accuracy, loss: of the images held out, after the last epoch; None for a trial that diverged, and for a loss that is
            not finite.
        hits: at each kink, in the last epoch; () if they are not known.
        outcome: "finished", "stopped" or "diverged".
    """

    name: str
    batch_size: int
    lr: float
    alpha: float
    beta: float
    epochs: int
    accuracy: float | None
    loss: float | None
    hits: tuple[int, ...]
    outcome: str


def measured_points(result: SearchResult) -> tuple[Point, ...]:
    """The trials of a search, from the best to the worst."""
    return tuple(_point(trial) for trial in result.ranked)


def _point(trial: TrialResult) -> Point:
    draw, last = trial.draw, trial.last
    return Point(
        *(str(draw.number), draw.batch_size, draw.lr, draw.alpha, draw.beta, len(trial.epochs)),
        accuracy=None if last is None else 100 * last.accuracy,
        loss=None if last is None else last.loss,
        hits=() if last is None else last.hits,
        outcome="diverged" if trial.diverged else "stopped" if trial.stopped else "finished",
    )


def published_points(model: str, subgradients: str) -> tuple[Point, ...]:
    """The trials of a published search, from the best to the worst; see ``published.search_trials``."""
    trials = search_trials(model, subgradients)
    most = max(trial.epochs for trial in trials)
    return tuple(
        Point(
            *(trial.trial, trial.batch_size, trial.lr, trial.alpha, trial.beta, trial.epochs),
            *(trial.accuracy, trial.loss, (), "finished" if trial.epochs == most else "stopped"),
        )
        for trial in trials
    )


def varies(points: Sequence[Point]) -> bool:
    """Whether the subgradients differ from trial to trial."""
    return len({(point.alpha, point.beta) for point in points}) > 1
