"""A small cell, and an engine that answers from a list instead of deciding networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from relucheck import data
from relucheck.bifurcation.compare import Outcome
from relucheck.bifurcation.decide import Decision
from relucheck.volume.estimate import Cell, Estimate
from tests.helpers.uniform import mlp

SMALL = Cell(mlp(784, 8, 2), batch_size=64, sample_size=256, data="digits", draws=6)
#: What the fake engine says of seeds 0, 1, 2, ...
SAID: tuple[tuple[Outcome, int | None], ...] = (
    *(("agree", None), ("bifurcate", 3), ("non-finite", 0), ("bifurcate", 0), ("agree", None)),
    *(("agree", None), ("bifurcate", 7)),
)


class Fake:
    """An engine that decides by a list, and counts what it is asked."""

    plan = "fake"

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.asked: list[int] = []

    def __call__(self, cell: Cell, inputs: torch.Tensor, targets: torch.Tensor, device: torch.device, note: object) -> Fake:
        return self

    def decide(self, seeds: Iterable[int], /) -> Iterator[Decision]:
        for seed in seeds:
            if seed == self.stop_at:
                raise KeyboardInterrupt
            self.asked.append(seed)
            outcome, batch = SAID[seed % len(SAID)]
            yield Decision(seed, outcome, batch, 2, 1000)


def refuse(*_: object) -> Fake:
    raise AssertionError("an engine was made")


def plain(found: Estimate) -> dict[str, Any]:
    """All of an estimate but its time."""
    return {key: value for key, value in found.to_json().items() if key != "wall_s"}


def digits(images: int) -> data.DataSet:
    whole = data.load_digits()
    return dataclasses.replace(whole, images=whole.images[:images], labels=whole.labels[:images])
