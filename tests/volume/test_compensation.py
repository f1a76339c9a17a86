"""Bifurcation against compensation for the draws of a cell: the right network, the right mini-batch, the right counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck import data
from relucheck.bifurcation.compare import compare
from relucheck.bifurcation.exact_forward import Reals
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.results.store import Store, StoreError
from relucheck.volume import compensation as volume_compensation
from relucheck.volume.cell import REPLACED, Cell, Draw, Estimate
from relucheck.volume.compensation import Sum, ZoneSplit, as_json, by_arithmetic, markdown, split
from relucheck.volume.estimate import estimate, sample, scaled
from tests.helpers.uniform import mlp

CELL = Cell(mlp(784, 16, 2), 128, arithmetic="bfloat16 emulated (product)", draws=4, data="digits", watch="all")


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
    real = volume_compensation.over_the_reals

    def watching(model: nn.Module, inputs: Tensor, targets: Tensor, pair: Any, **options: Any) -> Any:
        result = real(model, inputs, targets, pair, **options)
        seen.append(compare(model, inputs, targets, subgradients=pair).outcome)
        return result

    monkeypatch.setattr(volume_compensation, "over_the_reals", watching)
    result = split(found, dataset=digits)
    assert seen == ["bifurcate"] * found.bifurcated
    assert result.zones == tuple((one.seed, "compensation") for one in found.decisions if one.outcome == "bifurcate")


def test_a_shifted_mini_batch_is_seen(found: Estimate, digits: data.DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded fault: the mini-batch after the deciding one; the test above would fail."""
    shifted = tuple(Draw(one.seed, one.outcome, None if one.batch is None else one.batch + 1) for one in found.decisions)
    outcomes = []
    real = volume_compensation.over_the_reals

    def watching(model: nn.Module, inputs: Tensor, targets: Tensor, pair: Any, **options: Any) -> Any:
        set_subgradient(model, 0.0)
        outcomes.append(compare(model, inputs, targets, subgradients=pair).hit_count)
        return real(model, inputs, targets, pair, **options)

    monkeypatch.setattr(volume_compensation, "over_the_reals", watching)
    split(dataclasses.replace(found, decisions=shifted), dataset=digits)
    right = [compare_at(found, digits, one).hit_count for one in found.decisions if one.outcome == "bifurcate"]
    assert outcomes != right


def compare_at(found: Estimate, digits: data.DataSet, one: Draw) -> Any:
    cell = found.cell
    assert one.batch is not None
    inputs, targets = scaled(cell, digits, sample(cell, len(digits)))
    rows = slice(one.batch * cell.batch_size, (one.batch + 1) * cell.batch_size)
    model = cell.network.draw(one.seed, cell.arithmetic)
    return compare(model, inputs[rows], targets[rows])


