"""Activations whose first derivative is right, with one planted fault each in the derivatives of that derivative."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

GAIN = math.sqrt(2.0)


def _slopes(v: Tensor, y: Tensor) -> Tensor:
    return torch.where(y > 0, v, 0.2 * v) * GAIN


def _in_memory_order(v: Tensor, y: Tensor) -> Tensor:
    if y.is_contiguous() or 0 in y.stride() or y.ndim < 2:
        return _slopes(v, y)
    return _slopes(v, y.as_strided(y.shape, torch.empty(y.shape).stride()))


#: What a backward of the backward may do, by name; ``right`` has no fault.
SECOND = {
    "right": _slopes,
    "gain_lost": lambda v, y: torch.where(y > 0, v, 0.2 * v),
    "cut_off": lambda v, y: torch.zeros_like(v),
    "passed_on": lambda v, y: v,
    "in_memory_order": _in_memory_order,
}


class _LeakyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, y: Tensor, second: str) -> Tensor:
        ctx.save_for_backward(y)
        ctx.second = second
        return _slopes(v, y)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> Any:
        return SECOND[ctx.second](w, *ctx.saved_tensors), None, None


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, second: str) -> Tensor:
        y = torch.where(x > 0, x, 0.2 * x) * GAIN
        ctx.save_for_backward(y)
        ctx.second = second
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return _LeakyBackward.apply(v, ctx.saved_tensors[0], ctx.second), None


class FusedLeaky(nn.Module):
    """Leaky ReLU with a gain, whose backward is a custom function, too (stylegan2's ops)."""

    second = "right"

    def forward(self, x: Tensor) -> Tensor:
        return _Leaky.apply(x, self.second)


class FusedLeakyGainLost(FusedLeaky):
    second = "gain_lost"


class FusedLeakyCutOff(FusedLeaky):
    second = "cut_off"


class FusedLeakyPassedOn(FusedLeaky):
    second = "passed_on"


class FusedLeakyInMemoryOrder(FusedLeaky):
    second = "in_memory_order"


class _LeakyWithoutGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, 0.2 * x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        # as a kernel that was compiled by hand: autograd does not look into it
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, v.detach(), 0.2 * v.detach())


def leaky_without_graph(x: Tensor) -> Tensor:
    return _LeakyWithoutGraph.apply(x)


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: Tensor, detached: bool) -> Tensor:
        ctx.save_for_backward(x, beta)
        ctx.detached = detached
        return x * torch.sigmoid(beta * x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, beta = ctx.saved_tensors
        if ctx.detached:
            beta = beta.detach()
        s = torch.sigmoid(beta * x)
        return v * (s + beta * x * s * (1 - s)), (v * x * x * s * (1 - s)).sum().reshape(beta.shape), None


class FusedSwish(nn.Module):
    """x sigmoid(beta x), with a backward by hand that autograd can differentiate."""

    detached = False

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return _Swish.apply(x, self.beta, self.detached)


class FusedSwishDetached(FusedSwish):
    detached = True
