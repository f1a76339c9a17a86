"""The products and batch norms of the scenarios' networks, with realistic operands."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck import data
from relucheck.networks.lenet import LENETS
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.emulation.emulation import DIRECTIONS
from relucheck.numerics.kernels import Operands, Product
from relucheck.reproduction.experiments.mlp import SCENARIOS

#: The mini-batches of MNIST's 60,000 training images: 468 of 128 images, and a last one of 96.
SAMPLES: Final = (128, 96)
#: Networks of experiments that are no scenarios yet: the MLP with ReLU6 (E9) and convolutional networks (E5, E6).
_LATER: Final = (
    Network("mlp", (128,), activation="relu6"),
    LENETS["relu-pool"],
    Network("convnet", (16, 32), batch_norm=True),
    Network("residual", (16,) * 9, batch_norm=True),
)
_SEED: Final = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Calls:
    """What a number of networks compute.

    Attributes:
        products: each product once, with operands in float32 and the networks that have it.
        norms: the same for batch norms, by the shape of their input; "weight" and "bias" are the norm's.
    """

    products: dict[Product, tuple[Operands, list[str]]]
    norms: dict[tuple[int, ...], tuple[Operands, list[str]]]


def networks() -> tuple[Network, ...]:
    """The networks of the scenarios at full scale and of later experiments, each once."""
    trained = [one.settings.network for scenario in SCENARIOS.values() for one in scenario.comparisons("full")]
    return tuple(dict.fromkeys([*trained, *_LATER]))


def calls(described: Iterable[Network]) -> Calls:
    """Run one training step of each network on the CPU, and keep what each layer was given.

    The mini-batch is the first 128 of the shipped digits in float32, the initialisation PyTorch's default one with seed 0.
    The gradient of a layer's input is left out where training does not compute it, as for the first layer.
    """
    digits = data.load_digits()
    images, labels = data.scale(digits.images[: SAMPLES[0]], shape="image"), digits.labels[: SAMPLES[0]]
    found = Calls({}, {})
    for network in described:
        model = network.draw(_SEED, Arithmetic(torch.float32)).train()
        seen: list[tuple[Any, bool, Operands]] = []
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
                module.register_forward_hook(functools.partial(_keep, seen))
        F.cross_entropy(model(images.reshape(len(images), *network.input_shape)), labels).backward()
        for layer, inner, operands in reversed(seen):  # the backward ends with the first layer
            _add(found, network.name, layer, inner, operands)
    return found


def _keep(seen: list[tuple[Any, bool, Operands]], layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """A forward hook that notes a layer and its operands as soon as the gradient of its output is known."""
    (x,) = inputs
    inner = x.requires_grad

    def note(cotangent: Tensor) -> None:
        bias = None if layer.bias is None else layer.bias.detach()
        seen.append((layer, inner, Operands(x.detach(), layer.weight.detach(), bias, cotangent.contiguous())))

    output.register_hook(note)


def _add(found: Calls, network: str, layer: Any, inner: bool, operands: Operands) -> None:
    shape = tuple(operands.x.shape)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        names = [found.norms.setdefault(shape, (operands, []))[1]]
    else:
        directions = [one for one in DIRECTIONS if inner or one != "input gradient"]
        products = [Product.of(layer, shape, one) for one in directions]
        names = [found.products.setdefault(one, (operands, []))[1] for one in products]
    for known in names:
        if network not in known:
            known.append(network)
