"""The paired-ensemble engine: trains the members of a comparison side by side, with a control, and resumes where it was.

Members of a seed share initialisation, batch order and dropout masks, and differ in subgradient and rule only. Determinism
is switched on and the control proves it at every step: where the control's parameters differ from the reference's in one
bit, the run stops and its result is void.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import torch.utils.deterministic

from relucheck import data
from relucheck.errors import DeviceError, SettingsError
from relucheck.numerics.determinism import deterministic
from relucheck.numerics.devices import environment
from relucheck.results.progress import Progress
from relucheck.training import checkpoints
from relucheck.training.forking import ForkingExecutor, Split
from relucheck.training.result import MemberResult, Result
from relucheck.training.settings import Settings
from relucheck.training.stacked import StackedExecutor

EXECUTORS: Final[tuple[str, ...]] = ("forking", "stacked")
#: What a result keeps of its environment beside the device.
VERSIONS: Final[tuple[str, ...]] = ("relucheck", "torch", "python")
#: What torch says where memory ran out and the error is of no class of its own: the CPU, cuBLAS, CUDA.
_NO_MEMORY: Final = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
_STOPPED: Final = "stopped: the comparison is void"
#: Seconds from which on a checkpoint is dear: it is then written after an epoch only where the last one was so long ago
#: that checkpoints take about a tenth of the time. 100 members of E2 take 1.4 s, an epoch on a GPU may take less.
_DEAR_S: Final = 1.0
_SHARE: Final = 0.1


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


def train(
    settings: Settings,
    *,
    root: data.Root = None,
    device: str | torch.device = "cpu",
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    executor: str | None = None,
) -> Result:
    """Runs a comparison.

    Args:
        settings: what to run.
        root: data root, see :func:`relucheck.data.data_root`.
        device: where.
        folder: where checkpoints and the result go. A checkpoint is written after each epoch, one that takes over a second
            only so often that a tenth of the time goes into them. A run that was broken off resumes at its last checkpoint
            and ends bitwise equal to an unbroken one; a finished one is read and returned, also a void one (standard
            error says how to run it again, if progress is shown). None keeps nothing.
        progress: whether to show any.
        executor: "forking" or "stacked"; unless given, forking on the CPU and stacked elsewhere.

    Raises:
        SettingsError: for an unknown executor, or more samples than the data has.
        DeviceError: for a device that is not there or has too little memory; names the sizes and the fix.
        relucheck.data.DataError: for a data root without the data.
        relucheck.training.checkpoints.CheckpointError: for a full disk, and for a checkpoint or result of other settings,
            device, executor or versions.
        Interrupted: on control-C, a KeyboardInterrupt.
    """
    place = _device(device)
    kind = executor or ("forking" if place.type == "cpu" else "stacked")
    if kind not in EXECUTORS:
        raise SettingsError(f"executor={executor!r}: must be one of {', '.join(EXECUTORS)}")
    keep = None if folder is None else Path(folder)
    origin = {"device": (here := environment(place)).device, "executor": kind, **here.versions(*VERSIONS)}
    if keep is not None and (known := checkpoints.load_result(keep, settings, origin)) is not None:
        if known.void is not None and progress:
            print(_void(keep, known.void, kind), file=sys.stderr, flush=True)
        return known
    with settings.precision.arithmetic.active(), deterministic(), _unfilled(), _enough_memory(settings, place):
        return _Run(settings, root, place, keep, origin, progress).run()


class _Run:
    """One sitting of a run: the loop over groups of seeds, epochs and steps."""

    def __init__(
        self,
        settings: Settings,
        root: data.Root,
        device: torch.device,
        folder: Path | None,
        origin: dict[str, str],
        progress: bool,
    ) -> None:
        self.settings, self.device, self.folder, self.origin, self.progress = settings, device, folder, origin, progress
        self.kind = kind = origin["executor"]
        state = None if folder is None else checkpoints.load(folder, settings, self.origin)
        self.train = _split(settings, "train", root, device)
        self.steps = settings.steps_of(len(self.train))
        self.test = _split(settings, "test", root, device)
        self.groups = [(seed,) for seed in settings.seeds] if kind == "forking" else [settings.seeds]
        self.finished: dict[int, MemberResult] = {}
        self.group, self.epoch, self.before, self.begun = 0, 0, 0.0, time.monotonic()
        self.executor: Executor | None = None
        self.saving, self.saved = 0.0, 0.0  # seconds that the last checkpoint took, and when it was written
        if state is not None:
            self.finished = {int(index): MemberResult.from_json(content) for index, content in state["finished"].items()}
            self.group, self.epoch, self.before = state["group"], state["epoch"], state["wall_s"]
            if state["executor"] is not None:
                self.executor = self._make()
                self.executor.load(state["executor"])
        self.kept = self.group, self.epoch

    def _make(self) -> Executor:
        if self.kind == "forking":
            return ForkingExecutor(self.settings, self.groups[self.group][0], self.train, self.test, self.device)
        return StackedExecutor(self.settings, self.groups[self.group], self.train, self.test, self.device)

    @property
    def wall_s(self) -> float:
        return self.before + time.monotonic() - self.begun

    def run(self) -> Result:
        settings = self.settings
        steps = self.steps
        done = (self.group * settings.epochs + self.epoch) * steps
        total = len(self.groups) * settings.epochs * steps
        title = f"{settings.data} {settings.precision.name}"
        with Progress(total, title, done=done, enabled=self.progress) as shown:
            try:
                void: str | None = None
                while self.group < len(self.groups) and void is None:
                    void = self._run_group(steps, shown)
            except KeyboardInterrupt as error:
                raise Interrupted(self._interrupted()) from error
            if void is not None:
                shown.line(_void(self.folder, void, self.kind))
        return self._result(void)

    def _run_group(self, steps: int, shown: Progress) -> str | None:
        settings = self.settings
        if self.executor is None:
            self.executor = self._make()
        run = self.executor
        while self.epoch < settings.epochs and run.alive():
            run.begin(self.epoch)
            for step in range(steps):
                start = step * settings.batch_size
                run.step(start, min(start + settings.batch_size, len(self.train)), self.epoch * steps + step + 1)
                shown.advance(note=self._note() if shown.live and step % 16 == 0 else None)
                if not run.alive():
                    break
            run.end()  # the stacked executor finds out only now whether a control differed
            if run.void is not None:
                return run.void
            shown.line(self._note())
            self.epoch += 1
            if self.epoch < settings.epochs and run.alive():
                self._save(sparing=True)
        self.finished |= run.results
        self.group, self.epoch, self.executor = self.group + 1, 0, None
        if self.group < len(self.groups):
            self._save()
        return None

    def _note(self) -> str:
        seeds = ", ".join(map(str, self.groups[self.group]))
        note = self.executor.note() if self.executor else ""
        return f"seed {seeds} epoch {self.epoch + 1}/{self.settings.epochs} {note}"

    def _save(self, *, sparing: bool = False) -> None:
        """Writes a checkpoint; ``sparing``: unless it is dear and the last one was not long ago."""
        started = time.monotonic()
        apart = self.saving / _SHARE if self.saving >= _DEAR_S else 0.0
        if self.folder is None or (sparing and started - self.saved < apart):
            return
        state = {
            "finished": {index: result.to_json() for index, result in self.finished.items()},
            "group": self.group,
            "epoch": self.epoch,
            "wall_s": self.wall_s,
            "executor": None if self.executor is None else self.executor.state(),
        }
        checkpoints.save(self.folder, self.settings, self.origin, state)
        self.kept, self.saved = (self.group, self.epoch), time.monotonic()
        self.saving = self.saved - started

    def _result(self, void: str | None) -> Result:
        if void is not None and self.executor is not None:
            self.finished |= self.executor.results
        members = []
        for index, member in enumerate(self.settings.members):
            own = self.finished.get(index, MemberResult(member))
            if void is not None and len(own.epochs) < self.settings.epochs and not own.diverged:
                own.outcome = _STOPPED
            members.append(own)
        versions = {name: self.origin[name] for name in VERSIONS}
        result = Result(self.settings, self.origin["device"], self.kind, versions, self.wall_s, void, members)
        if self.folder is not None:
            checkpoints.save_result(self.folder, result)
        return result

    def _interrupted(self) -> str:
        where = "interrupted after the last epoch"
        if self.group < len(self.groups):
            where = f"interrupted in epoch {self.epoch + 1} of {self.settings.epochs}, seed {self.groups[self.group][0]}"
        if self.folder is None:
            return f"{where}; nothing is kept, as no folder was given"
        group, epoch = self.kept
        if self.kept == (0, 0):
            return f"{where}; nothing is kept in {self.folder} yet: run the same again from the start"
        what = "finished epochs are"
        if self.kept != (self.group, self.epoch):
            what = f"what was finished before epoch {epoch + 1} of seed {self.groups[group][0]} is"
        return f"{where}; {what} kept in {self.folder}: run the same again to resume there"


def _void(folder: Path | None, why: str, executor: str) -> str:
    again = "run the same again" if folder is None else f"delete {folder / checkpoints.RESULT} to run it again"
    if executor == "stacked":
        again += ", or take the executor forking, which stacks nothing"
    return f"void: {why}; nothing may be concluded from it: {again}"


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"device {str(device)!r} is not to be had here: {reason}; use device 'cpu'") from error
    return place


def _split(settings: Settings, split: str, root: data.Root, device: torch.device) -> Split:
    found = data.load(settings.data, split, root)
    wanted: int | None = getattr(settings, f"{split}_samples")
    if wanted is not None and wanted > len(found):
        raise SettingsError(f"{split}_samples={wanted}: {settings.data} {split} has {len(found)} images; use at most that")
    count = len(found) if wanted is None else wanted
    images = data.scale(found.images[:count], settings.precision.torch_dtype, "flat", device)
    return Split(images, found.labels[:count].to(device))


@contextlib.contextmanager
def _unfilled() -> Iterator[None]:
    """Deterministic mode without filling every new tensor with NaN first, which takes 5 % of a step and finds nothing here.

    The control would: memory that is read before it is written does not hold the same bits twice.
    """
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    try:
        settings.fill_uninitialized_memory = False
        yield
    finally:
        settings.fill_uninitialized_memory = before


@contextlib.contextmanager
def _enough_memory(settings: Settings, device: torch.device) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if (
            isinstance(error, RuntimeError)
            and not isinstance(error, torch.OutOfMemoryError)
            and not any(sign in str(error) for sign in _NO_MEMORY)
        ):
            raise
        raise DeviceError(
            f"no memory left on {device} for {len(settings.members)} members of widths {settings.widths}, batch size "
            f"{settings.batch_size}, {settings.precision.name}: {str(error).splitlines()[0]}; use fewer seeds at a time, a "
            "smaller batch size, or another device"
        ) from error
