"""Train a group of seeds in one sitting: epochs and steps, with checkpoints between epochs.

A *sitting* is one run of a process over a group. If it is interrupted, the next sitting resumes at the last checkpoint.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from relucheck.results.store import OriginError, State, Store, StoreError
from relucheck.training.results.result import MemberResult, SeedResult
from relucheck.training.settings import Plan

#: Version of the content of a checkpoint. Raise it when the state of an executor changes.
STATE: Final = 5
#: If writing a checkpoint takes this many seconds or more, it is written less often than after every epoch, such that
#: writing takes about ``SHARE`` of the time. For 100 members of E2 it takes 1.4 s, and an epoch on a GPU may take less.
EXPENSIVE_S: Final = 1.0
SHARE: Final = 0.1
#: A function that is called after each epoch with the results so far, by seed. They change with the next epoch.
AfterEpoch = Callable[[Mapping[int, SeedResult]], None]
#: Number of steps between two reports of progress.
_REPORTED: Final = 16


class Interrupted(KeyboardInterrupt):
    """Training was interrupted by control-C; the message says what is kept and how to resume."""


class Executor(Protocol):
    """What runs the members of a group, see ``relucheck.training.forking.ForkingExecutor``."""

    name: str
    results: dict[int, MemberResult]
    void: str | None

    def alive(self) -> bool: ...
    def note(self) -> str: ...
    def begin(self, epoch: int) -> None: ...
    def step(self, start: int, stop: int, number: int) -> None: ...
    def end(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


def group_name(settings: Plan) -> str:
    """The name of a group of seeds in a store.

    Examples are "seed-3" and "seeds-0-to-9". Seeds that do not follow one another are named by their number and a digest.
    """
    seeds = settings.seeds
    if len(seeds) == 1:
        return f"seed-{seeds[0]}"
    if seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"seeds-{seeds[0]}-to-{seeds[-1]}"
    return f"seeds-{len(seeds)}-{hashlib.sha256(repr(seeds).encode()).hexdigest()[:12]}"


class Sitting:
    """Train the members of a group of seeds, from the last checkpoint on.

    Args:
        settings: of the comparison, with the members of the group only.
        executor: what trains the members.
        samples: number of training samples.
        origin: device, executor and versions. A checkpoint of another origin is not continued.
        store: where checkpoints are kept; None keeps none.
        report: called with a number of steps and a line of text.
        restart: whether to discard a checkpoint of another origin, with a line of text, and start from the beginning. If
            False, such a checkpoint is an error.
        expensive_s: seconds from which on writing a checkpoint counts as slow.
        share: share of the time that writing may then take.

    Raises:
        relucheck.results.store.StoreError: a checkpoint is damaged, or belongs to other settings; or to another origin,
            unless ``restart``.
    """

    def __init__(
        self,
        settings: Plan,
        executor: Executor,
        samples: int,
        origin: dict[str, str],
        store: Store | None,
        report: Callable[[int, str], None],
        restart: bool = False,
        *,
        expensive_s: float = EXPENSIVE_S,
        share: float = SHARE,
    ) -> None:
        self.settings, self.executor, self.samples = settings, executor, samples
        self.origin, self.store, self.report = origin, store, report
        self.expensive_s, self.share = expensive_s, share
        self.name = group_name(settings)
        self.identity = {"state": STATE, "executor": origin["executor"], "settings": settings.shared}
        self.members = json.dumps(settings.to_json()["members"])
        self.steps = settings.steps_of(samples)
        self.epoch, self.before, self.begun = 0, 0.0, time.monotonic()
        self.saving, self.saved = 0.0, 0.0  # seconds that writing the last checkpoint took, and when it was written
        content = self._checkpoint(restart)
        if content is not None:
            self.epoch, self.before = content["epoch"], content["wall_s"]
            self.executor.load(content["executor"])
        self.kept = self.epoch

    def _checkpoint(self, restart: bool) -> dict[str, Any] | None:
        """The last checkpoint of the same members; a checkpoint of other members is discarded."""
        if self.store is None:
            return None
        try:
            kept = self.store.state(self.name, self.identity, self.origin)
        except OriginError as error:
            if not restart:
                raise
            self._discard(str(error))
            return None
        content = None if kept is None else _loaded(self.store.state_path(self.name), kept.content)
        if content is not None and content["members"] != self.members:
            self._discard("its members have changed")
            return None
        return content

    def _discard(self, why: str) -> None:
        assert self.store is not None
        self.report(-self.store.steps(self.name), "")
        self.report(0, f"{self.name} starts again from the beginning: {why}")
        self.store.forget(self.name)

    @property
    def wall_s(self) -> float:
        """Computing time in seconds, over all sittings of the group."""
        return self.before + time.monotonic() - self.begun

    def run(self, after_epoch: AfterEpoch | None = None) -> dict[int, SeedResult]:
        """Train to the end, and return the results by seed.

        Args:
            after_epoch: is called after each epoch, and once at the start if a checkpoint is continued.

        Raises:
            Interrupted: on control-C.
            relucheck.results.store.StoreError: a checkpoint cannot be written.
        """
        try:
            void = self._run(after_epoch)
        except KeyboardInterrupt as error:
            raise Interrupted(self._interrupted()) from error
        return self._results(void)

    def _results(self, void: str | None = None) -> dict[int, SeedResult]:
        wall_s = self.wall_s / len(self.settings.seeds)
        results: dict[int, SeedResult] = {}
        for seed in self.settings.seeds:
            members = [
                self.executor.results.get(index, MemberResult(member))
                for index, member in enumerate(self.settings.members)
                if member.seed == seed
            ]
            results[seed] = SeedResult(members, void, wall_s, dict(self.origin))
        return results

    def _run(self, after_epoch: AfterEpoch | None) -> str | None:
        settings, run = self.settings, self.executor
        unreported = 0
        if after_epoch is not None and self.epoch:
            after_epoch(self._results())
        while self.epoch < settings.epochs and run.alive():
            run.begin(self.epoch)
            for step in range(self.steps):
                start = step * settings.batch_size
                run.step(start, min(start + settings.batch_size, self.samples), self.epoch * self.steps + step + 1)
                unreported += 1
                if unreported == _REPORTED:
                    self.report(unreported, self._note())
                    unreported = 0
                if not run.alive():
                    break
            run.end()  # only after this does the stacked executor know whether a control differed
            if run.void is not None:
                return run.void
            self.report(unreported, "")
            self.report(0, self._note())
            unreported = 0
            self.epoch += 1
            if self.epoch < settings.epochs and run.alive():
                self._save()
            if after_epoch is not None:
                after_epoch(self._results())
        return None

    def _note(self) -> str:
        seeds = ", ".join(map(str, self.settings.seeds))
        return f"seed {seeds} epoch {self.epoch + 1}/{self.settings.epochs} {self.executor.note()}"

    def _save(self) -> None:
        """Write a checkpoint, but less often than after every epoch when writing is slow."""
        started = time.monotonic()
        apart = self.saving / self.share if self.saving >= self.expensive_s else 0.0
        if self.store is None or started - self.saved < apart:
            return
        buffer = io.BytesIO()
        kept = {"epoch": self.epoch, "wall_s": self.wall_s, "members": self.members, "executor": self.executor.state()}
        torch.save(kept, buffer)
        state = State(buffer.getvalue(), self.epoch * self.steps)
        self.store.keep(self.name, self.identity, self.origin, state)
        self.kept, self.saved = self.epoch, time.monotonic()
        self.saving = self.saved - started

    def _interrupted(self) -> str:
        seeds = self.settings.seeds
        who = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
        where = "interrupted after the last epoch"
        if self.epoch < self.settings.epochs:
            where = f"interrupted in epoch {self.epoch + 1} of {self.settings.epochs}, {who}"
        if self.store is None:
            return f"{where}; nothing is kept, as no folder was given"
        folder = self.store.folder
        if not self.kept:
            return f"{where}; nothing of {who} is kept in {folder} yet: run the same again to begin there"
        what = "finished epochs are"
        if self.kept != self.epoch:
            what = f"the epochs before epoch {self.kept + 1} of {who} are"
        return f"{where}; {what} kept in {folder}: run the same again to resume there"


def _loaded(path: Path, content: bytes) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return checkpoint
    except Exception as error:  # unpickling damaged bytes can raise any exception
        raise StoreError(f"{path} is damaged ({error}); delete it to start the seed from the beginning") from error
