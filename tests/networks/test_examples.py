"""Examples keep their promises and print as programs."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.bifurcation.compare import compare
from relucheck.errors import ModelError
from relucheck.networks.aims import AIMS, RESIDUAL, affine, sums
from relucheck.networks.examples import (
    EXAMPLE_KINDS,
    INVERTED,
    Example,
    Inputs,
    SeededDropout,
    Weights,
    network_for,
    relucheck_activation,
    torch_activation,
)
from relucheck.networks.network import ACTIVATIONS, Network
from relucheck.numerics.bits import same_bits
from relucheck.numerics.dtypes import DTYPES, UnsupportedDtypeError, dtype_name
from tests.helpers import forked
from tests.helpers.promises import check_promise

NAMES_OF_ACTIVATIONS = tuple(ACTIVATIONS)
NAMES = [dtype_name(dtype) for dtype in DTYPES]


def aimed(dtype: str, seeds: range) -> Iterator[Example]:
    """Every aim, and every way not to hit, on every kind that allows it."""
    for aim, kind, batch_norm in itertools.product(AIMS[1:], EXAMPLE_KINDS, (False, True)):
        mlp = aim in ("negated twin", "shifted bias")
        if (mlp and kind != "mlp") or (batch_norm and aim not in ("dead unit", "saturated unit")):
            continue
        if (aim == "cancelled sum" and kind not in RESIDUAL) or (kind == INVERTED and not batch_norm):
            continue
        for seed in seeds:
            weights = "integer" if mlp else ("default", "integer")[seed % 2]
            inputs = "integer" if mlp else ("normal", "tiny", "integer", "positive", "ink", "digits")[seed % 6]
            network = network_for(
                kind,
                "relu6" if aim == "saturated unit" else NAMES_OF_ACTIVATIONS[seed % (2 if aim == "cancelled sum" else 3)],
                2 + seed % 2,
                2 + seed % 4,
                batch_norm=batch_norm,
                dropout=0.5 if kind == INVERTED and seed % 2 else 0.0,
                weights=weights,
                inputs=inputs,
            )
            yield Example(dtype, network, weights, inputs, aim, 2 + seed % 3, seed)
    for kind, weights in itertools.product(EXAMPLE_KINDS, ("offset", "positive")):
        if kind == INVERTED or (kind in RESIDUAL and weights == "offset"):
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
    # the inputs alternate with 6 seeds, widths and the other knobs with 12: the latter in one dtype
    tried = list(aimed(dtype, range(12 if dtype == "float32" else 6)))
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


@pytest.mark.parametrize("aim", [*AIMS[1:5], "cancelled sum"])
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
        *({"weights": "offset", "inputs": "integer", "network": network_for(kind)} for kind in RESIDUAL),
        *({"aim": "cancelled sum", "network": network_for(kind, batch_norm=True)} for kind in RESIDUAL),
        {"aim": "cancelled sum", "network": network_for("resnet", "leaky_relu")},
        {"aim": "dead input", "network": network_for("inverted-residual")},
        {"weights": "positive", "inputs": "positive", "network": network_for("inverted-residual")},
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
    reseeded = dataclasses.replace(example, seed=8).build()[0]
    assert not any(
        torch.equal(a.weight, b.weight) for a, b in zip(affine(one), affine(reseeded), strict=True) if a.weight.numel() > 9
    )


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
    assert [type(relucheck_activation(name, 0.25)) for name in ACTIVATIONS] == [ReLU, ReLU6, LeakyReLU]
    assert [type(torch_activation(name, 0.25)) for name in ACTIVATIONS] == [nn.ReLU, nn.ReLU6, nn.LeakyReLU]
    for make in (relucheck_activation, torch_activation):
        assert make("leaky_relu", 0.25).negative_slope == 0.25
    slopes = {w: network_for("mlp", "leaky_relu", weights=w).negative_slope for w in get_args(Weights)}
    assert slopes == {"default": 0.01, "positive": 0.01, "integer": 0.25, "offset": 0.25}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "mlp"}, r"network='mlp': must be of class Network, for example network_for"),
        ({"network": Network("lenet", (6, 16, 120, 84))}, "one of mlp, convnet, residual, resnet, .*, with biases, and"),
        (
            {"network": Network("mlp", (2,), dropout=0.1)},
            r"784-2-10 \(dropout 0.1\).*without dropout unless it is inverted",
        ),
        ({"network": Network("mlp", (2,), bias=False)}, r"784-2-10 \(no bias\).*with biases"),
        ({"inputs": "ink"}, r"inputs='ink', network=4-1-3\): digits have 28 x 28 pixels; give the network the input shape"),
        ({"weights": "zero"}, "^weights='zero': must be one of"),
        ({"inputs": "cat"}, "^inputs='cat': must be one of"),
        ({"aim": "high"}, "^aim='high': must be one of"),
        ({"aim": "negated twin"}, "needs an mlp of depth and width 2"),
        ({"aim": "negated twin", "network": network_for("convnet", depth=2, width=2)}, "needs an mlp"),
        ({"aim": "negated twin", "network": network_for(depth=2)}, "needs an mlp"),
        (
            {"aim": "cancelled sum"},
            r"aim='cancelled sum', network=4-1-3\): needs a network of one of the kinds residual, res",
        ),
        ({"aim": "cancelled sum", "network": network_for("inverted-residual")}, "for the block that adds"),
    ],
    ids=str,
)
def test_unknown_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Example("float32", **change)


def test_an_unsupported_dtype_is_refused() -> None:
    with pytest.raises(UnsupportedDtypeError, match=r"int8.*pass one of these"):
        Example("int8")


SCRIPTS = {
    "ResidualNet(": Example("bfloat16", network_for("residual", "relu6"), aim="dead unit", batch=2, seed=5),
    "SeededDropout(p=0.5": Example(
        "bfloat16", network_for("inverted-residual", "relu6", 2, 3, dropout=0.5), aim="saturated unit", batch=2, seed=5
    ),
}


@pytest.mark.parametrize("shown", SCRIPTS)
def test_the_script_runs_and_prints_the_comparison(shown: str) -> None:
    example = SCRIPTS[shown]
    script = example.script((0.0, 0.5))
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ran = forked.python("-c", script, environment=environment)
    assert ran.returncode == 0, ran.stderr
    for part in (shown, "backprop_0.0 and backprop_0.5 in bfloat16: bifurcate", "(ReLU6) at ", "entries differ"):
        assert part in ran.stdout
    model, inputs, targets = example.build()
    assert str(compare(model, inputs, targets, subgradients=(0.0, 0.5))) in ran.stdout, "another process, another result"


def test_every_sum_can_be_aimed_at() -> None:
    """The pre-activations of each activation, in the order of the forward, are those that an aim can choose from."""
    for kind in EXAMPLE_KINDS:
        for batch_norm in (False, True):
            example = Example("float32", network_for(kind, "relu6", 2, 3, batch_norm=batch_norm), batch=2)
            model, inputs, _ = example.build(torch_activation)
            behind = sums(kind, model)
            activations = [module for module in model.modules() if isinstance(module, nn.ReLU6)]
            assert len(behind) == len(activations)
            met: dict[int, set[int]] = {}
            for number in range(len(behind)):
                aimed_at, _, _ = dataclasses.replace(example, aim="saturated unit", seed=number).build(torch_activation)
                for place, module in enumerate(m for m in aimed_at.modules() if isinstance(m, nn.ReLU6)):

                    def look(module: nn.Module, args: tuple[Tensor], at: Any = (met, number, place)) -> None:
                        found, number, place = at
                        if bool((args[0][:, number % args[0].shape[1]] == 6).all()):
                            found.setdefault(number, set()).add(place)

                    module.register_forward_pre_hook(look)
                aimed_at(inputs)
            assert met == {number: {number} for number in range(len(behind))}, (kind, batch_norm)


def test_seeded_dropout_is_one_function_of_its_input() -> None:
    example = Example("float32", network_for("inverted-residual", dropout=0.5), batch=50)
    model, _, _ = example.build()
    (dropout,) = (module for module in model.modules() if isinstance(module, nn.Dropout))
    assert isinstance(dropout, SeededDropout)
    state, x = torch.get_rng_state(), torch.ones(50, 4)
    first = dropout(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(dropout(x), first)
    assert set(first.flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(SeededDropout(0.5, dropout.seed + 1)(x), first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dropout.seed)
        assert torch.equal(nn.Dropout(0.5)(x), first), "it is torch's dropout"
    assert torch.equal(dropout.eval()(x), x)
