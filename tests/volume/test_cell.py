"""Cells: what is refused, names, JSON and arithmetics."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.volume.estimate import Cell
from tests.helpers.fake_engine import SMALL
from tests.helpers.uniform import images, mlp


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
