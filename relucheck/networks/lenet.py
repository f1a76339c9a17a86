"""A LeNet-like network with max pooling."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn

from relucheck.activations.modules import ReLU
from relucheck.activations.pooling import MaxPool2d
from relucheck.errors import ModelError
from relucheck.numerics.dtypes import as_dtype

Order = Literal["relu-pool", "pool-relu"]

ORDERS: Final[tuple[Order, ...]] = ("relu-pool", "pool-relu")


class LeNet(nn.Module):
    """A LeNet-like network for grey 28 x 28 images, with PyTorch's default initialisation.

    Two stages of a 5x5 convolution (6 channels, padding 2; 16 channels), ReLU and 2x2 max pooling, then linear layers of
    120, 84 and ``outputs`` units. Inputs: [batch, 1, 28, 28].

    Args:
        order: whether each stage's ReLU stands before or behind its pooling. Forward values are the same, and with
            ReLU'(0) = 0 so are both gradients, bit for bit; the number of ties is not.
        outputs: classes.
        dtype: of the parameters, drawn in this dtype.

    Source: after LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition".
    """

    def __init__(self, order: Order = "relu-pool", outputs: int = 10, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if order not in ORDERS:
            raise ModelError(f"order={order!r}: must be 'relu-pool' or 'pool-relu'")
        self.order = order
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2, dtype=dtype)
        self.relu1 = ReLU()
        self.pool1 = MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5, dtype=dtype)
        self.relu2 = ReLU()
        self.pool2 = MaxPool2d(2)
        self.head = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(400, 120, dtype=dtype), ReLU(), nn.Linear(120, 84, dtype=dtype), ReLU()),
            nn.Linear(84, outputs, dtype=dtype),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "relu-pool":
            x = self.pool1(self.relu1(self.conv1(x)))
            x = self.pool2(self.relu2(self.conv2(x)))
        else:
            x = self.relu1(self.pool1(self.conv1(x)))
            x = self.relu2(self.pool2(self.conv2(x)))
        return self.head(x)

    def behind(self, pool: nn.Module) -> nn.Module | None:
        """The only module that takes a pooling's output, where that is an activation."""
        if self.order == "relu-pool":
            return None
        return self.relu1 if pool is self.pool1 else self.relu2 if pool is self.pool2 else None

    def fields(self, x: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """For each pooling, what each element of its input sees, each [batch, values, H, W].

        That is: of the images and, for the second, of the layer before, computed in float64 from the model's weights.

        Elements that see the same of either are one function of the weights (padding counts as zeros, which it is). The
        second catches images that differ only where a dead ReLU or a window's smaller elements hide it.
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


def draw(seed: int, dtype: torch.dtype, order: Order = "relu-pool") -> LeNet:
    """One network from one seed: initialised in float32 and cast for the 16-bit dtypes, natively in float64."""
    dtype = as_dtype(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LeNet(order, dtype=torch.float64 if dtype == torch.float64 else torch.float32).to(dtype)
