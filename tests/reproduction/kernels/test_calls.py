"""What the scenarios' networks compute is collected from one training step, each product once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from relucheck.networks.network import Network
from relucheck.numerics.kernels import Product
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.kernels.calls import Calls, calls, networks

SMALL = (Network("mlp", (6, 6, 6), batch_norm=True), Network("convnet", (3,)), Network("mlp", (6,)))


@pytest.fixture(scope="module")
def collected() -> Calls:
    return calls(SMALL)


def test_networks_are_those_of_the_scenarios_and_of_later_experiments() -> None:
    names = [network.name for network in networks()]
    for scenario in SCENARIOS.values():
        assert {one.settings.network.name for one in scenario.comparisons("full")} <= set(names)
    assert {"784-2000-10", "784-2000-128-10", "784-200-200-200-10", "784-128-10"} <= set(names)
    assert {name.split()[0] for name in names if " " in name} == {"lenet", "convnet", "residual"}


def test_each_product_is_collected_once_in_the_order_of_the_forward(collected: Calls) -> None:
    found = [(product.layer, product.direction) for product in collected.products]
    assert found == [
        *(("784 → 6", "forward"), ("784 → 6", "weight gradient")),
        *(("6 → 6", "forward"), ("6 → 6", "input gradient"), ("6 → 6", "weight gradient")),
        *(("6 → 10", "forward"), ("6 → 10", "input gradient"), ("6 → 10", "weight gradient")),
        *(("conv 1 → 3 on 28x28 (3x3, padding 1)", "forward"), ("conv 1 → 3 on 28x28 (3x3, padding 1)", "weight gradient")),
        *(("3 → 10", "forward"), ("3 → 10", "input gradient"), ("3 → 10", "weight gradient")),
    ]
    assert list(collected.norms) == [(128, 6)]
    first = collected.products[Product((128, 784), (6, 784), True, "forward")]
    assert first[1] == ["784-6-6-6-10", "784-6-10"]


def test_operands_are_those_of_a_training_step(collected: Calls) -> None:
    """A layer's gradients are those of the model, and a hidden layer's input is what the layer before it gives."""
    network = SMALL[1]
    product = next(one for one in collected.products if one.layer == "3 → 10" and one.direction == "weight gradient")
    operands, _ = collected.products[product]
    convolution = next(one for one in collected.products if one.convolution and one.direction == "forward")
    before, names = collected.products[convolution]
    assert names == [network.name]
    pooled = F.relu(convolution.compute(before)).mean((2, 3))
    assert torch.equal(pooled, operands.x)
    logits = operands.x @ operands.weight.T + operands.bias
    # the gradient of cross-entropy is softmax minus one-hot, so each row of it sums to 0
    assert torch.allclose(operands.cotangent.sum(1), torch.zeros(128), atol=1e-7)
    assert ((128 * operands.cotangent - logits.softmax(1)).abs() < 1e-5).sum() == 128 * 9
