"""Exact gradients and verdicts against fractions, and faults that are caught."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck.activations.rules import LEAKY_RELU
from relucheck.bifurcation import exact_gradients
from relucheck.bifurcation.decide import decide
from relucheck.bifurcation.exact_forward import ExactError, Layer, RealLayer, layers_of, real_inputs
from relucheck.bifurcation.exact_gradients import over_the_reals, zone_over_the_reals
from relucheck.networks.examples import Example, network_for
from relucheck.networks.mlp import MLP
from relucheck.networks.strategies import examples
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import DTYPES, dtype_name
from relucheck.numerics.emulation import Emulation, Rounding, emulate
from tests.helpers.per_dtype import fewer
from tests.helpers.uniform import images, mlp
from tests.oracles.rationals import Matrix, brute_force, fractions, permuted_twins


def real_gradients(layers: tuple[Layer, ...], x: Tensor, cotangent: Tensor, s: float) -> dict[str, Matrix]:
    """backprop_s in exact arithmetic by fractions; biases as one-row matrices."""
    regions, values = brute_force(layers, x)
    above = fractions(cotangent)
    found: dict[str, Matrix] = {}
    for depth in reversed(range(len(layers))):
        layer = layers[depth]
        if layer.rule is not None:
            slopes = [Fraction(value) for value in (layer.slope, s, 1.0, s, 0.0)]
            above = [
                [c * slopes[r] for c, r in zip(row, where, strict=True)]
                for row, where in zip(above, regions[depth], strict=True)
            ]
        units, weight = range(len(layer.weight)), fractions(layer.weight)
        below = values[depth]
        found[f"{layer.name}.weight"] = [
            [sum((d[j] * h[k] for d, h in zip(above, below, strict=True)), Fraction(0)) for k in range(len(weight[0]))]
            for j in units
        ]
        found[f"{layer.name}.bias"] = [[sum((d[j] for d in above), Fraction(0)) for j in units]]
        above = [[sum((d[j] * weight[j][k] for j in units), Fraction(0)) for k in range(len(weight[0]))] for d in above]
    return found


def check_verdict(model: nn.Module, inputs: Tensor, cotangent: Tensor, pair: tuple[float, float]) -> str:
    reals = over_the_reals(model, inputs, subgradients=pair, cotangent=cotangent)
    layers = layers_of(model)
    one, other = (real_gradients(layers, real_inputs(layers, inputs), cotangent, s) for s in pair)
    distance = {
        name: max(abs(a - b) for p, q in zip(one[name], other[name], strict=True) for a, b in zip(p, q, strict=True))
        for name in one
    }
    differing = {name for name, value in distance.items() if value}
    assert set(reals.parameters) <= differing
    # a difference far above the bound has to be found; below it the verdict may stay open
    assert {name for name, value in distance.items() if value > 1e-9} <= set(reals.parameters)
    if reals.verdict == "equal":
        assert not differing
    assert (reals.verdict == "differs") == bool(reals.parameters)
    return reals.verdict


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@fewer
@given(data=st.data())
def test_verdict_is_that_of_fractions(dtype: torch.dtype, data: st.DataObject) -> None:
    aims = ("none", "dead unit", "saturated unit", "negated twin", "shifted bias", "dead input")
    drawn = examples(
        dtype,
        kinds=["mlp"],
        weights=("integer",),
        aims=aims,
        inputs=("integer",),
        batch_norm=False,
        max_width=4,
        max_batch=3,
    )
    example = data.draw(drawn)
    model, inputs, _ = example.build()
    check_verdict(model, inputs, example.cotangent(exact=True), data.draw(st.sampled_from([(0.0, 1.0), (0.5, -0.5)])))


def undecided() -> tuple[MLP, Tensor, Tensor]:
    """Equal columns: the cotangent of the dead unit is 1/3 sum(p - y), which is 0 but for rounding."""
    model = mlp(2, 2, 1, 7).build()
    linear_one, _, last = list(model.layers)[1:]
    with torch.no_grad():
        linear_one.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        linear_one.bias.zero_()
        last.weight.fill_(1 / 3)
        last.bias.copy_(torch.randn(7, generator=generator(1)))
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 2.0], [0.5, 1.0]])
    return model, x, torch.tensor([0, 3, 6, 2])


def test_every_verdict_occurs() -> None:
    model, x, targets = undecided()
    last = list(model.layers)[-1]
    assert isinstance(last, nn.Linear)
    assert over_the_reals(model, x, targets).verdict == "undecided"
    with torch.no_grad():
        last.weight[0, 0] = 0.5
    assert over_the_reals(model, x, targets).verdict == "differs"
    assert set(over_the_reals(model, x, targets).parameters) == {"layers.1.weight", "layers.1.bias"}
    assert over_the_reals(model, x, targets, (0.5, 0.5)).verdict == "equal"
    with torch.no_grad():
        last.weight[:, 0] = 0
    assert over_the_reals(model, x, targets).verdict == "equal"
    assert over_the_reals(model, x, targets).hit_count == 4


def _aimed_verdicts() -> None:
    for name, aim in (("relu", "dead unit"), ("relu6", "saturated unit"), ("leaky_relu", "dead input")):
        example = Example(
            *("float32", network_for("mlp", name, 2, 3, weights="integer")),
            weights="integer",
            inputs="integer",
            aim=aim,
            batch=2,
            seed=4,
        )
        model, inputs, _ = example.build()
        assert check_verdict(model, inputs, example.cotangent(exact=True), (0.0, 1.0)) == "differs"
    test_every_verdict_occurs()


GRADIENT_FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "one subgradient for both": lambda patch: patch.setattr(
        exact_gradients, "_slopes", lambda layer, region, setting, own=exact_gradients._slopes: own(layer, region, 0.0)
    ),
    "no path": lambda patch: patch.setattr(exact_gradients, "_reachable", lambda *args, **options: False),
    "no bound": lambda patch: patch.setattr(exact_gradients, "_differ", lambda a, b: not torch.equal(a.value, b.value)),
    "an infinite bound": lambda patch: patch.setattr(exact_gradients, "_differ", lambda a, b: False),
}


@pytest.mark.parametrize("fault", GRADIENT_FAULTS)
def test_faults_in_verdicts_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _aimed_verdicts()
    GRADIENT_FAULTS[fault](monkeypatch)
    with pytest.raises(AssertionError):
        _aimed_verdicts()


def test_first_layer_alone() -> None:
    model = mlp(1, 1, 2, 2).build()
    one, _, two, *_ = list(model.layers)[1:]
    with torch.no_grad():
        one.weight.fill_(-1)
        one.bias.zero_()
        two.bias.zero_()
    x, y = torch.ones(1, 1), torch.tensor([1])
    assert zone_over_the_reals(model, x, y) == "bifurcation"  # the second layer's bias
    assert zone_over_the_reals(model, x, y, watch="first layer") == "compensation"


def test_split_keeps_undecided_apart() -> None:
    """No difference beyond the bound is no proof of equality."""
    model, x, targets = undecided()
    assert zone_over_the_reals(model, x, targets) == over_the_reals(model, x, targets).zone == "undecided"


def ulps_off(factors: list[int]) -> Callable[..., Tensor]:
    """A softmax of two classes, correctly rounded but for exponentials that are some units of 2**-53 off."""

    def softmax(logits: Tensor, dim: int) -> Tensor:
        with mpmath.workdps(50):
            rows = [
                [mpmath.exp(mpmath.mpf(z)) * (1 + f * mpmath.mpf(2) ** -53) for z, f in zip(row, factors, strict=True)]
                for row in logits.tolist()
            ]
            values = [[float(power / sum(row)) for power in row] for row in rows]
        return torch.tensor(values, dtype=torch.float64)

    return softmax


@pytest.mark.parametrize("factors", [[16, -16], [-16, 16]])
def test_the_bound_holds_for_the_worst_exponential_that_is_trusted(
    factors: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 units in the last place are up to 16 times 2**-53; logits that are exact and equal leave no other error."""
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    state = RealLayer(torch.zeros(1, 2, dtype=torch.int8), zeros, zeros, 0)
    monkeypatch.setattr(Tensor, "softmax", ulps_off(factors))

    def holds(**options: int) -> bool:
        root = exact_gradients._root(state, torch.tensor([1]), None, **options)
        distance = (root.value - torch.tensor([[0.5, -0.5]])).abs()
        assert float(distance.max()) >= 2.0**-50  # the exponentials really are off
        return bool((distance <= root.error).all())

    assert holds()
    assert not holds(exponential=0)


