"""Targets that misbehave, one way each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def raises(x: Tensor) -> Tensor:
    raise OSError("the weights are gone")


def raises_in_backward(x: Tensor) -> Tensor:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, slope: float, more: float) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, v: Tensor) -> Any:
            # the published LeakyReLU of the 2022 report returns fewer gradients than it has inputs
            return v, None

    return Broken.apply(x, 0.1, 0.2)


def prints(x: Tensor) -> Tensor:
    print("NOISE" * 100)
    return torch.relu(x)


def loops_for_ever(x: Tensor) -> Tensor:
    while True:
        pass


def swallows_everything(x: Tensor) -> Tensor:
    while True:
        try:
            while True:
                pass
        except Exception:
            continue


def returns_a_number(x: Tensor) -> float:
    return 1.0


def returns_a_tuple(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x


def returns_integers(x: Tensor) -> Tensor:
    return (x > 0).to(torch.int64)


def exits(x: Tensor) -> Tensor:
    raise SystemExit(3)


def allocates(x: Tensor) -> Tensor:
    hoard = []
    while True:
        hoard.append(torch.ones(2**24))


def random_everywhere(x: Tensor) -> Tensor:
    return x * torch.rand_like(x)


def mixes(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def halves(x: Tensor) -> Tensor:
    return x[..., ::2]


def needs_more(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


class NeedsArguments(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


class FailsToConstruct(nn.Module):
    def __init__(self) -> None:
        raise KeyError("no configuration")


def good(x: Tensor) -> Tensor:
    return torch.relu(x)
