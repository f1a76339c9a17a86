"""Models with a function between layers, beside an activation that has a setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """A function of pre-activations that are exactly 0, beside an activation that answers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)) + self.relu(self.first(x) + 1))


class After(nn.Module):
    """An activation that answers, and a function behind a layer without a bias: of zeros, for zeros."""

    def __init__(self, function: Callable[[Tensor], Any] = torch.clone) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False)
        self.__dict__["function"] = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.last(self.relu(self.first(x))))


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        return -cotangent
