"""What an example promises, and the search settings for strategies."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor, nn

from relucheck.networks.examples import (
    Example,
    torch_activation,
)
from tests.oracles.composite import KINKS

SEARCH = settings(
    max_examples=2000,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[*HealthCheck],
)


def hits(example: Example) -> int:
    """Pre-activations of torch's own activations that equal a kink, counted by subtraction in float64."""
    model, inputs, _ = example.build(torch_activation)
    count = 0

    def look(module: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal count
        for at in KINKS[example.network.activation]:
            count += int(((args[0].detach().double() - at) == 0).sum())

    for module in model.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        model(inputs)
    return count


def check_promise(example: Example) -> None:
    found = hits(example)
    assert not (example.hits_for_certain and found == 0), f"no hit for certain: {example}"
    assert not (example.cannot_hit and found), f"{found} hits that cannot be: {example}"
