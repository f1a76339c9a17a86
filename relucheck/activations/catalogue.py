"""torch's activations whose subgradients the published experiments vary, with their kinks."""

from __future__ import annotations

from typing import Final

from torch import nn

from relucheck.activations.kinks import Activation, Kink

#: The activations by name, with torch 2.x's subgradients.
CATALOGUE: Final[dict[str, Activation]] = {
    activation.name: activation
    for activation in (
        Activation("ReLU", nn.ReLU, (Kink(0.0, 0.0, 1.0, 0.0),)),
        Activation("ReLU6", nn.ReLU6, (Kink(0.0, 0.0, 1.0, 0.0), Kink(6.0, 1.0, 0.0, 0.0))),
        Activation("LeakyReLU", nn.LeakyReLU, (Kink(0.0, 0.01, 1.0, 0.01),)),
    )
}
