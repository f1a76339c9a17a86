"""States of trained networks: what they measure, and what plans make of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from relucheck.hits import plans, states
from relucheck.hits.normed import forecast
from relucheck.hits.plans import Activations, PlannedNetwork, Rounding
from relucheck.hits.rates import RateError, measure
from relucheck.hits.states import State
from relucheck.hits.widths import FORMATS
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from tests.oracles.sums import normal

BF16 = FORMATS["bfloat16"]
OPERATOR, PRODUCT, SINGLE = (Rounding(kind, BF16, BF16, kind) for kind in ("operator", "product", "single"))  # type: ignore[arg-type]
RESNET = Network("resnet", (4, 8), batch_norm=True)


def trained(network: Network, steps: int, dtype: str = "float32") -> tuple[torch.nn.Module, torch.Tensor]:
    """A network after some steps, in a dtype, and the mini-batch that it was trained on."""
    model = network.draw(0, Arithmetic.parse("float32")).train()
    x = torch.rand(64, *network.input_shape, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), torch.arange(64) % 10).backward()
        optimiser.step()
    if dtype != "float32":
        arithmetic = Arithmetic.parse(dtype)
        other = network.draw(0, arithmetic).train()
        other.load_state_dict(model.state_dict())
        return other, x.to(arithmetic.dtype)
    return model, x


def test_a_gaussian_residual_sum_has_the_rate_of_its_plan() -> None:
    """Skips that are half zero, branches that are N(0, 1): the plan from assumptions and that from a state agree."""
    branch, skip = normal(0, 400_000), (normal(1, 400_000) * 2**0.5).clamp(min=0)
    part = states._sum(branch[None, None], skip[None, None], (branch + skip)[None, None])
    assert part.alone == pytest.approx(0.5, abs=0.01)
    state = states._pooled("residual", [part], torch.zeros(0))
    assumed = plans.rate(Activations("x", 1, "residual", offset=2**0.5), OPERATOR).value
    assert states.rate(state, OPERATOR) == pytest.approx(assumed, rel=0.1)


@pytest.mark.parametrize("steps", [0, 30])
def test_states_of_a_network_plan_its_own_hits(steps: int) -> None:
    """Planned from float32, counted in bfloat16, for the residual sums of one network."""
    found = {state.kind: state for state in states.states(*trained(RESNET, steps))}
    assert set(found) == {"normalised", "residual", "projection"}
    counted = forecast(*trained(RESNET, steps, "bfloat16 emulated (rounded)"))
    sums = [one for one in counted if one.site.before == "residual sum"]
    planned = sum(found[kind].count * states.rate(found[kind], OPERATOR) for kind in ("residual", "projection"))
    assert sum(found[kind].count for kind in ("residual", "projection")) == sum(one.activations for one in sums)
    assert sum(one.hits for one in sums) > 100
    assert planned / sum(one.hits for one in sums) == pytest.approx(1, abs=0.35)
    assert states.rate(found["normalised"], OPERATOR) < 1e-6 < states.rate(found["normalised"], PRODUCT)


def test_a_linear_state_is_relative_to_a_gaussian() -> None:
    """Random weights on Gaussian inputs have density 1; a unit that is far from 0 has none."""
    model, _ = trained(Network("mlp", (400,), input_shape=(100,)), 0)
    x = normal(3, 500, 100).float()
    (state,) = states.states(model, x)
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert state.density == pytest.approx(1, abs=0.1)
    assert state.offset == pytest.approx(float(layer.bias.detach().square().mean().sqrt()), rel=1e-4)
    assert max(state.offsets) <= float(layer.bias.detach().abs().max()) * 1.001
    part = states.linear(state, Activations("x", 1, "linear", 64, spread=2.0))
    assert part.biases == pytest.approx([2 / state.spread * one for one in state.offsets])
    assert part.offset == pytest.approx(2 * state.offset / state.spread)
    assert part.density == state.density
    with torch.no_grad():
        layer.bias += 50
    (far,) = states.states(model, x)
    assert far.density == 0


def test_a_density_scales_the_plan_of_a_linear_layer() -> None:
    part = Activations("x", 1, "linear", 64, offset=0.1)
    whole = plans.rate(part, PRODUCT, pairs=512)
    half = plans.rate(dataclasses.replace(part, density=0.5), PRODUCT, pairs=512)
    assert half.value == pytest.approx(whole.value / 2)
    assert half.error == pytest.approx(whole.error / 2)


def test_a_plan_by_states_is_the_mean_over_trainings_with_its_t_interval() -> None:
    network = PlannedNetwork("net", "a step", "", (Activations("sums", 1000, "projection"),))
    sizes = (1.0,) * 10
    measured = [[State("projection", 9, 1.0, near=near, sizes=sizes)] for near in (0.02, 0.03, 0.04)]
    found = states.plan(network, OPERATOR, measured)
    each = [1000 * states.rate(one[0], OPERATOR) for one in measured]
    assert found.per_step == pytest.approx(sum(each) / 3)
    assert found.error == pytest.approx(4.3027 * 0.01 / math.sqrt(3) / 0.03, rel=1e-3)
    assert states.plan(network, OPERATOR, measured[:1] * 2).error == 0
    # float32's spacing is 2 ** 16 times finer, and nothing but the fused sum changes
    assert found.per_step / states.plan(network, SINGLE, measured).per_step == pytest.approx(2**16)


def test_what_cannot_be_planned_is_refused() -> None:
    network = PlannedNetwork("net", "a step", "", (Activations("x", 1, "normalised"),))
    with pytest.raises(RateError, match="1 trainings; give at least two"):
        states.plan(network, OPERATOR, [[]])
    with pytest.raises(RateError, match="kinds that no state has: normalised"):
        states.plan(network, OPERATOR, [[], []])
    with pytest.raises(RateError, match="has no rate of its own"):
        states.rate(State("linear", 1, 1.0), OPERATOR)
    with pytest.raises(RateError, match="measure in float32 or float64"):
        states.states(*trained(RESNET, 0, "bfloat16 emulated (rounded)"))
    with pytest.raises(RateError, match="must be at least 256, two groups"):
        plans.rate(Activations("x", 1, "linear", 64), OPERATOR, pairs=200)


@pytest.mark.parametrize("steps", [0, 2])
def test_states_of_an_mlp_plan_its_own_hits(steps: int) -> None:
    """Planned from float32, counted in bfloat16 with products that are rounded before the bias."""
    network = Network("mlp", (64, 64), input_shape=(1, 28, 28))
    model, _ = trained(network, steps)
    narrow, _ = trained(network, steps, "bfloat16 emulated (product)")
    x = torch.rand(4000, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    layers = states.states(model, x)
    assert [state.count for state in layers] == [4000 * 64] * 2
    planned = 0.0
    for state in layers:
        part = states.linear(state, Activations("x", 1, "linear", 64, spread=state.spread))
        planned += state.count * plans.rate(part, PRODUCT, pairs=512).value
    hits = sum(one.hits for one in measure(narrow, x.bfloat16()))
    assert hits > 20
    assert planned / hits == pytest.approx(1, abs=0.5)
