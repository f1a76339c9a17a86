"""Run the unfinished units of a scenario, then write the report on all finished ones.

A finished unit is never run again, and an interrupted one goes on from its checkpoint. Two processes may share a folder if
each has other parts (``only``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from relucheck import data
from relucheck.errors import one_of, whole
from relucheck.extras import require
from relucheck.numerics.devices import best_device
from relucheck.reproduction.backends import check_backend, everywhere, local, on_ray
from relucheck.reproduction.experiments import find_scenario
from relucheck.reproduction.folder import ReproductionError, default_folder, described, differences, reserve
from relucheck.reproduction.scenario import Place, Reported, Scenario, check_scale
from relucheck.results.progress import Progress
from relucheck.results.store import StoreError
from relucheck.results.tables import counted
from relucheck.training.engine import EXECUTORS, usual_executor
from relucheck.work import Backend, Event


def default_scale(device: str) -> str:
    """Full scale on an accelerator, else the one for a CPU."""
    return "cpu" if device.startswith("cpu") else "full"


def reproduce(
    name: str,
    scale: str | None = None,
    folder: Path | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    device: str | None = None,
    only: Sequence[str] = (),
    executor: str | None = None,
    processes: int | None = None,
    on: str = "local",
    address: str | None = None,
    gpus_per_unit: float | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
    backend: Backend | None = None,
) -> Reported:
    """Run the unfinished units of a scenario, and write the report on all finished ones.

    Args:
        name: of a scenario, see :func:`relucheck.reproduction.experiments.scenarios`.
        scale: "full", "cpu" or "smoke"; None: full on CUDA, else cpu.
        folder: for everything written; None: ``relucheck-results/NAME-SCALE``, with ``-EXECUTOR`` behind it where that is
            not the device's usual one.
        root: folder of the data sets, see :func:`relucheck.data.data_root`.
        device: None: CUDA where there is one.
        only: names, or else globs or arithmetics, of the parts to run; none: all.
        executor: "forking" (nn.Linear's own kernels) or "stacked" (baddbmm; nn.Linear for 16-bit members on CUDA); None:
            forking on the CPU, else stacked.
        processes: how many units run at once, each with one thread; None: on this machine one for each core on a CPU, else
            1, and on Ray as many as the cluster has room for.
        on: "local" (processes of this machine) or "ray" (tasks of Ray, which needs the extra ``ray``).
        address: of the cluster, for Ray only, see :func:`relucheck.work.connection.connected`.
        gpus_per_unit: how many GPUs Ray reserves for a unit on CUDA, also a fraction of one; None: 1.
        progress: whether to show any.
        say: takes a line for each unit of work.
        backend: what runs the units; None: what ``on`` names.

    Raises:
        ScenarioError: unknown scenario, scale or part.
        relucheck.extras.MissingExtraError: without scipy or matplotlib, without torchvision if data must be downloaded, and
            without Ray if it is to run the units.
        ReproductionError: for a folder that holds anything else, or that cannot be read, and for options that are out of
            range or contradict each other.
        relucheck.errors.DeviceError: for a device that is not there or has too little memory.
        relucheck.work.WorkError: for units that cannot be finished, and for a cluster that does not answer, has no room or
            has nodes with other versions.
        relucheck.data.DataError: for a data root without the data, before anything is run.
        relucheck.results.store.StoreError: for what cannot be written, and for results of something else.
    """
    scenario = find_scenario(name)
    require("reproducing experiments", "scipy", "matplotlib")  # torchvision only for a download, which asks for it
    device = best_device() if device is None else device
    scale = default_scale(device) if scale is None else scale
    check_scale(scale)
    scenario.parts(scale, only)  # before anything is written
    if executor is not None and not scenario.trains:
        raise ReproductionError(f"{scenario.name} trains nothing; leave --executor out")
    kind = usual_executor(device) if executor is None else executor
    one_of("executor", kind, EXECUTORS, error=ReproductionError)
    check_backend(on, device, address, gpus_per_unit)
    if processes is not None:
        whole("processes", processes, error=ReproductionError)
    for data_set, split in scenario.data_sets(scale, only):  # before hours of work that lacks data at its end
        data.load(data_set, split, root)
    folder = default_folder(scenario.name, scale, device, kind) if folder is None else Path(folder)
    if on == "ray":
        folder, root = everywhere(folder, root)
    place = Place(scale, folder, root, device, kind, processes, gpus_per_unit, address if on == "ray" else "local")
    reserve(place, scenario)
    _adopt(place, scenario, only, say)
    units = scenario.units(place, only)
    count = len(scenario.parts(scale, only))
    say(
        f"{scenario.name} ({scenario.title}) at scale {scale} on {device}{f' ({kind})' * scenario.trains}: "
        f"{counted(count, 'part')}, {len(units)} units of work to do, in {folder}"
    )
    if backend is None:
        if on == "ray":
            backend = on_ray(place, scenario, only, address=address, gpus=gpus_per_unit, processes=processes)
        else:
            backend = local(place, scenario, processes)
    done, begun = 0, time.monotonic()
    total, before = sum(unit.steps for unit in units), sum(unit.done for unit in units)
    with Progress(total, scenario.name, scenario.unit, done=before, enabled=progress) as shown:

        def listen(event: Event) -> None:
            nonlocal done
            shown.report(event.steps, event.note)
            if event.finished:
                done += 1
                say(f"[{done}/{len(units)}] {event.unit.name}: finished, {time.monotonic() - begun:.1f} s after the start")

        backend.run(units, listen)
    return scenario.report(place, progress=progress)


def report(name: str, folder: Path, *, root: str | os.PathLike[str] | None = None, progress: bool = True) -> Reported:
    """Write the report on what a folder has finished, on any machine; nothing is run.

    Args:
        name: of the scenario.
        folder: which ``reproduce`` wrote.
        root: as for ``reproduce``; E4 evaluates its networks on the data.
        progress: whether to show any.

    Raises:
        ReproductionError: for a folder that holds something else.
        relucheck.extras.MissingExtraError: as for ``reproduce``.
        relucheck.results.store.StoreError: as for ``reproduce``.
    """
    scenario = find_scenario(name)
    require("reproducing experiments", "scipy", "matplotlib")
    found = described(folder)
    place = Place(found["scale"], folder, root, found["device"], found["executor"])
    reserve(place, scenario)
    return scenario.report(place, progress=progress)


def _adopt(place: Place, scenario: Scenario, only: Sequence[str], say: Callable[[str], None]) -> None:
    """Copy finished units from folders of other scenarios; say why where one does not fit."""
    for name in scenario.shares:
        other = place.folder.parent / default_folder(name, place.scale, place.device, place.executor).name
        different = differences(place, find_scenario(name), other)
        if different is None:
            continue
        if different:
            say(f"nothing is taken from {other}: its {', '.join(different)} is another")
            continue
        try:
            taken = scenario.adopt(place, other, only)
        except StoreError as error:
            say(f"nothing more is taken from {other}: {error}")
            continue
        for part in taken:
            say(f"{part}: taken from {other}")
