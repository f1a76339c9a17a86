"""One sitting of a group of seeds: epochs and steps, with the state kept in between, so that it resumes where it was."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from relucheck.results.store import OriginError, State, Store, StoreError
from relucheck.training.forking import DataSplit, ForkingExecutor
from relucheck.training.result import MemberResult, SeedResult
from relucheck.training.settings import Settings
from relucheck.training.stacked import StackedExecutor

EXECUTORS: Final[tuple[str, ...]] = ("forking", "stacked")
#: Version of what a state holds. Raise it when an executor's state changes; 2: the optimiser's may be of one tensor;
#: 3: the stacked executor has the controls last, statistics by member, and Adam's betas as powers; 4: of one group; 5: with
#: the members that it is of.
STATE: Final = 5
#: Seconds from which on writing the state is expensive: it is then written after an epoch only where the last time was so
#: long ago that it takes about a tenth of the time. 100 members of E2 take 1.4 s, an epoch on a GPU may take less.
EXPENSIVE_S: Final = 1.0
SHARE: Final = 0.1
#: Steps between two reports.
_REPORTED: Final = 16


class Interrupted(KeyboardInterrupt):
    """Control-C in mid-run; says what is kept and how to go on."""


class Executor(Protocol):
    """What runs the members of one group of seeds; see :class:`relucheck.training.forking.ForkingExecutor`."""

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


def group_name(settings: Settings) -> str:
    """The name of a group of seeds in a store: "seed-3", "seeds-0-to-9", or a number and a digest of other seeds."""
    seeds = settings.seeds
    if len(seeds) == 1:
        return f"seed-{seeds[0]}"
    if seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"seeds-{seeds[0]}-to-{seeds[-1]}"
    return f"seeds-{len(seeds)}-{hashlib.sha256(repr(seeds).encode()).hexdigest()[:12]}"


class Sitting:
    """Trains the members of a group of seeds, which is all that ``settings`` has.

    Args:
        settings: of the group.
        train, test: the data, on ``device``.
        device: where.
        origin: device, executor and versions, of which the state may only be continued.
        store: for the state between epochs; None keeps none.
        report: takes steps, and a line for every epoch.
        anew: whether a state of another origin is dropped, with a line, and the group begun anew; else it is refused.
        expensive_s: seconds from which on writing the state is expensive.
        share: the share of the time that writing may take where it is expensive.
    """

    def __init__(
        self,
        settings: Settings,
        train: DataSplit,
        test: DataSplit,
        device: torch.device,
        origin: dict[str, str],
        store: Store | None,
        report: Callable[[int, str], None],
        anew: bool = False,
        *,
        expensive_s: float = EXPENSIVE_S,
        share: float = SHARE,
    ) -> None:
        self.settings, self.train, self.origin, self.store, self.report = settings, train, origin, store, report
        self.expensive_s, self.share = expensive_s, share
        self.name = group_name(settings)
        self.identity = {"state": STATE, "executor": origin["executor"], "settings": settings.shared}
        self.members = json.dumps(settings.to_json()["members"])
        self.steps = settings.steps_of(len(train))
        self.executor: Executor = (
            ForkingExecutor(settings, settings.seeds[0], train, test, device)
            if origin["executor"] == "forking"
            else StackedExecutor(settings, settings.seeds, train, test, device)
        )
        self.epoch, self.before, self.begun = 0, 0.0, time.monotonic()
        self.saving, self.saved = 0.0, 0.0  # seconds that the last state took, and when it was written
        content = self._state(anew)
        if content is not None:
            self.epoch, self.before = content["epoch"], content["wall_s"]
            self.executor.load(content["executor"])
        self.kept = self.epoch

    def _state(self, anew: bool) -> dict[str, Any] | None:
        """What an earlier sitting of the same members kept; what other members kept is of no use."""
        if self.store is None:
            return None
        try:
            kept = self.store.state(self.name, self.identity, self.origin)
        except OriginError as error:
            if not anew:
                raise
            self._drop(str(error))
            return None
        content = None if kept is None else _loaded(self.store.state_path(self.name), kept.content)
        if content is not None and content["members"] != self.members:
            self._drop("it has other members now")
            return None
        return content

    def _drop(self, why: str) -> None:
        assert self.store is not None
        self.report(-self.store.steps(self.name), "")
        self.report(0, f"{self.name} is begun anew: {why}")
        self.store.forget(self.name)

    @property
    def wall_s(self) -> float:
        """Seconds over all sittings."""
        return self.before + time.monotonic() - self.begun

    def run(self) -> dict[int, SeedResult]:
        """The results by seed.

        Raises:
            Interrupted: on control-C.
        """
        try:
            void = self._run()
        except KeyboardInterrupt as error:
            raise Interrupted(self._interrupted()) from error
        wall_s = self.wall_s / len(self.settings.seeds)
        found: dict[int, SeedResult] = {}
        for seed in self.settings.seeds:
            members = [
                self.executor.results.get(index, MemberResult(member))
                for index, member in enumerate(self.settings.members)
                if member.seed == seed
            ]
            found[seed] = SeedResult(members, void, wall_s, dict(self.origin))
        return found

    def _run(self) -> str | None:
        settings, run = self.settings, self.executor
        unreported = 0
        while self.epoch < settings.epochs and run.alive():
            run.begin(self.epoch)
            for step in range(self.steps):
                start = step * settings.batch_size
                run.step(start, min(start + settings.batch_size, len(self.train)), self.epoch * self.steps + step + 1)
                unreported += 1
                if unreported == _REPORTED:
                    self.report(unreported, self._note())
                    unreported = 0
                if not run.alive():
                    break
            run.end()  # the stacked executor finds out only now whether a control differed
            if run.void is not None:
                return run.void
            self.report(unreported, "")
            self.report(0, self._note())
            unreported = 0
            self.epoch += 1
            if self.epoch < settings.epochs and run.alive():
                self._save()
        return None

    def _note(self) -> str:
        seeds = ", ".join(map(str, self.settings.seeds))
        return f"seed {seeds} epoch {self.epoch + 1}/{self.settings.epochs} {self.executor.note()}"

    def _save(self) -> None:
        """Keeps the state, unless writing it is expensive and the last time was not long ago."""
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
            what = f"what was finished before epoch {self.kept + 1} of {who} is"
        return f"{where}; {what} kept in {folder}: run the same again to resume there"


def _loaded(path: Path, content: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return found
    except Exception as error:  # unpickling nonsense raises what it likes
        raise StoreError(f"{path} is damaged ({error}); delete it to begin the seed anew") from error
