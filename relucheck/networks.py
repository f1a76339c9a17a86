"""Networks to compare, and setting the subgradient of any model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from relucheck.activations.modules import REPLACEMENTS, ChosenSubgradient, ReLU
from relucheck.activations.rules import Subgradient, SubgradientError, as_subgradient
from relucheck.errors import ModelError

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


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ModelError(f"{name}={size!r}: must be a whole number of at least 1")


@dataclasses.dataclass(frozen=True)
class Reached:
    """What :func:`set_subgradient` reached: names of modules made into relucheck's, and of ones that were already.

    ``left_out`` names subclasses of the three torch modules, whose own forward may do anything: they keep what they do.
    """

    replaced: tuple[str, ...]
    retargeted: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.replaced) + len(self.retargeted)


def set_subgradient(model: nn.Module, value: Subgradient | tuple[Subgradient, Subgradient] | None) -> Reached:
    """Gives every ReLU, ReLU6 and LeakyReLU module of a model one subgradient.

    Plain torch modules become relucheck's in place: the same objects, with their hooks, under every name and reference that
    leads to them. Functional calls (``F.relu``) hold no setting and are not reached; :mod:`relucheck.wiring` names them,
    and :func:`relucheck.backprop.backprop` serves them.

    Args:
        model: any module, or one activation module.
        value: a number or one value per ensemble member; a pair is (at 0, at the upper kink), where activations with one
            kink take the first; None is torch's own.

    Returns:
        the names reached (a module used in several places counts once).

    Raises:
        SubgradientError: for a value that is no subgradient.
        ModelError: if the model has no such module.
    """
    if isinstance(value, tuple) and len(value) != 2:
        raise SubgradientError(
            f"subgradient={value!r}: a tuple holds two values, (at 0, at the upper kink); pass one value or a pair"
        )
    lower, upper = value if isinstance(value, tuple) else (value, value)
    for number in (lower, upper):
        as_subgradient(number, optional=True)  # before anything is changed
    replaced, retargeted, left_out = [], [], []
    for name, module in model.named_modules():
        replacement = REPLACEMENTS.get(type(module))
        if replacement is not None:
            module.__class__ = replacement
            assert isinstance(module, ChosenSubgradient)
            module._init_subgradients(**dict.fromkeys(module.rule.names, 0.0))
            _move_like_model(module, model)
            replaced.append(name)
        elif isinstance(module, ChosenSubgradient):
            retargeted.append(name)
        else:
            if isinstance(module, tuple(REPLACEMENTS)):
                left_out.append(name)
            continue
        assert isinstance(module, ChosenSubgradient)
        for subgradient, wanted in zip(module.rule.names, (lower, upper), strict=False):
            own = None if module.rule.leaky else 0.0
            setattr(module, subgradient, own if wanted is None else wanted)
    if not replaced and not retargeted:
        raise ModelError(
            f"{type(model).__name__} has no nn.ReLU, nn.ReLU6 or nn.LeakyReLU (nor relucheck's): nothing to set; "
            "functional activations (F.relu) take no setting: use modules, or relucheck.backprop, which serves both"
        )
    return Reached(tuple(replaced), tuple(retargeted), tuple(left_out))


def _move_like_model(module: ChosenSubgradient, model: nn.Module) -> None:
    first = next(model.parameters(), None)
    if first is not None and first.device.type not in ("cpu", "meta"):
        module.to(first.device)
