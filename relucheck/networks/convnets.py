"""Small convolutional and residual networks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from relucheck.errors import ModelError
from relucheck.networks.network import KINDS, ActivationFactory, Kind, Network


class ConvNet(nn.Module):
    """A small convolutional network: 3x3 convolutions, average pooling, a linear layer.

    It takes [batch, channels, height, width] and returns logits [batch, classes]. It has average pooling and no max
    pooling, so that only the activations have kinks.
    """

    def __init__(self, network: Network, activation: ActivationFactory) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = network.input_shape[0]
        for width in network.widths:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=network.bias))
            if network.batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(activation())
            channels = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, network.classes, bias=network.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class ResidualBlock(nn.Module):
    """A block ``activation(x + branch(x))``, in which the branch has two 3x3 convolutions.

    It takes and returns [batch, channels, height, width].

    Source: He, Zhang, Ren, Sun 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385).
    """

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
    """A small residual network: a convolution, residual blocks, pooling, a linear layer.

    It takes [batch, channels, height, width] and returns logits [batch, classes]. All layers have equally many channels.
    """

    def __init__(self, network: Network, activation: ActivationFactory) -> None:
        super().__init__()
        width, bias = network.widths[0], network.bias
        self.stem = nn.Conv2d(network.input_shape[0], width, 3, padding=1, bias=bias)
        self.activation = activation()
        self.blocks = nn.Sequential(
            *[ResidualBlock(width, activation, batch_norm=network.batch_norm, bias=bias) for width in network.widths]
        )
        self.head = nn.Linear(width, network.classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.activation(self.stem(x))).mean((2, 3)))


def _equal_widths(network: Network) -> None:
    if len(set(network.widths)) > 1:
        raise ModelError(
            f"widths={network.widths!r}: the blocks of a residual network add their inputs to their outputs, so all need "
            f"the same number of channels; give {(network.widths[0],) * len(network.widths)!r}, for example"
        )


KINDS["convnet"] = Kind(ConvNet)
KINDS["residual"] = Kind(ResidualNet, _equal_widths)
