"""Running a comparison that is broken off, interrupted or killed, and what lies in its folder: states, results of seeds."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import itertools
import json
import math
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck.numerics.determinism import deterministic
from relucheck.numerics.devices import environment
from relucheck.results.store import State, Store, StoreError, packed
from relucheck.training import engine, sitting
from relucheck.training.engine import Interrupted, train
from relucheck.training.forking import ForkingExecutor
from relucheck.training.members import Member, members_of
from relucheck.training.results import seed_store
from relucheck.training.results.result import MemberResult, Result, SeedResult
from relucheck.training.settings import Optimiser
from relucheck.training.sitting import STATE
from relucheck.training.splits import split_of
from relucheck.work import Event, Local
from tests.helpers import forked
from tests.helpers.training_case import SETTINGS, changed, numbers

#: An environment that rounds otherwise.
ELSEWHERE = dataclasses.replace(environment("cpu"), kind="cuda", model="NVIDIA H200", threads=None)


@pytest.fixture(scope="module")
def unbroken() -> Result:
    return train(SETTINGS, progress=False)


_CHILD = """
import functools, json, os, signal, sys
from relucheck.numerics.determinism import deterministic
from relucheck.training import engine, forking
from relucheck.training.engine import train
from relucheck.training.settings import Settings
from relucheck.training.splits import split_of
settings = Settings.from_json(json.loads(sys.argv[1]))
step, count = forking.ForkingExecutor.step, 0
def counted(self, *rest):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, *rest)
forking.ForkingExecutor.step = counted
engine.Sitting = functools.partial(engine.Sitting, expensive_s=float("inf"))  # every epoch, however slow the disk
train(settings, folder=sys.argv[2], progress=False)
"""


def _killed(folder: Path, at: int) -> None:
    settings = json.dumps(SETTINGS.to_json())
    # a run of another number of threads is another run
    child = f"import torch\ntorch.set_num_threads({torch.get_num_threads()})\n{_CHILD}"
    done = forked.python("-c", child, settings, str(folder), str(at))
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
def test_killed_run_resumes_and_ends_as_an_unbroken_one(unbroken: Result, tmp_path: Path) -> None:
    _killed(tmp_path, 8 * 2 + 3)  # in epoch 3 of the first seed
    assert [path.name for path in tmp_path.iterdir()] == ["seed-3.state"]
    _killed(tmp_path, 8 + 8 + 5)  # resumed at epoch 3: then in epoch 2 of the second seed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-3.json.gz", "seed-4.state"]
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-3.json.gz", "seed-4.json.gz"]
    assert train(SETTINGS, folder=tmp_path, progress=False) == resumed  # read, not run


def _sit(seed: int, folder: Path, **options: float) -> list[MemberResult]:
    """A sitting of one seed, as the engine has it, with the costs of writing given."""
    group, device = SETTINGS.of_seeds([seed]), torch.device("cpu")
    train_split, test_split = (split_of(group, split, None, device) for split in ("train", "test"))
    origin = engine.origin_of(device, "forking")
    with group.arithmetic.active(), deterministic():
        executor = ForkingExecutor(group, seed, train_split, test_split, device)
        sitting_ = sitting.Sitting(
            group, executor, len(train_split), origin, Store(folder), lambda steps, line: None, **options
        )
        return sitting_.run()[seed].members


def test_expensive_states_are_written_now_and_then(
    unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every epoch where they are cheap; else so many that they take a share of the time."""
    saved: list[tuple[str, int]] = []
    original = Store.keep

    def keep(self: Store, name: str, identity: Any, origin: Any, state: State) -> None:
        saved.append((name, state.steps))
        original(self, name, identity, origin, state)

    monkeypatch.setattr(Store, "keep", keep)
    for seed in (3, 4):
        _sit(seed, tmp_path / "cheap", expensive_s=math.inf)
    assert saved == [("seed-3", 8), ("seed-3", 16), ("seed-4", 8), ("seed-4", 16)]
    saved.clear()
    slow = {"expensive_s": 0.0, "share": 1e-9}
    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "end", _raising(ForkingExecutor.end, 3))
        with pytest.raises(
            Interrupted, match=r"in epoch 3 of 3, seed 3; the epochs before epoch 2 of seed 3 are kept in .*resume"
        ):
            _sit(3, tmp_path / "expensive", **slow)
    assert saved == [("seed-3", 8)]
    resumed = [member for seed in (3, 4) for member in _sit(seed, tmp_path / "expensive", **slow)]
    assert saved == [("seed-3", 8), ("seed-3", 16), ("seed-4", 8)], "the first of a sitting"
    assert [member.to_json() for member in resumed] == [member.to_json() for member in unbroken.members]


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
    with pytest.raises(
        Interrupted, match=r"in epoch 1 of 3, seed 3; nothing of seed 3 is kept in .* yet: run the same again"
    ):
        train(SETTINGS, folder=tmp_path / "first", progress=False)
    assert not list((tmp_path / "first").iterdir())


