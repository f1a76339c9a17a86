"""MobileNetV3-small is torchvision's, with our activations; small networks of its block are made like it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from relucheck.activations.modules import ReLU, ReLU6
from relucheck.bifurcation.wiring import check_wiring
from relucheck.errors import ModelError
from relucheck.networks import Network
from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from tests.helpers.torchvision_models import same_as_torchvision

SMALL = Network("mobilenet-v3-small", MOBILENET_V3_SMALL, batch_norm=True, dropout=0.2)
TINY = Network("inverted-residual", (3, 3, 5), "relu6", True, 0.5, input_shape=(1, 8, 8), classes=4)
ACTIVATIONS = {"mobilenet-v3-small": 14, "inverted-residual": 7}


def relu6_at_both(s: float) -> ReLU6:
    return ReLU6(s, s)


@pytest.mark.parametrize(("channels", "classes"), [(3, 10), (3, 1000), (1, 10), (1, 1000)])
def test_it_is_torchvisions(channels: int, classes: int) -> None:
    """Dropout is that of torch with the same random state; grey images are the same image in three channels."""
    network = Network(
        *("mobilenet-v3-small", MOBILENET_V3_SMALL),
        batch_norm=True,
        dropout=0.2,
        input_shape=(channels, 28, 28),
        classes=classes,
    )
    theirs = torchvision.models.mobilenet_v3_small(num_classes=classes)
    same_as_torchvision(network, theirs, activations=ACTIVATIONS["mobilenet-v3-small"])


def test_it_begins_as_torchvisions_does() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = torchvision.models.mobilenet_v3_small(num_classes=10).state_dict()
    ours = SMALL.draw(5, Arithmetic(torch.float32)).state_dict()
    assert [name.removeprefix("model.") for name in ours] == list(theirs)
    assert all(same_bits(a, b, signed_zero=True) for a, b in zip(ours.values(), theirs.values(), strict=True))


@pytest.mark.parametrize("network", [SMALL, TINY], ids=lambda network: network.kind)
def test_every_relu_is_ours_and_the_others_stay(network: Network) -> None:
    theirs = torchvision.models.mobilenet_v3_small()
    expected = {
        kind: sum(type(module) is kind for module in theirs.modules()) for kind in (nn.ReLU, nn.Hardswish, nn.Hardsigmoid)
    }
    model = network.build(lambda: ReLU6())
    counts = {kind: sum(type(module) is kind for module in model.modules()) for kind in (ReLU6, *expected)}
    assert counts[nn.ReLU] == 0
    assert counts[ReLU6] == ACTIVATIONS[network.kind]
    if network is SMALL:
        assert counts == {ReLU6: expected[nn.ReLU], **expected, nn.ReLU: 0}
    else:  # blocks with ReLU, Hardswish, ReLU; stem, last convolution and classifier with Hardswish
        assert counts == {ReLU6: 7, nn.ReLU: 0, nn.Hardswish: 5, nn.Hardsigmoid: 3}
    (dropout,) = (module for module in model.modules() if isinstance(module, nn.Dropout))
    assert dropout.p == network.dropout
    made: list[float] = []

    def other(probability: float) -> nn.Module:
        made.append(probability)
        return nn.Tanh()

    model = network.build(dropout=other)
    assert made == [network.dropout]
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    assert sum(isinstance(module, nn.Tanh) for module in model.modules()) == 1


def test_without_dropout_there_is_none() -> None:
    network = Network("inverted-residual", (3,), batch_norm=True, input_shape=(1, 8, 8))
    assert not any(isinstance(module, nn.Dropout) for module in network.build().modules())


def test_widths_are_not_rounded_to_multiples_of_8() -> None:
    model = TINY.build()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions[0].weight.shape == (3, 3, 3, 3)
    assert [c.out_channels for c in convolutions if c.groups > 1] == [6, 6, 10], "depthwise, twice the block's width"
    squeezes = [m for m in model.modules() if isinstance(m, torchvision.ops.misc.SqueezeExcitation)]
    assert len(squeezes) == 3


@pytest.mark.parametrize("network", [SMALL, TINY], ids=lambda network: network.kind)
@pytest.mark.parametrize("activation", [ReLU, relu6_at_both], ids=["relu", "relu6"])
def test_the_wiring_is_right(network: Network, activation: Any) -> None:
    wires = check_wiring(lambda s: network.build(lambda: activation(s)), torch.randn(4, *network.input_shape))
    assert len(wires) == ACTIVATIONS[network.kind]
    assert {wire.verdict for wire in wires} == {"answers"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_norm": False}, "batch_norm=False: mobilenet-v3-small has a fixed form: .*; give batch_norm=True"),
        ({"bias": False}, "bias=False: mobilenet-v3-small has a fixed form: .*; give bias=True"),
        ({"widths": (16, 24)}, r"widths=\(16, 24\): a mobilenet-v3-small has .*; give these"),
        ({"input_shape": (2, 28, 28)}, r"input_shape=\(2, 28, 28\): mobilenet-v3-small takes 3 channels, or 1"),
        ({"kind": "inverted-residual", "input_shape": (4, 8, 8)}, "inverted-residual takes 3 channels, or 1"),
        ({"kind": "inverted-residual", "batch_norm": False}, "batch_norm=False: inverted-residual has a fixed form"),
        ({"input_shape": (784,)}, r"input_shape=\(784,\): mobilenet-v3-small takes images"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Network(**{"kind": SMALL.kind, "widths": SMALL.widths, "batch_norm": True, **change})


def test_names() -> None:
    assert str(SMALL) == "mobilenet-v3-small 1x28x28-10 (batch norm, dropout 0.2)"
    assert str(TINY) == "inverted-residual 1x8x8-3-3-5-4 (relu6, batch norm, dropout 0.5)"
