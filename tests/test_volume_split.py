"""Bifurcation against compensation for the draws of a cell: the right network, the right mini-batch, the right counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from relucheck import data, volume_split
from relucheck.backprop import compare
from relucheck.networks import set_subgradient
from relucheck.volume import estimate
from relucheck.volume_cells import REPLACED, Cell, Draw, Estimate
from relucheck.volume_split import Split, by_arithmetic, markdown, split
from relucheck.volume_store import Store, StoreError

CELL = Cell(2, 16, 128, dtype="bfloat16", emulation="product", draws=4, data="digits", watch="all")


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.load("digits", "train")


@pytest.fixture(scope="module", params=["file order", "with replacement"])
def found(request: pytest.FixtureRequest, digits: data.DataSet) -> Estimate:
    replaced = {"sample": REPLACED, "sample_size": 700} if request.param == REPLACED else {}
    result = estimate(dataclasses.replace(CELL, **replaced), dataset=digits)
    assert result.bifurcated >= 3
    return result


def test_every_draw_is_looked_at_where_it_bifurcates(
    found: Estimate, digits: data.DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model and mini-batch that are evaluated over the reals bifurcate in floating point."""
    seen = []
    real = volume_split.over_the_reals

    def watching(model: nn.Module, inputs: Tensor, targets: Tensor, pair: Any, **options: Any) -> Any:
        result = real(model, inputs, targets, pair, **options)
        seen.append(compare(model, inputs, targets, subgradients=pair).outcome)
        return result

    monkeypatch.setattr(volume_split, "over_the_reals", watching)
    result = split(found, dataset=digits)
    assert seen == ["bifurcate"] * found.bifurcated
    assert result == Split(compensation=found.bifurcated)


def test_a_shifted_mini_batch_is_seen(found: Estimate, digits: data.DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded fault: the mini-batch after the deciding one; the test above would fail."""
    shifted = tuple(Draw(one.seed, one.outcome, None if one.batch is None else one.batch + 1) for one in found.decisions)
    outcomes = []
    real = volume_split.over_the_reals

    def watching(model: nn.Module, inputs: Tensor, targets: Tensor, pair: Any, **options: Any) -> Any:
        set_subgradient(model, 0.0)
        outcomes.append(compare(model, inputs, targets, subgradients=pair).hit_count)
        return real(model, inputs, targets, pair, **options)

    monkeypatch.setattr(volume_split, "over_the_reals", watching)
    split(dataclasses.replace(found, decisions=shifted), dataset=digits)
    right = [compare_at(found, digits, one).hit_count for one in found.decisions if one.outcome == "bifurcate"]
    assert outcomes != right


def compare_at(found: Estimate, digits: data.DataSet, one: Draw) -> Any:
    from relucheck.stacks import Architecture, draw
    from relucheck.volume import sample, scaled

    cell = found.cell
    assert one.batch is not None
    inputs, targets = scaled(cell, digits, sample(cell, len(digits)))
    rows = slice(one.batch * cell.batch_size, (one.batch + 1) * cell.batch_size)
    model = draw(Architecture(784, cell.neurons, cell.hidden_layers), one.seed, cell.linear_arithmetic())
    return compare(model, inputs[rows], targets[rows])


@pytest.mark.parametrize("verdict", ["differs", "equal", "undecided"])
def test_verdicts_are_counted_apart(
    verdict: str, found: Estimate, digits: data.DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass
    class Told:
        verdict: str

    monkeypatch.setattr(volume_split, "over_the_reals", lambda *args, **options: Told(verdict))
    result = split(found, dataset=digits, limit=2)
    name = {"differs": "bifurcation", "equal": "compensation", "undecided": "undecided"}[verdict]
    assert dataclasses.asdict(result) == {"bifurcation": 0, "compensation": 0, "undecided": 0} | {name: 2}


def test_a_finished_split_is_not_computed_again(
    found: Estimate, digits: data.DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = split(found, dataset=digits, store=Store(tmp_path))
    monkeypatch.setattr(volume_split, "over_the_reals", None)
    assert split(found, dataset=digits, store=Store(tmp_path)) == first
    with pytest.raises(StoreError, match="limit"):
        split(found, dataset=digits, store=Store(tmp_path), limit=1)


def test_tables(found: Estimate) -> None:
    none = dataclasses.replace(found, cell=dataclasses.replace(CELL, emulation=None))
    sums = by_arithmetic([found, found, none], {found.cell.name: Split(1, 3, 0), none.cell.name: Split()})
    assert sums == {found.cell.arithmetic: Split(2, 6, 0), "bfloat16": Split()}
    text = "\n".join(markdown(sums))
    assert "| bfloat16 emulated (product) | 8 | 2 | 6 | 0 | 0.250 [0.032, 0.651] |" in text
    assert "| bfloat16 | 0 | 0 | 0 | 0 |  |" in text
