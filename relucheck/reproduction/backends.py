"""What runs the units of a scenario: processes of this machine, or tasks of Ray."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from relucheck import data
from relucheck.errors import number, one_of
from relucheck.reproduction.folder import ReproductionError
from relucheck.reproduction.scenario import Place, Scenario
from relucheck.training.engine import checked_device
from relucheck.work import Backend, Local

#: What ``--on`` may name.
BACKENDS: Final = ("local", "ray")
#: Scales whose units take less time than a process needs to start.
_SHORT: Final = ("smoke",)


def check_backend(on: str, device: str, address: str | None, gpus: float | None) -> None:
    """Refuse options that contradict each other, and a device that this machine lacks and needs.

    On Ray the GPUs may belong to other machines, so the backend itself looks for them.

    Raises:
        ReproductionError: for an unknown backend, and for options that another backend or device has.
        relucheck.errors.DeviceError: for a device that is not there.
        relucheck.extras.MissingExtraError: for "ray" without Ray.
    """
    one_of("on", on, BACKENDS, error=ReproductionError)
    if on != "ray":
        for name, value in (("--address", address), ("--gpus-per-unit", gpus)):
            if value is not None:
                raise ReproductionError(f"{name} is an option of Ray; add --on ray, or leave {name} out")
        checked_device(device)
        return
    from relucheck.work import cluster  # noqa: F401  # it refuses to be imported without Ray

    if device.startswith("cuda"):
        if device != "cuda":
            raise ReproductionError(f"--device {device}: on Ray, the cluster chooses the GPU of each unit; name cuda")
        if gpus is not None:
            number("--gpus-per-unit", gpus, above=0.0, error=ReproductionError)
        return
    if gpus is not None:
        raise ReproductionError(f"--gpus-per-unit is for GPUs, and the device is {device}; add --device cuda")
    checked_device(device)


def local(place: Place, scenario: Scenario, processes: int | None) -> Backend:
    """Processes of this machine: one for each core on a CPU, else the calling process alone."""
    stacked = scenario.trains and place.executor == "stacked"
    several = place.device.startswith("cpu") and not stacked and place.scale not in _SHORT
    # stacked members are one product, which is made of all threads
    return Local(processes if processes is not None or several else 1, threads=None if stacked else 1)


def on_ray(
    place: Place,
    scenario: Scenario,
    only: Sequence[str],
    *,
    address: str | None,
    gpus: float | None,
    processes: int | None,
) -> Backend:
    """Tasks of Ray, each with one thread.

    A task that trains stacked members on a CPU has as many threads as this process. The nodes share the folder of the
    place, and each of them has the data.
    """
    import torch

    from relucheck.work.cluster import Ray

    on_cpu = place.device.startswith("cpu")
    threads = torch.get_num_threads() if on_cpu and scenario.trains and place.executor == "stacked" else 1
    return Ray(
        address,
        cpus=threads,
        gpus=0.0 if on_cpu else 1.0 if gpus is None else gpus,
        threads=threads,
        at_once=processes,
        folder=place.folder,
        same={"data": functools.partial(data.checksums, scenario.data_sets(place.scale, only), place.root)},
    )


def everywhere(folder: Path, root: data.Root) -> tuple[Path, Path]:
    """The results folder and the data root as absolute paths, for other machines."""
    return folder.absolute(), data.data_root(root).absolute()
