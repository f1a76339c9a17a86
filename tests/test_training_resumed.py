"""Running a comparison that is broken off, interrupted or killed, and what lies in its folder: checkpoints, results."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck.numerics.devices import environment
from relucheck.training import checkpoints, engine
from relucheck.training.checkpoints import STATE, CheckpointError
from relucheck.training.engine import Interrupted, train
from relucheck.training.forking import ForkingExecutor
from relucheck.training.result import Result
from relucheck.training.settings import Optimiser, Settings
from tests.training_case import SETTINGS, numbers


@pytest.fixture(scope="module")
def unbroken() -> Result:
    return train(SETTINGS, progress=False)


_CHILD = """
import json, os, signal, sys
from relucheck.training import engine, forking
from relucheck.training.engine import train
from relucheck.training.settings import Settings
settings = Settings.from_json(json.loads(sys.argv[1]))
step, count = forking.ForkingExecutor.step, 0
def counted(self, *rest):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, *rest)
forking.ForkingExecutor.step = counted
engine._DEAR_S = float("inf")  # every epoch, however slow the disk
train(settings, folder=sys.argv[2], progress=False)
"""


def _killed(folder: Path, at: int) -> None:
    settings = json.dumps(SETTINGS.to_json())
    command = [sys.executable, "-c", _CHILD, settings, str(folder), str(at)]
    # a run of another number of threads is another run
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_run_resumes_and_ends_as_an_unbroken_one(unbroken: Result, tmp_path: Path) -> None:
    _killed(tmp_path, 8 * 2 + 3)  # in epoch 3 of the first seed
    assert (tmp_path / checkpoints.CHECKPOINT).exists()
    _killed(tmp_path, 8 + 8 + 5)  # resumed at epoch 3: then in epoch 2 of the second seed
    steps: list[int] = []
    original = ForkingExecutor.step

    def counted(self: ForkingExecutor, start: int, stop: int, number: int) -> None:
        steps.append(number)
        original(self, start, stop, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForkingExecutor, "step", counted)
        resumed = train(SETTINGS, folder=tmp_path, progress=False)
    assert steps == list(range(9, 25))  # epochs 2 and 3 of the second seed, and nothing twice
    assert numbers(resumed) == numbers(unbroken)
    assert not (tmp_path / checkpoints.CHECKPOINT).exists()
    assert train(SETTINGS, folder=tmp_path, progress=False) == resumed  # read, not run


def test_dear_checkpoints_are_written_now_and_then(
    unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every epoch's where they are cheap; else a group's, and so many that they take a share of the time."""
    saved: list[tuple[int, int]] = []
    original = checkpoints.save

    def save(folder: Path, settings: Settings, origin: dict[str, str], state: dict[str, Any]) -> None:
        saved.append((state["group"], state["epoch"]))
        original(folder, settings, origin, state)

    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(engine, "_DEAR_S", math.inf)
    train(SETTINGS, folder=tmp_path / "cheap", progress=False)
    assert saved == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    saved.clear()
    monkeypatch.setattr(engine, "_DEAR_S", 0.0)
    monkeypatch.setattr(engine, "_SHARE", 1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "end", _raising(ForkingExecutor.end, 3))
        with pytest.raises(
            Interrupted, match=r"in epoch 3 of 3, seed 3; what was finished before epoch 2 of seed 3 is kept in .*resume"
        ):
            train(SETTINGS, folder=tmp_path / "dear", progress=False)
    assert saved == [(0, 1)]
    resumed = train(SETTINGS, folder=tmp_path / "dear", progress=False)
    assert saved == [(0, 1), (0, 2), (1, 0)], "the first of a sitting, and each seed's last"
    assert numbers(resumed) == numbers(unbroken)


