"""What an estimate keeps on disk: interrupted, killed, damaged, full and unwritable."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relucheck.bifurcation.decide import Decision
from relucheck.results.store import packed
from relucheck.volume import estimate as volume_estimate
from relucheck.volume.estimate import Cell, Store, StoreError, estimate
from tests.helpers.fake_engine import SMALL, Fake, plain, refuse
from tests.helpers.uniform import mlp


def test_a_finished_cell_is_read_and_not_run(tmp_path: Path) -> None:
    first = estimate(SMALL, store=Store(tmp_path), engine=Fake())
    again = estimate(dataclasses.replace(SMALL, varied="neurons"), store=Store(tmp_path), engine=refuse)
    assert plain(again) == plain(first)
    assert (again.cell.varied, again.decisions, again.wall_s) == ("neurons", first.decisions, round(first.wall_s, 3))
    assert [path.name for path in tmp_path.iterdir()] == [f"{SMALL.name}.json.gz"]


@pytest.mark.parametrize("stop_at", range(6))
def test_an_interrupted_cell_loses_at_most_a_chunk(tmp_path: Path, stop_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, store=Store(tmp_path), engine=Fake(stop_at), chunk=2)
    rest = Fake()
    resumed = estimate(SMALL, store=Store(tmp_path), engine=rest, chunk=2)
    assert rest.asked == list(range(stop_at - stop_at % 2, 6))
    assert plain(resumed) == plain(estimate(SMALL, engine=Fake()))
    assert [draw.seed for draw in resumed.decisions] == list(range(6))
    assert not list(tmp_path.glob("*.partial*"))


def test_slow_draws_are_written_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of 4 s: three a chunk, though a chunk may hold fifty."""
    now = 100.0

    class Slow(Fake):
        def decide(self, seeds: Iterable[int], /) -> Iterator[Decision]:
            nonlocal now
            for decided in super().decide(seeds):
                now += 4.0
                yield decided

    monkeypatch.setattr(volume_estimate.time, "perf_counter", lambda: now)
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, store=store, engine=Slow(stop_at=5))
    assert volume_estimate.kept(SMALL, store) == 3
    rest = Fake()
    assert estimate(SMALL, store=Store(tmp_path), engine=rest).wall_s == pytest.approx(12)
    assert rest.asked == [3, 4, 5]


def test_half_a_line_is_dropped_wherever_it_ends(tmp_path: Path) -> None:
    """A kill can cut the file of a running cell at any byte."""
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, store=store, engine=Fake(stop_at=5), chunk=1)
    path = store.partial_path(SMALL.name)
    whole = path.read_bytes()
    expected = plain(estimate(SMALL, engine=Fake()))
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        rest = Fake()
        assert plain(estimate(SMALL, store=Store(tmp_path), engine=rest)) == expected
        assert rest.asked == list(range(max(0, whole[:length].count(b"\n") - 1), 6))
        store.finished_path(SMALL.name).unlink()


def test_what_follows_half_a_line_replaces_it(tmp_path: Path) -> None:
    """Also where it is shorter than what is left of the line."""
    identity = {"cell": "any"}
    store = Store(tmp_path)
    origin = {"device": "any"}
    store.append("name", identity, origin, {"first": 1})
    store.append("name", identity, origin, {"second": "x" * 100})
    path = store.partial_path("name")
    path.write_bytes(path.read_bytes()[:-5])
    resumed = Store(tmp_path)
    resumed.append("name", identity, origin, {"second": 2})
    assert path.read_text().endswith('{"second":2}\n')
    resumed.append("name", identity, origin, {"third": 3})
    assert Store(tmp_path).chunks("name", identity, origin) == ({"first": 1}, {"second": 2}, {"third": 3})


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Changes the JSON of a finished or partial file; returns its new bytes."""
    finished = path.suffix == ".gz"
    head, *lines = (gzip.decompress(path.read_bytes()).decode() if finished else path.read_text()).splitlines()
    content = json.loads(head)
    change(content)
    path.write_bytes(packed(content) if finished else ("\n".join([json.dumps(content), *lines]) + "\n").encode())
    return path.read_bytes()


def _set(*keys: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "partial"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema", to=99), r"has schema version 99, this relucheck reads 3; move it away, or name another folder"),
        (_set("identity", "data", to="0" * 64), r"belongs to another run: its data is '0000"),
        (_set("identity", "cell", "network", "classes", to=9), r"its cell network classes is 9, this run's is 10"),
        (_set("identity", to=None), r"belongs to another run"),
    ],
    ids=["schema", "data", "cell", "none"],
)
def test_a_file_of_something_else_is_left_alone(
    tmp_path: Path, finished: bool, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, store=store, engine=Fake(stop_at=4), chunk=2)
    path = store.partial_path(SMALL.name)
    if finished:
        estimate(SMALL, store=store, engine=Fake())
        path = store.finished_path(SMALL.name)
    before = _edit(path, change)
    with pytest.raises(StoreError, match=message) as caught:
        estimate(SMALL, store=Store(tmp_path), engine=refuse)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("origin", "device", to="cuda NVIDIA H200"), r"its device is 'cuda NVIDIA H200', this run's is 'cpu"),
        (_set("origin", "processor", to="another"), r"its processor is 'another'"),
        (_set("origin", "torch", to="1.8"), r"its torch is '1\.8'"),
    ],
    ids=["device", "processor", "torch"],
)
def test_another_processor_may_round_otherwise(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Draws that were begun elsewhere are not gone on with; a cell that was finished elsewhere is finished."""
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, store=store, engine=Fake(stop_at=4), chunk=2)
    path = store.partial_path(SMALL.name)
    whole = path.read_bytes()
    _edit(path, change)
    with pytest.raises(StoreError, match=message):
        estimate(SMALL, store=Store(tmp_path), engine=refuse)
    path.write_bytes(whole)
    finished = estimate(SMALL, store=store, engine=Fake())
    _edit(store.finished_path(SMALL.name), change)
    assert plain(estimate(SMALL, store=Store(tmp_path), engine=refuse)) == plain(finished)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\x01", '{"schema": 1}'])
