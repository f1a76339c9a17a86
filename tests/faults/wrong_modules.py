"""Activation modules with one planted fault each in the gradients of parameters, or in copies of themselves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


# -- parameters ----------------------------------------------------------------------------------------------------------
class Slope(nn.Module):
    """Base of the learnable ones."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.25]))


class SlopeDetached(Slope):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope.detach() * x) + 0 * self.slope


class _SlopeRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, fault: str) -> Tensor:
        ctx.save_for_backward(x, slope)
        ctx.fault = fault
        return torch.where(x > 0, x, slope * x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, slope = ctx.saved_tensors
        part = torch.where(x > 0, torch.zeros_like(x), x)
        sums = {"injected": part.sum(), "sign": -(v * part).sum(), "mean": (v * part).mean()}
        return v * torch.where(x > 0, torch.ones_like(x), slope), sums[ctx.fault].reshape(slope.shape), None


class SlopeInjected(Slope):
    def forward(self, x: Tensor) -> Tensor:
        return _SlopeRule.apply(x, self.slope, "injected")


class SlopeWrongSign(Slope):
    def forward(self, x: Tensor) -> Tensor:
        return _SlopeRule.apply(x, self.slope, "sign")


class SlopeConverted(Slope):
    """Converts the slope to the input's dtype where they differ, as under autocast, and loses its gradient there."""

    def forward(self, x: Tensor) -> Tensor:
        same = self.slope.dtype == x.dtype
        slope = self.slope if same else torch.tensor(self.slope.tolist(), dtype=x.dtype)
        return torch.where(x > 0, x, slope * x)


class _FirstChannelRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, slope = ctx.saved_tensors
        part = torch.where(x > 0, torch.zeros_like(x), v * x).transpose(0, 1).reshape(slope.numel(), -1).sum(1)
        return v * torch.where(x > 0, torch.ones_like(x), slope[0]), part


class FirstChannelForAll(nn.Module):
    """A slope per channel, of which backward takes the first for all."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((3,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return _FirstChannelRule.apply(x, self.slope)


class SlopeAveraged(Slope):
    def forward(self, x: Tensor) -> Tensor:
        return _SlopeRule.apply(x, self.slope, "mean")


class _ChannelRule(torch.autograd.Function):
    """A slope per channel, with the faults of backwards that were tried on one contiguous sample, or on positive slopes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, fault: str) -> Tensor:
        y = torch.where(x > 0, x, x * _per_channel(slope, x))
        ctx.save_for_backward(x, y, slope)
        ctx.fault = fault
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, y, slope = ctx.saved_tensors
        right = y > 0 if ctx.fault == "decided on the output" else x > 0
        gradient = torch.where(right, v, v * _per_channel(slope, x))
        if ctx.fault == "input of the first sample":
            gradient[1:] = torch.where(right[1:], v[1:], 0 * v[1:])
        if ctx.fault == "nan behind the first sample":
            gradient[1:] = torch.nan
        if ctx.fault == "memory order" and x.ndim == 4 and not x.is_contiguous():
            x = x.as_strided(x.shape, torch.empty(x.shape).stride())
        part = torch.where(right, torch.zeros_like(v), v * x)
        if ctx.fault == "slope of the first sample":
            part = part[:1]
        return gradient, part.transpose(0, 1).reshape(slope.numel(), -1).sum(1), None


def _per_channel(slope: Tensor, x: Tensor) -> Tensor:
    return slope.reshape([1, -1] + [1] * (x.ndim - 2))


class ChannelSlopes(nn.Module):
    """PReLU by hand, without a fault."""

    fault = ""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(0.1, 0.5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return _ChannelRule.apply(x, self.slope, self.fault)


class ChannelSlopesOfFirstSample(ChannelSlopes):
    fault = "slope of the first sample"


class ChannelSlopesInFirstSample(ChannelSlopes):
    fault = "input of the first sample"


class ChannelSlopesWithNan(ChannelSlopes):
    fault = "nan behind the first sample"


class ChannelSlopesByOutput(ChannelSlopes):
    fault = "decided on the output"


class ChannelSlopesInMemoryOrder(ChannelSlopes):
    fault = "memory order"


class _SlopeByOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        y = torch.where(x > 0, x, slope * x)
        ctx.save_for_backward(x, y, slope)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, y, slope = ctx.saved_tensors
        part = torch.where(y < 0, v * x, torch.zeros_like(x))
        return torch.where(x > 0, v, v * slope), part.sum().reshape(slope.shape)


class SlopeByOutput(Slope):
    """The gradient of the slope, and no other, is decided on the output: 0 for a slope of 0, and of no input below it."""

    def forward(self, x: Tensor) -> Tensor:
        return _SlopeByOutput.apply(x, self.slope)


# -- copies --------------------------------------------------------------------------------------------------------------
class CopiesForget(nn.Module):
    """A slope that deep copies and pickles reset."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)

    def __reduce__(self) -> Any:
        return CopiesForget, ()

    def __deepcopy__(self, memo: Any) -> CopiesForget:
        other = CopiesForget().to(self.slope.dtype)
        other.load_state_dict({"slope": self.slope.detach().clone() if not memo.get("later") else self.slope})
        return other


class StateDictForgets(nn.Module):
    """A learnable slope that the state_dict does not bring back."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)

    def _load_from_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> None:
        return None
