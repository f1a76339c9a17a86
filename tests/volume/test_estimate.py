"""Volume estimates: counts against the decisions, rebuilt draws, and the data they are computed from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck import data
from relucheck.bifurcation import decide as bifurcation_decide
from relucheck.bifurcation.decide import Decision
from relucheck.volume import engine as volume_engine
from relucheck.volume import estimate as volume_estimate
from relucheck.volume.estimate import Cell, Store, VolumeError, estimate
from tests.helpers.fake_engine import SAID, SMALL, Fake, digits, refuse
from tests.helpers.uniform import mlp

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
    with pytest.raises(VolumeError, match=r"data='mnist', but the given data set is 'digits'"):
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
