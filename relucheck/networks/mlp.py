"""Multilayer perceptrons: the module, the shapes of its weights, and a test for MLPs."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from relucheck.networks.network import KINDS, ActivationFactory, Kind, Network


class MLP(nn.Module):
    """A multilayer perceptron: linear layers with activations, then a linear layer.

    It takes [batch, ...], flattens each sample, and returns logits [batch, classes].

    Source: the fully connected networks of Bertoin, Bolte, Gerchinovitz, Pauwels 2021, "Numerical influence of ReLU'(0) on
    backpropagation", and of its reproduction at EPFL 2022 (784-200-200-200-10).
    """

    def __init__(self, network: Network, activation: ActivationFactory) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = network.features
        for width in network.widths:
            layers.append(nn.Linear(inputs, width, bias=network.bias))
            if network.batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(activation())
            inputs = width
        layers.append(nn.Linear(inputs, network.classes, bias=network.bias))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def shapes(network: Network) -> list[tuple[int, int]]:
    """The shape (outputs, inputs) of each weight of an MLP, in the order of the forward."""
    sizes = (network.features, *network.widths, network.classes)
    return [(after, before) for before, after in itertools.pairwise(sizes)]


def is_plain(network: Network) -> bool:
    """Whether a network is an MLP with biases, without batch norm and without dropout."""
    return network.kind == "mlp" and network.bias and not network.batch_norm and not network.dropout


KINDS["mlp"] = Kind(MLP, flat=True)
