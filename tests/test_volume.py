"""volume: cells, estimates against the plain decision, and what is kept on disk when something goes wrong."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck import data
from relucheck.bifurcation import decide as bifurcation_decide
from relucheck.bifurcation.decide import Decision
from relucheck.networks import architecture
from relucheck.numerics import dtypes
from relucheck.numerics import environment as numerics_environment
from relucheck.numerics.devices import environment
from relucheck.volume import engine as volume_engine
from relucheck.volume import estimate as volume_estimate
from relucheck.volume import workers
from relucheck.volume.cell import Outcome
from relucheck.volume.estimate import Cell, Estimate, Store, StoreError, VolumeError, estimate

SMALL = Cell(hidden_layers=2, neurons=8, batch_size=64, sample_size=256, data="digits", draws=6)
#: What the fake engine says of seeds 0, 1, 2, ...
SAID: tuple[tuple[Outcome, int | None], ...] = (
    *(("agree", None), ("bifurcate", 3), ("non-finite", 0), ("bifurcate", 0), ("agree", None)),
    *(("agree", None), ("bifurcate", 7)),
)


class Fake:
    """An engine that decides by a list, and counts what it is asked."""

    plan = "fake"

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.asked: list[int] = []

    def __call__(self, cell: Cell, inputs: torch.Tensor, targets: torch.Tensor, device: torch.device, note: object) -> Fake:
        return self

    def decide(self, seeds: Iterable[int], /) -> Iterator[Decision]:
        for seed in seeds:
            if seed == self.stop_at:
                raise KeyboardInterrupt
            self.asked.append(seed)
            outcome, batch = SAID[seed % len(SAID)]
            yield Decision(seed, outcome, batch, 2, 1000)


def refuse(*_: object) -> Fake:
    raise AssertionError("an engine was made")


def plain(found: Estimate) -> dict[str, Any]:
    """All of an estimate but its time."""
    return {key: value for key, value in found.to_json().items() if key != "wall_s"}


def digits(images: int) -> data.DataSet:
    whole = data.load_digits()
    return dataclasses.replace(whole, images=whole.images[:images], labels=whole.labels[:images])


# ---------------------------------------------------------------- cells


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draws": 0}, r"cell: draws=0: must be a whole number of at least 1"),
        ({"draws": True}, r"cell: draws=True: must be a whole number"),
        ({"hidden_layers": 0}, r"hidden_layers=0: must be"),
        ({"neurons": 2.0}, r"neurons=2\.0: must be"),
        ({"batch_size": 0}, r"batch_size=0: must be"),
        ({"sample_size": 0}, r"sample_size=0: must be"),
        ({"first_seed": -1}, r"first_seed=-1: must be a whole number of at least 0"),
        ({"sample": "shuffled"}, r"cell: sample='shuffled': must be one of file order, with replacement"),
        ({"sample": "with replacement"}, r"sample='with replacement' needs a sample_size"),
        ({"watch": "last"}, r"watch='last': must be one of"),
        ({"data": "cifar"}, r"data='cifar': must be one of digits"),
        ({"varied": "depth"}, r"varied='depth': must be one of"),
        ({"pair": (0.0,)}, r"pair=\(0\.0,\) must be two subgradients"),
        ({"dtype": "float8"}, r"'float8' is not supported"),
        ({"dtype": "float16", "tf32": True}, r"tf32 with float16: TF32 is a way to multiply float32"),
        ({"emulation": "tf32", "tf32": True}, r"exclude each other"),
        ({"emulation": "rounded", "strict": True}, r"exclude each other"),
        ({"emulation": "folded"}, r"emulation kind 'folded': must be one of"),
        ({"emulation": "split-k"}, r"split-k takes at least 2 parts"),
        ({"emulation": "split-k many"}, r"parts must be a number, as in 'split-k 4'"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cell(**fields)


def test_the_name_holds_all_that_decides_and_nothing_else() -> None:
    other: dict[str, Any] = {
        "hidden_layers": 4,
        "neurons": 9,
        "batch_size": 65,
        "sample_size": 255,
        "sample": "with replacement",
        "sample_seed": 1,
        "dtype": "bfloat16",
        "emulation": "product",
        "strict": True,
        "tf32": True,
        "draws": 7,
        "first_seed": 1,
        "data": "mnist",
        "watch": "all",
        "pair": (0.0, 0.5),
    }
    assert set(other) == {field.name for field in dataclasses.fields(Cell)} - {"varied"}
    names = {SMALL.name, *(dataclasses.replace(SMALL, **{field: value}).name for field, value in other.items())}
    assert len(names) == 1 + len(other)
    assert dataclasses.replace(SMALL, varied="neurons").name == SMALL.name
    assert all(not set(name) & set("/ ()") for name in names)


@pytest.mark.parametrize("cell", [SMALL, Cell(dtype="float16", emulation="split-k 4", pair=(0, 0.5)), Cell(tf32=True)])
def test_cells_survive_json(cell: Cell) -> None:
    assert Cell.from_json(json.loads(json.dumps(cell.deciding)), cell.varied) == cell


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({}, "float32"),
        ({"dtype": "float16", "strict": True}, "float16 strict"),
        ({"tf32": True}, "float32 TF32"),
        ({"dtype": "float16", "emulation": "split-k 4"}, "float16 emulated (split-k 4)"),
    ],
)
def test_arithmetics_are_labelled(fields: dict[str, Any], label: str) -> None:
    assert Cell(**fields).arithmetic == label


# ---------------------------------------------------------------- estimates


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "float16", "neurons": 64},
        {"dtype": "bfloat16", "emulation": "product"},
        {"dtype": "float16", "emulation": "split-k 4", "watch": "all", "sample": "with replacement"},
        {"dtype": "float64"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())).replace(" ", "-"),
)
def test_every_draw_can_be_rebuilt_and_decided_again(fields: dict[str, Any]) -> None:
    """The plain decision, on a network made from the draw's seed alone, says the same at the same mini-batch."""
    cell = dataclasses.replace(SMALL, first_seed=5, **fields)
    found = estimate(cell)
    dataset = data.load_digits()
    rows = volume_estimate.sample(cell, len(dataset))
    assert rows is not None
    inputs, targets = volume_estimate.scaled(cell, dataset, rows)
    assert torch.equal(inputs, dataset.scaled(cell.dtype)[rows])
    arithmetic = cell.linear_arithmetic()
    for draw in found.decisions:
        model = architecture.draw(
            architecture.Architecture(width=cell.neurons, depth=cell.hidden_layers), draw.seed, arithmetic
        )
        again = bifurcation_decide.decide(model, inputs, targets, batch_size=cell.batch_size, watch=cell.watch)
        assert (again.outcome, again.batch) == (draw.outcome, draw.batch)
    assert [draw.seed for draw in found.decisions] == list(range(5, 11))


