"""Nudges by plain PyTorch loops that run from the first step to the last, written from the definition of the nudge.

Shared with the package are the products of emulated arithmetics and the streams of random numbers, nothing else: no forks,
no shared runs, no look ahead. Whether a draw changes a gradient is seen in a run with it from the first step on.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from relucheck.numerics.determinism import deterministic
from relucheck.training.forking import DataSplit
from relucheck.training.members import NUDGES
from relucheck.training.model import stream
from relucheck.training.settings import Settings
from tests.oracles.two_networks import PlainNetwork

Place = tuple[int, int]  # position of the parameter, and of the element in it


@dataclasses.dataclass
class PlainRun:
    """One run: by step, the gradients and the parameters after the update; by epoch, the test accuracy.

    ``probed`` holds the gradients of s = 1 by step, where nothing has moved.
    """

    gradients: list[list[Tensor]]
    probed: list[list[Tensor]]
    parameters: list[list[Tensor]]
    accuracies: list[float]


@dataclasses.dataclass
class PlainNudge:
    """What a nudge did: the step, the draws, the last one of which stands, and its run."""

    step: int
    draws: list[Place]
    run: PlainRun


def plain_run(
    model: nn.Module,
    settings: Settings,
    seed: int,
    splits: tuple[DataSplit, DataSplit],
    moved: tuple[int, Place] | None = None,
    reference: PlainRun | None = None,
) -> PlainRun | None:
    """Train s = 0 from a model's parameters; after the update of step ``moved[0]``, one element moves by one ulp.

    None if the gradients of the next step are those of the reference: then the move has no effect, and the run ends there.
    """
    train, test = splits
    emulation, chosen = settings.arithmetic.emulated, settings.optimiser
    network = PlainNetwork(model, "relu", {0.0: 0.0}, emulation)
    parameters = _in_order(network)
    optimiser: Any = torch.optim.SGD(parameters, lr=chosen.lr, momentum=chosen.momentum)
    if chosen.name == "adam":
        optimiser = torch.optim.Adam(parameters, lr=chosen.lr, eps=chosen.eps)
    run = PlainRun([], [], [], [])
    for epoch in range(settings.epochs):
        order = torch.arange(len(train))
        if settings.shuffle:
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(stream(seed, "order", epoch)))
        for where in order.split(settings.batch_size):
            x, y = train.images[where], train.labels[where]
            both = []
            for subgradient in (1.0, 0.0) if moved is None else (0.0,):
                network.kinks = {0.0: subgradient}
                network.zero_grad()
                nn.functional.cross_entropy(network(x), y).backward()
                both.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
            run.gradients.append(both.pop())
            run.probed += both
            step = len(run.gradients)
            if moved and reference and step == moved[0] + 1 and _same(run.gradients[-1], reference.gradients[step - 1]):
                return None
            optimiser.step()
            if moved is not None and moved[0] == len(run.gradients):
                parameter, element = moved[1]
                values = parameters[parameter].detach().view(-1)
                outwards = torch.full_like(values[element], math.copysign(math.inf, float(values[element])))
                values[element] = torch.nextafter(values[element], outwards)
            run.parameters.append([parameter.detach().clone() for parameter in parameters])
        with torch.no_grad():
            right = network(test.images).argmax(1) == test.labels
        run.accuracies.append(int(right.sum()) / len(test))
    return run


def plain_nudge(
    model: nn.Module, settings: Settings, seed: int, nudge: int, splits: tuple[DataSplit, DataSplit]
) -> tuple[PlainRun, PlainNudge | None]:
    """The reference, and a nudge; None without a live hit."""
    with settings.arithmetic.active(), deterministic():
        reference = plain_run(model, settings, seed, splits)
        assert reference is not None
        steps = zip(reference.gradients, reference.probed, strict=True)
        live = [number for number, (zero, one) in enumerate(steps, 1) if not _same(zero, one)]
        if not live:
            return reference, None
        step = live[0]
        candidates = [
            (parameter, element)
            for parameter, gradient in enumerate(reference.gradients[step - 1])
            for element, value in enumerate(gradient.flatten().tolist())
            if value != 0
        ]
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(stream(seed, "nudge"))).tolist()
        draws: list[Place] = []
        for drawn in order[nudge - 1 :: NUDGES]:
            draws.append(candidates[drawn])
            run = plain_run(model, settings, seed, splits, (step, draws[-1]), reference)
            if run is not None:
                return reference, PlainNudge(step, draws, run)
        raise AssertionError("no draw changes a gradient")


def _in_order(network: PlainNetwork) -> list[nn.Parameter]:
    return [parameter for pair in zip(network.weights, network.biases, strict=True) for parameter in pair]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x.view(torch.uint8).equal(y.view(torch.uint8)) for x, y in zip(a, b, strict=True))