def test_what_enters_a_layer_can_err_and_its_weights_gradient_with_it() -> None:
    """An activation of 3 that may be 2.5 or 3.5: the gradient of the next weight errs by half the cotangent."""
    one, eye = torch.ones(1, 1, dtype=torch.float64), torch.eye(1, dtype=torch.float64)
    layers = (Layer("1", eye, None, "2", LEAKY_RELU, 0.0), Layer("3", eye, None))
    states = (
        RealLayer(torch.full((1, 1), 2, dtype=torch.int8), 3 * one, 0.5 * one, 0),
        RealLayer(torch.full((1, 1), 2, dtype=torch.int8), 3 * one, 0.5 * one, 0),
    )
    root = exact_gradients._Bounded(-2 * one, 0.25 * one)
    found = exact_gradients._gradients(layers, states, 3 * one, root, 0.0)["3.weight"]
    assert found.value.item() == -6
    corners = [(-2 + c) * (3 + h) for c in (-0.25, 0.25) for h in (-0.5, 0.5)]
    assert max(abs(corner - -6) for corner in corners) <= found.error.item() < 1.9


def test_the_bound_of_softmax_holds() -> None:
    random = generator(0)
    logits = torch.randn(20, 10, generator=random, dtype=torch.float64) * 10
    targets = torch.randint(0, 10, (20,), generator=random)
    state = RealLayer(torch.zeros(20, 10, dtype=torch.int8), logits, torch.full((20, 10), 1e-9, dtype=torch.float64), 0)
    shifted = logits + (torch.rand(20, 10, generator=random, dtype=torch.float64) * 2 - 1) * 1e-9
    root = exact_gradients._root(state, targets, None)
    with mpmath.workdps(50):
        for row, target, value, error in zip(shifted, targets.tolist(), root.value, root.error, strict=True):
            powers = [mpmath.exp(mpmath.mpf(z)) for z in row.tolist()]
            for k, power in enumerate(powers):
                true = (power / sum(powers) - (k == target)) / 20
                assert abs(true - mpmath.mpf(float(value[k]))) <= float(error[k])
    assert float(root.error.max()) < 1e-9


