"""Deep residual networks: the published one of 20 layers, the usual one, and ResNet-18."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn

from relucheck.errors import ModelError
from relucheck.extras import require
from relucheck.networks.network import KINDS, ActivationFactory, Kind, Network, not_as_built

#: Widths of the blocks of the 20-layer networks: three stages of three blocks.
RESNET_20: Final[tuple[int, ...]] = (16, 16, 16, 32, 32, 32, 64, 64, 64)
#: Widths of the four stages of torchvision's ResNet-18.
RESNET_18: Final[tuple[int, ...]] = (64, 128, 256, 512)
_CONVOLVED: Final = "resnet-convolved-skips"
_STEM_ONLY: Final = f"{_CONVOLVED}-stem-only"


class Block(nn.Module):
    """A block ``activation(skip(x) + branch(x))``, in which the branch has two 3x3 convolutions.

    It takes [batch, before, rows, columns] and returns [batch, after, rows, columns], with half as many rows and columns
    if the widths differ.

    Args:
        before: channels of the input.
        after: channels of the output.
        activation: makes the two activations.
        batch_norm: whether batch normalisation follows each convolution.
        bias: whether convolutions have biases.
        convolved: whether every skip is a 3x3 convolution. Otherwise the skip is the identity, or a 1x1 convolution if the
            widths differ.
    """

    def __init__(
        self, before: int, after: int, activation: ActivationFactory, *, batch_norm: bool, bias: bool, convolved: bool
    ) -> None:
        super().__init__()
        norm: Callable[[], nn.Module] = (lambda: nn.BatchNorm2d(after)) if batch_norm else nn.Identity
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=bias)
        self.norm1 = norm()
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=bias)
        self.norm2 = norm()
        self.skip: nn.Module = nn.Identity()
        if convolved or before != after:
            size = 3 if convolved else 1
            skip = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=bias)
            self.skip = nn.Sequential(skip, norm())
        self.activation2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        return self.activation2(branch + self.skip(x))


class ResNet(nn.Module):
    """A residual network: a convolution, blocks of given widths, pooling, a linear layer.

    It takes [batch, channels, rows, columns] and returns logits [batch, classes]. The stem has the width of the first
    block. A block whose width differs from that before it halves rows and columns. With the widths ``RESNET_20`` it has 20
    layers, not counting skips.

    The kind "resnet" has identity skips, and 1x1 convolutions where widths differ. The kind "resnet-convolved-skips" has a
    3x3 convolution on every skip, as the published network has. In "resnet-convolved-skips-stem-only" the blocks have
    torch's activations, so that a subgradient reaches the stem only. This is the fault of the published code, see the
    source.

    Source: He, Zhang, Ren, Sun 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2; the
    skips and the fault after "Reproducibility Challenge of: Numerical influence of ReLU'(0) on backpropagation" (EPFL
    2022), whose residual network has ``batch_norm=True`` and biases.
    """

    def __init__(self, network: Network, activation: ActivationFactory) -> None:
        super().__init__()
        width = network.widths[0]
        self.stem = nn.Conv2d(network.input_shape[0], width, 3, padding=1, bias=network.bias)
        self.norm: nn.Module = nn.BatchNorm2d(width) if network.batch_norm else nn.Identity()
        self.activation = activation()
        inner = network.torch_activation if network.kind == _STEM_ONLY else activation
        self.blocks = nn.Sequential(
            *(
                Block(
                    before,
                    after,
                    inner,
                    batch_norm=network.batch_norm,
                    bias=network.bias,
                    convolved=network.kind != "resnet",
                )
                for before, after in itertools.pairwise((width, *network.widths))
            )
        )
        self.head = nn.Linear(network.widths[-1], network.classes, bias=network.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.activation(self.norm(self.stem(x)))).mean((2, 3)))


class TwoActivations(nn.Module):
    """torchvision's ``BasicBlock`` with a module for each of its two activations, for ResNet-18.

    It takes [batch, before, rows, columns] and returns [batch, after, rows / stride, columns / stride]. Parameters have the
    names, the order and the initialisation of ``BasicBlock``, whose arguments it takes. Whoever builds it replaces ``relu``
    and ``relu2``. It is no subclass, because torchvision may not be installed, and a class in a function has no pickle.
    """

    expansion = 1

    def __init__(
        self,
        before: int,
        after: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        assert (groups, base_width, dilation) == (1, 64, 1), "ResNet-18 has no other blocks"
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm_layer(after)
        self.relu: nn.Module = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = norm_layer(after)
        self.downsample = downsample
        self.relu2: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(branch + (x if self.downsample is None else self.downsample(x)))


def _resnet_18(network: Network, activation: ActivationFactory) -> nn.Module:
    """Build torchvision's ResNet-18, in which each block has two activation modules instead of one that is used twice."""
    require("a resnet-18", "torchvision")
    from torchvision.models.resnet import ResNet as TorchvisionResNet

    norm = nn.BatchNorm2d if network.batch_norm else _no_norm
    block: Any = TwoActivations
    model: Any = TorchvisionResNet(block, [2, 2, 2, 2], num_classes=network.classes, norm_layer=norm)
    model.relu = activation()
    for module in model.modules():
        if isinstance(module, TwoActivations):
            module.relu, module.relu2 = activation(), activation()
    channels = network.input_shape[0]
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, RESNET_18[0], 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    return model


def _no_norm(width: int) -> nn.Module:
    return nn.Identity()


def _check_resnet_18(network: Network) -> None:
    not_as_built(network, "bias", True, "its convolutions have none and its linear layer has one")
    if network.widths != RESNET_18:
        raise ModelError(f"widths={network.widths!r}: a resnet-18 has the widths {RESNET_18!r}; give these")


def runs(network: Network) -> tuple[str, ...]:
    """The widths in words, where a run of equal widths is one word: "16*3"."""
    groups = ((width, len(list(run))) for width, run in itertools.groupby(network.widths))
    return tuple(f"{width}*{count}" if count > 1 else str(width) for width, count in groups)


for _kind in ("resnet", _CONVOLVED, _STEM_ONLY):
    KINDS[_kind] = Kind(ResNet, sizes=runs)
KINDS["resnet-18"] = Kind(_resnet_18, _check_resnet_18, sizes=lambda network: ())
