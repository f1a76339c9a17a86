"""Networks as data: one frozen description, which builds the network, names it and has a digest.

Volumes, trainings, generated examples and tables share it. What a kind of network is made of stands in its own module,
which registers it in :data:`KINDS`.
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

#: Makes a fresh activation module.
ActivationFactory = Callable[[], nn.Module]

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
        build: makes the module of a description; calls the factory for every activation, in the order of the forward.
        check: raises :class:`~relucheck.errors.ModelError` for a description that the kind cannot build.
        flat: whether it takes vectors, of inputs of any shape; else images [channels, height, width].
    """

    build: Callable[[Network, ActivationFactory], nn.Module]
    check: Callable[[Network], None] = lambda network: None
    flat: bool = False


#: The kinds of networks by name.
KINDS: Final[dict[str, Kind]] = {}


@dataclasses.dataclass(frozen=True)
class Network:
    """Everything that a network is but for its weights.

    Attributes:
        kind: a name in :data:`KINDS`.
        widths: the kind's sizes: units of each hidden layer of an "mlp", channels of each convolution of a "convnet" and
            of each block of a "residual" network; "lenet": channels of two convolutions, units of two linear layers.
        activation: of every hidden layer: "relu", "relu6" or "leaky_relu".
        batch_norm: whether batch normalisation stands between a layer and its activation.
        dropout: probability behind each activation; 0 means none.
        bias: whether convolutions and linear layers have biases.
        negative_slope: of "leaky_relu".
        input_shape: of a sample. An MLP flattens what it gets: (1, 28, 28) becomes (784,).
        classes: logits of a sample.

    Raises:
        ModelError: for a network that does not exist.
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
            raise ModelError(f"dropout={self.dropout!r}: must be less than 1, else nothing is left")
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
        for name in ("dropout", "negative_slope"):  # equal networks have one digest: 0, 0.0 and -0.0 are one number
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)
        KINDS[self.kind].check(self)

    @property
    def features(self) -> int:
        """Numbers in a sample."""
        return math.prod(self.input_shape)

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where the activation's kinks are."""
        return ACTIVATIONS[self.activation].rule.kinks

    @property
    def name(self) -> str:
        """The sizes: "784-200-200-200-10", "convnet 1x28x28-8-8-10"."""
        sizes = "-".join(("x".join(map(str, self.input_shape)), *map(str, self.widths), str(self.classes)))
        return sizes if self.kind == "mlp" else f"{self.kind} {sizes}"

    @property
    def traits(self) -> tuple[str, ...]:
        """What else it has, in words: the activation, and each of batch norm, dropout and no biases that applies."""
        slope = f" {self.negative_slope:g}" * (self.negative_slope != _SLOPE)
        found = [f"{self.activation}{slope}"]
        found += ["batch norm"] * self.batch_norm + [f"dropout {self.dropout:g}"] * bool(self.dropout)
        return (*found, *["no bias"] * (not self.bias))

    def __str__(self) -> str:
        own = [trait for trait in self.traits if trait != "relu"]
        return self.name + (f" ({', '.join(own)})" if own else "")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Network:
        """The network of a JSON object.

        Raises:
            ModelError: for unknown or missing fields, and for a network that does not exist.
        """
        wanted = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, Mapping) or set(content) != wanted:
            given = sorted(map(str, content)) if isinstance(content, Mapping) else repr(content)
            raise ModelError(f"network: {given} are not the fields {sorted(wanted)}; pass what Network.to_json wrote")
        return cls(**content)

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the JSON form: equal for equal networks only."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def activation_module(self) -> nn.Module:
        """A fresh module of relucheck for :attr:`activation`, at torch's own subgradient."""
        if self.activation == "leaky_relu":
            return LeakyReLU(self.negative_slope)
        return ACTIVATIONS[self.activation]()

    def build(
        self, activation: ActivationFactory | None = None, dropout: Callable[[float], nn.Module] = nn.Dropout
    ) -> nn.Module:
        """The module, with PyTorch's default initialisation from the process's random state, in its default dtype.

        Args:
            activation: makes each activation, in the order of the forward; parameters do not depend on it. None is
                :meth:`activation_module`.
            dropout: makes what stands behind each activation, of its probability, in the same order.
        """
        make = activation or self.activation_module

        def unit() -> nn.Module:
            return nn.Sequential(make(), dropout(self.dropout)) if self.dropout else make()

        return KINDS[self.kind].build(self, unit)

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
        """The module with an initialisation that depends on ``seed`` alone.

        Drawn on the CPU and cast, then moved. The process's random state stays as it was. The module computes in the
        arithmetic by itself, under the process's switches; mixed precision, which is autocast around it, is refused.

        Args:
            seed: of the initialisation.
            arithmetic: of parameters and products.
            device: where the module goes.
            activation, dropout: as for :meth:`build`.
            drawn: the dtype of the random numbers. None is float64 for float64 (as after ``torch.set_default_dtype``) and
                float32 for every other; trainings and examples take float32 for all, so that one seed is one
                initialisation in every arithmetic, but for rounding.

        Raises:
            ModelError: for a seed that is not a whole number of at least 0, and for mixed precision.
        """
        whole("draw: seed", seed, 0, error=ModelError)
        if arithmetic.mixed:
            raise ModelError(
                f"draw: arithmetic {arithmetic.name!r}: mixed precision is autocast around a model, not in it; "
                "draw in float32 and run the model within Arithmetic.autocast"
            )
        before = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # not torch.manual_seed, which would seed every device
            torch.default_generator.manual_seed(seed)
            torch.set_default_dtype(drawn or (torch.float64 if arithmetic.dtype == torch.float64 else torch.float32))
            try:
                model = self.build(activation, dropout)
            finally:
                torch.set_default_dtype(before)
        return arithmetic.apply(model).to(device)