def test_the_counts_are_those_of_the_decisions() -> None:
    found = estimate(dataclasses.replace(SMALL, draws=7), engine=Fake())
    assert (found.bifurcated, found.agree, found.non_finite, found.draws) == (3, 3, 1, 7)
    assert found.share == pytest.approx(3 / 7)
    assert found.interval().low < 3 / 7 < found.interval().high
    assert found.hits_per_million == pytest.approx(2000)
    assert [(draw.outcome, draw.batch) for draw in found.decisions] == list(SAID)
    assert set(found.versions) == {"torch", "relucheck", "python", "processor"}


def test_a_network_that_gives_nan_is_neither_in_the_zone_nor_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = volume_estimate.scaled

    def poisoned(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = scaled(*arguments)
        return inputs.index_fill(0, torch.tensor([70]), float("nan")), targets

    monkeypatch.setattr(volume_estimate, "scaled", poisoned)
    found = estimate(SMALL)
    assert (found.agree, found.bifurcated, found.non_finite) == (0, 0, SMALL.draws)
    assert {draw.batch for draw in found.decisions} == {1}
    assert found.share == 0.0


def test_progress_counts_every_draw_once(tmp_path: Path) -> None:
    seen: list[int] = []
    estimate(SMALL, engine=Fake(), progress=seen.append)
    assert sum(seen) == SMALL.draws
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, engine=Fake(stop_at=4), store=Store(tmp_path), chunk=2)
    for before in (4, SMALL.draws):  # resumed, and then finished: what the store holds is not told again
        seen.clear()
        assert volume_estimate.kept(SMALL, Store(tmp_path)) == before
        estimate(SMALL, engine=Fake(), progress=seen.append, store=Store(tmp_path))
        assert sum(seen) == SMALL.draws - before


