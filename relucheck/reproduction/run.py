"""Runs a scenario into a folder, one result file per comparison, and writes its tables, figures and report there.

A folder belongs to one scenario, scale and device. What is finished in it is never run again; a comparison that was broken
off goes on from its last checkpoint. Two processes may share a folder if each is given
other comparisons (``only``).
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.errors import DeviceError, RelucheckError
from relucheck.numerics.devices import best_device
from relucheck.reproduction.cost import in_words, total
from relucheck.reproduction.experiments.mlp import find
from relucheck.reproduction.report.claims import claims
from relucheck.reproduction.report.document import report, summary
from relucheck.reproduction.report.summary import Reproduction, analyse, check
from relucheck.reproduction.scenario import VERSION, Comparison, External, Scenario
from relucheck.results.figures import drawable
from relucheck.results.files import write_atomically
from relucheck.training import checkpoints
from relucheck.training import engine as training_engine
from relucheck.training.result import Result
from relucheck.training.settings import SCHEMA

#: What the folder's own description is called, and its layout's name and version.
MARK: Final = "scenario.json"
LAYOUT: Final = "relucheck-reproduction"
LAYOUT_VERSION: Final = 1
#: Where results go unless told otherwise; the folder is ignored by git.
RESULTS: Final = Path("relucheck-results")
Trainer = Callable[..., Result]


class ReproductionError(RelucheckError, ValueError):
    """A folder that holds something else, or that cannot be read."""


def default_scale(device: str) -> str:
    """Full scale on an accelerator, else the one for a CPU."""
    return "cpu" if device.startswith("cpu") else "full"


def usual_executor(device: str) -> str:
    """What the engine uses unless told otherwise: forking on the CPU, stacked elsewhere."""
    return "forking" if device.startswith("cpu") else "stacked"


def _folder_name(scenario: str, scale: str, device: str, kind: str) -> str:
    return f"{scenario}-{scale}" + f"-{kind}" * (kind != usual_executor(device))


def reproduce(
    name: str,
    scale: str | None = None,
    folder: Path | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    device: str | None = None,
    only: Sequence[str] = (),
    executor: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
    trainer: Trainer = training_engine.train,
) -> Reproduction:
    """Runs what is not finished of a scenario, and writes the report about all that is.

    Args:
        name: of a scenario, see :data:`relucheck.reproduction.experiments.mlp.SCENARIOS`.
        scale: "full", "cpu" or "smoke"; None: full on CUDA, else cpu.
        folder: for everything written; None: ``relucheck-results/NAME-SCALE``, with ``-EXECUTOR`` behind it where that is
            not the device's usual one.
        root: data root, see :func:`relucheck.data.data_root`.
        device: None: CUDA where there is one.
        only: names, or else globs or precisions, of the comparisons to run; none: all.
        executor: "forking" (nn.Linear's own kernels) or "stacked" (baddbmm; nn.Linear for 16-bit members on CUDA); None:
            forking on the CPU, else stacked.
        progress: whether the engine shows its progress.
        say: takes a line for each comparison.
        trainer: the engine, called as :func:`relucheck.training.engine.train` is.

    Raises:
        ScenarioError: unknown scenario, scale or comparison.
        ReproductionError: for an unknown executor, and for a folder that holds something else, or that cannot be read.
        relucheck.errors.DeviceError: for a device that is not there or has too little memory.
        relucheck.data.DataError: for a data root without the data, before anything is run.
        relucheck.training.checkpoints.CheckpointError: for what cannot be written, or a checkpoint of something else.
    """
    scenario = find(name)
    device = best_device() if device is None else device
    scale = default_scale(device) if scale is None else scale
    chosen = scenario.comparisons(scale, only) if isinstance(scenario, Scenario) else ()
    kind = usual_executor(device) if executor is None else executor
    if kind not in training_engine.EXECUTORS:
        raise ReproductionError(f"unknown executor {kind!r}; known: {', '.join(training_engine.EXECUTORS)}")
    folder = RESULTS / _folder_name(scenario.name, scale, device, kind) if folder is None else Path(folder)
    _check_device(device)
    if isinstance(scenario, External):
        if executor is not None:
            raise ReproductionError(f"{scenario.name} trains nothing; leave --executor out")
        return _external(scenario, scale, folder, root, device, only, progress)
    _check_data(chosen, root)
    claim(folder, scenario.name, scale, device, kind)
    how_many = f"{len(chosen)} to do, in {folder}{_time(chosen, device)}"
    say(f"{scenario.name} ({scenario.title}) at scale {scale} on {device} ({kind}): {how_many}")
    neighbours = _neighbours(scenario, scale, folder, device, kind, say)
    for number, comparison in enumerate(chosen, start=1):
        start = time.monotonic()
        train = functools.partial(trainer, root=root, device=device, executor=kind, progress=progress)
        how = _finish(folder, comparison, neighbours, train, say)
        how = how or f"run in {time.monotonic() - start:.1f} s"
        say(f"[{number}/{len(chosen)}] {comparison.name}: {how}")
    return write(scenario, scale, folder)


def write(scenario: Scenario, scale: str, folder: Path) -> Reproduction:
    """Reads every finished comparison of a folder and writes ``figures/``, ``summary.json`` and ``report.md``.

    Raises:
        relucheck.training.checkpoints.CheckpointError: for what cannot be written; every file is whole, or as before.
    """
    every = scenario.comparisons(scale)
    found = [(comparison, read(folder, comparison)) for comparison in every]
    runs = tuple((comparison, result) for comparison, result in found if result is not None)
    missing = tuple(comparison.name for comparison, result in found if result is None)
    cells = tuple(analyse(runs))
    results = {comparison.name: result for comparison, result in runs}
    made = Reproduction(
        scenario,
        scale,
        folder,
        runs,
        missing,
        cells,
        tuple(check(scenario.stated.get(scale, ()), results)),
        tuple(check(scenario.published_figures(scale), results)),
        # the digits of smoke runs can neither confirm nor refute anything
        () if scale == "smoke" else tuple(claims(scenario.name, runs, cells)),
        tuple(_figures(scenario, scale, runs, folder)),
    )
    _written(folder / "summary.json", json.dumps(summary(made), indent=1, ensure_ascii=False) + "\n")
    _written(folder / "report.md", report(made))
    return made


def _figures(scenario: Scenario, scale: str, runs: Sequence[tuple[Comparison, Result]], folder: Path) -> list[Path]:
    """The figures, or none where matplotlib is not installed (the report then says so)."""
    if not drawable():
        return []
    from relucheck.reproduction.report.figures import draw

    place = folder / "figures"
    try:
        return draw(scenario, scale, runs, place)
    except OSError as error:
        raise _unwritable(Path(error.filename) if error.filename else place, error) from error


def _external(
    scenario: External, scale: str, folder: Path, root: Any, device: str, only: Sequence[str], progress: bool
) -> Reproduction:
    import importlib

    from relucheck.reproduction.scenario import SCALES, ScenarioError

    if only:
        raise ScenarioError(f"{scenario.name} runs as a whole; leave --only out")
    if scale not in SCALES:
        raise ScenarioError(f"unknown scale {scale!r}; known: {', '.join(SCALES)}")
    claim(folder, scenario.name, scale, device, None, scenario.version)
    run = importlib.import_module(scenario.module).run
    return Reproduction(scenario, scale, folder, text=run(scale, folder, root, device, progress))


# ---------------------------------------------------------------- what can be wrong before anything runs


def _check_device(device: str) -> None:
    import torch

    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"device {device!r} is not to be had here: {reason}; --device cpu runs the scale cpu or smoke"
        ) from error
    if place.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {device!r}: relucheck trains on cpu and cuda; use one of these")


def _check_data(comparisons: Sequence[Comparison], root: Any) -> None:
    """Fails before hours of training where a later comparison's data is missing."""
    from relucheck import data

    for name in dict.fromkeys(comparison.settings.data for comparison in comparisons):
        for split in data.SPLITS:
            data.load(name, split, root)


def claim(folder: Path, scenario: str, scale: str, device: str, executor: str | None, version: int = VERSION) -> None:
    """Makes a folder this scenario's, or checks that it is.

    Raises:
        ReproductionError: if it belongs to another scenario, scale, kind of device, executor or version, or holds anything
            else.
        relucheck.training.checkpoints.CheckpointError: if it cannot be written.
    """
    wanted: dict[str, object] = {
        "layout": LAYOUT,
        "layout_version": LAYOUT_VERSION,
        "results_schema": SCHEMA,
        "scenario": scenario,
        "scenario_version": version,
        "scale": scale,
        "device": device.partition(":")[0],
    }
    if executor is not None:
        wanted["executor"] = executor
    mark = folder / MARK
    fix = "choose another --out folder, or delete this one"
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if _holds_something(folder):
            raise ReproductionError(f"{folder} holds other files and no {MARK}; {fix} if nothing in it is needed") from None
        _written(mark, json.dumps(wanted, indent=1) + "\n")
        return
    except NotADirectoryError:
        raise ReproductionError(f"{folder} is a file, or lies in one; choose another --out folder") from None
    except (OSError, ValueError) as error:
        raise ReproductionError(f"{mark} cannot be read ({error}); {fix}") from error
    different = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if _of(found, key) != value]
    if different:
        raise ReproductionError(f"{folder} was made for {', '.join(different)}; {fix}")