def test_full_disk_keeps_the_previous_state(unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"cannot be written .No space left.*make room"):
            train(SETTINGS, folder=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["seed-3.state"]  # and no temporary file
    assert numbers(train(SETTINGS, folder=tmp_path, progress=False)) == numbers(unbroken)


def test_the_state_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        "optimiser lr is 0.001, this run's is 0.01": dataclasses.replace(SETTINGS, optimiser=Optimiser(lr=0.01)),
        "epochs is 3, this run's is 4": dataclasses.replace(SETTINGS, epochs=4),
    }
    for named, settings in others.items():
        with pytest.raises(StoreError, match=f"belongs to another run: its settings {named}.*another folder"):
            train(settings, folder=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "environment", lambda device: ELSEWHERE)
        with pytest.raises(StoreError, match=r"its device is 'cpu.*', this run's is 'cuda .NVIDIA H200.'"):
            train(SETTINGS, folder=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(sitting, "STATE", 99)
        with pytest.raises(StoreError, match=f"its state is {STATE}, this run's is 99"):
            train(SETTINGS, folder=tmp_path, progress=False)
    path = tmp_path / "seed-3.state"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(StoreError, match=r"is damaged.*delete it to start the seed from the beginning"):
        train(SETTINGS, folder=tmp_path, progress=False)


def test_the_result_of_something_else_is_refused(unbroken: Result, tmp_path: Path) -> None:
    train(SETTINGS, folder=tmp_path, progress=False)
    with pytest.raises(StoreError, match=r"its executor is 'forking', this run's is 'stacked'.*another folder"):
        train(SETTINGS, folder=tmp_path, progress=False, executor="stacked")
    with pytest.raises(StoreError, match=r"its settings batch size is 32, this run's is 16"):
        train(dataclasses.replace(SETTINGS, batch_size=16), folder=tmp_path, progress=False)
    path = tmp_path / "seed-3.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    path.write_bytes(packed({**content, "schema": 1}))
    with pytest.raises(StoreError, match="has schema version 1, this relucheck reads"):
        train(SETTINGS, folder=tmp_path, progress=False)
    path.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        train(SETTINGS, folder=tmp_path, progress=False)


# ---------------------------------------------------------------- more seeds, more members, other machines


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds whose members take a step."""
    seeds: list[int] = []
    original = ForkingExecutor.step

    def step(self: ForkingExecutor, *rest: int) -> None:
        seeds.append(self.seed)
        original(self, *rest)

    monkeypatch.setattr(ForkingExecutor, "step", step)
    return seeds


def test_more_seeds_run_only_themselves(unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = _counted(monkeypatch)
    train(SETTINGS.of_seeds((3,)), folder=tmp_path, progress=False)
    assert set(seeds) == {3}
    seeds.clear()
    both = train(SETTINGS, folder=tmp_path, progress=False)
    assert set(seeds) == {4}
    assert numbers(both) == numbers(unbroken)


def test_more_members_run_beside_their_reference_alone(
    unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The members of before are not run again, and all are those of one run."""
    fewer = dataclasses.replace(SETTINGS, members=tuple(m for m in SETTINGS.members if m.rule == "chain"))
    train(fewer, folder=tmp_path, progress=False)
    before = (tmp_path / "seed-3.json.gz").read_bytes()
    ran: list[tuple[Member, ...]] = []
    original = sitting.Sitting.run

    def run(self: sitting.Sitting, after_epoch: Any) -> Any:
        ran.append(self.settings.members)
        return original(self, after_epoch)

    monkeypatch.setattr(sitting.Sitting, "run", run)
    more = train(SETTINGS, folder=tmp_path, progress=False)
    assert more.members == _unforked(more, unbroken)
    assert [sorted(m.rule for m in members if m.subgradient) for members in ran] == [["injected"]] * 2
    assert (tmp_path / "seed-3.json.gz").read_bytes() != before
    ran.clear()
    again = train(fewer, folder=tmp_path, progress=False)
    assert not ran, "fewer members than are stored"
    assert [m.member for m in again.members] == list(fewer.members)


def _unforked(one: Result, other: Result) -> list[MemberResult]:
    """The other's members, with where they forked in this one: that depends on which members run together."""
    return [
        dataclasses.replace(theirs, forked_at=mine.forked_at)
        for mine, theirs in zip(one.members, other.members, strict=True)
    ]


def test_a_finished_seed_stays_finished_elsewhere_and_new_members_make_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processors may differ between the seeds of a comparison, never within one."""
    fewer = dataclasses.replace(SETTINGS, members=tuple(m for m in SETTINGS.members if m.rule == "chain"))
    train(fewer.of_seeds((3,)), folder=tmp_path, progress=False)
    here = environment("cpu").device
    monkeypatch.setattr(engine, "environment", lambda device: ELSEWHERE)
    seeds = _counted(monkeypatch)
    mixed = train(fewer, folder=tmp_path, progress=False)
    assert set(seeds) == {4}
    assert mixed.device == f"{here}; {ELSEWHERE.device}"
    seeds.clear()
    whole = train(SETTINGS, folder=tmp_path, progress=False)
    assert whole.device == ELSEWHERE.device
    assert seeds.count(3) == 24, "all of it, as its origin is another"
    assert seeds.count(4) == 24


def test_members_that_are_stored_stay_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another comparison of the same settings, on another machine, runs them again and does not lose them."""
    chain, injected = (
        dataclasses.replace(SETTINGS, members=tuple(m for m in SETTINGS.members if m.rule == rule or not m.subgradient))
        for rule in ("chain", "injected")
    )
    train(chain, folder=tmp_path, progress=False)
    monkeypatch.setattr(engine, "environment", lambda device: ELSEWHERE)
    train(injected, folder=tmp_path, progress=False)
    seeds = _counted(monkeypatch)
    train(chain, folder=tmp_path, progress=False)
    train(SETTINGS, folder=tmp_path, progress=False)
    assert seeds == []


def test_a_member_that_is_added_to_an_unfinished_seed_begins_it_anew(
    unbroken: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = dataclasses.replace(SETTINGS, members=tuple(m for m in SETTINGS.members if m.rule == "chain"))
    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "end", _raising(ForkingExecutor.end, 2))
        with pytest.raises(Interrupted):
            train(fewer, folder=tmp_path, progress=False)
    assert (tmp_path / "seed-3.state").exists()
    assert numbers(train(SETTINGS, folder=tmp_path, progress=False)) == numbers(unbroken)


def test_a_state_of_elsewhere_begins_a_unit_anew_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where :func:`train` refuses it; a run on many machines goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "end", _raising(ForkingExecutor.end, 2))
        with pytest.raises(Interrupted):
            train(SETTINGS, folder=tmp_path, progress=False)
    monkeypatch.setattr(engine, "environment", lambda device: ELSEWHERE)
    heard: list[Event] = []
    first, second = engine.units(SETTINGS, tmp_path)
    assert (first.done, first.steps, second.done) == (8, 24, 0)
    Local(1, threads=None).run([first], heard.append)
    assert any("seed-3 starts again from the beginning" in event.note and "its device is" in event.note for event in heard)
    assert first.done + sum(event.steps for event in heard) == first.steps