@pytest.mark.parametrize(
    "damage", [b"{", b"\xff\xfe", b'{"a":1}\n[1]\n{"outcomes":3}\n{"outcomes":"ab"}\n{\n{"outcomes":"ab"}\n']
)
def test_a_damaged_file_does_not_stop_the_counting(tmp_path: Path, damage: bytes) -> None:
    """It is for a progress bar; the estimate says what is wrong with the file."""
    store = Store(tmp_path)
    assert volume_estimate.kept(SMALL, store) == 0
    store.partial_path(SMALL.name).write_bytes(damage)
    assert volume_estimate.kept(SMALL, store) == (2 if b"outcomes" in damage else 0)


def test_a_stack_that_shrank_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine notes reaches the caller, and stays in the plan."""
    decide_stack = volume_engine.Engine._decide_stack
    full: list[int] = []

    def crowded(engine: volume_engine.Engine, group: list[Any]) -> None:
        if len(group) > 2:
            full.append(len(group))
            raise MemoryError("no room")
        decide_stack(engine, group)

    monkeypatch.setattr(volume_engine.Engine, "_decide_stack", crowded)
    notes: list[str] = []
    found = estimate(SMALL, note=notes.append)
    assert full
    assert any("out of memory" in text for text in notes)
    assert all(text in found.plan for text in notes)
    monkeypatch.undo()
    assert found.decisions == estimate(SMALL).decisions


@pytest.mark.parametrize(("strict", "tf32"), [(False, False), (True, False), (False, True)])
def test_the_switches_are_the_cells_and_go_back(strict: bool, tf32: bool) -> None:
    seen: list[tuple[bool, bool]] = []

    def read() -> tuple[bool, bool]:
        matmul: Any = torch.backends.cuda.matmul
        return torch.get_float32_matmul_precision() == "high", bool(matmul.allow_fp16_reduced_precision_reduction)

    class Reading(Fake):
        def decide(self, seeds: Iterable[int], /) -> Iterator[Decision]:
            seen.append(read())
            return super().decide(seeds)

    before = read()
    estimate(dataclasses.replace(SMALL, strict=strict, tf32=tf32), engine=Reading())
    assert seen == [(tf32, not strict)]
    assert read() == before


# ---------------------------------------------------------------- data


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(VolumeError, match=r"the training set of 'digits' is empty, so there is nothing to decide on"):
        estimate(SMALL, dataset=digits(0), engine=refuse)


def test_a_sample_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        VolumeError, match=r"sample_size 256: the training set of 'digits' has 100 images; ask for at most 100"
    ):
        estimate(SMALL, dataset=digits(100), engine=refuse)


def test_other_data_than_the_cells_are_refused() -> None:
    with pytest.raises(VolumeError, match=r"data='mnist', but the data set handed over is 'digits'"):
        estimate(Cell(), dataset=digits(10), engine=refuse)


@pytest.mark.parametrize("images", [1, 5])
def test_one_image_and_a_batch_larger_than_the_data_are_one_mini_batch(images: int) -> None:
    cell = dataclasses.replace(SMALL, sample_size=None, dtype="bfloat16", emulation="product", draws=12)
    found = estimate(cell, dataset=digits(images))
    assert found.draws == 12
    assert {draw.batch for draw in found.decisions} <= {None, 0}
    assert found.activations == 12 * images * cell.neurons * cell.hidden_layers


def test_samples_with_replacement_repeat_are_seeded_and_nest() -> None:
    cell = dataclasses.replace(SMALL, sample="with replacement")
    rows = volume_estimate.sample(cell, 2000)
    assert rows is not None
    assert len(rows) == 256 > len(rows.unique())
    assert int(rows.min()) >= 0
    assert int(rows.max()) > 1500
    assert torch.equal(rows, volume_estimate.sample(cell, 2000))  # type: ignore[arg-type]
    smaller = volume_estimate.sample(dataclasses.replace(cell, sample_size=100), 2000)
    assert smaller is not None
    assert torch.equal(smaller, rows[:100])
    assert not torch.equal(rows, volume_estimate.sample(dataclasses.replace(cell, sample_seed=1), 2000))  # type: ignore[arg-type]
    assert volume_estimate.sample(dataclasses.replace(SMALL, sample_size=2000), 2000) is None


# ---------------------------------------------------------------- what is kept


def test_a_finished_cell_is_read_and_not_run(tmp_path: Path) -> None:
    first = estimate(SMALL, store=Store(tmp_path), engine=Fake())
    again = estimate(dataclasses.replace(SMALL, varied="neurons"), store=Store(tmp_path), engine=refuse)
    assert plain(again) == plain(first)
    assert (again.cell.varied, again.decisions, again.wall_s) == ("neurons", first.decisions, round(first.wall_s, 3))
    assert [path.name for path in tmp_path.iterdir()] == [f"{SMALL.name}.json"]


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
    store.append("name", identity, {"first": 1})
    store.append("name", identity, {"second": "x" * 100})
    path = store.partial_path("name")
    path.write_bytes(path.read_bytes()[:-5])
    resumed = Store(tmp_path)
    resumed.append("name", identity, {"second": 2})
    assert path.read_text().endswith('{"second":2}\n')
    resumed.append("name", identity, {"third": 3})
    assert Store(tmp_path).chunks("name", identity) == ({"first": 1}, {"second": 2}, {"third": 3})


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Changes the JSON of a finished or partial file; returns its new bytes."""
    head, *lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    content = json.loads(head)
    change(content)
    path.write_text("\n".join([json.dumps(content), *lines]) + "\n")
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
        (_set("schema", to=99), r"has schema version 99, this relucheck reads 1; move it away, or name another folder"),
        (_set("identity", "data", to="0" * 64), r"belongs to another run: its data is '0000"),
        (_set("identity", "cell", "neurons", to=9), r"its cell neurons is 9, this run's is 8"),
        (_set("identity", "device", to="cuda NVIDIA H200"), r"its device is 'cuda NVIDIA H200', this run's is 'cpu"),
        (_set("identity", "processor", to="another"), r"its processor is 'another'"),
        (_set("identity", "torch", to="1.8"), r"its torch is '1\.8'"),
        (_set("identity", to=None), r"belongs to another run"),
    ],
    ids=["schema", "data", "cell", "device", "processor", "torch", "none"],
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


