"""Small convolutional and residual networks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from relucheck.activations.modules import ReLU
from relucheck.networks.mlp import ActivationFactory, _at_least_one


class ConvNet(nn.Module):
    """A small convolutional network: ``depth`` 3x3 convolutions of ``width`` channels, average pooling, a linear layer.

    Average pooling, not max pooling, so that the activations are the only kinks. Inputs: [batch, channels, height, width].
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 8,
        depth: int = 2,
        outputs: int = 10,
        activation: ActivationFactory = ReLU,
        *,
        batch_norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _at_least_one(channels=channels, width=width, depth=depth, outputs=outputs)
        layers: list[nn.Module] = []
        for index in range(depth):
            layers.append(nn.Conv2d(channels if index == 0 else width, width, 3, padding=1, bias=bias))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(activation())
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class ResidualBlock(nn.Module):
    """``activation(x + branch(x))`` with a branch of two 3x3 convolutions (He et al. 2015, "Deep residual learning")."""

    def __init__(self, width: int, activation: ActivationFactory, *, batch_norm: bool, bias: bool) -> None:
        super().__init__()
        norm: Callable[[], nn.Module] = (lambda: nn.BatchNorm2d(width)) if batch_norm else nn.Identity
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm1 = norm()
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm2 = norm()
        self.activation2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        return self.activation2(x + branch)


class ResidualNet(nn.Module):
    """A small residual network: stem convolution, ``depth`` residual blocks of ``width`` channels, a linear layer."""

    def __init__(
        self,
        channels: int = 1,
        width: int = 8,
        depth: int = 1,
        outputs: int = 10,
        activation: ActivationFactory = ReLU,
        *,
        batch_norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _at_least_one(channels=channels, width=width, depth=depth, outputs=outputs)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
        self.activation = activation()
        self.blocks = nn.Sequential(
            *[ResidualBlock(width, activation, batch_norm=batch_norm, bias=bias) for _ in range(depth)]
        )
        self.head = nn.Linear(width, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.activation(self.stem(x))).mean((2, 3)))
