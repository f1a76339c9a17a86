"""The description of a network as data: it builds the network, names it, and has a digest.

Volumes, training, generated examples and tables all use it. Each kind of network has its module, which registers the kind
in ``KINDS``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import torch
from torch import nn

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.errors import ModelError, listed, number, one_of, truth, whole
from relucheck.numerics.arithmetic import Arithmetic

ActivationName = Literal["relu", "relu6", "leaky_relu"]

#: A function that makes a new activation module.
ActivationFactory = Callable[[], nn.Module]

#: relucheck's activation modules by name.
ACTIVATIONS: Final[dict[ActivationName, type[ReLU] | type[ReLU6] | type[LeakyReLU]]] = {
    "relu": ReLU,
    "relu6": ReLU6,
    "leaky_relu": LeakyReLU,
}
_SLOPE: Final = 0.01  # torch's default


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        build: a function that makes the module of a description. It calls the factory once for every activation, in the
            order of the forward.
        check: a function that raises ``ModelError`` for a description that the kind cannot build.
        flat: True if the kind flattens inputs of any shape; False if it takes images [channels, height, width].
        sizes: a function that gives the sizes of the hidden layers in words, for the name.
        own_dropout: whether the kind has an ``nn.Dropout`` of its own; otherwise dropout follows every activation.
    """

    build: Callable[[Network, ActivationFactory], nn.Module]
    check: Callable[[Network], None] = lambda network: None
    flat: bool = False
    sizes: Callable[[Network], tuple[str, ...]] = lambda network: tuple(map(str, network.widths))
    own_dropout: bool = False


#: The kinds of networks by name.
KINDS: Final[dict[str, Kind]] = {}