def test_another_processor_may_round_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen by the processor's model, so its draws are not mixed with another's."""
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, store=Store(tmp_path), engine=Fake(stop_at=4), chunk=2)
    monkeypatch.setattr(numerics_environment, "_processor", lambda: "one of another make")
    with pytest.raises(StoreError, match=r"its processor is .*, this run's is 'one of another make'"):
        estimate(SMALL, store=Store(tmp_path), engine=refuse)


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


def test_a_chunk_damaged_in_the_middle_is_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        estimate(SMALL, store=store, engine=Fake(stop_at=4), chunk=1)
    path = store.partial_path(SMALL.name)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:10], *lines[3:]]) + "\n")
    with pytest.raises(StoreError, match=r"is damaged .* left as it is"):
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
from relucheck.volume.estimate import Cell, Store, estimate
from relucheck.bifurcation.decide import Decision

class Slow:
    plan = "slow"
    def decide(self, seeds):
        for seed in seeds:
            time.sleep(0.02)
            yield Decision(seed, "bifurcate" if seed % 3 else "agree", seed if seed % 3 else None, 1, 10)

cell = Cell(hidden_layers=1, neurons=2, data="digits", draws=int(sys.argv[2]))
estimate(cell, store=Store(Path(sys.argv[1])), engine=lambda *_: Slow(), chunk=4)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    """The cell before it stays finished, and of this one all chunks but the last."""
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW))
    folder, cell = tmp_path / "cells", Cell(hidden_layers=1, neurons=2, data="digits", draws=1000)
    environment = {**os.environ, "PYTHONPATH": str(Path(volume_estimate.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
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
    identity = json.loads(path.read_text().splitlines()[0])["identity"]
    kept = sum(len(chunk["outcomes"]) for chunk in store.chunks(cell.name, identity))
    assert 8 <= kept < 1000
    assert kept % 4 == 0
    assert plain(estimate(before.cell, store=store, engine=refuse)) == plain(before)


# ---------------------------------------------------------------- several processes


def test_two_processes_decide_as_one_does(tmp_path: Path) -> None:
    cells = [
        dataclasses.replace(SMALL, dtype="bfloat16", emulation="product", neurons=width, draws=4) for width in (4, 6, 8)
    ]
    heard: list[workers.Step] = []
    workers.compute(cells, tmp_path / "two", processes=2, listen=heard.append)
    workers.compute(cells, tmp_path / "one", processes=1)
    assert sum(step.finished for step in heard) == 3
    assert sum(step.draws for step in heard) == 12
    with workers.one_thread("cpu"):
        for cell in cells:
            both = [estimate(cell, store=Store(tmp_path / name), engine=refuse) for name in ("one", "two")]
            assert plain(both[0]) == plain(both[1])
    assert len({estimate.bifurcated for estimate in both}) == 1


def test_what_a_process_raises_is_raised_here(tmp_path: Path) -> None:
    cells = [dataclasses.replace(SMALL, data="mnist", neurons=width) for width in (4, 6)]
    with pytest.raises(data.DataFileError, match=r"lacks MNIST/raw/train-images-idx3-ubyte"):
        workers.compute(cells, tmp_path / "cells", root=tmp_path, processes=2)


def test_the_death_of_a_worker_is_told_and_its_draws_stay(tmp_path: Path) -> None:
    """As the kernel ends a process for want of memory; these are our own children, killed once draws are in the store.

    A file that exists may hold nothing yet: it is opened, then written.
    """
    cells = [dataclasses.replace(SMALL, draws=100_000, neurons=width, sample_size=64) for width in (4, 6)]

    def kill(step: workers.Step) -> None:
        if any(volume_estimate.kept(cell, Store(tmp_path)) for cell in cells):
            for worker in multiprocessing.active_children():
                worker.kill()

    with pytest.raises(VolumeError, match=r"a worker process ended with exit code -9, mostly for want of memory; finished"):
        workers.compute(cells, tmp_path, processes=2, listen=kill)
    assert not multiprocessing.active_children()
    assert any(volume_estimate.kept(cell, Store(tmp_path)) for cell in cells)


def test_a_worker_waits_while_another_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that looks empty for a moment ends no worker; the None at its end does."""

    class Contended:
        items: list[Cell | type[Exception] | None]

        def __init__(self) -> None:
            self.items = [queue.Empty, SMALL, queue.Empty, dataclasses.replace(SMALL, neurons=4), None, SMALL]

        def get(self, block: bool = True, timeout: float | None = None) -> Cell | None:
            item = self.items.pop(0)
            if isinstance(item, type):
                raise item
            return item

        def get_nowait(self) -> Cell | None:
            return self.get(block=False)

    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    todo, news = Contended(), queue.Queue[workers.Step]()
    workers._work(todo, news, tmp_path, None, "cpu", os.getppid())
    steps = [news.get_nowait() for _ in range(news.qsize())]
    assert [step.cell.neurons for step in steps if step.finished] == [8, 4]
    assert todo.items == [SMALL]


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with workers.one_thread("cpu"):
            assert torch.get_num_threads() == 1
            assert environment("cpu").device.endswith(", 1 thread")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_dtypes_of_cells_are_numerics_dtypes() -> None:
    assert {Cell(dtype=dtypes.dtype_name(dtype)).linear_arithmetic() for dtype in dtypes.DTYPES} == set(dtypes.DTYPES)