def _raising(method: Any, at: int) -> Any:
    """A method that is interrupted when it is called for the ``at``-th time."""
    calls = itertools.count(1)

    def wrapped(self: Any, *rest: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return method(self, *rest)

    return wrapped


def test_interrupt_keeps_finished_epochs_and_says_how_to_go_on(
    unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    original, count = ForkingExecutor.step, 0

    def interrupted(self: ForkingExecutor, *rest: int) -> None:
        nonlocal count
        count += 1
        if count == 13:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, *rest)

    monkeypatch.setattr(ForkingExecutor, "step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(Interrupted, match=r"interrupted in epoch 2 of 3, seed 3; finished epochs are kept in .*resume"):
        train(SETTINGS, folder=tmp_path, progress=False)
    resumed = train(SETTINGS, folder=tmp_path, progress=False)
    assert numbers(resumed) == numbers(unbroken)
    count = 0
    with pytest.raises(Interrupted, match="nothing is kept, as no folder was given"):
        train(SETTINGS, progress=False)
    count = 8
    with pytest.raises(Interrupted, match=r"in epoch 1 of 3, seed 3; nothing is kept in .* yet: run the same again from"):
        train(SETTINGS, folder=tmp_path / "first", progress=False)
    assert not (tmp_path / "first" / checkpoints.CHECKPOINT).exists()


def test_full_disk_keeps_the_previous_checkpoint(unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"could not write .*No space left.*make room.*to resume"):
            train(SETTINGS, folder=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.CHECKPOINT]  # and no temporary file
    assert numbers(train(SETTINGS, folder=tmp_path, progress=False)) == numbers(unbroken)


def test_checkpoint_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ForkingExecutor, epoch: int) -> None:
        if epoch == 1:
            raise RuntimeError("broken off")
        begin(self, epoch)

    begin = ForkingExecutor.begin
    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "begin", broken)
        with pytest.raises(RuntimeError, match="broken off"):
            train(SETTINGS, folder=tmp_path, progress=False)
    others = {
        "optimiser": dataclasses.replace(SETTINGS, optimiser=Optimiser(lr=0.01)),
        "epochs 3 there, 4 here": dataclasses.replace(SETTINGS, epochs=4),
    }
    for named, settings in others.items():
        with pytest.raises(CheckpointError, match=f"is of other settings .*{named}.*another folder"):
            train(settings, folder=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="is of executor 'forking', this run has 'stacked'"):
        train(SETTINGS, folder=tmp_path, progress=False, executor="stacked")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        with pytest.raises(CheckpointError, match=r"is of torch '.*', this run has '1\.0'"):
            train(SETTINGS, folder=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "STATE", 99)
        with pytest.raises(CheckpointError, match=f"is of schema {STATE}, this run has 99"):
            train(SETTINGS, folder=tmp_path, progress=False)
    path = tmp_path / checkpoints.CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"unreadable or damaged.*delete it to start anew"):
        train(SETTINGS, folder=tmp_path, progress=False)


def test_result_of_something_else_is_refused(unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save_result(tmp_path, unbroken)
    with pytest.raises(CheckpointError, match=r"is of executor 'forking', this run has 'stacked'.*another folder"):
        train(SETTINGS, folder=tmp_path, progress=False, executor="stacked")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        with pytest.raises(CheckpointError, match=r"is of torch '.*', this run has '1\.0'"):
            train(SETTINGS, folder=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        there = dataclasses.replace(environment("cpu"), kind="cuda", model="NVIDIA H200", threads=None)
        patch.setattr(engine, "environment", lambda device: there)
        with pytest.raises(CheckpointError, match=r"is of device 'cpu.*', this run has 'cuda .NVIDIA H200.'.*delete"):
            train(SETTINGS, folder=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SCHEMA", 99)
        with pytest.raises(CheckpointError, match="is of schema 1, this run has 99"):
            checkpoints.load_result(tmp_path, SETTINGS)
    assert checkpoints.load_result(tmp_path, SETTINGS) == unbroken  # to report it, wherever it is from
    with pytest.raises(CheckpointError, match=r"is of other settings .*batch_size 32 there, 16 here"):
        train(dataclasses.replace(SETTINGS, batch_size=16), folder=tmp_path, progress=False)
    (tmp_path / checkpoints.RESULT).write_text("{")
    with pytest.raises(CheckpointError, match="unreadable or damaged"):
        train(SETTINGS, folder=tmp_path, progress=False)


def test_interrupt_after_the_last_group_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    original = engine._Run._run_group

    def late(self: Any, *rest: Any) -> str | None:
        void = original(self, *rest)
        if self.group == len(self.groups):
            raise KeyboardInterrupt
        return void

    monkeypatch.setattr(engine._Run, "_run_group", late)
    with pytest.raises(Interrupted, match="interrupted after the last epoch; nothing is kept"):
        train(dataclasses.replace(SETTINGS, epochs=1), progress=False)