def test_a_void_seed_ends_its_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that are begun after it was found train nothing."""

    def faulty(self: ForkingExecutor, number: int) -> None:
        self.void = "control differed at step 1 in parameter x (seed 3)"

    first, second = engine.units(SETTINGS, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "_compare", faulty)
        Local(1, threads=None).run([first])
    seeds, heard = _counted(monkeypatch), list[Event]()
    Local(1, threads=None).run([second], heard.append)
    assert seeds == []
    assert any("seed-4 is skipped: another seed of its comparison is void" in event.note for event in heard)
    found = seed_store.collect(SETTINGS, tmp_path, "forking")
    assert found is not None
    assert found.void


def test_a_damaged_seed_is_named(tmp_path: Path) -> None:
    train(SETTINGS, folder=tmp_path, progress=False)
    path = tmp_path / "seed-3.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    del content["result"]["void"]
    path.write_bytes(packed(content))
    with pytest.raises(StoreError, match=r"seed-3\.json\.gz is damaged: .*the field 'void' is missing"):
        train(SETTINGS, folder=tmp_path, progress=False)
    content["result"]["void"] = None
    content["result"]["members"][0]["member"]["seed"] = 4
    path.write_bytes(packed(content))
    with pytest.raises(StoreError, match=r"damaged: seed is 4 in its result and 3 in its identity"):
        train(SETTINGS, folder=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("seeds", "name"),
    [((3,), r"seed-3"), (range(100), r"seeds-0-to-99"), (range(2**31 - 50, 2**31, 2), r"seeds-25-[0-9a-f]{12}")],
    ids=["one", "many", "any"],
)
def test_a_group_of_seeds_has_a_name_that_a_file_can_have(seeds: Any, name: str) -> None:
    settings = dataclasses.replace(SETTINGS, members=members_of(list(seeds), [1.0]))
    assert re.fullmatch(name, sitting.group_name(settings))


def test_units_are_the_seeds_that_are_missing(unbroken: Result, tmp_path: Path) -> None:
    units = engine.units(SETTINGS, tmp_path, name="small")
    assert [unit.name for unit in units] == ["small seed-3", "small seed-4"]
    assert [unit.steps for unit in units] == [24, 24]
    Local(1, threads=None).run(units[:1])
    assert seed_store.collect(SETTINGS, tmp_path, "forking") is None
    assert set(seed_store.finished(SETTINGS, tmp_path, "forking")) == {3}
    (left,) = engine.units(SETTINGS, tmp_path)
    Local(1, threads=None).run([left])
    found = seed_store.collect(SETTINGS, tmp_path, "forking")
    assert found is not None
    assert numbers(found) == numbers(unbroken)
    (stacked,) = engine.units(SETTINGS, tmp_path / "stacked", executor="stacked")
    assert (stacked.name, stacked.steps) == ("seeds-3-to-4", 24)


def test_interrupt_after_the_last_epoch_is_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    original = sitting.Sitting._run

    def late(self: sitting.Sitting, after_epoch: Any) -> str | None:
        original(self, after_epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(sitting.Sitting, "_run", late)
    with pytest.raises(Interrupted, match="interrupted after the last epoch; nothing is kept"):
        train(changed(SETTINGS, epochs=1), progress=False)


def test_what_follows_an_epoch_sees_its_results_and_a_resumed_run_begins_with_those_it_has(tmp_path: Path) -> None:
    """An exception there ends the run, and what was kept is not lost."""
    group = SETTINGS.of_seeds([3])
    seen: list[tuple[int, float]] = []

    def stopping(results: Mapping[int, SeedResult]) -> None:
        (member, *_) = results[3].members
        seen.append((len(member.epochs), member.epochs[-1].test_accuracy))
        if len(seen) == 2:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        train(group, folder=tmp_path, progress=False, after_epoch=stopping)
    done = train(group, folder=tmp_path, progress=False, after_epoch=stopping)
    accuracies = [epoch.test_accuracy for epoch in done.members[0].epochs]
    assert seen == [(1, accuracies[0]), (2, accuracies[1]), (2, accuracies[1]), (3, accuracies[2])]
    assert numbers(done) == numbers(train(group, progress=False))
    train(group, folder=tmp_path, progress=False, after_epoch=stopping)
    assert len(seen) == 4  # a finished seed is read
