"""Small searches, and trials to which something happens."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from relucheck import data
from relucheck.errors import DeviceError
from relucheck.networks import Network
from relucheck.results.store import FINISHED
from relucheck.search import Draw, Search, Space, TrialEpoch
from relucheck.search.trial import Send, TrialReport, folder_of, train_trial
from relucheck.training.results import seed_store
from relucheck.training.results.result import SeedResult

#: 4 trials of 4 epochs, with rungs at epochs 2 and 4.
SEARCH = Search(
    network=Network("mlp", (16,), activation="relu6"),
    data="digits",
    space=Space(batch_sizes=(32, 50)),
    trials=4,
    epochs=4,
    train_samples=500,
    grace=2,
    arithmetic="bfloat16 emulated (product)",  # type: ignore[arg-type]
)
#: Learning rates of which one in these draws makes a trial diverge. Trials 0 and 4 are the best ones at epoch 2.
WILD = dataclasses.replace(SEARCH, trials=6, space=Space((32, 50), lr=(1e-3, 1e37)))
#: The trial whose process is killed, the epoch before, and the seconds of the next one until then.
KILLED, AFTER, SECONDS = 0, 1, 0.02
#: The trial that reports nothing.
SILENT = 5
#: The trial that waits for the next one, the epoch after which it does, and the file that it waits for.
WAITING, UNTIL, GO = 1, 2, "go"


def reports_of(search: Search, draw: Draw, folder: Path) -> list[TrialReport]:
    """What a trial reports that nothing happens to, without Ray."""
    reports: list[TrialReport] = []
    train_trial(search, draw, folder, None, "cpu", reports.append)
    return reports


def stored(search: Search, draw: Draw, folder: Path) -> SeedResult:
    """What the engine has stored of a finished trial."""
    return seed_store.finished(search.settings(draw), folder_of(folder, draw), "forking")[draw.seed]


def numbers(part: SeedResult) -> str:
    """Everything of a stored trial that must not depend on how it was run: all but the computing time."""
    return json.dumps({**part.to_json(), "wall_s": 0.0, "origin": part.origin}, sort_keys=True)


def epoch(number: int, accuracy: float = 0.5, loss: float | None = 1.0) -> TrialEpoch:
    return TrialEpoch(number, 2.0, loss, accuracy, (1, 2), 600)


def troubled(search: Search, draw: Draw, folder: Path, root: data.Root, device: str, send: Send) -> None:
    """Trains a trial, but one that is silent; the process of another one is killed once, in an epoch after a checkpoint."""
    if draw.number == SILENT:
        return
    marker = folder / "killed"

    def sent(report: TrialReport) -> None:
        send(report)
        if draw.number == KILLED and report.epoch is not None and report.epoch.number == AFTER and not marker.exists():
            marker.write_text(str(os.getpid()))
            threading.Timer(SECONDS, os.kill, (os.getpid(), signal.SIGKILL)).start()

    train_trial(search, draw, folder, root, device, sent)


def waiting(search: Search, draw: Draw, folder: Path, root: data.Root, device: str, send: Send) -> None:
    """Trains a trial and notes on which node it ran; one trial waits after an epoch until the next one has begun."""
    import ray

    with open(folder / f"{draw.name}.ran", "a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()}\n")
    if draw.number == WAITING + 1:
        (folder / GO).touch()

    def sent(report: TrialReport) -> None:
        send(report)
        if draw.number == WAITING and report.epoch is not None and report.epoch.number == UNTIL:
            while not (folder / GO).exists():
                time.sleep(0.05)

    train_trial(search, draw, folder, root, device, sent)


def failing(search: Search, draw: Draw, folder: Path, root: data.Root, device: str, send: Send) -> None:
    """A trial on a device without room."""
    raise DeviceError(f"no memory left on {device}")


def changed(search: Search, **changes: Any) -> Search:
    return dataclasses.replace(search, **changes)


def finished_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(f"*{FINISHED}")}
