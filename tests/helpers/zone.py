"""Small networks, data and settings on which the zone engine and the two-network method both decide."""

from __future__ import annotations

import torch
from torch import Tensor

from relucheck.networks.mlp import MLP
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.volume.engine import Engine
from tests.helpers.uniform import mlp
from tests.oracles.two_networks import plain_decision

EMULATIONS = [
    Arithmetic.parse("float16 emulated (rounded)"),
    Arithmetic.parse("bfloat16 emulated (product)"),
    Arithmetic.parse("bfloat16 emulated (split-k 4)"),
    Arithmetic.parse("float32 emulated (tf32)"),
    Arithmetic.parse("bfloat16 emulated (rounded; layer 1 forward: split-k 4 wide)"),
    Arithmetic.parse("bfloat16 emulated (product; layer 2: split-k 3 in place; K from 18 backward: split-k 2)"),
]
PAIRS = {
    "relu": (0.0, 1.0),
    "relu6": ((0.0, 0.0), (1.0, 0.5)),
    "leaky_relu": (0.01, 1.0),
}


def kinks_of(setting: float | tuple[float, float]) -> dict[float, float]:
    return {0.0: setting[0], 6.0: setting[1]} if isinstance(setting, tuple) else {0.0: setting}


def drawn_data(rows: int, features: int, seed: int, grid: int) -> tuple[Tensor, Tensor]:
    """Sparse inputs; with a grid multiples of 1 / grid, so that pre-activations hit kinks in every dtype."""
    numbers = generator(seed)
    x = torch.rand(rows, features, generator=numbers, dtype=torch.float64)
    x = x * (torch.rand(rows, features, generator=numbers) < 0.3)
    x = (x * grid).round() / grid if grid else x  # grid 10 has no exact sums: the order of summation decides
    return x, torch.randint(0, 10, (rows,), generator=numbers)


def coarsen(model: MLP, grid: int, scale: float) -> MLP:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(((parameter.double() * scale * grid).round() / grid) if grid else parameter.double() * scale)
    return model


def decisions(
    case: dict[str, object], **options: object
) -> tuple[list[tuple[str, int | None]], list[tuple[str, int | None]]]:
    network, arithmetic = case["network"], case["arithmetic"]
    x, y = drawn_data(case["rows"], network.features, case["seed"], case["grid"])
    models = [
        coarsen(network.draw(case["seed"] + index, arithmetic), case["grid"], case["scale"])
        for index in range(case["networks"])
    ]
    pair = PAIRS[network.activation]
    engine = Engine(
        network, arithmetic, x, y, batch_size=case["batch_size"], subgradients=pair, watch=case["watch"], **options
    )
    ours = [(found.outcome, found.batch) for found in engine.examine(models)]
    plain = [
        plain_decision(
            model,
            engine.inputs,
            y,
            min(case["batch_size"], len(x)),
            activation=network.activation,
            pair=(kinks_of(pair[0]), kinks_of(pair[1])),
            first_layer=case["watch"] == "first layer",
            emulation=arithmetic.emulated,
        )
        for model in models
    ]
    return ours, plain


def misaligned(x: Tensor) -> Tensor:
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


def fixed_case(**changed: object) -> dict[str, object]:
    """A case whose four networks bifurcate, in the second mini-batch at the earliest."""
    case = {
        "arithmetic": Arithmetic(torch.float32),
        "network": mlp(20, 16, 2),
        "networks": 4,
        "rows": 64,
        "grid": 8,
        "scale": 1.0,
        "batch_size": 16,
        "watch": "all",
        "seed": 3,
    }
    return case | changed
