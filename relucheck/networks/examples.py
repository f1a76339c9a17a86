"""Examples for property tests: a network with a mini-batch, described as data.

Hypothesis draws and shrinks an ``Example``, and a failure prints it as code that rebuilds it anywhere. An example can have
an *aim*: it is constructed so that some pre-activation equals a kink, for a reason that holds in every dtype and on every
machine. Other examples are constructed so that no pre-activation can equal a kink.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from relucheck import data
from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.errors import ModelError, instance, one_of
from relucheck.networks import aims
from relucheck.networks.aims import AIMS, Aim
from relucheck.networks.network import ActivationName, Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import as_dtype

ExampleKind = Literal["mlp", "convnet", "residual", "resnet", "resnet-convolved-skips", "inverted-residual"]
Weights = Literal["default", "integer", "offset", "positive"]
Inputs = Literal["normal", "integer", "tiny", "positive", "digits", "ink"]

#: A function that makes an activation module from its name and its negative slope.
ActivationMaker = Callable[[ActivationName, float], nn.Module]

EXAMPLE_KINDS: Final = get_args(ExampleKind)
#: The kind that always has batch normalisation, and that may have dropout.
INVERTED: Final = "inverted-residual"
_CHOICES: Final = {
    "weights": get_args(Weights),
    "inputs": get_args(Inputs),
    "aim": AIMS,
}


def relucheck_activation(name: ActivationName, negative_slope: float) -> nn.Module:
    """Make relucheck's module of an activation, with the subgradients that torch uses."""
    if name == "leaky_relu":
        return LeakyReLU(negative_slope)
    return ReLU() if name == "relu" else ReLU6()


def torch_activation(name: ActivationName, negative_slope: float) -> nn.Module:
    """Make torch's module of an activation."""
    if name == "leaky_relu":
        return nn.LeakyReLU(negative_slope)
    return nn.ReLU() if name == "relu" else nn.ReLU6()


