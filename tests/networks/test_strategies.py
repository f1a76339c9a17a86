"""Strategies draw what they say: special values, values next to kinks, every option of an example."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from torch import Tensor

from relucheck.errors import ModelError
from relucheck.extras import MissingExtraError
from relucheck.networks.aims import AIMS, RESIDUAL
from relucheck.networks.examples import EXAMPLE_KINDS, INVERTED, Example, Inputs, Weights, network_for
from relucheck.networks.network import ACTIVATIONS, Network
from relucheck.networks.strategies import dtypes, examples, floats_at, subgradients, tensors_at, two_subgradients
from relucheck.numerics.bits import neighbour, same_bits
from relucheck.numerics.dtypes import DTYPES, dtype_name
from tests.helpers.promises import SEARCH, check_promise

# What strategies draw


def draws(strategy: st.SearchStrategy[Any], holds: Callable[[Any], bool]) -> Any:
    return find(strategy, holds, settings=SEARCH)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_floats_reach_every_special_value(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for kink, step in itertools.product((0.0, 6.0), (-4, -1, 0, 1, 4)):
        wanted = neighbour(torch.tensor(kink, dtype=dtype), step)
        draws(floats_at(dtype, (0.0, 6.0)), lambda x, wanted=wanted: same_bits(x, wanted))
    specials: list[Callable[[float], bool]] = [
        math.isnan,
        lambda x: x == math.inf,
        lambda x: x == -math.inf,
        lambda x: x == 0 and math.copysign(1, x) < 0,
        lambda x: x == 0 and math.copysign(1, x) > 0,
        lambda x: 0 < abs(x) < limits.smallest_normal,
        lambda x: abs(x) == limits.max,
        lambda x: 1e-4 < abs(x) < 1e4 if dtype in (torch.float16, torch.bfloat16) else 1e-30 < abs(x) < 1e30,
    ]
    for special in specials:
        drawn = draws(floats_at(dtype), lambda x, special=special: special(float(x)))
        assert drawn.dtype == dtype
        assert drawn.shape == ()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_half_of_the_floats_are_next_to_a_kink(dtype: torch.dtype) -> None:
    count = [0, 0]
    at = torch.tensor(6.0, dtype=dtype)
    near = {float(neighbour(at, step)) for step in (-1, 0, 1)}

    @settings(SEARCH, max_examples=100)
    @given(tensors_at(dtype, (6.0,), within=1))
    def attempt(x: Tensor) -> None:
        for value in x.tolist():
            count[value in near] += 1

    attempt()
    # wide: Hypothesis also tries constants of whatever modules are loaded; unaimed floats are hardly ever there
    assert 0.15 < count[1] / sum(count) < 0.85
    drawn = draws(tensors_at(dtype, (6.0,)), lambda x: len(x) > 16 and bool((x == 6).any()))
    assert drawn.dtype == dtype
    assert len(draws(tensors_at(dtype), lambda x: len(x) == 0)) == 0


def test_a_search_fails_where_a_value_is_never_drawn() -> None:
    with pytest.raises(NoSuchExample):
        draws(floats_at(torch.float32, (6.0,), within=0).filter(lambda x: float(x) == 6), lambda x: float(x) != 6)


def test_small_strategies() -> None:
    assert {draws(dtypes(), lambda d, w=wanted: d == w) for wanted in DTYPES} == set(DTYPES)
    for wanted in (0.0, 1.0, 0.5, -0.5, 0.8):
        draws(subgradients(), lambda s, w=wanted: s == w)
    draws(subgradients(), lambda s: s > 1 or s < 0)

    @settings(SEARCH, max_examples=150)
    @given(subgradients(), subgradients(dyadic=True), two_subgradients(), two_subgradients(dyadic=True))
    def attempt(s: float, quarter: float, pair: tuple[float, float], dyadic: tuple[float, float]) -> None:
        assert -2 <= s <= 2
        assert quarter * 4 == int(quarter * 4)
        assert abs(quarter) <= 2
        assert pair[0] != pair[1]
        assert dyadic[0] != dyadic[1]
        assert all(number * 4 == int(number * 4) for number in dyadic)

    attempt()
    assert find(two_subgradients(), lambda pair: True) == (0.0, 1.0)


def test_examples_draw_every_knob_and_keep_their_promises() -> None:
    fields = (*dataclasses.fields(Example), *dataclasses.fields(Network))
    seen: dict[str, set[Any]] = {field.name: set() for field in fields}

    @settings(SEARCH, max_examples=400)
    @given(examples("float16", aims=AIMS, weights=get_args(Weights), max_depth=2, max_width=5, max_batch=6))
    def attempt(example: Example) -> None:
        for name, value in {**vars(example), **vars(example.network)}.items():
            seen[name].add(value)
        assert example.hits_for_certain == (example.aim != "none")
        if example.aim == "none" and example.weights in ("offset", "positive"):
            assert example.cannot_hit
        assert len(example.network.widths) <= 2
        assert example.network.widths[0] <= 5
        assert max(example.network.widths) <= (10 if example.network.kind.startswith("resnet") else 5)
        assert example.batch <= 6
        check_promise(example)

    attempt()
    assert seen["aim"] == set(AIMS)
    assert seen["kind"] == set(EXAMPLE_KINDS)
    assert seen["activation"] == set(ACTIVATIONS)
    assert seen["weights"] == set(get_args(Weights))
    assert seen["inputs"] == set(get_args(Inputs))
    assert seen["batch_norm"] == {False, True}
    assert seen["dropout"] == {0.0, 0.5}
    assert seen["dtype"] == {"float16"}
    assert {len(widths) for widths in seen["widths"]} == {1, 2}
    assert {1, 5} <= {widths[0] for widths in seen["widths"]}
    assert len(seen["batch"]) == 6


def test_knobs_limit_what_is_drawn() -> None:
    @settings(SEARCH, max_examples=60)
    @given(
        examples(
            torch.float64, kinds=("convnet",), activations=("leaky_relu",), inputs=("ink",), batch_norm=True, max_batch=1
        )
    )
    def attempt(example: Example) -> None:
        assert (example.dtype, example.network.kind, example.network.activation) == ("float64", "convnet", "leaky_relu")
        assert (example.inputs, example.network.batch_norm, example.batch, example.aim) == ("ink", True, 1, "none")

    attempt()
    with pytest.raises(ModelError, match="inputs='cat'"):
        find(examples("float32", inputs=("cat",)), lambda example: True)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="kind='cnn'"):
        find(examples("float32", kinds=("cnn",)), lambda example: True)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"aims=.'cancelled sum',., kinds=.'mlp',.: add one of the kinds residual, resnet"):
        find(examples("float32", kinds=("mlp",), aims=("cancelled sum",)), lambda example: True)


def test_kinds_are_drawn_where_they_fit() -> None:
    def drawn(**knobs: Any) -> set[tuple[str, bool]]:
        found = set()

        @settings(SEARCH, max_examples=200)
        @given(examples("float32", **knobs))
        def attempt(example: Example) -> None:
            found.add((example.network.kind, example.network.batch_norm))
            assert example.network.kind != INVERTED or example.network.batch_norm
            assert example.aim != "cancelled sum" or example.network.kind in RESIDUAL

        attempt()
        return found

    assert {kind for kind, _ in drawn(aims=AIMS)} == set(EXAMPLE_KINDS)
    assert drawn(kinds=(INVERTED,)) == {(INVERTED, True)}
    assert drawn(batch_norm=False) == {(kind, False) for kind in EXAMPLE_KINDS if kind != INVERTED}
    assert {kind for kind, _ in drawn(aims=("cancelled sum",))} == set(RESIDUAL)
    assert {kind for kind, _ in drawn(kinds=("mlp", "convnet"), aims=AIMS)} == {"mlp", "convnet"}
    assert {kind for kind, _ in drawn(weights=("offset",))} == {"mlp", "convnet"}


def test_without_torchvision_its_blocks_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(example: Example) -> bool:
        return example.network.kind == INVERTED

    find(examples("float32"), drawn, settings=SEARCH)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(NoSuchExample):
        find(examples("float32"), drawn, settings=settings(SEARCH, max_examples=200))
    with pytest.raises(MissingExtraError, match="the kind inverted-residual needs torchvision; run"):
        Example("float32", network_for(INVERTED)).build()


SHRINK = settings(SEARCH, phases=[Phase.generate, Phase.shrink])


@pytest.mark.parametrize("kind", EXAMPLE_KINDS)
def test_each_architecture_shrinks_to_its_smallest_network(kind: Any) -> None:
    smallest = find(examples("float32", aims=AIMS), lambda example: example.network.kind == kind, settings=SHRINK)
    assert smallest == Example("float32", network_for(kind))
    if kind == INVERTED:
        dropped = find(examples("float32"), lambda example: example.network.dropout > 0, settings=SHRINK)
        assert dropped == Example("float32", network_for(kind, dropout=0.5))
