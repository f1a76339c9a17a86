"""Sweeps, the units that benchmarks of training time: a few steps of an executor, or of one model in an eager loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def of_executor(run: Any, steps: int, batch: int) -> Callable[[], None]:
    """A function that trains an executor's members on the same mini-batches at every call.

    Args:
        run: an executor of ``relucheck.training``.
        steps: of a sweep.
        batch: samples of a mini-batch.
    """
    numbers = itertools.count(1)

    def sweep() -> None:
        run.begin(0)
        for step in range(steps):
            run.step(step * batch, (step + 1) * batch, next(numbers))

    return sweep


def of_model(
    model: nn.Module, optimiser: torch.optim.Optimizer, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
) -> Callable[[], None]:
    """A function that trains a model in an eager loop.

    Args:
        model: on the device of the mini-batches.
        optimiser: of its parameters.
        batches: gives the images and labels of a sweep, mini-batch by mini-batch.
    """

    def sweep() -> None:
        for x, y in batches():
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()

    return sweep


def sliced(images: Tensor, labels: Tensor, steps: int, batch: int) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """The first mini-batches of data on a device, as slices.

    Args:
        images: [n, ...].
        labels: [n].
        steps: number of mini-batches.
        batch: samples of each.
    """
    parts = [slice(step * batch, (step + 1) * batch) for step in range(steps)]
    return lambda: ((images[part], labels[part]) for part in parts)
