"""Examples keep their promises and print as programs; strategies draw what they say."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.errors import ModelError
from relucheck.networks.examples import (
    AIMS,
    EXAMPLE_KINDS,
    Example,
    Inputs,
    Weights,
    network_for,
    own_activation,
    torch_activation,
)
from relucheck.networks.network import ACTIVATIONS, Network
from relucheck.networks.strategies import dtypes, examples, floats_at, subgradients, tensors_at, two_subgradients
from relucheck.numerics.bits import neighbour, same_bits
from relucheck.numerics.dtypes import DTYPES, UnsupportedDtypeError, dtype_name

KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,)}
NAMES_OF_ACTIVATIONS = tuple(ACTIVATIONS)
NAMES = [dtype_name(dtype) for dtype in DTYPES]
SEARCH = settings(
    max_examples=2000,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[*HealthCheck],
)


def hits(example: Example) -> int:
    """Pre-activations of torch's own activations that equal a kink, counted by subtraction in float64."""
    model, inputs, _ = example.build(torch_activation)
    count = 0

    def look(module: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal count
        for at in KINKS[example.network.activation]:
            count += int(((args[0].detach().double() - at) == 0).sum())

    for module in model.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        model(inputs)
    return count


def check_promise(example: Example) -> None:
    found = hits(example)
    assert not (example.hits_for_certain and found == 0), f"no hit for certain: {example}"
    assert not (example.cannot_hit and found), f"{found} hits that cannot be: {example}"


def aimed(dtype: str, seeds: range) -> Iterator[Example]:
    """Every aim, and every way not to hit, on every kind that allows it."""
    for aim, kind, batch_norm in itertools.product(AIMS[1:], EXAMPLE_KINDS, (False, True)):
        mlp = aim in ("negated twin", "shifted bias")
        if (mlp and kind != "mlp") or (batch_norm and aim not in ("dead unit", "saturated unit")):
            continue
        for seed in seeds:
            weights = "integer" if mlp else ("default", "integer")[seed % 2]
            inputs = "integer" if mlp else ("normal", "tiny", "integer", "positive", "ink", "digits")[seed % 6]
            network = network_for(
                kind,
                "relu6" if aim == "saturated unit" else NAMES_OF_ACTIVATIONS[seed % 3],
                2 + seed % 2,
                2 + seed % 4,
                batch_norm=batch_norm,
                weights=weights,
                inputs=inputs,
            )
            yield Example(dtype, network, weights, inputs, aim, 2 + seed % 3, seed)
    for kind, weights in itertools.product(EXAMPLE_KINDS, ("offset", "positive")):
        if (kind, weights) == ("residual", "offset"):
            continue
        for seed in seeds:
            positive = weights == "positive"
            inputs = ("positive", "digits")[seed % 2] if positive else "integer"
            network = network_for(
                kind,
                "relu" if positive and seed % 3 == 1 else NAMES_OF_ACTIVATIONS[seed % 3],
                1 + seed % 2,
                1 + seed % 6,
                weights=weights,
                inputs=inputs,
            )
            yield Example(dtype, network, weights, inputs, batch=8, seed=seed)


@pytest.mark.parametrize("dtype", NAMES)
def test_promises_hold(dtype: str) -> None:
    tried = list(aimed(dtype, range(18)))
    assert all(example.hits_for_certain != example.cannot_hit for example in tried)
    assert {example.aim for example in tried} == set(AIMS)
    for example in tried:
        check_promise(example)


class Missing(Example):
    """Aims, and misses."""

    def _take_aim(self, model: nn.Module, inputs: Tensor) -> None:
        pass


class Trembling(Example):
    """Takes the integers from what must not hit for being a half."""

    def _redraw(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)


@pytest.mark.parametrize("aim", AIMS[1:5])
def test_the_promise_check_fails_examples_that_miss(aim: Any) -> None:
    def check(seeds: range) -> None:
        for example in aimed("float32", seeds):
            if example.aim == aim and not example.network.batch_norm:
                check_promise(Missing(**vars(example)))

    with pytest.raises(AssertionError, match="no hit for certain"):
        check(range(200))


def test_the_promise_check_fails_examples_that_hit() -> None:
    example = Example("float32", weights="offset", inputs="integer", batch=4)
    check_promise(example)
    with pytest.raises(AssertionError, match="hits that cannot be"):
        check_promise(Trembling(**vars(example)))


@pytest.mark.parametrize(
    "change",
    [
        {"aim": "saturated unit"},
        {"aim": "dead input", "network": network_for(batch_norm=True)},
        {"aim": "negated twin", "network": network_for(depth=2, width=2)},
        {"aim": "shifted bias"},
        {"weights": "offset", "inputs": "normal"},
        {"weights": "offset", "inputs": "integer", "network": network_for(depth=3)},
        {"weights": "offset", "inputs": "integer", "network": network_for("residual")},
        {"weights": "offset", "inputs": "integer", "network": network_for(batch_norm=True)},
        {"weights": "offset", "inputs": "integer", "network": network_for("mlp", "leaky_relu")},
        {"weights": "positive", "inputs": "normal"},
        {"weights": "positive", "inputs": "positive", "network": network_for("mlp", "relu6")},
        {},
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_not_promised(change: dict[str, Any]) -> None:
    example = Example("float32", **change)
    assert not example.hits_for_certain
    assert not example.cannot_hit


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("kind", EXAMPLE_KINDS)
@pytest.mark.parametrize("inputs", get_args(Inputs))
def test_built_alike_each_time_and_for_each_activation(dtype: str, kind: Any, inputs: Any) -> None:
    network = network_for(kind, width=3, batch_norm=True, inputs=inputs)
    example = Example(dtype, network, inputs=inputs, batch=4, weights="integer", seed=7)
    state = torch.get_rng_state()
    (one, x, t), (other, y, u) = example.build(), example.build(torch_activation)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, y)
    assert torch.equal(t, u)
    assert x.dtype == example.torch_dtype
    assert (t.dtype, t.shape) == (torch.int64, (4,))
    assert one.training
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert {parameter.dtype for parameter in one.parameters()} == {example.torch_dtype}
    assert one(x).shape == (4, 3)
    assert len(dataclasses.replace(example, batch=9).build()[1]) == 9
    assert not torch.equal(dataclasses.replace(example, seed=8).build()[0].state_dict()["layers.1.weight"
                           if kind == "mlp" else "head.weight"], one.state_dict()["layers.1.weight"
                           if kind == "mlp" else "head.weight"])  # fmt: skip


def test_inputs_are_what_they_say() -> None:
    made = {
        kind: Example("float32", network_for(inputs=kind), inputs=kind, batch=50).build()[1] for kind in get_args(Inputs)
    }
    assert set(made["integer"].flatten().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert set((made["tiny"] * 2.0**40).flatten().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert bool((made["positive"] >= 0).all())
    assert set(made["ink"].flatten().tolist()) == {0.0, 1.0}
    assert made["ink"].shape == made["digits"].shape == (50, 784)
    assert 0 == made["digits"].min() < made["digits"].max() <= 1
    assert len(made["digits"].unique()) > 100
    assert Example("float32", network_for("convnet", inputs="ink"), inputs="ink").build()[1].shape == (1, 1, 28, 28)
    dead = Example("float32", inputs="normal", aim="dead input", batch=2).build()[1]
    assert [bool(row.any()) for row in dead] == [False, True]


@pytest.mark.parametrize("dtype", NAMES)
def test_cotangents(dtype: str) -> None:
    example = Example(dtype, batch=30, seed=3)
    exact = example.cotangent(exact=True)
    assert set(exact.flatten().tolist()) == {-2.0, -1.0, 1.0, 2.0}
    drawn = example.cotangent()
    assert drawn.dtype == exact.dtype == example.torch_dtype
    assert drawn.shape == exact.shape == (30, 3)
    assert len(drawn.unique()) > 50
    assert same_bits(drawn, example.cotangent())


def test_activations_and_slopes() -> None:
    assert [type(own_activation(name, 0.25)) for name in ACTIVATIONS] == [ReLU, ReLU6, LeakyReLU]
    assert [type(torch_activation(name, 0.25)) for name in ACTIVATIONS] == [nn.ReLU, nn.ReLU6, nn.LeakyReLU]
    assert own_activation("leaky_relu", 0.25).negative_slope == torch_activation("leaky_relu", 0.25).negative_slope == 0.25
    slopes = {w: network_for("mlp", "leaky_relu", weights=w).negative_slope for w in get_args(Weights)}
    assert slopes == {"default": 0.01, "positive": 0.01, "integer": 0.25, "offset": 0.25}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "mlp"}, r"network='mlp': must be of class Network, for example network_for"),
        ({"network": Network("lenet", (6, 16, 120, 84))}, "one of mlp, convnet, residual, with biases and without dropout"),
        ({"network": Network("mlp", (2,), dropout=0.1)}, r"784-2-10 \(dropout 0.1\).*without dropout"),
        ({"network": Network("mlp", (2,), bias=False)}, r"784-2-10 \(no bias\).*with biases"),
        ({"inputs": "ink"}, r"inputs='ink', network=4-1-3\): digits have 28 x 28 pixels; give the network the input shape"),
        ({"weights": "zero"}, "^weights='zero': must be one of"),
        ({"inputs": "cat"}, "^inputs='cat': must be one of"),
        ({"aim": "high"}, "^aim='high': must be one of"),
        ({"aim": "negated twin"}, "needs an mlp of depth and width 2"),
        ({"aim": "negated twin", "network": network_for("convnet", depth=2, width=2)}, "needs an mlp"),
        ({"aim": "negated twin", "network": network_for(depth=2)}, "needs an mlp"),
    ],
    ids=str,
)
def test_unknown_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Example("float32", **change)


def test_an_unsupported_dtype_is_refused() -> None:
    with pytest.raises(UnsupportedDtypeError, match=r"int8.*pass one of these"):
        Example("int8")


def test_the_script_runs_and_prints_the_comparison() -> None:
    script = Example("bfloat16", network_for("residual", "relu6"), aim="dead unit", batch=2, seed=5).script((0.0, 0.5))
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    for part in (
        "ResidualNet(",
        "backprop_0.0 and backprop_0.5 in bfloat16: bifurcate",
        "(ReLU6) at 0: ",
        "entries differ",
    ):
        assert part in ran.stdout


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
    from hypothesis.errors import NoSuchExample

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
        assert max(example.network.widths) <= 5
        assert example.batch <= 6
        check_promise(example)

    attempt()
    assert seen["aim"] == set(AIMS)
    assert seen["kind"] == set(EXAMPLE_KINDS)
    assert seen["activation"] == set(ACTIVATIONS)
    assert seen["weights"] == set(get_args(Weights))
    assert seen["inputs"] == set(get_args(Inputs))
    assert seen["batch_norm"] == {False, True}
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