@pytest.mark.parametrize(("cell", "smaller"), [({}, False), ({"sample": REPLACED, "sample_size": 700}, True)], ids=str)
def test_the_ragged_last_mini_batch_is_cut(
    cell: dict[str, Any], smaller: bool, digits: data.DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the deciding mini-batch is the last one it holds what is left, of the data or of the sample."""
    ragged = dataclasses.replace(CELL, draws=1, batch_size=300, **cell)
    size = 700 if smaller else len(digits)
    last = (size - 1) // 300
    assert size % 300
    found = Estimate(ragged, (Draw(0, "bifurcate", last),), 1, 1, 1.0, digits.checksum, "cpu", {}, "")
    seen: list[tuple[Tensor, Tensor]] = []
    real = volume_compensation.over_the_reals

    def watching(model: nn.Module, inputs: Tensor, targets: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append((inputs, targets))
        return real(model, inputs, targets, *rest, **options)

    monkeypatch.setattr(volume_compensation, "over_the_reals", watching)
    split(found, dataset=digits)
    inputs, targets = scaled(ragged, digits, sample(ragged, len(digits)))
    ((rows, classes),) = seen
    assert len(rows) == size - 300 * last
    assert torch.equal(rows, inputs[300 * last :])
    assert torch.equal(classes, targets[300 * last :])


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "equal"),
        ({"watch": "all"}, "differs"),
        ({"watch": "all", "subgradients": (0.5, 0.5)}, "equal"),
        ({"watch": "all", "subgradients": (0.5, -0.5)}, "differs"),
    ],
    ids=str,
)
def test_watch_and_pair_are_the_cells(
    fields: dict[str, Any], verdict: str, digits: data.DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network whose second layer alone hits over the reals: its bias moves, the first layer does not."""

    def dead(network: Network, seed: int, arithmetic: Any) -> nn.Module:
        model = draw(network, seed, arithmetic)
        with torch.no_grad():
            first, second = (module for module in list(model.layers)[1:4] if isinstance(module, nn.Linear))
            first.weight.zero_()
            first.bias.fill_(-1.0)
            second.bias.zero_()
        return model

    draw = Network.draw
    monkeypatch.setattr(Network, "draw", dead)
    cell = dataclasses.replace(CELL, arithmetic="bfloat16", draws=1, **{"watch": "first layer", **fields})
    found = Estimate(cell, (Draw(3, "bifurcate", 0),), 1, 1, 1.0, digits.checksum, "cpu", {}, "")
    zone = {"equal": "compensation", "differs": "bifurcation"}[verdict]
    assert split(found, dataset=digits) == ZoneSplit(((3, zone),))  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", ["differs", "equal", "undecided"])
def test_verdicts_are_counted_apart(
    verdict: str, found: Estimate, digits: data.DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given_verdict(*_: Any, **options: Any) -> Reals:
        return Reals((), (), (), verdict, (), 0, 0)  # type: ignore[arg-type]

    monkeypatch.setattr(volume_compensation, "over_the_reals", given_verdict)
    result = split(found, dataset=digits, limit=2)
    name = {"differs": "bifurcation", "equal": "compensation", "undecided": "undecided"}[verdict]
    inside = [one.seed for one in found.decisions if one.outcome == "bifurcate"]
    assert result.zones == tuple((seed, name) for seed in inside[:2])
    (total,) = by_arithmetic([found], {found.cell.name: result}).values()
    assert dataclasses.asdict(total) == {"draws": 2, "bifurcation": 0, "compensation": 0, "undecided": 0} | {name: 2}


def test_a_finished_split_is_not_computed_again(
    found: Estimate, digits: data.DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = split(found, dataset=digits, store=Store(tmp_path))
    monkeypatch.setattr(volume_compensation, "over_the_reals", None)
    assert split(found, dataset=digits, store=Store(tmp_path)) == first
    with pytest.raises(StoreError, match="limit"):
        split(found, dataset=digits, store=Store(tmp_path), limit=1)
    other = (dataclasses.replace(found, decisions=(*found.decisions[:-1], Draw(3, "agree", None))),)
    with pytest.raises(StoreError, match="its decisions is"):
        split(*other, dataset=digits, store=Store(tmp_path))
    monkeypatch.setattr(torch, "__version__", "1.8")
    assert split(found, dataset=digits, store=Store(tmp_path)) == first, "wherever it was computed"


def test_each_network_counts_once(found: Estimate) -> None:
    """Cells share seeds: a network is its shape, its arithmetic and its seed, whatever data or mini-batches it met."""

    def cell(**fields: Any) -> Estimate:
        return dataclasses.replace(found, cell=dataclasses.replace(CELL, **fields))

    one, batches, deep = cell(), cell(batch_size=64), cell(network=mlp(784, 16, 3))
    wide, plain, none = cell(network=mlp(784, 32, 2)), cell(arithmetic="bfloat16"), cell(arithmetic="float64")
    zones: dict[str, ZoneSplit] = {
        one.cell.name: ZoneSplit(((0, "compensation"), (1, "compensation"), (2, "bifurcation"), (4, "undecided"))),
        batches.cell.name: ZoneSplit(((0, "compensation"), (1, "undecided"), (2, "compensation"), (4, "bifurcation"))),
        deep.cell.name: ZoneSplit(((0, "compensation"),)),
        wide.cell.name: ZoneSplit(((0, "compensation"),)),
        plain.cell.name: ZoneSplit(((0, "compensation"),)),
        none.cell.name: ZoneSplit(),
    }
    sums = by_arithmetic([one, batches, deep, wide, plain, none], zones)
    assert sums == {found.cell.arithmetic.name: Sum(10, 2, 3, 1), "bfloat16": Sum(1, 0, 1, 0), "float64": Sum(0, 0, 0, 0)}
    assert sums[found.cell.arithmetic.name].networks == 6
    # in any order of the cells
    assert by_arithmetic([deep, batches, one, wide, plain, none], zones) == sums
    text = "\n".join(markdown(sums))
    assert "| bfloat16 emulated (product) | 10 | 6 | 2 | 3 | 1 |" in text
    assert "| float64 | 0 | 0 | 0 | 0 | 0 |" in text
    assert as_json(sums)["bfloat16"] == {"draws": 1, "networks": 1, "bifurcation": 0, "compensation": 1, "undecided": 0}


def test_networks_of_a_seed_share_layers() -> None:
    """Why the split has no interval: more hidden layers are drawn behind the same first ones."""
    shallow, deep = (mlp(width=16, depth=depth).draw(5, Arithmetic(torch.float32)) for depth in (1, 3))
    assert torch.equal(shallow.layers[1].weight, deep.layers[1].weight)  # type: ignore[arg-type]