def test_emulated_layers_have_the_same_reals() -> None:
    model, inputs = permuted_twins(torch.bfloat16, 0)
    plain = over_the_reals(model, inputs, torch.tensor([0]))
    emulate(model, Emulation(torch.bfloat16, Rounding(parts=4)))
    emulated = over_the_reals(model, inputs, torch.tensor([0]))
    assert (plain.verdict, plain.hit_count) == (emulated.verdict, emulated.hit_count) == ("differs", 2)


def test_split_agrees_with_the_hits_of_a_decision() -> None:
    random = generator(0)
    inputs, targets = torch.rand(64, 8, generator=random), torch.randint(0, 3, (64,), generator=random)
    outcomes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        model = mlp(8, 16, 2, 3).build().to(torch.bfloat16)
        if seed % 2:
            with torch.no_grad():
                model.layers[1].weight[0] = model.layers[1].bias[0] = 0
        else:  # rounds to zero often
            emulate(model, Emulation(torch.bfloat16, Rounding()))
        decision = decide(model, inputs.bfloat16(), targets, batch_size=16)
        if decision.batch is not None:
            part = slice(16 * decision.batch, 16 * (decision.batch + 1))
            outcomes.add((seed % 2, zone_over_the_reals(model, inputs[part], targets[part])))
    assert outcomes == {(0, "compensation"), (1, "bifurcation")}


def _refusals() -> dict[str, tuple[Callable[[], Any], str]]:
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    tied = nn.Linear(3, 3)
    broken = mlp(3, 2, 1, 2).build()
    with torch.no_grad():
        broken.layers[1].weight[0, 0] = torch.nan
    good = mlp(3, 2, 1, 2).build()
    return {
        "convolutions": (
            lambda: over_the_reals(images("convnet").build(), x, y),
            "exact evaluation supports .* got ConvNet",
        ),
        "batch norm": (lambda: over_the_reals(mlp(3, 2, batch_norm=True).build(), x, y), "got BatchNorm1d at 'layers.2'"),
        "gelu": (lambda: layers_of(nn.Sequential(nn.Linear(3, 2), nn.GELU())), "got GELU"),
        "nothing in front": (lambda: layers_of(nn.Sequential(nn.ReLU(), nn.Linear(3, 2))), "got ReLU"),
        "tied": (lambda: layers_of(nn.Sequential(tied, nn.ReLU(), tied)), "shares its weight"),
        "nan weight": (lambda: over_the_reals(broken, x, y), "layers.1' has a NaN"),
        "nan input": (lambda: over_the_reals(good, x * torch.nan, y), "inputs hold a NaN"),
        "features": (lambda: over_the_reals(good, torch.ones(2, 4), y), "with 3 features"),
        "no sample": (lambda: over_the_reals(good, torch.ones(0, 3), y), "at least one sample"),
        "targets": (lambda: over_the_reals(_dead(), x, torch.tensor([0, 9])), "2 class indices from 0 to 1"),
        "no loss": (lambda: over_the_reals(_dead(), x), "either targets or cotangent"),
        "cotangent": (lambda: over_the_reals(_dead(), x, cotangent=torch.ones(1, 1)), "cotangent of shape"),
    }


def _dead() -> nn.Module:
    model = mlp(3, 2, 1, 2).build()
    with torch.no_grad():
        model.layers[1].weight[0] = model.layers[1].bias[0] = 0
    return model


@pytest.mark.parametrize("case", _refusals())
def test_what_is_not_served_is_refused(case: str) -> None:
    call, message = _refusals()[case]
    with pytest.raises(ExactError, match=message):
        call()