class SeededDropout(nn.Dropout):
    """Dropout that draws the same mask in every forward of equal shape.

    So all forwards of an example compute the same function, and their backwards can be compared. The random state of the
    process does not change.

    Args:
        probability: of dropping a value.
        seed: the seed of the mask.
    """

    def __init__(self, probability: float, seed: int) -> None:
        super().__init__(probability)
        self.seed = seed

    def forward(self, input: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return super().forward(input)


def network_for(
    kind: ExampleKind = "mlp",
    activation: ActivationName = "relu",
    depth: int = 1,
    width: int = 1,
    *,
    batch_norm: bool = False,
    dropout: float = 0.0,
    weights: Weights = "default",
    inputs: Inputs = "normal",
) -> Network:
    """Make a small network that fits the weights and inputs of an example.

    It has three classes. Digits have 28 x 28 pixels, other images 4 x 4 pixels, and other vectors 4 features. If results
    have to be exact in every dtype, the negative slope is a power of two. The last of several blocks of a "resnet" or
    "resnet-convolved-skips" has twice as many channels as the others, so that it halves rows and columns.

    Args:
        kind: the kind of network.
        activation: the activation of every hidden layer.
        depth: the number of hidden layers or blocks.
        width: the units or channels of each of them.
        batch_norm: whether it has batch normalisation. An "inverted-residual" network always has it.
        dropout: the probability of dropout, which only an "inverted-residual" network may have.
        weights: as in ``Example``.
        inputs: as in ``Example``.
    """
    real = inputs in ("digits", "ink")
    exact = activation == "leaky_relu" and weights in ("integer", "offset")
    shape = (1, 28, 28) if real else (4,) if kind == "mlp" else (1, 4, 4)
    last = 2 * width if kind in ("resnet", "resnet-convolved-skips") and depth > 1 else width
    return Network(
        *(kind, (*(width,) * (depth - 1), last), activation, batch_norm or kind == INVERTED, dropout),
        negative_slope=0.25 if exact else 0.01,
        input_shape=shape,
        classes=3,
    )


#: The smallest network: one hidden layer with one unit.
SMALLEST: Final = network_for()


@dataclasses.dataclass(frozen=True)
class Example:
    """A network with a mini-batch.

    Attributes:
        dtype: the name of the dtype of parameters and inputs.
        network: a network of one of the kinds ``EXAMPLE_KINDS``, with biases. It is in training mode. Only an
            "inverted-residual" network may have dropout, which is a ``SeededDropout``.
        weights: how weights and biases are drawn. "default" is torch's initialisation. "integer" draws them from
            {-1, 0, 1}, so that small networks compute exactly in every dtype. "offset" gives integer weights and biases of
            +-1/2: with integer inputs no pre-activation is an integer, so none equals 0 or 6. "positive" makes every
            pre-activation at least as large as a positive bias.
        inputs: how inputs are drawn. "normal" is a normal distribution, and "positive" its absolute values. "integer" draws
            integers from -2 to 2, and "tiny" such integers times a small power of two. "digits" are real images in [0, 1],
            and "ink" are these images thresholded at 1/2, so that every pixel is exactly 0 or 1.
        aim: how a hit is enforced. "none" does not enforce one. "dead unit" sets a unit's weights and bias to 0, so that
            its pre-activation is 0. "saturated unit" sets the weights to 0 and the bias to 6, the upper kink of ReLU6.
            "negated twin" subtracts two equal units. "shifted bias" sets the bias to -Wx for the first sample, which is
            exact for integers. "dead input" sets the first sample and all biases to 0. "cancelled sum" makes the branch of
            the first residual block the negative of its skip, in one unit.
        batch: the number of samples.
        seed: the seed of weights, inputs, targets and cotangents.

    Raises:
        ModelError: for an unknown choice, and for a network that does not fit the inputs or the aim.
        UnsupportedDtypeError: for a dtype that is not supported.
    """

    dtype: str
    network: Network = SMALLEST
    weights: Weights = "default"
    inputs: Inputs = "normal"
    aim: Aim = "none"
    batch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        as_dtype(self.dtype)
        for name, known in _CHOICES.items():
            one_of(name, getattr(self, name), known, error=ModelError)
        instance("network", self.network, Network, 'network_for("mlp")', error=ModelError)
        kind, dropout = self.network.kind, self.network.dropout
        if kind not in EXAMPLE_KINDS or not self.network.bias or (dropout and kind != INVERTED):
            raise ModelError(
                f"Example(network={self.network}): must be one of {', '.join(EXAMPLE_KINDS)}, with biases, and without "
                f"dropout unless it is {INVERTED}"
            )
        if self.inputs in ("digits", "ink") and self.network.features != 784:
            raise ModelError(
                f"Example(inputs={self.inputs!r}, network={self.network}): digits have 28 x 28 pixels; give the "
                "network the input shape (1, 28, 28)"
            )
        twins = self.network.widths[:2]  # the layer with the two equal units, and the one with the unit that subtracts them
        if self.aim == "negated twin" and (self.network.kind != "mlp" or min(len(twins), *twins) < 2):
            raise ModelError(
                f"Example(aim='negated twin', network={self.network}): needs an mlp of depth and width 2 or more, for the "
                "twins and the unit that subtracts them"
            )

        if self.aim == "cancelled sum" and self.network.kind not in aims.RESIDUAL:
            raise ModelError(
                f"Example(aim='cancelled sum', network={self.network}): needs a network of one of the kinds "
                f"{', '.join(aims.RESIDUAL)}, for the block that adds"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as a ``torch.dtype``."""
        return as_dtype(self.dtype)

    @property
    def hits_for_certain(self) -> bool:
        """Whether some pre-activation equals a kink, however sums are rounded.

        Guaranteed for examples drawn by ``relucheck.networks.strategies``. In larger ones, sums that are assumed to be
        exact may be rounded.
        """
        if self.aim == "dead unit":
            return True
        if self.aim == "saturated unit":
            return self.network.activation == "relu6"
        if self.network.batch_norm or self.aim == "none":
            return False
        if self.aim == "dead input":
            return True
        if self.aim == "cancelled sum":
            return self.network.activation != "leaky_relu"
        exact = self.weights == "integer" and self.inputs == "integer"
        return exact if self.aim == "negated twin" else exact and self.network.kind == "mlp"

    @property
    def cannot_hit(self) -> bool:
        """Whether no pre-activation can equal a kink, however sums are rounded.

        Guaranteed for examples drawn by ``relucheck.networks.strategies``. In larger ones, sums that are assumed to be
        exact may be rounded.
        """
        network = self.network
        if self.aim != "none" or network.batch_norm:
            return False
        if self.weights == "offset":
            exact = network.activation != "leaky_relu" or network.negative_slope == 0.25
            return exact and self.inputs == "integer" and network.kind in ("mlp", "convnet") and len(network.widths) <= 2
        return self.weights == "positive" and network.activation != "relu6" and self.inputs in ("positive", "digits", "ink")

    def build(self, make: ActivationMaker = relucheck_activation) -> tuple[nn.Module, Tensor, Tensor]:
        """Build the network, its inputs and its targets, on the CPU.

        Args:
            make: makes the activation modules. It does not change the parameters.

        Returns:
            The network in training mode; the inputs, [batch, *input_shape] of the example's dtype; class indices, int64
            [batch].
        """
        network, inputs = self.network, self._inputs()

        def activation() -> nn.Module:
            return make(network.activation, network.negative_slope)

        def dropout(probability: float) -> nn.Module:
            return SeededDropout(probability, self.seed + 5)

        model = network.draw(
            self.seed, Arithmetic(self.torch_dtype), activation=activation, dropout=dropout, drawn=torch.float32
        )
        with torch.no_grad():
            if self.weights != "default":
                self._redraw(model)
            self._take_aim(model, inputs)
        targets = torch.randint(0, network.classes, (self.batch,), generator=generator(self.seed + 1))
        return model, inputs, targets

    def cotangent(self, *, exact: bool = False) -> Tensor:
        """Draw a random upstream gradient, [batch, classes] of the example's dtype.

        Args:
            exact: whether to draw small non-zero integers, so that sums are exact.
        """
        random, shape = generator(self.seed + 2), (self.batch, self.network.classes)
        if exact:
            drawn = torch.randint(0, 4, shape, generator=random) - 2
            return torch.where(drawn >= 0, drawn + 1, drawn).to(self.torch_dtype)
        return torch.randn(shape, generator=random, dtype=torch.float64).to(self.torch_dtype)

    def _inputs(self) -> Tensor:
        random, shape = generator(self.seed + 3), (self.batch, *self.network.input_shape)
        if self.inputs in ("digits", "ink"):
            digits = data.load_digits("train")
            rows = torch.randint(0, len(digits), (self.batch,), generator=random)
            images = digits.images[rows].reshape(shape).float() / 255
            x = (images > 0.5).float() if self.inputs == "ink" else images
        else:
            if self.inputs in ("integer", "tiny"):
                x = (torch.randint(0, 5, shape, generator=random) - 2).double()
                if self.inputs == "tiny":  # far smaller than any bias that a layer adds, far above underflow
                    x *= 2.0 ** (-10 if self.dtype == "float16" else -40)
            else:
                x = torch.randn(shape, generator=random, dtype=torch.float64)
                if self.inputs == "positive":
                    x = x.abs()
        if self.aim == "dead input":
            x[0] = 0
        return x.to(self.torch_dtype)

    def _redraw(self, model: nn.Module) -> None:
        """Replace torch's initialisation of linear layers and convolutions."""
        random = generator(self.seed + 4)
        for index, layer in enumerate(aims.affine(model)):
            weight = layer.weight
            # the convolutions of an inverted-residual network have none
            bias = torch.empty(0) if layer.bias is None else layer.bias
            if self.weights == "positive":
                weight.copy_(torch.rand(weight.shape, generator=random) / weight[0].numel())
                bias.copy_(torch.rand(bias.shape, generator=random) / 4 + 0.25)
                continue
            values = (torch.randint(0, 3, weight.shape, generator=random) - 1).to(weight.dtype)
            if self.weights == "offset":
                # After the first layer inputs are multiples of 1/2, or of 1/8 with a leaky slope of 1/4. Weights that are
                # multiples of 8 make the products integers. A unit has at most two of them, so that sums stay below 2**7,
                # where bfloat16 represents every half-integer.
                order = torch.rand(weight.shape, generator=random).flatten(1).argsort(1).reshape(weight.shape)
                values = torch.where(order < 2, values, 0) * (1 if index == 0 else 8)
                bias.copy_((torch.randint(0, 2, bias.shape, generator=random) - 0.5).to(bias.dtype))
            else:
                bias.copy_((torch.randint(0, 3, bias.shape, generator=random) - 1).to(bias.dtype))
            weight.copy_(values)

    def _take_aim(self, model: nn.Module, inputs: Tensor) -> None:
        aims.take(self.aim, self.network.kind, self.seed, model, inputs)

    def script(self, subgradients: tuple[object, object] = (0.0, 1.0)) -> str:
        """Return a program that builds this example and prints its comparison."""
        return (
            "from relucheck.bifurcation.compare import compare\n"
            "from relucheck.networks.examples import Example\n"
            "from relucheck.networks.network import Network\n\n"
            f"example = {self!r}\n"
            "model, inputs, targets = example.build()\n"
            "print(model)\n"
            f"print(compare(model, inputs, targets, subgradients={subgradients!r}))\n"
        )