def test_a_damaged_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = Store(tmp_path).finished_path(SMALL.name)
    path.write_text(text)
    with pytest.raises(StoreError, match=r"it is left as it is"):
        estimate(SMALL, store=Store(tmp_path), engine=refuse)
    assert path.read_text() == text


def test_counts_that_contradict_the_decisions_are_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    estimate(SMALL, store=store, engine=Fake())
    path = store.finished_path(SMALL.name)
    _edit(path, _set("result", "counts", "bifurcated", to=0))
    with pytest.raises(StoreError, match=r"its counts .* are not those of its 6 decisions"):
        estimate(SMALL, store=Store(tmp_path), engine=refuse)


def test_a_result_with_other_settings_than_its_identity_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    estimate(SMALL, store=store, engine=Fake())
    path = store.finished_path(SMALL.name)
    content = json.loads(gzip.decompress(path.read_bytes()))
    content["result"]["cell"]["batch_size"] += 1
    path.write_bytes(packed(content))
    says = f"is damaged: cell batch size is {SMALL.batch_size + 1} in its result and {SMALL.batch_size} in its identity"
    with pytest.raises(StoreError, match=says):
        estimate(SMALL, store=Store(tmp_path), engine=refuse)


def test_a_chunk_damaged_in_the_middle_is_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, store=store, engine=Fake(stop_at=4), chunk=1)
    path = store.partial_path(SMALL.name)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:10], *lines[3:]]) + "\n")
    with pytest.raises(StoreError, match=r"is damaged \(line 3: .* left as it is"):
        estimate(SMALL, store=Store(tmp_path), engine=refuse)


def test_an_unwritable_folder_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"results folder .*file.below cannot be written \(.*\); name a folder that can be"
    ):
        Store(tmp_path / "file" / "below")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes where it likes")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"cannot be written \(Permission denied\)"):
            Store(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_keeps_the_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("relucheck.results.store.os.replace", full)
        with pytest.raises(
            StoreError, match=r"cannot be written \(No space left on device\); what was there before is kept"
        ):
            estimate(SMALL, store=Store(tmp_path), engine=Fake())
    assert [path.name for path in tmp_path.iterdir()] == [f"{SMALL.name}.partial.jsonl"]
    assert plain(estimate(SMALL, store=Store(tmp_path), engine=refuse)) == plain(estimate(SMALL, engine=Fake()))


SLOW = """
import sys, time
from pathlib import Path
from relucheck.networks import Network
from relucheck.volume.estimate import Cell, Store, estimate
from relucheck.bifurcation.decide import Decision

class Slow:
    plan = "slow"
    def decide(self, seeds):
        for seed in seeds:
            time.sleep(0.02)
            yield Decision(seed, "bifurcate" if seed % 3 else "agree", seed if seed % 3 else None, 1, 10)

cell = Cell(Network("mlp", (2,)), data="digits", draws=int(sys.argv[2]))
estimate(cell, store=Store(Path(sys.argv[1])), engine=lambda *_: Slow(), chunk=4)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    """The cell before it stays finished, and of this one all chunks but the last."""
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW))
    folder, cell = tmp_path / "cells", Cell(mlp(784, 2, 1), data="digits", draws=1000)
    environment = {**os.environ, "PYTHONPATH": str(Path(volume_estimate.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    before = estimate(dataclasses.replace(cell, draws=7), store=Store(folder), engine=Fake())
    running = subprocess.Popen(
        [sys.executable, str(script), str(folder), "1000"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        path = Store(folder).partial_path(cell.name)
        deadline = time.monotonic() + 60
        while (not path.exists() or path.read_bytes().count(b"\n") < 3) and time.monotonic() < deadline:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.02)
        running.send_signal(getattr(signal, name))
        running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode != 0
    store = Store(folder)
    header = json.loads(path.read_text().splitlines()[0])
    kept = sum(len(chunk["outcomes"]) for chunk in store.chunks(cell.name, header["identity"], header["origin"]))
    assert 8 <= kept < 1000
    assert kept % 4 == 0
    assert plain(estimate(before.cell, store=store, engine=refuse)) == plain(before)
