"""Fully connected networks as data, and drawing one from a seed."""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

import torch

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.errors import ModelError, one_of, whole
from relucheck.networks.mlp import MLP
from relucheck.numerics.arithmetic import Arithmetic

ActivationName = Literal["relu", "relu6", "leaky_relu"]

ACTIVATIONS: Final[dict[str, type[ReLU] | type[ReLU6] | type[LeakyReLU]]] = {
    "relu": ReLU,
    "relu6": ReLU6,
    "leaky_relu": LeakyReLU,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A fully connected network: ``inputs`` - ``depth`` x ``width`` - ``outputs``, as :class:`relucheck.networks.mlp.MLP`.

    Source: the networks of the volume tables of Bertoin et al. 2021 (784 - 256 x 3 - 10 in the middle of every sweep).
    """

    inputs: int = 784
    width: int = 256
    depth: int = 3
    outputs: int = 10
    activation: ActivationName = "relu"

    def __post_init__(self) -> None:
        for name in ("inputs", "width", "depth", "outputs"):
            whole(f"architecture: {name}", getattr(self, name), error=ModelError)
        one_of("architecture: activation", self.activation, tuple(ACTIVATIONS), error=ModelError)

    def __str__(self) -> str:
        name = "" if self.activation == "relu" else f" {self.activation}"
        return f"{self.inputs}-{self.depth}x{self.width}-{self.outputs}{name}"


def draw(architecture: Architecture, seed: int, arithmetic: Arithmetic, device: torch.device | str = "cpu") -> MLP:
    """One network with PyTorch's default initialisation, which depends on ``seed`` alone.

    Drawn on the CPU, in float32 and cast for the 16-bit dtypes, in float64 for float64 (as ``torch.set_default_dtype``
    would), then moved. The process's random state stays as it was.

    Raises:
        ModelError: for a seed that is not a whole number of at least 0.
    """
    whole("draw: seed", seed, 0, error=ModelError)
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # not torch.manual_seed, which would seed every device
        torch.default_generator.manual_seed(seed)
        torch.set_default_dtype(torch.float64 if arithmetic.dtype == torch.float64 else torch.float32)
        try:
            model = MLP(
                architecture.inputs,
                architecture.width,
                architecture.depth,
                architecture.outputs,
                ACTIVATIONS[architecture.activation],
            )
        finally:
            torch.set_default_dtype(before)
    return arithmetic.apply(model).to(device)
