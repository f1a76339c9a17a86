"""Small models as users have them, and mini-batches of the shipped digits."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relucheck
from relucheck import data


def digits(count: int = 4, size: int = 16, *, image: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Mini-batches of the training digits, with every tenth image of the file, so that all classes occur."""
    known = data.load_digits("train")
    images, labels = known.scaled("float32", "image" if image else "flat")[::10], known.labels[::10]
    return list(zip(images.split(size)[:count], labels.split(size)[:count], strict=True))


def drawn(make: functools.partial[nn.Module] | type[nn.Module], seed: int = 0) -> nn.Module:
    """A model whose initialisation depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def mlp(*, dead: int = 0, dropout: float = 0.0) -> nn.Module:
    """784-12-8-10 with ReLU modules; the first ``dead`` units have no weights, so that they are exactly 0."""

    def make() -> nn.Module:
        between = nn.Dropout(dropout) if dropout else nn.Identity()
        return nn.Sequential(nn.Linear(784, 12), nn.ReLU(), between, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))

    model = drawn(functools.partial(make))
    with torch.no_grad():
        for parameter in model[0].parameters():  # type: ignore[index]
            parameter[:dead] = 0
    return model


class Functional(nn.Module):
    """The network of ``mlp``, with its modules, but calls of ``F.relu``."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.children():
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x


class Convolutional(nn.Module):
    """A residual block of convolutions with batch norm, on images [n, 1, 28, 28]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.act(x + self.conv(x))
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """A feed-forward block of a transformer with attention, whose activation is made by a factory."""

    def __init__(self, activation: type[nn.Module] | functools.partial[nn.Module]) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.act, self.second = nn.Linear(8, 16), activation(), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.second(self.act(self.first(x)))


class Transformer(nn.Module):
    """Two blocks that read rows of an image [n, 784] as tokens; with ``wrong``, the second ignores the subgradient."""

    def __init__(self, subgradient: float = 0.0, *, wrong: bool = False) -> None:
        super().__init__()
        chosen = functools.partial(relucheck.ReLU, subgradient)
        self.embed = nn.Linear(28, 8)
        self.blocks = nn.Sequential(Block(chosen), Block(nn.ReLU if wrong else chosen))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.view(-1, 28, 28))).mean(1))


class Penalised(nn.Module):
    """A model that differentiates in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = self.second(self.act(self.first(x)))
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y + gradient.square().mean()


class Drifting(nn.Module):
    """A model whose forward depends on how often any of its copies ran."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        Drifting.runs += 1
        return self.second(self.act(self.first(x)) * (1 + 0.001 * Drifting.runs))
