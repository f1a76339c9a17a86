"""LeNet-like networks with max pooling, with the activation before or after the pooling."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn

from relucheck.activations.pooling import MaxPool2d
from relucheck.errors import ModelError
from relucheck.networks.network import KINDS, ActivationFactory, Kind, Network

Order = Literal["relu-pool", "pool-relu"]

_POOL_FIRST: Final = "lenet-pool-relu"


class LeNet(nn.Module):
    """A LeNet-like network for grey 28 x 28 images.

    It takes [batch, 1, 28, 28] and returns logits [batch, classes]. It has two stages of a 5x5 convolution (with padding 2
    in the first stage), an activation and 2x2 max pooling. Then come two linear layers with activations and a last linear
    layer. In the kind "lenet" the activation comes before the pooling, in "lenet-pool-relu" after it. Both compute the
    same forward values. With ReLU'(0) = 0 they also compute the same gradients, bit for bit. The number of ties in the
    pooling differs.

    Source: after LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition".
    """

    def __init__(self, network: Network, activation: ActivationFactory) -> None:
        super().__init__()
        self.network = network
        first, second, third, fourth = network.widths
        self.conv1 = nn.Conv2d(1, first, 5, padding=2, bias=network.bias)
        self.relu1 = activation()
        self.pool1 = MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, 5, bias=network.bias)
        self.relu2 = activation()
        self.pool2 = MaxPool2d(2)
        self.head = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(25 * second, third, bias=network.bias), activation()),
            *(nn.Linear(third, fourth, bias=network.bias), activation()),
            nn.Linear(fourth, network.classes, bias=network.bias),
        )

    @property
    def order(self) -> Order:
        """Whether an activation comes before its pooling ("relu-pool") or after it ("pool-relu")."""
        return "pool-relu" if self.network.kind == _POOL_FIRST else "relu-pool"

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "relu-pool":
            x = self.pool1(self.relu1(self.conv1(x)))
            x = self.pool2(self.relu2(self.conv2(x)))
        else:
            x = self.relu1(self.pool1(self.conv1(x)))
            x = self.relu2(self.pool2(self.conv2(x)))
        return self.head(x)

    def behind(self, pool: nn.Module) -> nn.Module | None:
        """The activation that takes a pooling's output; None if another module takes it."""
        if self.order == "relu-pool":
            return None
        return self.relu1 if pool is self.pool1 else self.relu2 if pool is self.pool2 else None

    def fields(self, x: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """The receptive field of each element of the input of each pooling.

        Two elements of a pooling window with equal receptive fields are the same function of the weights, so they tie. For
        the second pooling there are two fields of each element: in the image and in the layer before. The second one also
        finds ties of elements whose images differ only where a dead ReLU, or the maximum of a window, hides the difference.

        Args:
            x: images, [batch, 1, 28, 28].

        Returns:
            For "pool1" the field in the image; for "pool2" the field in the image and the field in the layer before, which
            is computed in float64 from the model's weights. Each is [batch, values, height, width], with zeros for padding.
        """
        padded = nn.functional.pad(x, (2, 2, 2, 2))
        first = nn.functional.unfold(padded, 5).unflatten(2, (28, 28))
        second = nn.functional.unfold(padded, 14, stride=2).unflatten(2, (10, 10))
        weight, bias = self.conv1.weight.double(), self.conv1.bias
        with torch.no_grad():
            hidden = nn.functional.conv2d(x.double(), weight, None if bias is None else bias.double(), padding=2)
            hidden = nn.functional.max_pool2d(hidden, 2).relu()
        before = nn.functional.unfold(hidden, 5).unflatten(2, (10, 10))
        return {"pool1": (first,), "pool2": (second, before)}


def _check(network: Network) -> None:
    if len(network.widths) != 4:
        raise ModelError(
            f"widths={network.widths!r}: {network.kind} needs the channels of two convolutions and the units of two linear "
            "layers; give four numbers, for example (6, 16, 120, 84)"
        )
    if network.input_shape != (1, 28, 28):
        raise ModelError(f"input_shape={network.input_shape!r}: {network.kind} takes only (1, 28, 28)")
    for name in ("batch_norm", "dropout"):
        if getattr(network, name):
            raise ModelError(f"{name}={getattr(network, name)!r}: {network.kind} has none; leave it out, or use a convnet")


KINDS["lenet"] = Kind(LeNet, _check)
KINDS[_POOL_FIRST] = Kind(LeNet, _check)

#: The network with the published widths, for each order of activation and pooling.
LENETS: Final[dict[Order, Network]] = {
    "relu-pool": Network("lenet", (6, 16, 120, 84)),
    "pool-relu": Network(_POOL_FIRST, (6, 16, 120, 84)),
}
