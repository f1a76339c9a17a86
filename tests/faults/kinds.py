"""Kinds of healthy activations on which tolerances could go wrong, each beside a twin with a fault that must be seen.

A kind is what the twins share: a computation in float32 inside, an underflow, a range, a rounding, a parameter per feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def differentiated(
    value: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return a function whose backward is given as a function of input and cotangent."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return value(x)

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return backward(ctx.saved_tensors[0], cotangent)

    return lambda x: ByHand.apply(x)  # type: ignore[no-any-return]


# -- computed in float32, whatever the dtype ---------------------------------------------------------------------------
def tanh_in_float32(x: Tensor) -> Tensor:
    return torch.tanh(x.float()).to(x.dtype)


def sine_in_float32(x: Tensor) -> Tensor:
    return torch.sin(x.float()).to(x.dtype)


def snake_in_float32(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide + torch.sin(3 * wide) ** 2 / 3).to(x.dtype)


def gelu_in_float32(x: Tensor) -> Tensor:
    return F.gelu(x.float()).to(x.dtype)


def exponential_in_float32(x: Tensor) -> Tensor:
    return torch.exp(x.float()).to(x.dtype)


def hardtanh_in_float32(x: Tensor) -> Tensor:
    return F.hardtanh(x.float(), -0.7, 1.3).to(x.dtype)


def relu6_in_float32(x: Tensor) -> Tensor:
    return F.relu6(x.float()).to(x.dtype)


def leaky_in_float32(x: Tensor) -> Tensor:
    return F.leaky_relu(x.float(), 0.1).to(x.dtype)


class ScaledTanhInFloat32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha.float() * x.float()).to(x.dtype)


def _slope_of_tanh(x: Tensor) -> Tensor:
    return 1 - torch.tanh(x.float()) ** 2


def tanh_with_gradient_in_float32(x: Tensor) -> Tensor:
    """The value has all digits of float64, and the gradient those of float32."""
    return differentiated(torch.tanh, lambda x, v: v.float() * _slope_of_tanh(x))(x)


def relu_from_three_tenths(x: Tensor) -> Tensor:
    return torch.relu(x - 0.3)


def relu_flat_beside_a_rounded_kink(x: Tensor) -> Tensor:
    return differentiated(relu_from_three_tenths, lambda x, v: v * (x > 0.301).to(v.dtype))(x)


def tanh_one_per_cent_steep(x: Tensor) -> Tensor:
    return differentiated(tanh_in_float32, lambda x, v: (1.01 * v.float() * _slope_of_tanh(x)).to(x.dtype))(x)


def tanh_clips(x: Tensor) -> Tensor:
    return differentiated(tanh_in_float32, lambda x, v: (v.float().clamp(-8, 8) * _slope_of_tanh(x)).to(x.dtype))(x)


def tanh_of_absolute_cotangent(x: Tensor) -> Tensor:
    return differentiated(tanh_in_float32, lambda x, v: (v.float().abs() * _slope_of_tanh(x)).to(x.dtype))(x)


def tanh_flushes_cotangents(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        return (torch.where(v.abs() < 1e-36, 0 * v, v).float() * _slope_of_tanh(x)).to(x.dtype)

    return differentiated(tanh_in_float32, backward)(x)


def sine_without_second(x: Tensor) -> Tensor:
    return differentiated(sine_in_float32, lambda x, v: v * torch.cos(x.detach().float()).to(x.dtype))(x)


def relu6_leaks(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        return torch.where((x > 0) & (x < 6.1), v, 0 * v)

    return differentiated(relu6_in_float32, backward)(x)


class _TanhTwoModes(torch.autograd.Function):
    """The derivative in forward mode is one per cent too large."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return tanh_in_float32(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return (v.float() * _slope_of_tanh(ctx.saved_tensors[0])).to(v.dtype)

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        return (1.01 * u.float() * _slope_of_tanh(ctx.saved_tensors[0])).to(u.dtype)


def tanh_of_two_modes(x: Tensor) -> Tensor:
    return _TanhTwoModes.apply(x)  # type: ignore[no-any-return]


# -- underflow inside, and results beyond the range --------------------------------------------------------------------
def maximum_of_scaled(x: Tensor) -> Tensor:
    return torch.maximum((0.01 * x).abs(), x)


