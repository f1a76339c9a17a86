"""A trial: one draw of a search, trained by the engine, with a report after every epoch.

The engine's store is the trial's checkpoint. A trial whose process has died resumes there, bit for bit, and first reports
the epochs that it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from relucheck import data
from relucheck.search.result import TrialEpoch
from relucheck.search.search import Search
from relucheck.search.space import Draw
from relucheck.training import engine
from relucheck.training.members import Member
from relucheck.training.results import seed_store
from relucheck.training.results.result import FINISHED, MemberResult, SeedResult

#: The folder, in that of a search, with the engine's results and checkpoints of each trial.
TRIALS = "trials"
#: What trains a trial. Seeds hold out images of their own, so the stacked executor cannot.
_EXECUTOR = "forking"


@dataclasses.dataclass(frozen=True)
class TrialReport:
    """What a trial reports after an epoch.

    Attributes:
        epoch: the epoch; None if the trial has diverged in it.
        outcome: how the trial has ended by itself, as in ``TrialResult``; None if it goes on.
        wall_s: computing time in seconds so far.
        origin: where the trial is computed.
        void: None, or where the control differed. The trial ends then.
    """

    epoch: TrialEpoch | None
    outcome: str | None
    wall_s: float
    origin: Mapping[str, str]
    void: str | None = None


#: A function that takes a trial's reports. It may raise an exception that ends the trial.
Send = Callable[[TrialReport], None]
#: A function that trains a trial: search, draw, folder of the search, data root, device and where reports go.
Train = Callable[[Search, Draw, Path, data.Root, str, Send], None]


class _Diverged(Exception):
    """Ends the training of a trial that has diverged; its control would train on alone."""


def folder_of(folder: Path, draw: Draw) -> Path:
    """Where the engine keeps a trial, in the folder of its search."""
    return folder / TRIALS / draw.name


def train_trial(search: Search, draw: Draw, folder: Path, root: data.Root, device: str, send: Send) -> None:
    """Train a trial, from its last checkpoint on.

    Args:
        search: which search.
        draw: which trial of it.
        folder: folder of the search.
        root: data root, see ``relucheck.data.data_root``.
        device: where to train.
        send: is called with a report for each epoch, those before the checkpoint included. The result of the engine is
            stored before the last epoch is reported.

    Raises:
        Exception: as ``relucheck.training.engine.train``.
    """
    settings, member, sent = search.settings(draw), search.member(draw), 0
    kept = folder_of(folder, draw)

    def report(part: SeedResult, result: MemberResult, last: int) -> None:
        nonlocal sent
        for number in range(sent + 1, min(last, len(result.epochs)) + 1):
            outcome = FINISHED if number == search.epochs else None
            send(TrialReport(_epoch(result, number), outcome, part.wall_s, part.origin))
            sent = number

    def after_epoch(parts: Mapping[int, SeedResult]) -> None:
        part = parts[draw.seed]
        result = _of_member(part, member)
        report(part, result, search.epochs - 1)
        if result.diverged:
            send(TrialReport(None, result.outcome, part.wall_s, part.origin))
            raise _Diverged

    try:
        engine.train(
            settings,
            root=root,
            device=device,
            folder=kept,
            progress=False,
            executor=_EXECUTOR,
            after_epoch=after_epoch,
            restart=True,
        )
    except _Diverged:
        return
    part = seed_store.finished(settings, kept, _EXECUTOR)[draw.seed]
    if part.void is not None:
        send(TrialReport(None, None, part.wall_s, part.origin, part.void))
    else:
        report(part, _of_member(part, member), search.epochs)


def _of_member(part: SeedResult, member: Member) -> MemberResult:
    return next(result for result in part.members if result.member == member)


def _epoch(result: MemberResult, number: int) -> TrialEpoch:
    """An epoch of a member, with its hits summed over layers."""
    epoch, hits = result.epochs[number - 1], result.hits[number - 1]
    return TrialEpoch(
        number=number,
        train_loss=epoch.train_loss,
        loss=epoch.test_loss,
        accuracy=epoch.test_accuracy,
        hits=tuple(map(sum, zip(*hits, strict=True))),
        activations=sum(result.activations[number - 1]),
    )
