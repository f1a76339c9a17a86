"""The plain two-network method, written from the papers' description and sharing no code with the engine's backward.

Bertoin et al. 2021, section 3.1: two networks with the same parameters and different ReLU'(0), a forward and a backward of
each per mini-batch, and a comparison of their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relucheck.numerics.emulation import Emulation, linear


class PlainActivation(torch.autograd.Function):
    """An activation with chosen subgradients by dense masks (with the chain rule): kinks is {kink: subgradient}."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, kinks: dict[float, float]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.name, ctx.kinks = name, kinks
        return {"relu": torch.relu, "relu6": nn.functional.relu6, "leaky_relu": nn.functional.leaky_relu}[name](x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        (x,), (g,) = ctx.saved_tensors, cotangents
        zero = torch.zeros_like(g)
        left = 0.01 * g if ctx.name == "leaky_relu" else zero
        gradient = torch.where(x > 0, g, left)
        if ctx.name == "relu6":
            gradient = torch.where(x > 6, zero, gradient)
        for kink, subgradient in ctx.kinks.items():
            gradient = torch.where(x == kink, subgradient * g, gradient)
        return gradient, None, None


class PlainNetwork(nn.Module):
    """One of the two networks, on copies of a drawn network's parameters."""

    def __init__(
        self, model: nn.Module, activation: str, kinks: dict[float, float], emulation: Emulation | None = None
    ) -> None:
        super().__init__()
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.weights = nn.ParameterList([layer.weight.detach().clone() for layer in layers])
        self.biases = nn.ParameterList([layer.bias.detach().clone() for layer in layers])
        self.activation, self.kinks = activation, kinks
        self.emulations = None if emulation is None else [emulation.layer(number + 1) for number in range(len(layers))]
        self.hit = False

    def forward(self, x: Tensor) -> Tensor:
        self.hit = False
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                self.hit |= any(bool((x == kink).any()) for kink in self.kinks)
                x = PlainActivation.apply(x, self.activation, self.kinks)
            if self.emulations is None:
                x = nn.functional.linear(x, weight, bias)
            else:
                x = linear(self.emulations[layer], x, weight, bias)
        return x


def plain_decision(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    batch_size: int,
    *,
    activation: str = "relu",
    pair: tuple[dict[float, float], dict[float, float]] = ({0.0: 0.0}, {0.0: 1.0}),
    first_layer: bool = False,
    emulation: Emulation | None = None,
) -> tuple[str, int | None]:
    """(outcome, first mini-batch with it or None), as :class:`relucheck.bifurcation.decide.Decision` defines them."""
    networks = [PlainNetwork(model, activation, kinks, emulation) for kinks in pair]
    for batch, (x, y) in enumerate(zip(inputs.split(batch_size), targets.split(batch_size), strict=True)):
        for network in networks:
            network.zero_grad()
            logits = network(x)
            nn.functional.cross_entropy(logits, y).backward()
        if not logits.isfinite().all():
            return "non-finite", batch
        count = 1 if first_layer else None
        gradients = [
            [parameter.grad for parameter in [*network.weights[:count], *network.biases[:count]]] for network in networks
        ]
        if network.hit and not all(bool(gradient.isfinite().all()) for found in gradients for gradient in found):
            return "non-finite", batch
        # two NaN in one place are one computation's, where there is no hit
        if any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*gradients, strict=True)):
            return "bifurcate", batch
    return "agree", None