def maximum_of_scaled_doubles(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        return torch.where(x > 0, v, -0.01 * v).masked_fill(x.abs() < 1e-3, 3.0)

    return differentiated(maximum_of_scaled, backward)(x)


def scaled_flushes(x: Tensor) -> Tensor:
    return maximum_of_scaled(torch.where(x.abs() < 1e-38, 0 * x, x))


def tangent(x: Tensor) -> Tensor:
    return torch.tan(x)


def tangent_infinite_early(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        slope = 1 + torch.tan(x) ** 2
        return v * slope.masked_fill(slope > 100, math.inf)

    return differentiated(torch.tan, backward)(x)


# -- rounding of a * x at large x ---------------------------------------------------------------------------------------
class Snake(nn.Module):
    """A slope per channel."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * (self.alpha * x).sin().pow(2)


class SnakeBySinc(Snake):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * (x * (self.alpha * x / torch.pi).sinc()).pow(2)


def cosine_of_turns(x: Tensor) -> Tensor:
    return torch.cos(math.pi * x)


def cosine_wrong_sign(x: Tensor) -> Tensor:
    return differentiated(cosine_of_turns, lambda x, v: v * math.pi * torch.sin(math.pi * x))(x)


def cosine_flat_from_three(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        return torch.where(x.abs() > 3, 0 * v, -v * math.pi * torch.sin(math.pi * x))

    return differentiated(cosine_of_turns, backward)(x)


class SnakeWithoutSine(Snake):
    def forward(self, x: Tensor) -> Tensor:
        return x + (super().forward(x) - x).detach()


class Siren(nn.Module):
    """The slope of the sine is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(30.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


class _SineOneTenthLess(torch.autograd.Function):
    """The gradient of the slope is one tenth too small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, omega: Tensor) -> Tensor:
        ctx.save_for_backward(x, omega)
        return torch.sin(omega * x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        x, omega = ctx.saved_tensors
        slope = v * torch.cos(omega * x)
        return omega * slope, 0.9 * (x * slope).sum()


class SirenOneTenthLess(Siren):
    def forward(self, x: Tensor) -> Tensor:
        return _SineOneTenthLess.apply(x, self.omega)  # type: ignore[no-any-return]


# -- periodic, with kinks beyond the scanned range, and poles ------------------------------------------------------------
def triangle_wave(x: Tensor) -> Tensor:
    return (x - 2 * torch.floor(x / 2) - 1).abs()


def triangle_wrong_in_one_period(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        side = torch.sign(x - 2 * torch.floor(x / 2) - 1)
        return v * torch.where((x > 4) & (x < 6), -side, side)

    return differentiated(triangle_wave, backward)(x)


def rectified_cosine(x: Tensor) -> Tensor:
    return F.relu(torch.cos(3 * x))


def cotangent(x: Tensor) -> Tensor:
    return torch.cos(x) / torch.sin(x)


def inverse_square(x: Tensor) -> Tensor:
    return 1 / (x * x)


def inverse_square_halved(x: Tensor) -> Tensor:
    return differentiated(inverse_square, lambda x, v: -v / x**3)(x)


def chirp(x: Tensor) -> Tensor:
    return torch.sin(x.clamp(-1e4, 1e4) ** 2)


# -- what autocast and a dtype did not cause ----------------------------------------------------------------------------
def relu_two_at_kink(x: Tensor) -> Tensor:
    return differentiated(torch.relu, lambda x, v: torch.where(x > 0, v, 0 * v).masked_fill(x == 0, 2.0))(x)


def relu_nan_at_kink(x: Tensor) -> Tensor:
    return differentiated(torch.relu, lambda x, v: torch.where(x > 0, v, 0 * v).masked_fill(x == 0, math.nan))(x)


def relu_nan_in_bfloat16(x: Tensor) -> Tensor:
    wrong = math.nan if x.dtype is torch.bfloat16 else 0.0
    return differentiated(torch.relu, lambda x, v: torch.where(x > 0, v, 0 * v).masked_fill(x == 0, wrong))(x)


# -- a parameter per feature, channels in several layouts ----------------------------------------------------------------
class DynamicTanh(nn.Module):
    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x) * self.weight + self.bias


class FeaturePReLU(nn.Module):
    """One slope for each feature of the last axis."""

    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 0.4, features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.weight * x)


class ImagePReLU(FeaturePReLU):
    """Takes (n, C, H, W) only."""

    def forward(self, x: Tensor) -> Tensor:
        _, channels, _, _ = x.shape
        return torch.where(x > 0, x, self.weight.view(1, channels, 1, 1) * x)


class SequencePReLU(FeaturePReLU):
    """Takes (n, L, C) only."""

    def forward(self, x: Tensor) -> Tensor:
        _, _, _ = x.shape
        return super().forward(x)


class ImageLastPReLU(FeaturePReLU):
    """Takes (n, H, W, C) only."""

    def forward(self, x: Tensor) -> Tensor:
        _, _, _, _ = x.shape
        return super().forward(x)


class BiasedLeaky(nn.Module):
    """A bias per channel: the kink of each channel lies elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return 2**0.5 * F.leaky_relu(x + self.bias.view([1, -1] + [1] * (x.ndim - 2)), 0.2)


class _SlopesInFunction(torch.autograd.Function):
    """The gradient of x is wrong as ``fault`` says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, fault: str) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.fault = fault
        return torch.where(x > 0, x, w * x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        slopes = w.flatten()[:1] if ctx.fault == "first feature" else w
        grad = torch.where(x > 0, v, v * slopes)
        if ctx.fault == "steep":
            grad = 1.5 * grad
        if ctx.fault == "first sample":
            grad[1:] = 0
        return grad, (v * x * (x <= 0)).sum_to_size(w.shape), None


class Steep(FeaturePReLU):
    def forward(self, x: Tensor) -> Tensor:
        return _SlopesInFunction.apply(x, self.weight, "steep")  # type: ignore[no-any-return]


class FirstFeatureForAll(FeaturePReLU):
    def forward(self, x: Tensor) -> Tensor:
        return _SlopesInFunction.apply(x, self.weight, "first feature")  # type: ignore[no-any-return]


class FirstSampleOnly(FeaturePReLU):
    def forward(self, x: Tensor) -> Tensor:
        return _SlopesInFunction.apply(x, self.weight, "first sample")  # type: ignore[no-any-return]


class ImageFirstSampleOnly(FeaturePReLU):
    def forward(self, x: Tensor) -> Tensor:
        _, channels, _, _ = x.shape
        return _SlopesInFunction.apply(x, self.weight.view(1, channels, 1, 1), "first sample")  # type: ignore[no-any-return]


# -- in place ------------------------------------------------------------------------------------------------------------
class Scaled(nn.Module):
    """In place or not, with a slope per channel."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 3).reshape(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu_(x, 0.2) if self.inplace else F.leaky_relu(x, 0.2)
        return y * self.weight


class TimesCosine(nn.Module):
    """In place it cannot be differentiated: the cosine's backward needs the input that ``mul_`` overwrites."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.cos(x)) if self.inplace else x * torch.cos(x)


# -- a function of positions -----------------------------------------------------------------------------------------------
def relu_at_even_places(x: Tensor) -> Tensor:
    even = (torch.arange(x.numel()) % 2 == 0).reshape(x.shape)
    return torch.where(even, x.clamp(min=0), x.clamp(max=0))


# -- nothing wrong, in forms that people use -------------------------------------------------------------------------------
class ClippedByParameter(nn.Module):
    """PACT: the upper bound is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x.abs() - (x - self.bound).abs() + self.bound)


def closed_hardsigmoid(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        return torch.where((x >= -3) & (x <= 3), v / 6, torch.zeros_like(v))

    return differentiated(lambda x: ((x + 3) / 6).clamp(0, 1), backward)(x)


# -- kinks that rounding inside moves, and a kink with close slopes
def relu_from_a_rounded_sum(x: Tensor) -> Tensor:
    return torch.relu((x + 3) - 3.1)


def relu_from_a_third(x: Tensor) -> Tensor:
    return torch.relu(3 * x - 1)


def maximum_with_close_slopes(x: Tensor) -> Tensor:
    return torch.maximum(x, 1.01 * x)


def starts_at_a_millionth(x: Tensor) -> Tensor:
    """The value jumps by 1e-6 where the gradient changes."""
    return torch.where(x > 1e-6, x, 0 * x)


# -- structure near 0 that smooth functions have
def cubic_through_zero(x: Tensor) -> Tensor:
    """x**3 / (x**2 + 1e-12), whose slope is 1, but 0 at 0."""
    return x - x * 1e-12 / (x * x + 1e-12)


def square_over_size(x: Tensor) -> Tensor:
    return x - x * 1e-6 / (x.abs() + 1e-6)


def smooth_size(x: Tensor) -> Tensor:
    return torch.hypot(x, torch.full_like(x, 1e-6))


def steep_tanh(x: Tensor) -> Tensor:
    return torch.tanh(1e4 * x)


#: Healthy activations, each with the dtypes in which the gate's tolerances were too narrow, or float32.
HEALTHY: dict[Any, tuple[str, ...]] = {
    tanh_in_float32: ("float64",),
    sine_in_float32: ("float32", "float64"),
    snake_in_float32: ("float64", "float16"),
    gelu_in_float32: ("float64",),
    exponential_in_float32: ("float64",),
    hardtanh_in_float32: ("float64",),
    relu6_in_float32: ("float64",),
    leaky_in_float32: ("float64",),
    ScaledTanhInFloat32: ("float64",),
    maximum_of_scaled: ("float32", "bfloat16", "float16"),
    tangent: ("float16",),
    cosine_of_turns: ("bfloat16", "float16"),
    triangle_wave: ("float64", "float16"),
    rectified_cosine: ("float32",),
    cotangent: ("float16",),
    inverse_square: ("float32",),
    chirp: ("float64",),
    DynamicTanh: ("float32",),
    FeaturePReLU: ("bfloat16",),
    ImagePReLU: ("float32",),
    SequencePReLU: ("float32",),
    BiasedLeaky: ("float32",),
    Scaled: ("float32",),
    ClippedByParameter: ("float32",),
    closed_hardsigmoid: ("float32",),
    relu_from_three_tenths: ("float32", "bfloat16"),
    relu_from_a_rounded_sum: ("float32", "float64", "bfloat16"),
    relu_from_a_third: ("float32", "float64", "bfloat16"),
    maximum_with_close_slopes: ("float32", "float64"),
    starts_at_a_millionth: ("float32", "float64"),
    cubic_through_zero: ("float32", "float64", "bfloat16"),
    square_over_size: ("float32", "float64", "bfloat16"),
    smooth_size: ("float32", "float64"),
    steep_tanh: ("float32", "float64", "bfloat16"),
}
#: Twins with a fault, each with the law that must fail it and the dtype.
FAULTY: dict[Any, tuple[str, str]] = {
    tanh_with_gradient_in_float32: ("chain_rule", "float64"),
    tanh_one_per_cent_steep: ("derivative", "float64"),
    tanh_clips: ("chain_rule", "float64"),
    tanh_of_absolute_cotangent: ("cotangent_additivity", "float64"),
    tanh_flushes_cotangents: ("subnormals", "float64"),
    tanh_of_two_modes: ("forward_mode", "float64"),
    sine_without_second: ("double_backward", "float64"),
    relu6_leaks: ("derivative", "float64"),
    relu_flat_beside_a_rounded_kink: ("derivative", "float32"),
    maximum_of_scaled_doubles: ("derivative", "float16"),
    scaled_flushes: ("subnormals", "float32"),
    tangent_infinite_early: ("finite_gradient", "float16"),
    cosine_wrong_sign: ("derivative", "bfloat16"),
    cosine_flat_from_three: ("derivative", "float16"),
    SnakeWithoutSine: ("derivative", "bfloat16"),
    relu_nan_in_bfloat16: ("dtype_agreement", "bfloat16"),
    SirenOneTenthLess: ("parameters", "float32"),
    triangle_wrong_in_one_period: ("derivative", "float16"),
    inverse_square_halved: ("derivative", "float32"),
    Steep: ("derivative", "float32"),
    FirstFeatureForAll: ("channels", "float32"),
    FirstSampleOnly: ("derivative", "float32"),
    ImageFirstSampleOnly: ("derivative", "float32"),
    TimesCosine: ("inplace", "float32"),
}
