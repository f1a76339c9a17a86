"""The paired-ensemble engine: trains the members of a comparison side by side, with a control, and resumes where it was.

Members of a seed share initialisation, batch order and dropout masks, and differ in subgradient and rule only. Determinism
is switched on and the control proves it at every step: where the control's parameters differ from the reference's in one
bit, the seed stops and the result is void.

A *seed* is what is stored: its settings, its number and the executor are its identity. So seeds and members can be added to
a comparison without a finished seed being run again, and seeds may be computed by several processes and machines, each by
one. The forking executor runs seed by seed, the stacked one all seeds that are not finished as one batched model.
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
from relucheck.errors import DeviceError, SettingsError, one_of
from relucheck.numerics.determinism import deterministic
from relucheck.numerics.devices import environment
from relucheck.results.progress import Progress
from relucheck.results.store import FINISHED, Store, StoreError, read_finished
from relucheck.training.forking import DataSplit
from relucheck.training.result import VERSIONS, MemberResult, Result, SeedResult
from relucheck.training.settings import Member, Settings
from relucheck.training.sitting import EXECUTORS, Interrupted, Sitting, group_name
from relucheck.training.stacked import stackable
from relucheck.work import Report, Unit

__all__ = [
    "EXECUTORS",
    "Interrupted",
    "checked_device",
    "collect",
    "executor_of",
    "finished",
    "keep",
    "train",
    "units",
    "usual_executor",
]

#: What torch says where memory ran out and the error is of no class of its own: the CPU, cuBLAS, CUDA.
_NO_MEMORY: Final = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def executor_of(settings: Settings, executor: str) -> str:
    """What runs a comparison where an executor is asked for: the forking one serves every network, the stacked one MLPs."""
    return executor if executor != "stacked" or stackable(settings.network) else "forking"


def usual_executor(device: str) -> str:
    """What runs unless another is asked for: forking on the CPU, stacked elsewhere."""
    return "forking" if device.startswith("cpu") else "stacked"


def train(
    settings: Settings,
    *,
    root: data.Root = None,
    device: str | torch.device = "cpu",
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    executor: str | None = None,
) -> Result:
    """Runs a comparison in this process, seed by seed.

    Args:
        settings: what to run.
        root: data root, see :func:`relucheck.data.data_root`.
        device: where.
        folder: where states and the results of seeds go. A state is written after each epoch, one that takes over a second
            only so often that a tenth of the time goes into them. A run that was broken off resumes at its last state and
            ends bitwise equal to an unbroken one; finished seeds are read, also void ones (standard error says how to run
            them again, if progress is shown). None keeps nothing.
        progress: whether to show any.
        executor: "forking" or "stacked"; unless given, forking on the CPU and for networks that cannot be stacked, else
            stacked.

    Raises:
        SettingsError: for an unknown executor, or more samples than the data has.
        DeviceError: for a device that is not there or has too little memory; names the sizes and the fix.
        relucheck.data.DataError: for a data root without the data.
        relucheck.results.store.StoreError: for a full disk, for the state of a seed of other settings, device or versions,
            and for the result of a seed of other settings.
        Interrupted: on control-C, a KeyboardInterrupt.
    """
    place = checked_device(device)
    kind = executor or executor_of(settings, usual_executor(place.type))
    one_of("executor", kind, EXECUTORS)
    found: dict[int, SeedResult] = {}
    keep_in = None if folder is None else Path(folder)
    groups = _groups(settings, settings.seeds, kind) if keep_in is None else _missing(settings, keep_in, kind)
    title = f"{settings.data} {settings.arithmetic.name}"
    total = sum(_steps(group, root) for group in groups)
    done = 0 if keep_in is None else sum(_taken(group, keep_in) for group in groups)
    with Progress(total, title, done=done, enabled=progress) as shown:
        for group in groups:
            if keep_in is None:
                found |= _train_group(group, None, root, str(place), kind, shown.report)
            else:
                _train_and_keep(settings, group.seeds, keep_in, root, str(place), kind, False, shown.report)
                found = finished(settings, keep_in, kind)
            if any(part.void for part in found.values()):
                break
    result = Result.of(settings, found if keep_in is None else finished(settings, keep_in, kind))
    if result.void and progress:
        print(_void(keep_in, result.void, kind), file=sys.stderr, flush=True)
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
    """The work that a folder has not finished: one unit a seed (forking), or one for all those seeds (stacked).

    Args:
        settings: of the comparison.
        folder: its store.
        root, device, executor: as for :func:`train`.
        name: of the comparison, for messages.

    Raises:
        relucheck.results.store.StoreError: for a folder that cannot be written, or results of other settings in it.
    """
    return tuple(
        Unit(
            f"{name} {group_name(group)}".strip(),
            _train_and_keep,
            (settings, group.seeds, folder, root, device, executor, True),
            _steps(group, root),
            min(_taken(group, folder), _steps(group, root)),
        )
        for group in _missing(settings, folder, executor)
    )


def finished(settings: Settings, folder: Path, executor: str) -> dict[int, SeedResult]:
    """The seeds of a comparison of which a folder has every member, by seed; it need not be writable.

    Raises:
        relucheck.results.store.StoreError: for a file that is damaged, or of other settings or another executor.
    """
    found = {}
    for seed in settings.seeds:
        part = _stored(settings, seed, folder, executor)
        if part is None:
            continue
        known = {result.member for result in part.members}
        if part.void or all(member in known for member in settings.members if member.seed == seed):
            found[seed] = part
    return found


def collect(settings: Settings, folder: Path, executor: str) -> Result | None:
    """The result of a comparison whose seeds are all finished, or one of which is void; else None.

    Raises:
        relucheck.results.store.StoreError: as :func:`finished`.
    """
    found = finished(settings, folder, executor)
    if len(found) < len(settings.seeds) and not any(part.void for part in found.values()):
        return None
    return Result.of(settings, found)


def keep(settings: Settings, folder: Path, executor: str, seeds: Mapping[int, SeedResult]) -> None:
    """Stores results of seeds, each in place of what the folder has of it.

    Raises:
        relucheck.results.store.StoreError: where the file system refuses.
    """
    store = Store(folder)
    for seed, part in seeds.items():
        store.finish(f"seed-{seed}", _identity(settings, seed, executor), part.origin, part.to_json())


def _identity(settings: Settings, seed: int, executor: str) -> dict[str, Any]:
    return {"executor": executor, "seed": seed, "settings": settings.shared}


def _stored(settings: Settings, seed: int, folder: Path, executor: str) -> SeedResult | None:
    path = folder / f"seed-{seed}{FINISHED}"
    found = read_finished(path, _identity(settings, seed, executor))
    try:
        return None if found is None else SeedResult.from_json(found.result, found.origin)
    except SettingsError as error:
        raise StoreError(f"{path} is damaged: {error}; move it away to run the seed again") from error


def _groups(settings: Settings, seeds: Sequence[int], executor: str) -> list[Settings]:
    """What runs together: each seed by itself, or where they are stacked all of them."""
    if executor == "stacked" and seeds:
        return [settings.of_seeds(seeds)]
    return [settings.of_seeds((seed,)) for seed in seeds]


def _missing(settings: Settings, folder: Path, executor: str) -> list[Settings]:
    """The groups that a folder has not finished; none where a seed is void, as nothing may be concluded from the others."""
    done = finished(settings, folder, executor)
    if any(part.void for part in done.values()):
        return []
    return _groups(settings, [seed for seed in settings.seeds if seed not in done], executor)


def _steps(group: Settings, root: data.Root) -> int:
    count = group.train_samples
    if count is None:
        count = len(data.load_once(group.data, "train", root))
    return group.epochs * group.steps_of(count)


def _taken(group: Settings, folder: Path) -> int:
    """Steps that an earlier sitting took, for a progress bar."""
    return Store(folder).steps(group_name(group))


def _origin(device: torch.device, executor: str) -> dict[str, str]:
    here = environment(device)
    return {"device": here.device, "executor": executor, "processor": here.processor, **here.versions(*VERSIONS)}


def _train_group(
    settings: Settings,
    store: Store | None,
    root: data.Root,
    device: str,
    executor: str,
    report: Report,
    anew: bool = False,
) -> dict[int, SeedResult]:
    """Trains the seeds that ``settings`` has, all of them together."""
    place = checked_device(device)
    origin = _origin(place, executor)
    with settings.arithmetic.active(), deterministic(), _unfilled(), _enough_memory(settings, place):
        splits = _split(settings, "train", root, place), _split(settings, "test", root, place)
        return Sitting(settings, *splits, place, origin, store, report, anew).run()


def _train_and_keep(
    settings: Settings,
    seeds: Sequence[int],
    folder: Path,
    root: data.Root,
    device: str,
    executor: str,
    anew: bool,
    report: Report,
) -> None:
    """Trains some seeds of a comparison together and stores them; what is stored of a seed is not run again.

    New members of a stored seed run beside their reference and control alone, where the seed was computed in the same
    environment. Elsewhere, where rounding may be another, all of the seed's members run again, the stored ones too; so they
    do where the stored ones are thinned, because one seed never mixes thinned and whole results.
    """
    stored = {seed: _stored(settings, seed, folder, executor) for seed in settings.seeds}
    if any(part is not None and part.void for part in stored.values()):
        report(0, f"{group_name(settings.of_seeds(seeds))} is left out: another seed of its comparison is void")
        return
    here = _origin(checked_device(device), executor)
    before = {seed: part for seed in seeds if (part := stored[seed]) is not None}
    continued = {seed: part for seed, part in before.items() if part.origin == here and part.thinned is None}
    store = Store(folder)
    found = _train_group(_with_members(settings, seeds, before, continued), store, root, device, executor, report, anew)
    if not all(found[seed].void or _reference(part) == _reference(found[seed]) for seed, part in continued.items()):
        report(0, f"{group_name(settings.of_seeds(seeds))} is begun anew: its reference is no longer what is stored")
        continued = {}
        found = _train_group(_with_members(settings, seeds, before, {}), None, root, device, executor, report)
    keep(settings, folder, executor, {seed: _joined(continued.get(seed), part) for seed, part in found.items()})
    store.forget(group_name(settings.of_seeds(seeds)))


def _with_members(
    settings: Settings, seeds: Sequence[int], before: Mapping[int, SeedResult], continued: Mapping[int, SeedResult]
) -> Settings:
    """What has to run: of a seed that is continued what is missing, of another one all that is asked for or was stored."""
    members: list[Member] = []
    for seed in seeds:
        known = [result.member for result in before[seed].members] if seed in before else []
        asked = [member for member in settings.members if member.seed == seed]
        if seed in continued:
            members += [m for m in asked if m not in known or m.is_reference or m.control]
        else:
            members += [*asked, *(m for m in known if m not in asked)]
    return dataclasses.replace(settings, members=tuple(members))


def _reference(part: SeedResult) -> MemberResult:
    return next(result for result in part.members if result.member.is_reference)


def _joined(before: SeedResult | None, part: SeedResult) -> SeedResult:
    if before is None:
        return part
    new = {result.member for result in part.members}
    members = [*(result for result in before.members if result.member not in new), *part.members]
    return SeedResult(members, part.void, before.wall_s + part.wall_s, part.origin)


def _void(folder: Path | None, why: str, executor: str) -> str:
    again = "run the same again" if folder is None else f"delete {folder} to run it again"
    if executor == "stacked":
        again += ", or take the executor forking, which stacks nothing"
    return f"void: {why}; nothing may be concluded from it: {again}"


def checked_device(device: str | torch.device) -> torch.device:
    """The device of a name.

    Raises:
        DeviceError: it is not there, or is neither a CPU nor a CUDA device.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"device {str(device)!r} is not to be had here: {reason}; use device 'cpu'") from error
    if place.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {str(device)!r}: relucheck trains on cpu and cuda; use one of these")
    return place


def _split(settings: Settings, split: str, root: data.Root, device: torch.device) -> DataSplit:
    found = data.load_once(settings.data, split, root)
    wanted: int | None = getattr(settings, f"{split}_samples")
    if wanted is not None and wanted > len(found):
        raise SettingsError(f"{split}_samples={wanted}: {settings.data} {split} has {len(found)} images; use at most that")
    count = len(found) if wanted is None else wanted
    network, labels = settings.network, found.labels[:count]
    if found.images[0].numel() != network.features or int(labels.max()) >= network.classes:
        raise SettingsError(
            f"network={network}: takes {network.features} numbers and has {network.classes} classes, {settings.data} has "
            f"images of {found.images[0].numel()} pixels and classes 0 to {int(labels.max())}; change its input_shape or "
            "classes"
        )
    images = data.scale(found.images[:count], settings.arithmetic.dtype, "flat", device)
    return DataSplit(images.reshape(count, *network.input_shape), labels.to(device))


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
            f"no memory left on {device} for {len(settings.members)} members of {settings.network}, batch size "
            f"{settings.batch_size}, {settings.arithmetic.name}: {str(error).splitlines()[0]}; use fewer seeds at a time, "
            "a smaller batch size, or another device"
        ) from error
