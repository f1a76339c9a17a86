"""volume: cells, estimates against the plain decision, and what is kept on disk when something goes wrong."""

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
import torch

from relucheck import data
from relucheck.bifurcation import decide as bifurcation_decide
from relucheck.bifurcation.compare import Outcome
from relucheck.bifurcation.decide import Decision
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.results.store import packed
from relucheck.volume import engine as volume_engine
from relucheck.volume import estimate as volume_estimate
from relucheck.volume import units
from relucheck.volume.estimate import Cell, Estimate, Store, StoreError, VolumeError, estimate
from relucheck.work import Local
from tests.uniform import images, mlp

SMALL = Cell(mlp(784, 8, 2), batch_size=64, sample_size=256, data="digits", draws=6)
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
        ({"network": 256}, r"network=256: must be of class Network"),
        ({"network": mlp(batch_norm=True)}, r"network=784-.*batch norm.*: must be an mlp with biases"),
        ({"network": images("convnet")}, r"network=convnet .*: must be an mlp with biases"),
        ({"batch_size": 0}, r"batch_size=0: must be"),
        ({"sample_size": 0}, r"sample_size=0: must be"),
        ({"first_seed": -1}, r"first_seed=-1: must be a whole number of at least 0"),
        ({"sample": "shuffled"}, r"cell: sample='shuffled': must be one of file order, with replacement"),
        ({"sample": "with replacement"}, r"sample='with replacement' needs a sample_size"),
        ({"watch": "last"}, r"watch='last': must be one of"),
        ({"data": "cifar"}, r"data='cifar': must be one of digits"),
        ({"varied": "depth"}, r"varied='depth': must be one of"),
        ({"subgradients": (0.0,)}, r"subgradients=\(0\.0,\) must be two subgradients"),
        ({"arithmetic": "float8"}, r"cell: arithmetic 'float8': dtype 'float8' is not supported"),
        ({"arithmetic": "float16 TF32"}, r"cell: arithmetic of float16: tf32=True is a way to multiply float32"),
        ({"arithmetic": "mixed float16"}, r"cell: arithmetic 'mixed float16': .*choose one that is not mixed"),
        ({"arithmetic": None}, r"cell: arithmetic None: must be"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cell(**fields)


def test_the_name_holds_all_that_decides_and_nothing_else() -> None:
    other: dict[str, Any] = {
        "network": mlp(784, 9, 4),
        "batch_size": 65,
        "sample_size": 255,
        "sample": "with replacement",
        "sample_seed": 1,
        "arithmetic": "float16 strict",
        "draws": 7,
        "first_seed": 1,
        "data": "mnist",
        "watch": "all",
        "subgradients": (0.0, 0.5),
    }
    assert set(other) == {field.name for field in dataclasses.fields(Cell)} - {"varied"}
    names = {SMALL.name, *(dataclasses.replace(SMALL, **{field: value}).name for field, value in other.items())}
    assert len(names) == 1 + len(other)
    assert dataclasses.replace(SMALL, varied="neurons").name == SMALL.name
    assert all(not set(name) & set("/ ()") for name in names)


@pytest.mark.parametrize(
    "cell", [SMALL, Cell(arithmetic="float16 emulated (split-k 4)", subgradients=(0, 0.5)), Cell(arithmetic="float32 TF32")]
)
def test_cells_survive_json(cell: Cell) -> None:
    assert Cell.from_json(json.loads(json.dumps(cell.deciding)), cell.varied) == cell


def test_an_arithmetic_is_an_arithmetic_or_its_name() -> None:
    """Stored as the name, and one cell whichever it was given by."""
    name = "float16 emulated (split-k 4)"
    cell = Cell(arithmetic=name)
    assert cell == Cell(arithmetic=Arithmetic(torch.float16, emulation="split-k 4"))
    assert cell.arithmetic.emulated is not None
    assert cell.deciding["arithmetic"] == name
    assert Cell().arithmetic.name == "float32"


# ---------------------------------------------------------------- estimates


@pytest.mark.parametrize(
    "fields",
    [
        {"arithmetic": "float16", "network": mlp(784, 64, 2)},
        {"arithmetic": "bfloat16 emulated (product)"},
        {"arithmetic": "float16 emulated (split-k 4)", "watch": "all", "sample": "with replacement"},
        {"arithmetic": "float64"},
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
    assert torch.equal(inputs, dataset.scaled(cell.arithmetic.dtype)[rows])
    for draw in found.decisions:
        model = cell.network.draw(draw.seed, cell.arithmetic)
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


@pytest.mark.parametrize(
    ("name", "strict", "tf32"),
    [("float16", False, False), ("float16 strict", True, False), ("float32 TF32", False, True)],
)
def test_the_switches_are_the_cells_and_go_back(name: str, strict: bool, tf32: bool) -> None:
    seen: list[tuple[bool, bool]] = []

    def read() -> tuple[bool, bool]:
        matmul: Any = torch.backends.cuda.matmul
        return torch.get_float32_matmul_precision() == "high", bool(matmul.allow_fp16_reduced_precision_reduction)

    class Reading(Fake):
        def decide(self, seeds: Iterable[int], /) -> Iterator[Decision]:
            seen.append(read())
            return super().decide(seeds)

    before = read()
    estimate(dataclasses.replace(SMALL, arithmetic=name), engine=Reading())
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
    cell = dataclasses.replace(SMALL, sample_size=None, arithmetic="bfloat16 emulated (product)", draws=12)
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


# ---------------------------------------------------------------- units of work


def test_blocks_are_the_cell() -> None:
    cell = dataclasses.replace(SMALL, draws=250, first_seed=7)
    blocks = cell.blocks(100)
    assert [(block.first_seed, block.draws) for block in blocks] == [(7, 100), (107, 100), (207, 50)]
    parts = [estimate(block, engine=Fake()) for block in blocks]
    assert plain(Estimate.joined(cell, parts)) == plain(estimate(cell, engine=Fake()))
    for wrong in (parts[:2], parts[::-1], [*parts, parts[0]]):
        with pytest.raises(VolumeError, match="blocks are not the cell's"):
            Estimate.joined(cell, wrong)


@pytest.mark.parametrize("processes", [1, 2])
def test_blocks_in_processes_decide_as_one_run_does(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cell.blocks, "__defaults__", (3,))
    cells = [
        dataclasses.replace(SMALL, arithmetic="bfloat16 emulated (product)", network=mlp(784, width, 2), draws=4)
        for width in (4, 6)
    ]
    made = units.units(cells, tmp_path)
    assert [unit.steps for unit in made] == [3, 1, 3, 1]
    Local(processes).run(made)
    assert len(list(tmp_path.iterdir())) == 4
    found = units.collect(cells, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{cell.name}.json.gz" for cell in cells)
    assert units.units(cells, tmp_path) == ()
    for cell in cells:
        assert found[cell.name].decisions == estimate(cell).decisions
    again = units.collect(cells, tmp_path)
    assert {name: plain(one) for name, one in again.items()} == {name: plain(one) for name, one in found.items()}
    assert any(one.bifurcated for one in found.values())


def test_an_unfinished_cell_is_left_out(tmp_path: Path) -> None:
    cells = [SMALL, dataclasses.replace(SMALL, network=mlp(784, 4, 2))]
    Local(1).run(units.units(cells, tmp_path)[:1])
    assert list(units.collect(cells, tmp_path)) == [SMALL.name]
    assert [unit.name for unit in units.units(cells, tmp_path)] == [cells[1].name]


def test_missing_data_are_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(data.DataFileError, match=r"lacks MNIST/raw/train-images-idx3-ubyte"):
        units.units([dataclasses.replace(SMALL, data="mnist")], tmp_path / "cells", root=tmp_path)
