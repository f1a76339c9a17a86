"""A training loop without members, forks or an engine: one model, torch's optimiser, ``backward``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relucheck import set_subgradient
from relucheck.numerics.determinism import generator
from relucheck.training.model import stream


def trained(
    model: nn.Module,
    batches: Sequence[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer],
    steps: int,
    subgradient: float,
    seed: int = 0,
) -> tuple[nn.Module, list[float]]:
    """Train a copy of a model whose activations are modules.

    Returns:
        The trained copy, and the loss of each step.
    """
    model = copy.deepcopy(model)
    set_subgradient(model, subgradient)
    taking = optimiser([parameter for parameter in model.parameters() if parameter.requires_grad])
    losses = []
    for step in range(steps):
        one, place = divmod(step, len(batches))
        order = torch.randperm(len(batches), generator=generator(stream(seed, "order", one)))
        x, y = batches[int(order[place])]
        taking.zero_grad()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(seed, "forward", step + 1))
            value = loss(model(x), y)
        value.backward()
        taking.step()
        losses.append(float(value.detach()))
    return model, losses


def distance(one: nn.Module, other: nn.Module) -> float:
    """The L2 distance of the parameters of two models."""
    squares = [
        float((a.detach().double() - b.detach().double()).square().sum())
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    ]
    return sum(squares) ** 0.5
