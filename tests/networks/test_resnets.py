"""Residual networks: the published 20 layers, the usual form, the published fault, and torchvision's ResNet-18."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from relucheck.activations.modules import ReLU, ReLU6
from relucheck.bifurcation.wiring import WiringError, check_wiring
from relucheck.errors import ModelError
from relucheck.networks import Network
from relucheck.networks.resnets import RESNET_18, RESNET_20
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from tests.helpers.torchvision_models import same_as_torchvision

PUBLISHED = Network("resnet-convolved-skips", RESNET_20, batch_norm=True)
FORMS = ("resnet", "resnet-convolved-skips", "resnet-convolved-skips-stem-only")


def relu6_at_both(s: float) -> ReLU6:
    return ReLU6(s, s)


def layers_by_hand(skips: str) -> list[nn.Module]:
    """The 20 layers and the skips of the network, written down one by one, in the order of the forward."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1)]
    for before, after in itertools.pairwise((16, 16, 16, 16, 32, 32, 32, 64, 64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)]
        if skips == "convolved":
            layers.append(nn.Conv2d(before, after, 3, padding=1))
        elif before != after:
            layers.append(nn.Conv2d(before, after, 1))
    return [*layers, nn.Linear(64, 10)]


@pytest.mark.parametrize(("kind", "skips"), [("resnet", "identity"), ("resnet-convolved-skips", "convolved")])
def test_twenty_layers_are_those_made_one_by_one(kind: str, skips: str) -> None:
    model = Network(kind, RESNET_20, batch_norm=True).draw(3, Arithmetic(torch.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = layers_by_hand(skips)
    found: list[Any] = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for ours, theirs in zip(found, expected, strict=True):
        assert same_bits(ours.weight, theirs.weight, signed_zero=True)
        assert same_bits(ours.bias, theirs.bias, signed_zero=True)
    on_the_way = [layer for layer in expected if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert len(on_the_way) - (9 if skips == "convolved" else 0) + 1 == 20
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == len(expected) - 1, "batch norm behind every convolution, on skips too"
    strides = [layer.stride[0] for layer in found[:-1]]
    assert strides.count(2) == 4, "two stages begin at half the resolution, in branch and skip"


def test_the_published_form_has_the_published_number_of_parameters() -> None:
    model = PUBLISHED.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == 393_242
    assert sum(isinstance(module, ReLU) for module in model.modules()) == 19
    assert model.blocks[3](torch.zeros(1, 16, 28, 28)).shape == (1, 32, 14, 14)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("kind", FORMS)
def test_a_block_is_what_its_parts_compute(kind: str) -> None:
    network = Network(kind, (3, 6), batch_norm=True, input_shape=(2, 6, 6))
    model = network.build()
    for (before, after), block in zip(((3, 3), (3, 6)), model.blocks, strict=True):
        x = torch.randn(4, before, 6, 6).relu()
        convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]

        def apply(number: int, x: Tensor, convolutions: Any = convolutions, norms: Any = norms) -> Tensor:
            one = convolutions[number]
            y = nn.functional.conv2d(x, one.weight, one.bias, one.stride, padding=one.kernel_size[0] // 2)
            return nn.functional.batch_norm(y, None, None, norms[number].weight, norms[number].bias, True)

        skip = x if len(convolutions) == 2 else apply(2, x)
        assert (len(convolutions) == 3) == (before != after or kind != "resnet")
        assert torch.equal(block(x), torch.relu(apply(1, torch.relu(apply(0, x))) + skip))


def test_a_resnet_18_is_torchvisions() -> None:
    for channels, classes in ((3, 10), (3, 1000), (1, 10)):
        theirs = torchvision.models.resnet18(num_classes=classes)
        if channels == 1:
            theirs.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        network = Network("resnet-18", RESNET_18, batch_norm=True, input_shape=(channels, 33, 33), classes=classes)
        same_as_torchvision(network, theirs, activations=17)


def test_a_resnet_18_begins_as_torchvisions_does() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    network = Network("resnet-18", RESNET_18, batch_norm=True, input_shape=(3, 32, 32))
    ours = network.draw(5, Arithmetic(torch.float32)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    grey = Network("resnet-18", RESNET_18, batch_norm=True).draw(5, Arithmetic(torch.float32)).conv1
    assert grey.weight.shape == (64, 1, 7, 7)
    expected = (2 / (64 * 7 * 7)) ** 0.5  # He's initialisation by the number of outputs
    assert 0.9 * expected < float(grey.weight.detach().std()) < 1.1 * expected


def test_a_resnet_18_without_batch_norm_has_none() -> None:
    model = Network("resnet-18", RESNET_18).build()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("kind", ["resnet", "resnet-convolved-skips", "resnet-18"])
@pytest.mark.parametrize("activation", [ReLU, relu6_at_both], ids=["relu", "relu6"])
def test_the_wiring_is_right(kind: str, activation: Any) -> None:
    widths = {"resnet": (2, 2, 4), "resnet-convolved-skips": RESNET_20, "resnet-18": RESNET_18}[kind]
    network = Network(kind, widths, batch_norm=True)
    wires = check_wiring(lambda s: network.build(lambda: activation(s)), torch.randn(2, *network.input_shape))
    assert len(wires) == {"resnet": 7, "resnet-convolved-skips": 19, "resnet-18": 17}[kind]
    assert {wire.verdict for wire in wires} == {"answers"}


def test_the_published_fault_is_caught_and_every_block_is_named() -> None:
    network = Network("resnet-convolved-skips-stem-only", RESNET_20, batch_norm=True)
    with pytest.raises(WiringError) as error:
        check_wiring(lambda s: network.build(lambda: ReLU(s)), torch.randn(2, 1, 28, 28))
    found = error.value.wires
    assert [wire.site for wire in found] == [
        f"blocks.{block}.activation{number}" for block in range(9) for number in (1, 2)
    ]
    assert {(wire.activation, wire.verdict) for wire in found} == {("ReLU", "ignores")}


def test_the_published_fault_computes_what_the_right_network_computes() -> None:
    right = PUBLISHED.draw(1, Arithmetic(torch.float32))
    wrong = Network("resnet-convolved-skips-stem-only", RESNET_20, batch_norm=True).draw(1, Arithmetic(torch.float32))
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(right(x), wrong(x))
    assert sum(type(module) is nn.ReLU for module in wrong.modules()) == 18
    assert type(wrong.activation) is ReLU


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "resnet-18", "bias": False}, "bias=False: resnet-18 has a fixed form: .*; give bias=True"),
        ({"kind": "resnet-18", "widths": (64, 64)}, r"widths=\(64, 64\): a resnet-18 has the widths .*; give these"),
        ({"kind": "resnet", "input_shape": (784,)}, r"input_shape=\(784,\): resnet takes images"),
        ({"kind": "resnet", "widths": ()}, "at least one hidden layer"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Network(**{"widths": RESNET_18, "batch_norm": True, **change})


def test_names() -> None:
    assert str(PUBLISHED) == "resnet-convolved-skips 1x28x28-16*3-32*3-64*3-10 (batch norm)"
    assert Network("resnet-18", RESNET_18, input_shape=(3, 32, 32)).name == "resnet-18 3x32x32-10"