@dataclasses.dataclass(frozen=True)
class Network:
    """The description of a network: everything except its weights.

    Attributes:
        kind: a name in ``KINDS``: "mlp", "convnet", "residual", "lenet", "lenet-pool-relu", "resnet",
            "resnet-convolved-skips", "resnet-convolved-skips-stem-only", "resnet-18", "inverted-residual" or
            "mobilenet-v3-small".
        widths: the sizes of the hidden layers. They are the units of each hidden layer of an "mlp", the channels of each
            convolution of a "convnet" and of each block of a residual network, and for the two kinds of LeNet the
            channels of two convolutions and the units of two linear layers. A "resnet-18" has the channels of its four
            stages.
        activation: the activation of every hidden layer: "relu", "relu6" or "leaky_relu".
        batch_norm: whether there is batch normalisation between a layer and its activation.
        dropout: the probability of dropout after each activation; 0 means no dropout. An "inverted-residual" network and a
            "mobilenet-v3-small" have one dropout, before the last layer.
        bias: whether convolutions and linear layers have biases. The kinds of torchvision have their own biases and take
            True only.
        negative_slope: the negative slope of "leaky_relu".
        input_shape: the shape of a sample. For an "mlp" it is flattened: (1, 28, 28) becomes (784,).
        classes: the number of logits per sample.

    Raises:
        ModelError: for values that describe no network.
    """

    kind: str
    widths: tuple[int, ...]
    activation: ActivationName = "relu"
    batch_norm: bool = False
    dropout: float = 0.0
    bias: bool = True
    negative_slope: float = _SLOPE
    input_shape: tuple[int, ...] = (1, 28, 28)
    classes: int = 10

    def __post_init__(self) -> None:
        one_of("kind", self.kind, tuple(KINDS), error=ModelError)
        for name, example in (("widths", "(200, 200, 200)"), ("input_shape", "(1, 28, 28)")):
            sizes = listed(name, getattr(self, name), example, error=ModelError)
            for size in sizes:
                whole(name, size, error=ModelError)
            object.__setattr__(self, name, sizes)
        if not self.widths:
            raise ModelError("widths=(): at least one hidden layer is needed, as only its activations have kinks")
        one_of("activation", self.activation, tuple(ACTIVATIONS), error=ModelError)
        for name in ("batch_norm", "bias"):
            truth(name, getattr(self, name), error=ModelError)
        number("dropout", self.dropout, least=0, error=ModelError)
        if self.dropout >= 1:
            raise ModelError(f"dropout={self.dropout!r}: must be less than 1, because 1 drops every activation")
        number("negative_slope", self.negative_slope, error=ModelError)
        if self.negative_slope != _SLOPE and self.activation != "leaky_relu":
            raise ModelError(
                f"negative_slope={self.negative_slope!r} with {self.activation}: only leaky_relu has one; leave it out"
            )
        whole("classes", self.classes, error=ModelError)
        if KINDS[self.kind].flat:
            object.__setattr__(self, "input_shape", (math.prod(self.input_shape),))
        elif len(self.input_shape) != 3:
            raise ModelError(
                f"input_shape={self.input_shape!r}: {self.kind} takes images; give channels, height and width, for example "
                "(1, 28, 28)"
            )
        for name in ("dropout", "negative_slope"):  # so that 0, 0.0 and -0.0 give equal networks the same digest
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)
        KINDS[self.kind].check(self)

    @property
    def features(self) -> int:
        """The number of values in a sample."""
        return math.prod(self.input_shape)

    @property
    def kinks(self) -> tuple[float, ...]:
        """The positions of the activation's kinks."""
        return ACTIVATIONS[self.activation].rule.kinks

    @property
    def name(self) -> str:
        """The name by its sizes, for example "784-200-200-200-10".

        Runs of equal blocks are one word: "resnet 1x28x28-16*3-32*3-64*3-10".
        """
        sizes = "-".join(("x".join(map(str, self.input_shape)), *KINDS[self.kind].sizes(self), str(self.classes)))
        return sizes if self.kind == "mlp" else f"{self.kind} {sizes}"

    @property
    def traits(self) -> tuple[str, ...]:
        """The activation, then batch norm, dropout and "no bias" if they apply, in words."""
        slope = f" {self.negative_slope:g}" * (self.negative_slope != _SLOPE)
        words = [f"{self.activation}{slope}"]
        words += ["batch norm"] * self.batch_norm + [f"dropout {self.dropout:g}"] * bool(self.dropout)
        return (*words, *["no bias"] * (not self.bias))

    def __str__(self) -> str:
        unusual = [trait for trait in self.traits if trait != "relu"]
        return self.name + (f" ({', '.join(unusual)})" if unusual else "")

    def to_json(self) -> dict[str, Any]:
        """Convert to a JSON object that ``from_json`` reads."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Network:
        """Read a network from a JSON object.

        Raises:
            ModelError: for unknown or missing fields, and for values that describe no network.
        """
        wanted = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, Mapping) or set(content) != wanted:
            given = sorted(map(str, content)) if isinstance(content, Mapping) else repr(content)
            raise ModelError(f"network: {given} are not the fields {sorted(wanted)}; pass what Network.to_json wrote")
        return cls(**content)

    @property
    def digest(self) -> str:
        """The SHA-256 of the JSON form, in hexadecimal; only equal networks have equal digests."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def activation_module(self) -> nn.Module:
        """Make a new relucheck module for ``activation``, with the subgradient that torch uses."""
        if self.activation == "leaky_relu":
            return LeakyReLU(self.negative_slope)
        return ACTIVATIONS[self.activation]()

    def torch_activation(self) -> nn.Module:
        """Make torch's module for ``activation``."""
        if self.activation == "leaky_relu":
            return nn.LeakyReLU(self.negative_slope)
        return nn.ReLU6() if self.activation == "relu6" else nn.ReLU()

    def build(
        self, activation: ActivationFactory | None = None, dropout: Callable[[float], nn.Module] = nn.Dropout
    ) -> nn.Module:
        """Build the module with PyTorch's default initialisation, random state and default dtype.

        Args:
            activation: makes each activation, in the order of the forward. It does not change the parameters. None means
                ``activation_module``.
            dropout: makes each dropout from the probability, in the same order.
        """
        make = activation or self.activation_module
        kind = KINDS[self.kind]
        if kind.own_dropout:
            return _with_dropout(kind.build(self, make), dropout)

        def unit() -> nn.Module:
            return nn.Sequential(make(), dropout(self.dropout)) if self.dropout else make()

        return kind.build(self, unit)

    def draw(
        self,
        seed: int,
        arithmetic: Arithmetic,
        device: torch.device | str = "cpu",
        *,
        activation: ActivationFactory | None = None,
        dropout: Callable[[float], nn.Module] = nn.Dropout,
        drawn: torch.dtype | None = None,
    ) -> nn.Module:
        """Build the module with an initialisation that depends only on the seed.

        The initialisation is drawn on the CPU and cast to the arithmetic's dtype, and then the module is moved to the
        device. The random state of the process does not change. Layers are emulated if the arithmetic is. The process's
        switches are not set (see ``Arithmetic.active``).

        Args:
            seed: the seed of the initialisation, at least 0.
            arithmetic: the arithmetic of parameters and products, without mixed precision.
            device: the device of the module.
            activation: as for ``build``.
            dropout: as for ``build``.
            drawn: the dtype of the random numbers. None means float64 for float64 (as after ``torch.set_default_dtype``)
                and float32 for every other dtype. Training and examples use float32 for all dtypes, so that one seed gives
                the same initialisation in every arithmetic, up to rounding.

        Raises:
            ModelError: for a seed that is not an integer of at least 0, and for mixed precision.
            EmulationError: if the module has layers that the arithmetic's emulation does not support.
        """
        whole("draw: seed", seed, 0, error=ModelError)
        if arithmetic.mixed:
            raise ModelError(
                f"draw: arithmetic {arithmetic.name!r}: mixed precision is autocast around a model, not in it; "
                "draw in float32 and run the model within Arithmetic.autocast"
            )
        before = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # torch.manual_seed would seed the generators of all devices
            torch.default_generator.manual_seed(seed)
            torch.set_default_dtype(drawn or (torch.float64 if arithmetic.dtype == torch.float64 else torch.float32))
            try:
                model = self.build(activation, dropout)
            finally:
                torch.set_default_dtype(before)
        return arithmetic.apply(model).to(device)


def _with_dropout(model: nn.Module, dropout: Callable[[float], nn.Module]) -> nn.Module:
    """Replace every ``nn.Dropout`` of a model, in place; one of probability 0 becomes the identity."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, dropout(child.p) if child.p else nn.Identity())
    return model


def not_as_built(network: Network, field: str, value: bool, why: str) -> None:
    """Refuse a description whose field is not what the kind always has.

    Raises:
        ModelError: names the field, what the kind has, and what to give.
    """
    if getattr(network, field) != value:
        given = f"{field}={getattr(network, field)!r}"
        raise ModelError(f"{given}: {network.kind} has a fixed form: {why}; give {field}={value}")