def _holds_something(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(folder.iterdir())
    except OSError as error:
        raise ReproductionError(f"{folder} cannot be read ({error}); choose another --out folder") from error


def _of(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, dict) else None


def _written(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> checkpoints.CheckpointError:
    return checkpoints.CheckpointError(
        f"cannot write {path} ({error.strerror or error}); free space, see that nothing else is in its place, or choose "
        "another --out folder: what is finished is kept, and the same command goes on from there"
    )


# ---------------------------------------------------------------- one comparison


def _place(folder: Path, comparison: Comparison) -> Path:
    """Where the engine keeps a comparison's checkpoint and result."""
    return folder / "runs" / comparison.name


def read(folder: Path, comparison: Comparison) -> Result | None:
    """The finished result of a comparison in a folder, or None.

    Raises:
        ReproductionError: for a file that cannot be read, or that holds other settings or another schema.
    """
    try:
        return checkpoints.load_result(_place(folder, comparison), comparison.settings)
    except checkpoints.CheckpointError as error:
        raise ReproductionError(str(error)) from error


def _neighbours(
    scenario: Scenario, scale: str, folder: Path, device: str, kind: str, say: Callable[[str], None]
) -> list[Path]:
    """Folders beside this one of which finished runs may be taken over; a line for each that does not fit."""
    mine, found = _read_mark(folder), []
    for name in scenario.shares:
        other = folder.parent / _folder_name(name, scale, device, kind)
        theirs = _read_mark(other)
        if theirs is None:
            continue
        different = [key for key, value in mine.items() if key != "scenario" and _of(theirs, key) != value]
        different += ["scenario"] * (_of(theirs, "scenario") != name)
        if different:
            say(f"nothing is taken from {other}: its {', '.join(different)} is another")
        else:
            found.append(other)
    return found


def _finish(
    folder: Path, comparison: Comparison, neighbours: Sequence[Path], train: Trainer, say: Callable[[str], None]
) -> str | None:
    """Sees to it that a comparison's result is in the folder; how, where it did not have to be run."""
    if read(folder, comparison) is not None:
        return "finished before, not run again"
    place = _place(folder, comparison)
    for other in neighbours:
        try:
            shared = read(other, comparison)
        except ReproductionError as error:
            say(f"nothing is taken from {other}: {error}")
            continue
        if shared is not None:
            checkpoints.save_result(place, shared)
            return f"taken from {other}"
    train(comparison.settings, folder=place)
    return None


def _read_mark(folder: Path) -> Any:
    try:
        return json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _time(comparisons: tuple[Comparison, ...], device: str) -> str:
    seconds = total(comparisons) if device.startswith("cpu") else None
    return f"; {in_words(seconds)} on one thread" if seconds else ""
