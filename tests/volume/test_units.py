"""Blocks of a cell as units of work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from relucheck import data
from relucheck.volume import units
from relucheck.volume.estimate import Estimate, VolumeError, estimate
from relucheck.work import Local
from tests.helpers import forked
from tests.helpers.fake_engine import SMALL, Fake, plain
from tests.helpers.uniform import mlp


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
    forked.fork_units(monkeypatch)
    cells = [
        dataclasses.replace(SMALL, arithmetic="bfloat16 emulated (product)", network=mlp(784, width, 2), draws=4)
        for width in (4, 6)
    ]
    made = units.units(cells, tmp_path, size=3)
    assert [unit.steps for unit in made] == [3, 1, 3, 1]
    Local(processes).run(made)
    assert len(list(tmp_path.iterdir())) == 4
    found = units.collect(cells, tmp_path, size=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{cell.name}.json.gz" for cell in cells)
    assert units.units(cells, tmp_path, size=3) == ()
    for cell in cells:
        assert found[cell.name].decisions == estimate(cell).decisions
    again = units.collect(cells, tmp_path, size=3)
    assert {name: plain(one) for name, one in again.items()} == {name: plain(one) for name, one in found.items()}
    assert any(one.bifurcated for one in found.values())


def test_an_unfinished_cell_is_left_out(tmp_path: Path) -> None:
    cells = [SMALL, dataclasses.replace(SMALL, network=mlp(784, 4, 2))]
    Local(1).run(units.units(cells, tmp_path)[:1])
    assert list(units.collect(cells, tmp_path)) == [SMALL.name]
    assert [unit.name for unit in units.units(cells, tmp_path)] == [cells[1].name]


def test_an_unfinished_cell_has_its_first_blocks_so_far(tmp_path: Path) -> None:
    """A block behind a gap does not count, and the files of the blocks stay."""
    cell = dataclasses.replace(SMALL, draws=8)
    made = units.units([cell], tmp_path, size=2)
    Local(1).run([made[0], made[1], made[3]])
    assert units.collect([cell], tmp_path, size=2) == {}
    found = units.collect([cell], tmp_path, size=2, so_far=True)[cell.name]
    assert found.cell == dataclasses.replace(cell, draws=4)
    assert found.decisions == estimate(found.cell).decisions
    assert len(list(tmp_path.iterdir())) == 3
    Local(1).run(units.units([cell], tmp_path, size=2))
    assert units.collect([cell], tmp_path, size=2, so_far=True)[cell.name].cell == cell
    other = dataclasses.replace(SMALL, first_seed=500)
    assert units.collect([other], tmp_path, so_far=True) == {}


def test_missing_data_are_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(data.DataFileError, match=r"lacks MNIST/raw/train-images-idx3-ubyte"):
        units.units([dataclasses.replace(SMALL, data="mnist")], tmp_path / "cells", root=tmp_path)
