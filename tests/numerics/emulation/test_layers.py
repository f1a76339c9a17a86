"""Models whose linear layers are emulated, and what cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relucheck.networks.network import Network
from relucheck.numerics.bits import same_bits
from relucheck.numerics.emulation import (
    EmulatedConv2d,
    EmulatedLinear,
    Emulation,
    EmulationError,
    Rounding,
    emulate,
    linear,
)
from tests.helpers.emulations import KINDS


def test_emulate_turns_linear_layers_and_refuses_the_rest() -> None:
    chosen = KINDS["product"]
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    assert emulate(model, chosen) == ("0", "2")
    assert "product" in repr(model)
    x = torch.ones(1, 3, dtype=torch.bfloat16)
    hidden = torch.relu(linear(chosen, x, model[0].weight, model[0].bias))
    assert same_bits(model(x).detach(), linear(chosen, hidden, model[2].weight, model[2].bias).detach())
    with pytest.raises(EmulationError, match=r"'0' is neither nn\.Linear nor nn\.Conv2d"):
        emulate(nn.Sequential(nn.Conv1d(1, 1, 3)).bfloat16(), chosen)
    with pytest.raises(EmulationError, match=r"'0.weight' is not bfloat16; convert the model"):
        emulate(nn.Sequential(nn.Linear(1, 1)), chosen)
    with pytest.raises(EmulationError, match=r"has no nn\.Linear"):
        emulate(nn.Sequential(nn.ReLU()), chosen)
    synchronised = nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4)).bfloat16()
    with pytest.raises(EmulationError, match=r"'1' is a SyncBatchNorm, .*; use one of these, or add"):
        emulate(synchronised, chosen)
    assert emulate(synchronised, Emulation.parse(torch.bfloat16, "product; batch norm native")) == ("0",)
    with pytest.raises(EmulationError, match="got a tensor of float32; convert"):
        linear(chosen, torch.ones(1, 3), model[0].weight)


NETWORKS = {
    "mlp": Network("mlp", (5, 4, 3), input_shape=(1, 2, 3), classes=2),
    "batch norm": Network("mlp", (5, 4), input_shape=(1, 2, 3), classes=2, batch_norm=True),
    "convnet": Network("convnet", (3, 2), input_shape=(1, 6, 6), classes=2),
    "residual": Network("residual", (3, 3), input_shape=(1, 6, 6), classes=2),
    "lenet": Network("lenet", (2, 2, 4, 3), input_shape=(1, 28, 28), classes=2),
    "resnet": Network("resnet", (3, 3, 6), batch_norm=True, input_shape=(1, 6, 6), classes=2),
    "convolved skips": Network("resnet-convolved-skips", (3, 6), batch_norm=True, input_shape=(1, 6, 6), classes=2),
    "resnet-18": Network("resnet-18", (64, 128, 256, 512), batch_norm=True, input_shape=(1, 32, 32), classes=2),
    "inverted residual": Network("inverted-residual", (3, 4), batch_norm=True, input_shape=(1, 8, 8), classes=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_numbered_in_the_order_of_the_forward(name: str) -> None:
    model = NETWORKS[name].build(nn.ReLU).bfloat16()
    count = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in model.modules())
    label = "; ".join(["rounded", *(f"layer {number} forward: split-k {number + 1}" for number in range(1, count + 1))])
    emulate(model, Emulation.parse(torch.bfloat16, label))
    met: list[int] = []
    for module in model.modules():
        if isinstance(module, EmulatedLinear | EmulatedConv2d):
            module.register_forward_pre_hook(lambda layer, _: met.append(layer.emulation.sum("forward", 100).parts - 1))
    model(torch.zeros(2, *NETWORKS[name].input_shape).bfloat16())
    assert met == list(range(1, count + 1))


def test_each_layer_computes_with_its_emulation() -> None:
    """And a second emulation of a model replaces the first."""
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)).bfloat16()
    emulate(model, Emulation(torch.bfloat16, Rounding()))
    whole = Emulation.parse(torch.bfloat16, "rounded; layer 2: split-k 4 wide; K from 18 backward: split-k 2")
    emulate(model, whole)
    assert "split-k 4 wide" in repr(model[1])
    assert "split-k 4 wide" not in repr(model[0])
    x, cotangent = (torch.randn(19, 20, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    for number, layer in enumerate(model, 1):
        assert layer.model_emulation == whole
        found, wanted = layer(x), linear(whole.layer(number), x, layer.weight, layer.bias)
        assert same_bits(found.detach(), wanted.detach())
        pairs = zip(*(torch.autograd.grad(y, (layer.weight, layer.bias), cotangent) for y in (found, wanted)), strict=True)
        assert all(same_bits(one, other) for one, other in pairs)
    with pytest.raises(EmulationError, match=r"layer 9 of a model with 2 layers with products; name layers from 1 to 2"):
        emulate(model, Emulation.parse(torch.bfloat16, "rounded; layers 1, 9: product"))
