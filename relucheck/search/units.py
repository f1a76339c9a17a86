"""A search as one unit of work, and the check that a search needs before it starts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

import torch

from relucheck import data
from relucheck.bifurcation.wiring import check_wiring
from relucheck.errors import SettingsError, number, whole
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.results.progress import Progress
from relucheck.search.records import Records, only_driver, read
from relucheck.search.result import SearchResult
from relucheck.search.search import Search
from relucheck.search.trial import Train, train_trial
from relucheck.training.model import Clock, Switch, uncounted
from relucheck.work import Report, Unit

#: Images of the mini-batch that goes through a network to find its activations; batch norm needs two.
_IMAGES: Final = 2
#: The part of a GPU that a trial gets if nothing else is said.
_SHARE: Final = 0.25


def run(
    search: Search,
    folder: str | os.PathLike[str],
    *,
    root: data.Root = None,
    device: str = "cpu",
    address: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
    at_once: int | None = None,
    progress: bool = True,
) -> SearchResult:
    """Run a search on Ray Tune, and return its result.

    If a run is interrupted, or a process or the whole machine dies, the same call goes on where it was: trials that have
    ended do not run again, others resume after their last epoch, and what ASHA has decided stays.

    Args:
        search: which search.
        folder: for its results. On a cluster, all machines need it under the same path.
        root: data root, see ``relucheck.data.data_root``; likewise.
        device: where trials train, "cpu" or "cuda".
        address: "HOST:PORT" of a Ray cluster, "auto" for the Ray that runs on this machine, or "local". None means the
            environment variable RAY_ADDRESS, else "local", which starts a Ray on this machine for the time of the search.
        cpus: CPUs of each trial. A trial computes in one thread all the same.
        gpus: GPUs of each trial; with 0.25, four trials share one. None means 0.25 on CUDA, and none on a CPU.
        at_once: how many trials run at once; None means as many as there is room for.
        progress: whether to show progress: a line for each epoch, and a bar on a terminal.

    Raises:
        relucheck.extras.MissingExtraError: without Ray.
        SettingsError: a number, the device or the address is invalid.
        relucheck.bifurcation.wiring.WiringError: the subgradients do not reach every activation of the network.
        relucheck.work.WorkError: no cluster answers, one of its machines cannot run trials, or the processes of a trial
            keep dying.
        relucheck.search.tuning.SearchError: a trial reports nothing.
        relucheck.errors.ControlError: the control of a trial differed, so that nothing may be concluded.
        relucheck.results.store.StoreError: the folder cannot be written, holds another search, or is in use by another run
            of this one.
        relucheck.errors.DeviceError: the device is not there, or has too little memory.
        Exception: what a trial raised.
    """
    one = unit(search, folder, root=root, device=device, address=address, cpus=cpus, gpus=gpus, at_once=at_once)
    with Progress(one.steps, "search", done=one.done, enabled=progress) as shown:
        one.work(*one.arguments, shown.report)
    result = read(Path(folder), search)
    assert result is not None
    return result


def unit(
    search: Search,
    folder: str | os.PathLike[str],
    *,
    root: data.Root = None,
    device: str = "cpu",
    address: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
    at_once: int | None = None,
    name: str = "search",
) -> Unit:
    """A search as one unit of work, which distributes itself.

    The arguments are those of ``run``. If the search has ended, the unit does nothing, and does not start Ray.

    Args:
        name: of the unit, for messages.

    Raises:
        SettingsError: a number or the device is invalid.
        relucheck.results.store.StoreError: the folder holds another search.
    """
    whole("cpus", cpus)
    if device not in ("cpu", "cuda"):
        raise SettingsError(f"device={device!r}: must be cpu or cuda; Ray chooses the GPU of each trial")
    on_gpu = device == "cuda"
    if gpus is None:
        gpus = _SHARE if on_gpu else 0.0
    number("gpus", gpus, least=0)
    if on_gpu and not gpus:
        raise SettingsError(f"gpus={gpus!r} with device={device!r}: Ray hides GPUs from trials that ask for none; use 0.25")
    if at_once is not None:
        whole("at_once", at_once)
    steps = [settings.every for settings in map(search.settings, search.draws)]
    path = Path(folder)
    known = read(path, search)
    done = 0
    if known is not None:
        records = Records(search, path)
        done = sum(
            each * (search.epochs if draw.number in records.ended else len(records.epochs(draw.number)))
            for each, draw in zip(steps, search.draws, strict=True)
        )
    arguments = (search, path, root, device, address, cpus, gpus, at_once)
    return Unit(name, work, arguments, search.epochs * sum(steps), done, alone=True)


def work(
    search: Search,
    folder: Path,
    root: data.Root,
    device: str,
    address: str | None,
    cpus: int,
    gpus: float,
    at_once: int | None,
    report: Report,
    train: Train = train_trial,
) -> None:
    """Run the trials of a search that have not ended; the work of ``unit``.

    Args:
        report: takes steps and notes.
        train: trains a trial.
    """
    folder = folder.absolute()  # other processes and machines need the whole path
    with only_driver(folder):
        records = Records(search, folder)
        if not records.missing:
            return
        from relucheck.search.tuning import Resources, search_on_ray

        check(search)
        if search.data != "digits":  # before Ray starts, and so that other processes need no environment variable
            data.load_once(search.data, "train", root)
            root = data.data_root(root).absolute()
        search_on_ray(records, root, device, address, Resources(cpus, gpus, at_once), train, report)


def check(search: Search) -> None:
    """Assert that the subgradients of a search reach every activation of its network.

    A search whose space fixes both subgradients at 0 has nothing that could reach them.

    Raises:
        relucheck.bifurcation.wiring.WiringError: names the activations that do not answer.
    """
    if search.space == search.space.default:
        return
    # in plain float32, because the layers of an emulated arithmetic are functions whose kinks the probe cannot rule out
    settings = dataclasses.replace(search.settings(search.draws[0]), arithmetic=Arithmetic.parse("float32"))
    images = torch.rand(_IMAGES, *search.network.input_shape, generator=generator(0))

    def built(value: float) -> torch.nn.Module:
        # under the chain rule, because an injected subgradient is never its product with the upstream gradient
        return uncounted(settings, 0, Clock(0), Switch(((value, value), "chain")))

    check_wiring(built, images)
