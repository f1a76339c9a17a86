"""Run a search on Ray Tune: trials side by side, on one machine or on a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from relucheck import data
from relucheck.errors import MISSING, ControlError, RelucheckError, error_text
from relucheck.extras import require
from relucheck.results.tables import listed
from relucheck.search.asha import REPORT, Asha, measured
from relucheck.search.records import Records
from relucheck.search.search import Search
from relucheck.search.space import Draw
from relucheck.search.standings import standings
from relucheck.search.trial import Train, TrialReport, folder_of
from relucheck.training.sitting import Interrupted
from relucheck.work import Report, Unit, torch_threads
from relucheck.work.cluster import Ray, cause_of
from relucheck.work.connection import connected
from relucheck.work.deaths import DEATHS, Deaths
from relucheck.work.nodes import expectations
from relucheck.work.perform import Raised

require("a search", "ray")
import ray  # noqa: E402
from ray import tune  # noqa: E402

#: Folder of Ray Tune in that of a search. All that counts is in the records, so it is removed after each run.
_TEMPORARY: Final = "ray"
#: Switches off what Ray Tune prints and writes. Control-C is ours, too.
_QUIET: Final = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}


class SearchError(RelucheckError, RuntimeError):
    """A search that cannot go on, because a trial reports nothing."""

    exit_code = MISSING


@dataclasses.dataclass(frozen=True)
class Resources:
    """What Ray Tune gives to trials.

    Attributes:
        cpus: of each trial. A trial computes in one thread all the same, so that its numbers do not depend on this.
        gpus: of each trial; several trials share a GPU if this is a fraction.
        at_once: how many trials run at once; None means as many as there is room for.
    """

    cpus: int = 1
    gpus: float = 0.0
    at_once: int | None = None


@dataclasses.dataclass(frozen=True)
class _Task:
    """What all trials of a search have in common."""

    search: Search
    folder: Path
    root: data.Root
    device: str
    train: Train


def search_on_ray(
    records: Records,
    root: data.Root,
    device: str,
    address: str | None,
    resources: Resources,
    train: Train,
    report: Report,
) -> None:
    """Run the trials that have not ended.

    Args:
        records: of the search.
        root: data root, or None.
        device: where trials train.
        address: of Ray, as for ``relucheck.work.connection.connected``.
        resources: of trials.
        train: trains one.
        report: takes steps and notes.

    Raises:
        SearchError: a trial reported nothing; the other trials have ended then.
        ControlError: a trial is void.
        relucheck.work.WorkError: no cluster answers, one of its machines cannot run trials, or the processes of a trial
            kept dying; in the last case the other trials have ended.
        DeviceError: no machine has the GPUs that a trial needs.
        Exception: what a trial raised, with its name as a note. The other trials are stopped; what they have stored stays.
        Interrupted: on control-C.
    """
    backend = Ray(address, cpus=resources.cpus, gpus=resources.gpus)
    same = {"data": functools.partial(data.checksums, [(records.search.data, "train")], root)}
    with connected(address, cpus=None if resources.at_once is None else resources.at_once * resources.cpus):
        with expectations(records.folder, same) as expected:
            backend.check_nodes(expected, lambda note: report(0, note))
        _tune(records, root, device, resources, train, report)


def _tune(records: Records, root: data.Root, device: str, resources: Resources, train: Train, report: Report) -> None:
    driver = _Driver(records, report)
    task = _Task(records.search, records.folder, root, device, train)
    with _quiet():
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, task=task), {"cpu": resources.cpus, "gpu": resources.gpus}),
            param_space={"number": tune.grid_search([draw.number for draw in records.missing])},
            tune_config=tune.TuneConfig(
                scheduler=Asha(
                    records.search,
                    {draw.number: records.epochs(draw.number) for draw in records.search.draws},
                    driver.decided,
                    driver.left,
                ),
                max_concurrent_trials=resources.at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"search-{secrets.token_hex(4)}",
                storage_path=str(records.folder / _TEMPORARY),
                failure_config=tune.FailureConfig(max_failures=DEATHS - 1),
                stop=_Stop(driver),
                callbacks=[_Watch(driver)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted; finished trials and finished epochs are kept in {records.folder}: run the same again to "
                "resume"
            ) from error
        finally:
            records.remove(_TEMPORARY)
    driver.refuse()


class _Driver:
    """What the driver does with the reports of trials."""

    def __init__(self, records: Records, report: Report) -> None:
        self.records, self._report = records, report
        self.problem: Exception | None = None
        self._silent: list[str] = []
        self._deaths = Deaths(lambda event: report(event.steps, event.note))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its scheduler for a restore of its own, which is never used."""
        return {}

    def decided(self, number: int, report: Any, stopped: bool) -> bool:
        """Record a report; whether its trial ends."""
        if self.problem is not None:
            return True
        try:
            return self._take(self.records.search.draws[number], report, stopped)
        except Exception as error:  # Ray Tune would wrap it
            self.problem = error
            return True

    def _take(self, draw: Draw, report: TrialReport | Raised, stopped: bool) -> bool:
        records, search = self.records, self.records.search
        if isinstance(report, Raised):
            raise report.again(draw.name)
        if report.void is not None:
            raise ControlError(
                f"{draw.name} is void: {report.void}; nothing may be concluded from the search: delete "
                f"{folder_of(records.folder, draw)} to run the trial again"
            )
        known = len(records.epochs(draw.number))
        records.add(draw, report, stopped)
        new = len(records.epochs(draw.number)) - known
        trial = records.ended.get(draw.number)
        settings = search.settings(draw)
        steps = settings.every * (new if trial is None else search.epochs - known)
        if steps:
            self._report(steps, f"\n{standings(records)}")
        epoch = report.epoch
        if epoch is not None and (new or trial is not None):
            loss = "not finite" if epoch.loss is None else f"{epoch.loss:.4f}"
            note = f"{draw.name} epoch {epoch.number}/{search.epochs}: accuracy {100 * epoch.accuracy:.2f} %, loss {loss}"
            self._report(0, f"{note}; {trial.outcome}" if trial is not None and trial.stopped else note)
        elif trial is not None:
            self._report(0, f"{draw.name}: {trial.outcome}")
        return trial is not None

    def left(self, number: int) -> None:
        """A trial has ended for Ray Tune, which it must not without a last report."""
        draw = self.records.search.draws[number]
        if self.problem is None and number not in self.records.ended:
            self._silent.append(draw.name)

    def died(self, number: int, again: bool, why: str) -> None:
        """The process of a trial has died; no steps are lost, as only finished epochs count."""
        self._deaths.died(Unit(self.records.search.draws[number].name, _trial), 0, why, again=again)

    def refuse(self) -> None:
        """Raise what went wrong."""
        if self.problem is not None:
            raise self.problem
        if self._silent:
            raise SearchError(
                f"{listed(self._silent)} ended without a report of its {self.records.search.metric}, so no trial can be "
                "compared; a trial has to report every epoch"
            )
        self._deaths.refuse()


