"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from relucheck.activations.modules import ReLU
from relucheck.errors import ModelError, whole

ActivationFactory = Callable[[], nn.Module]


class MLP(nn.Module):
    """A multilayer perceptron: ``depth`` hidden layers of ``width`` units, then a linear layer.

    Args:
        inputs: features of a sample (784 for MNIST); inputs of any shape [batch, ...] are flattened to [batch, inputs].
        width: units of a hidden layer.
        depth: number of hidden layers, at least 1.
        outputs: classes.
        activation: makes the activation behind each hidden layer, a fresh one each time.
        batch_norm: whether ``nn.BatchNorm1d`` stands between linear layer and activation.
        bias: whether linear layers have biases.

    Source: the fully connected networks of Bertoin et al. 2021 and of the EPFL reproduction 2022 (784-200-200-200-10).
    """

    def __init__(
        self,
        inputs: int = 784,
        width: int = 200,
        depth: int = 3,
        outputs: int = 10,
        activation: ActivationFactory = ReLU,
        *,
        batch_norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _at_least_one(inputs=inputs, width=width, depth=depth, outputs=outputs)
        layers: list[nn.Module] = [nn.Flatten()]
        for index in range(depth):
            layers.append(nn.Linear(inputs if index == 0 else width, width, bias=bias))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(activation())
        layers.append(nn.Linear(width, outputs, bias=bias))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        whole(name, size, error=ModelError)
