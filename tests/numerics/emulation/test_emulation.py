"""Emulations: which rounding a sum gets, one name for one meaning, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.emulation import Emulation, EmulationError, Override, Rounding
from relucheck.numerics.emulation.emulation import DIRECTIONS
from tests.helpers.emulations import emulations, overrides, roundings
from tests.oracles.emulated import chosen

BFLOAT16 = torch.bfloat16
LENGTHS = (0, 1, 2, 3, 5, 6, 8, 9, 10, 1000)


def _meaning(rounding: Rounding, changed: tuple[Override, ...]) -> list[Rounding]:
    """The rounding of every sum that tells overrides of these tests apart, by the oracle."""
    found = []
    for layer in range(1, 6):
        for direction in DIRECTIONS:
            for terms in LENGTHS:
                one = chosen(rounding, changed, layer, direction, terms)
                found.append(one if direction == "forward" else one.without_bias)
    return found


def _sums(emulation: Emulation) -> list[Rounding]:
    return [
        one.sum(direction, terms)
        for one in map(emulation.layer, range(1, 6))
        for direction in DIRECTIONS
        for terms in LENGTHS
    ]


@given(roundings(), st.lists(overrides(), max_size=4))
def test_the_last_override_that_selects_a_sum_holds(rounding: Rounding, changed: list[Override]) -> None:
    """And an override is refused if and only if no sum would be rounded differently without it."""
    whole = _meaning(rounding, tuple(changed))
    idle = [n for n in range(len(changed)) if _meaning(rounding, (*changed[:n], *changed[n + 1 :])) == whole]
    if idle:
        with pytest.raises(EmulationError, match="changes nothing; leave it out"):
            Emulation(BFLOAT16, rounding, tuple(changed))
    else:
        assert _sums(Emulation(BFLOAT16, rounding, tuple(changed))) == whole


@given(emulations(), emulations())
def test_emulations_are_equal_if_they_round_every_sum_alike(one: Emulation, other: Emulation) -> None:
    assert (one == other) == (_sums(one) == _sums(other)) == (one.label == other.label)
    arithmetic = Arithmetic.parse(one.name)
    assert arithmetic.emulated == one
    assert arithmetic.name == one.name
    assert Arithmetic.parse(one.name.upper()) == arithmetic
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert hash(Emulation.parse(BFLOAT16, one.label)) == hash(one)


@given(roundings(), st.permutations([1, 2, 3]), st.permutations(DIRECTIONS))
def test_the_order_and_grouping_of_overrides_do_not_matter(
    rounding: Rounding, layers: list[int], directions: list[Any]
) -> None:
    split = Rounding(9)
    together = Emulation(BFLOAT16, rounding, (Override(split, tuple(layers)),))
    apart = [Override(split, (layer,), directions=(one,)) for layer in layers for one in directions]
    assert Emulation(BFLOAT16, rounding, tuple(apart)) == together
    assert together.label == f"{rounding.name}; layers 1, 2, 3: split-k 9"


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("rounded; layer 1 forward: split-k 4", None),
        ("rounded; layer 1 forward: split-k 4 wide", None),
        ("rounded; layers 2, 3 K from 512 input gradient: split-k 4 by 32 in place", None),
        ("rounded; K from 512: split-k 4", None),
        ("rounded; K from 512: split-k 4; layer 1 K from 512: rounded", None),
        ("rounded; layer 3: split-k 4; layer 1: split-k 4", "rounded; layers 1, 3: split-k 4"),
        ("rounded; forward: split-k 4", "split-k 4; backward: rounded"),
        ("product; forward: rounded", "rounded"),
        ("rounded; layer 1: product", "rounded; layer 1 forward: product"),
        ("rounded; layer 1 weight gradient, input gradient: split-k 4", "rounded; layer 1 backward: split-k 4"),
        ("rounded; layer 2: split-k 4; backward: split-k 2", "rounded; backward: split-k 2; layer 2 forward: split-k 4"),
    ],
)
def test_labels(given: str, canonical: str | None) -> None:
    made = Emulation.parse(BFLOAT16, given)
    assert made.label == (canonical or given)
    assert Emulation.parse(BFLOAT16, made.label) == made


def test_one_layer_of_an_emulation() -> None:
    whole = Emulation.parse(BFLOAT16, "rounded; K from 512: split-k 4; layer 2 forward: product")
    assert whole.by_layer
    assert [one.label for one in whole.layers(3)] == [
        "rounded; K from 512: split-k 4",
        "product; K from 512 backward: split-k 4",
        "rounded; K from 512: split-k 4",
    ]
    uniform = Emulation(BFLOAT16, Rounding())
    assert uniform.layer(7) is uniform
    with pytest.raises(EmulationError, match=r"layers are rounded differently; take the emulation of one with layer\("):
        whole.sum("forward", 3)
    with pytest.raises(EmulationError, match=r"layer 2 of a model with 1 layer with products; name layers from 1 to 1"):
        whole.layers(1)
    with pytest.raises(EmulationError, match="emulation: layer=0: must be a whole number of at least 1"):
        whole.layer(0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (4, "rounding 4: must be"),
        ("rounded; ", "override '': must be SELECTION: ROUNDING"),
        ("rounded; product", "override 'product': must be SELECTION: ROUNDING"),
        ("rounded;layer 1: product", "rounding 'rounded;layer 1: product': must be"),
        ("rounded; layer 1 :product", "must be SELECTION: ROUNDING"),
        ("rounded; forward layer 1: product", "must be SELECTION: ROUNDING"),
        ("rounded; layer 1: folded", "rounding 'folded': must be"),
        ("rounded; layer 0: product", "override: layer=0: must be a whole number of at least 1"),
        ("rounded; K from 1: product", "K from takes at least 2 terms; leave it out"),
        ("rounded; forward, backward: product", "it selects every sum; name layers"),
        ("rounded; layer 1: rounded", "the override 'layer 1: rounded' changes nothing; leave it out"),
        ("rounded; K from 9: split-k 4; K from 4: product", "the override 'K from 9: split-k 4' changes nothing"),
        ("rounded; layer 1 backward: product", "a gradient has no bias; write 'rounded'"),
        ("rounded; backward: split-k 4 bias joined", "a gradient has no bias; write 'split-k 4'"),
        ("rounded; layer 1: tf32", "TF32 rounds float32 factors; use float32"),
    ],
)
def test_texts_of_no_emulation_are_refused(label: Any, message: str) -> None:
    with pytest.raises(EmulationError) as caught:
        Emulation.parse(BFLOAT16, label)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Emulation(BFLOAT16, "product"), "emulation: rounding='product': must be of class Rounding"),  # type: ignore[arg-type]
        (lambda: Emulation(BFLOAT16, Rounding(), ("layer 1: product",)), "must be of class Override"),  # type: ignore[arg-type]
        (lambda: Emulation(BFLOAT16, Rounding(), 1), "must be a list or tuple"),  # type: ignore[arg-type]
        (lambda: Override("product", (1,)), "override: rounding='product': must be of class Rounding"),  # type: ignore[arg-type]
        (lambda: Override(Rounding(), 1), "override: layers=1: must be a list or tuple"),  # type: ignore[arg-type]
        (lambda: Override(Rounding()), "it selects every sum"),
        (lambda: Override(Rounding(), (1,), directions=()), "it selects no direction"),
        (lambda: Override(Rounding(), directions=("sideways",)), "must be one of forward, input gradient"),  # type: ignore[arg-type]
        (lambda: Override(Rounding(), terms=1), "K from 1: every sum has a term; leave it out"),
    ],
)
def test_settings_of_no_emulation_are_refused(make: Any, message: str) -> None:
    with pytest.raises(EmulationError) as caught:
        make()
    assert message in str(caught.value)