class _Stop(tune.Stopper):
    """Stops all trials when there is a problem."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._driver.problem is not None


class _Watch(tune.Callback):
    """Tells the driver of trials whose processes have died."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._driver.died(trial.config["number"], True, _why(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._driver.died(trial.config["number"], False, _why(trial))


def _why(trial: Any) -> str:
    """Why a trial has failed; Ray Tune does not keep the error of one that runs again."""
    error = trial.get_pickled_error() or ray.exceptions.RayError()
    return error_text(error, 500) if isinstance(error, ray.exceptions.RayTaskError) else cause_of(error)


def _trial(config: dict[str, Any], task: _Task) -> None:
    """In a process of Ray Tune: train a trial, and report its epochs or what it raised."""
    search, draw, done = task.search, task.search.draws[config["number"]], 0

    def send(report: TrialReport) -> None:
        nonlocal done
        done = done + 1 if report.epoch is None else report.epoch.number
        tune.report({**measured(search, report.epoch, done), REPORT: report})

    with torch_threads(1):
        try:
            task.train(search, draw, task.folder, task.root, task.device, send)
        except Exception as error:
            tune.report({**measured(search, None, done + 1), REPORT: Raised.of(error)})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Tune from printing and from taking control-C in a block."""
    before = {name: os.environ.get(name) for name in _QUIET}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.air", "ray.train")]
    levels = [logger.level for logger in loggers]
    os.environ.update(_QUIET)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
