"""Train a comparison: its members side by side, with a control, resuming where it stopped.

Members of a seed share initialisation, batch order and dropout masks, and differ in subgradient and rule only. Training
is deterministic, and the control proves it at every step: if the control's parameters differ from the reference's in one
bit, the seed stops and the result is void.

Results are stored by *seed*, identified by the settings, the seed and the executor. So seeds and members can be added to
a comparison without training a finished seed again. Several processes and machines can share the seeds of a comparison;
each seed is trained by one of them. The forking executor trains seed by seed. The stacked executor trains all unfinished
seeds as one batched model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.utils.deterministic

from relucheck import data
from relucheck.errors import DeviceError, one_of
from relucheck.numerics.determinism import deterministic
from relucheck.numerics.devices import available, environment
from relucheck.results.progress import Progress
from relucheck.results.store import Store
from relucheck.training.forking import ForkingExecutor
from relucheck.training.members import Member
from relucheck.training.results.result import VERSIONS, Result, SeedResult
from relucheck.training.results.seed_store import finished, keep, read, same_reference
from relucheck.training.settings import Plan, Settings
from relucheck.training.sitting import AfterEpoch, Executor, Interrupted, Sitting, group_name
from relucheck.training.splits import split_of
from relucheck.training.stacked.executor import StackedExecutor, alone_on, stackable
from relucheck.work import Report, Unit

__all__ = [
    "EXECUTORS",
    "Interrupted",
    "checked_device",
    "executor_of",
    "train",
    "units",
    "usual_executor",
]

EXECUTORS: Final[tuple[str, ...]] = ("forking", "stacked")
#: Parts of torch's messages when the CPU, cuBLAS or CUDA is out of memory, for errors that are a plain RuntimeError.
_NO_MEMORY: Final = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def executor_of(settings: Settings, executor: str, device: str) -> str:
    """The executor that runs a comparison on a device when ``executor`` is requested.

    The stacked executor runs MLPs only, and all seeds on the same images. What it computes member by member, as 16-bit
    products on CUDA, the forking executor does in recorded steps, in a fifteenth of the time. So these comparisons, other
    networks, and seeds that each hold out images of their own get the forking executor, which runs any comparison.
    """
    stacks = stackable(settings.network) and settings.validation is None
    stacks = stacks and not alone_on(settings.arithmetic, device.split(":")[0])
    return executor if executor != "stacked" or stacks else "forking"


def usual_executor(device: str) -> str:
    """The default executor on a device: "forking" on a CPU, "stacked" elsewhere."""
    return "forking" if device.startswith("cpu") else "stacked"


def train(
    settings: Settings,
    *,
    root: data.Root = None,
    device: str | torch.device = "cpu",
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    executor: str | None = None,
    after_epoch: AfterEpoch | None = None,
    restart: bool = False,
) -> Result:
    """Train a comparison in this process.

    Args:
        settings: what to train.
        root: data root, see ``relucheck.data.data_root``.
        device: where to train.
        folder: where the results of seeds and the checkpoints between epochs are written; None keeps nothing. If writing
            a checkpoint takes more than a second, it is written less often, such that about a tenth of the time is spent
            on it. An interrupted run resumes at the last checkpoint, and its result equals an uninterrupted one bit for
            bit. Finished seeds are read, also void ones; if progress is shown, standard error then says how to run them
            again.
        progress: whether to show progress.
        executor: "forking" or "stacked". None means forking on a CPU and for networks that cannot be stacked, and stacked
            otherwise.
        after_epoch: is called after each epoch with the results so far, by seed, and once at the start of a run that
            resumes. Its exceptions end the run; what is kept stays. For a finished seed it is not called.
        restart: whether a checkpoint of another device or other versions is discarded, with a line of text. If False, it is
            an error.

    Returns:
        The result of all seeds; if one is void, the seeds after it may be missing.

    Raises:
        SettingsError: the executor is unknown, or the data set has fewer samples than requested.
        DeviceError: the device is not available, or has too little memory.
        relucheck.data.DataError: the data root does not hold the data.
        relucheck.results.store.StoreError: the disk is full, a checkpoint belongs to other settings, another device or
            other versions, or a stored result belongs to other settings.
        Interrupted: on control-C; it is a KeyboardInterrupt.
    """
    place = checked_device(device)
    kind = executor or executor_of(settings, usual_executor(place.type), place.type)
    one_of("executor", kind, EXECUTORS)
    results: dict[int, SeedResult] = {}
    keep_in = None if folder is None else Path(folder)
    groups = _groups(settings, settings.seeds, kind) if keep_in is None else _missing(settings, keep_in, kind)
    title = f"{settings.data} {settings.arithmetic.name}"
    total = sum(_steps(group, root) for group in groups)
    done = 0 if keep_in is None else sum(_steps_done(group, keep_in) for group in groups)
    with Progress(total, title, done=done, enabled=progress) as shown:
        for group in groups:
            if keep_in is None:
                results |= _train_group(group, None, root, str(place), kind, shown.report, after_epoch=after_epoch)
            else:
                how = root, str(place), kind, restart, shown.report
                _train_and_keep(settings, group.seeds, keep_in, *how, after_epoch=after_epoch)
                results = finished(settings, keep_in, kind)
            if any(part.void for part in results.values()):
                break
    result = Result.of(settings, results if keep_in is None else finished(settings, keep_in, kind))
    if result.void and progress:
        print(_void_message(keep_in, result.void, kind), file=sys.stderr, flush=True)
    return result


def units(
    settings: Settings,
    folder: Path,
    *,
    root: data.Root = None,
    device: str = "cpu",
    executor: str = "forking",
    name: str = "",
) -> tuple[Unit, ...]:
    """The work that a folder has not finished.

    With the forking executor there is one unit for each seed, with the stacked executor one for all of them.

    Args:
        settings: of the comparison.
        folder: where its results are stored.
        root: as for ``train``.
        device: as for ``train``.
        executor: as for ``train``.
        name: name of the comparison, for messages.

    Raises:
        relucheck.results.store.StoreError: the folder cannot be written, or holds results of other settings.
    """
    return tuple(
        Unit(
            f"{name} {group_name(group)}".strip(),
            _train_and_keep,
            (settings, group.seeds, folder, root, device, executor, True),
            _steps(group, root),
            min(_steps_done(group, folder), _steps(group, root)),
        )
        for group in _missing(settings, folder, executor)
    )


def _groups(settings: Settings, seeds: Sequence[int], executor: str) -> list[Settings]:
    """The seeds that are trained together: each by itself, or all if they are stacked."""
    if executor == "stacked" and seeds:
        return [settings.of_seeds(seeds)]
    return [settings.of_seeds((seed,)) for seed in seeds]


def _missing(settings: Settings, folder: Path, executor: str) -> list[Settings]:
    """The groups that a folder has not finished.

    There are none if a seed is void, because nothing could be concluded from the others.
    """
    done = finished(settings, folder, executor)
    if any(part.void for part in done.values()):
        return []
    return _groups(settings, [seed for seed in settings.seeds if seed not in done], executor)


def _steps(group: Settings, root: data.Root) -> int:
    count = group.train_samples
    if count is None:
        count = len(data.load_once(group.data, "train", root))
    return group.epochs * group.steps_of(group.trained(count))


def _steps_done(group: Settings, folder: Path) -> int:
    """Number of steps in the last checkpoint of a group, for a progress bar."""
    return Store(folder).steps(group_name(group))


def origin_of(device: torch.device, executor: str) -> dict[str, str]:
    """Where a seed is trained: the device, the executor, the processor and the versions."""
    here = environment(device)
    return {"device": here.device, "executor": executor, "processor": here.processor, **here.versions(*VERSIONS)}


def _train_group(
    settings: Settings,
    store: Store | None,
    root: data.Root,
    device: str,
    executor: str,
    report: Report,
    restart: bool = False,
    after_epoch: AfterEpoch | None = None,
) -> dict[int, SeedResult]:
    """Train all seeds of ``settings`` together."""
    place = checked_device(device)
    origin = origin_of(place, executor)
    with (
        settings.arithmetic.active(),
        deterministic(),
        without_fill(),
        enough_memory(settings, str(settings.network), place),
    ):
        train, test = (split_of(settings, split, root, place) for split in ("train", "test"))
        run: Executor = (
            ForkingExecutor(settings, settings.seeds[0], train, test, place)
            if executor == "forking"
            else StackedExecutor(settings, settings.seeds, train, test, place)
        )
        return Sitting(settings, run, len(train), origin, store, report, restart).run(after_epoch)


def _train_and_keep(
    settings: Settings,
    seeds: Sequence[int],
    folder: Path,
    root: data.Root,
    device: str,
    executor: str,
    restart: bool,
    report: Report,
    *,
    after_epoch: AfterEpoch | None = None,
) -> None:
    """Train some seeds of a comparison together and store them, but not what is stored already.

    If a stored seed was computed in the same environment, only its new members run, beside its reference and control.
    Elsewhere rounding may differ, so all members of the seed run again, including the stored ones. They also run again if
    the stored seed is thinned, because one seed never mixes thinned and complete results.
    """
    stored = {seed: read(settings, seed, folder, executor) for seed in settings.seeds}
    if any(part is not None and part.void for part in stored.values()):
        report(0, f"{group_name(settings.of_seeds(seeds))} is skipped: another seed of its comparison is void")
        return
    here = origin_of(checked_device(device), executor)
    before = {seed: part for seed in seeds if (part := stored[seed]) is not None}
    continued = {seed: part for seed, part in before.items() if part.origin == here and part.thinned is None}
    store = Store(folder)
    missing = _members_to_run(settings, seeds, before, continued)
    results = _train_group(missing, store, root, device, executor, report, restart, after_epoch)
    if not all(results[seed].void or same_reference(part, results[seed]) for seed, part in continued.items()):
        name = group_name(settings.of_seeds(seeds))
        report(0, f"{name} starts again from the beginning: its reference is no longer the stored one")
        continued = {}
        everything = _members_to_run(settings, seeds, before, {})
        results = _train_group(everything, None, root, device, executor, report, after_epoch=after_epoch)
    keep(settings, folder, executor, {seed: _joined(continued.get(seed), part) for seed, part in results.items()})
    store.forget(group_name(settings.of_seeds(seeds)))


def _members_to_run(
    settings: Settings, seeds: Sequence[int], before: Mapping[int, SeedResult], continued: Mapping[int, SeedResult]
) -> Settings:
    """The settings with the members that must run.

    For a seed that is continued these are the missing members, the reference and the control. For another seed they are
    all members that are requested or were stored.
    """
    members: list[Member] = []
    for seed in seeds:
        known = [result.member for result in before[seed].members] if seed in before else []
        asked = [member for member in settings.members if member.seed == seed]
        if seed in continued:
            members += [m for m in asked if m not in known or m.is_reference or m.control]
        else:
            members += [*asked, *(m for m in known if m not in asked)]
    return dataclasses.replace(settings, members=tuple(members))


def _joined(before: SeedResult | None, part: SeedResult) -> SeedResult:
    if before is None:
        return part
    new = {result.member for result in part.members}
    members = [*(result for result in before.members if result.member not in new), *part.members]
    return SeedResult(members, part.void, before.wall_s + part.wall_s, part.origin)


def _void_message(folder: Path | None, why: str, executor: str) -> str:
    again = "run the same again" if folder is None else f"delete {folder} to run it again"
    if executor == "stacked":
        again += ", or use the executor forking, which stacks nothing"
    return f"void: {why}; nothing may be concluded from it: {again}"


def checked_device(device: str | torch.device) -> torch.device:
    """The torch device of a name.

    Raises:
        DeviceError: the device is not available, or is neither a CPU nor a CUDA device.
    """
    place = available(device)
    if place.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {str(device)!r}: experiments and their kernels run on cpu and cuda; use one of these")
    return place


@contextlib.contextmanager
def without_fill() -> Iterator[None]:
    """Keep deterministic mode from filling every new tensor with NaN while active.

    The fill takes 5 % of a step. It would show reads of uninitialised memory, which the control shows as well, because
    such memory does not hold the same bits twice.
    """
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    try:
        settings.fill_uninitialized_memory = False
        yield
    finally:
        settings.fill_uninitialized_memory = before


@contextlib.contextmanager
def enough_memory(settings: Plan, network: str, device: torch.device) -> Iterator[None]:
    """Turn torch's errors about memory into a ``DeviceError``.

    Args:
        settings: of what is trained.
        network: its name, for the message.
        device: where it is trained.
    """
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
            f"no memory left on {device} for {len(settings.members)} members of {network}, batch size "
            f"{settings.batch_size}, {settings.arithmetic.name}: {str(error).splitlines()[0]}; use fewer seeds at a time, "
            "a smaller batch size, or another device"
        ) from error
