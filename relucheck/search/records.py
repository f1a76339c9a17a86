"""The records of a search on disk: what trials have reported, and what ASHA has decided.

A record is written before ASHA's decision takes effect. So a search whose process has died goes on where it was: trials
that have ended do not run again, and a decision that was taken stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from relucheck.errors import SettingsError
from relucheck.results.store import FINISHED as SUFFIX
from relucheck.results.store import Store, StoreError, check_settings, read_finished, write_atomically
from relucheck.search.result import SearchResult, TrialEpoch, TrialResult
from relucheck.search.search import Search
from relucheck.search.space import Draw
from relucheck.search.trial import TrialReport, folder_of

#: The file with the settings of the search.
_SEARCH: Final = "search.json"
#: The file that the driver of a search holds, and that says which process that is.
_LOCK: Final = "driver.lock"
#: The engine's checkpoints, which a trial that has ended does not need.
_STATES: Final = "*.state"


@contextlib.contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Hold the folder of a search in a block, so that no other driver runs in it.

    The folder is created if necessary. A driver that dies lets go of it. Where the system has no locks of files, nothing is
    held.

    Raises:
        relucheck.results.store.StoreError: another driver holds it, or it cannot be written.
    """
    Store(folder)
    with open(folder / _LOCK, "a+", encoding="utf-8") as file:
        if not _held(file):
            file.seek(0)
            raise StoreError(
                f"{folder} is in use by another run of its search ({file.read() or 'just started'}); wait until that run "
                "has ended, or name another folder"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _held(file: TextIO) -> bool:
    """Hold a file until it is closed; False if another process does."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Records:
    """The trials of a search in a folder, which is created if necessary.

    Args:
        search: which search.
        folder: where its records are.

    Attributes:
        ended: the results of trials that have ended, by number.
        begun: the epochs of all other trials that have reported any, by the number of the trial and of the epoch.

    Raises:
        relucheck.results.store.StoreError: the folder cannot be written, or holds another search.
    """

    def __init__(self, search: Search, folder: Path) -> None:
        self.search, self.folder = search, folder
        refuse_others(search, folder)
        self._store = Store(folder)
        write_atomically(folder / _SEARCH, json.dumps(search.to_json(), indent=1) + "\n")
        self.ended = {trial.draw.number: trial for trial in _ended(search, folder)}
        self.begun: dict[int, dict[int, TrialEpoch]] = {}
        for draw in search.draws:
            if draw.number in self.ended:
                continue
            for chunk in self._store.chunks(draw.name, _identity(search, draw), {}):
                self._take(draw, chunk)  # one that ends its trial is the last one

    @property
    def result(self) -> SearchResult:
        """The trials that have ended."""
        return SearchResult(self.search, tuple(self.ended[number] for number in sorted(self.ended)))

    @property
    def missing(self) -> tuple[Draw, ...]:
        """The draws of trials that have not ended."""
        return tuple(draw for draw in self.search.draws if draw.number not in self.ended)

    def epochs(self, number: int) -> tuple[TrialEpoch, ...]:
        """The epochs that a trial has reported, in order."""
        known = self.ended.get(number)
        if known is not None:
            return known.epochs
        begun = self.begun.get(number, {})
        return tuple(begun[each] for each in sorted(begun))

    def add(self, draw: Draw, report: TrialReport, stopped: bool) -> None:
        """Record what a trial has reported.

        An epoch that is reported again replaces the one that is known. It is the same bit for bit, unless the trial had to
        start again on another processor.

        Args:
            draw: which trial.
            report: what it reports, not void.
            stopped: whether ASHA stops the trial after this epoch.

        Raises:
            relucheck.results.store.StoreError: it cannot be written.
        """
        epoch, begun = report.epoch, self.begun.get(draw.number, {})
        ends = stopped or report.outcome is not None
        if draw.number in self.ended or (epoch is not None and not ends and begun.get(epoch.number) == epoch):
            return
        outcome = f"stopped by ASHA at epoch {epoch.number}" if stopped and epoch is not None else report.outcome
        chunk = {
            "epoch": None if epoch is None else dict(vars(epoch)),
            "outcome": outcome,
            "wall_s": report.wall_s,
            "origin": dict(report.origin),
        }
        self._store.append(draw.name, _identity(self.search, draw), {}, chunk)
        self._take(draw, chunk)

    def _take(self, draw: Draw, chunk: Mapping[str, Any]) -> None:
        """Take a chunk into account; one that ends its trial makes the trial's file."""
        begun = self.begun.setdefault(draw.number, {})
        if chunk["epoch"] is not None:
            epoch = TrialEpoch.from_json(chunk["epoch"])
            begun[epoch.number] = epoch
        if chunk["outcome"] is None:
            return
        epochs = tuple(begun[number] for number in sorted(begun))
        trial = TrialResult(draw, epochs, chunk["outcome"], chunk["wall_s"], chunk["origin"])
        self._store.finish(draw.name, _identity(self.search, draw), trial.origin, trial.to_json())
        self.ended[draw.number] = trial
        del self.begun[draw.number]
        for state in folder_of(self.folder, draw).glob(_STATES):
            with contextlib.suppress(OSError):
                state.unlink()

    def remove(self, name: str) -> None:
        """Remove a folder of temporary files."""
        shutil.rmtree(self.folder / name, ignore_errors=True)


def read(folder: Path, search: Search | None = None) -> SearchResult | None:
    """The trials that have ended in the folder of a search; None if there is no search.

    Args:
        folder: the folder, which need not be writable.
        search: which search it has to be; None takes any.

    Raises:
        relucheck.results.store.StoreError: a file is damaged, or the folder holds another search than ``search``.
    """
    known = _known(folder)
    if known is None:
        return None
    if search is not None:
        refuse_others(search, folder)
    return SearchResult(known, _ended(known, folder))


def refuse_others(search: Search, folder: Path) -> None:
    """Refuse a folder that holds another search; name the first setting that differs.

    Raises:
        relucheck.results.store.StoreError: it does, or its settings cannot be read.
    """
    known = _known(folder)
    if known is None or known == search:
        return
    theirs, ours = known.to_json(), search.to_json()
    name = next(name for name in ours if theirs[name] != ours[name])
    raise StoreError(
        f"{folder} holds another search: its {name.replace('_', ' ')} is {theirs[name]!r}, this search's is {ours[name]!r}"
        "; name another folder"
    )


def _known(folder: Path) -> Search | None:
    path = folder / _SEARCH
    try:
        return Search.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); move it away, or name another folder") from error


def _ended(search: Search, folder: Path) -> tuple[TrialResult, ...]:
    trials = []
    for draw in search.draws:
        path = folder / f"{draw.name}{SUFFIX}"
        stored = read_finished(path, _identity(search, draw))
        if stored is None:
            continue
        try:
            trial = TrialResult.from_json(stored.result)
            check_settings(path, trial.draw.to_json(), draw.to_json())
            trials.append(trial)
        except SettingsError as error:
            raise StoreError(f"{path} is damaged: {error}; move it away to run the trial again") from error
    return tuple(trials)


def _identity(search: Search, draw: Draw) -> dict[str, Any]:
    return {"search": search.to_json(), "draw": draw.to_json()}
