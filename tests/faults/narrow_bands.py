"""Narrow bands in which the value is cut off: meant, perhaps meant, and guards that lose the gradient at 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cut_off(x: Tensor, width: float | Tensor) -> Tensor:
    return torch.where(x.abs() <= width, 0 * x, x)


# -- meant -----------------------------------------------------------------------------------------------------------------
def shrinks_in_a_call(x: Tensor) -> Tensor:
    return torch.tanh(F.hardshrink(x, 1e-3))


def shrinks_by_two_thresholds(x: Tensor) -> Tensor:
    return F.threshold(x, 1e-3, 0.0) - F.threshold(-x, 1e-3, 0.0)


class ShrinksByParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return cut_off(x, self.width)


# -- perhaps meant -------------------------------------------------------------------------------------------------------
class ShrinksByDefault(nn.Module):
    def __init__(self, lambd: float = 1e-3) -> None:
        super().__init__()
        self.lambd = lambd

    def forward(self, x: Tensor) -> Tensor:
        return cut_off(x, self.lambd)


def shrinks_by_default_argument(x: Tensor, lambd: float = 1e-3) -> Tensor:
    return cut_off(x, lambd)


# -- not meant -----------------------------------------------------------------------------------------------------------
class GuardedByDefault(nn.Module):
    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return cut_off(x, self.eps)


def guarded_by_default_argument(x: Tensor, eps: float = 1e-6) -> Tensor:
    return cut_off(x, eps)


class GuardedByBuffer(nn.Module):
    """A buffer of a guard's name, of both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("eps", torch.tensor([-(2.0**-20), 2.0**-20]))

    def forward(self, x: Tensor) -> Tensor:
        return cut_off(x, self.eps[1])


class NegativeByBuffer(nn.Module):
    """transformers' XIELU: min(x, eps) is constant from a number in a buffer up to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("eps", torch.tensor(-(2.0**-20)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 0.8 * x * x + 0.5 * x, 0.8 * torch.expm1(torch.minimum(x, self.eps)) - 0.3 * x)


def default_beside_a_fault(x: Tensor, lambd: float = 1e-3) -> Tensor:
    """Perhaps meant, and half of the gradient is lost elsewhere."""
    return cut_off(x, lambd) - torch.where(x > 1, 0.5 * (x - x.detach()), 0 * x)
