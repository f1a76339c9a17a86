"""Activations with one planted fault each in the backward of every element.

Functions here are what a target's author might write; nothing in the gate knows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Rule(torch.autograd.Function):
    """A forward and a backward given as plain functions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Any, backward: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = backward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.rule(x, v), None, None


def relu_with(backward: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: Rule.apply(x, torch.relu, backward)


def rule(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: Rule.apply(x, forward, backward)


def step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


# -- the cotangent -------------------------------------------------------------------------------------------------------
# the published fault: the subgradient itself where the chain rule has subgradient times cotangent
injected_relu = relu_with(lambda x, v: torch.where(x == 0, torch.ones_like(v), v * step(x)))
injected_relu6 = rule(
    F.relu6, lambda x, v: torch.where((x == 0) | (x == 6), torch.full_like(v, 0.5), v * ((x > 0) & (x < 6)).to(v.dtype))
)
sign_of_cotangent = relu_with(lambda x, v: v.sign() * step(x))
absolute_cotangent = relu_with(lambda x, v: v.abs() * step(x))
squared_cotangent = rule(torch.sigmoid, lambda x, v: v * v * torch.sigmoid(x) * (1 - torch.sigmoid(x)))
rectified_cotangent = relu_with(lambda x, v: torch.where(v > 0, v, 0.5 * v) * step(x))
clipped_cotangent = relu_with(lambda x, v: v.clamp(-10, 10) * step(x))
small_cotangent_dropped = relu_with(lambda x, v: torch.where(v.abs() < 1e-4, torch.zeros_like(v), v) * step(x))
constant_gradient = relu_with(lambda x, v: step(x))
normalised_cotangent = relu_with(lambda x, v: v / v.abs().max() * step(x))

# -- the subgradient -----------------------------------------------------------------------------------------------------
subgradient_two = relu_with(lambda x, v: v * torch.where(x == 0, torch.full_like(x, 2.0), step(x)))
subgradient_minus_half = relu_with(lambda x, v: v * torch.where(x == 0, torch.full_like(x, -0.5), step(x)))


def _hardswish_open(x: Tensor, v: Tensor) -> Tensor:
    # zero at both bounds, which no branch covers
    inside = ((x > -3) & (x < 3)).to(x.dtype)
    return v * (inside * (x / 3 + 0.5) + (x > 3).to(x.dtype))


hardswish_hole_at_bounds = rule(F.hardswish, _hardswish_open)
# BobMcDear/attorch issue 16: the indicator of relu6 is open, the band of hardswish must be closed
attorch_hardswish = rule(
    F.hardswish, lambda x, v: v * (F.relu6(x + 3) / 6 + x * ((x + 3 > 0) & (x + 3 < 6)).to(x.dtype) / 6)
)
# pytorch issues 184572, 184574: gradient 1 at the bounds, where relu6 and hardtanh give 0
clamp_closed = rule(lambda x: x.clamp(0, 6), lambda x, v: v * ((x >= 0) & (x <= 6)).to(x.dtype))
# intel/torch-xpu-ops issue 2014: the band of hardswish closed at both bounds, 1.5 at 3 and -0.5 at -3
xpu_hardswish = rule(
    F.hardswish, lambda x, v: v * torch.where(x > 3, torch.ones_like(x), (x / 3 + 0.5) * (x >= -3).to(x.dtype))
)
# pytorch issue 120258 asks for it: hardtanh passes the gradient at its bounds
hardtanh_passes_at_bounds = rule(F.hardtanh, lambda x, v: v * ((x >= -1) & (x <= 1)).to(x.dtype))
# jax issue 37821: maximum(x, 0) shares the gradient of a tie, and takes every subnormal for one
jax_maximum = rule(
    torch.relu, lambda x, v: v * torch.where(x.abs() < torch.finfo(x.dtype).tiny, torch.full_like(x, 0.5), step(x))
)
relu_from_maximum = rule(torch.relu, lambda x, v: v * torch.where(x == 0, torch.full_like(x, 0.5), step(x)))
relu6_hit_on_output = rule(
    F.relu6, lambda x, v: v * torch.where(F.relu6(x) == 6, torch.full_like(x, 0.5), ((x > 0) & (x < 6)).to(x.dtype))
)
saturation_leaks = rule(
    F.hardsigmoid, lambda x, v: v * torch.where(x > 3, torch.full_like(x, 0.1), ((x > -3) & (x < 3)).to(x.dtype) / 6)
)
rounded_bound_doubles = rule(
    lambda x: F.hardtanh(x, -0.7, 0.7),
    lambda x, v: (
        v
        * torch.where(x == torch.tensor(0.7, dtype=x.dtype), torch.full_like(x, 2.0), ((x > -0.7) & (x < 0.7)).to(x.dtype))
    ),
)
other_in_bfloat16 = relu_with(lambda x, v: v * (x >= 0 if x.dtype == torch.bfloat16 else x > 0).to(x.dtype))

# -- the derivative ------------------------------------------------------------------------------------------------------
silu_without_second_term = rule(F.silu, lambda x, v: v * torch.sigmoid(x))
softshrink_wrong_sign = rule(
    F.softshrink, lambda x, v: v * torch.where(x < -0.5, torch.full_like(x, -1.0), (x > 0.5).to(x.dtype))
)
wrong_at_one = rule(torch.tanh, lambda x, v: v * torch.where(x == 1, torch.zeros_like(x), 1 - torch.tanh(x) ** 2))
wrong_at_smooth_zero = rule(
    lambda x: x * torch.sigmoid(x), lambda x, v: v * torch.where(x == 0, torch.zeros_like(x), _silu_slope(x))
)
shifted_threshold = relu_with(lambda x, v: v * (x > 0.01).to(x.dtype))
# kinks that the gradient moves by less than the kink search resolves at first
kink_moved_from_zero = relu_with(lambda x, v: v * (x > 1e-6).to(x.dtype))
kink_moved_from_six = rule(F.relu6, lambda x, v: v * ((x > 0) & (x < 6 - 1e-5)).to(x.dtype))
kink_moved_between_curves = rule(
    lambda x: F.elu(x, 2.0), lambda x, v: v * torch.where(x > 1e-7, torch.ones_like(x), 2 * x.clamp(max=0).exp())
)
kink_moved_between_close_slopes = rule(
    lambda x: torch.maximum(x, 1.01 * x), lambda x, v: v * torch.where(x > -1e-6, 1.01, 1.0).to(x.dtype)
)
jump_moved = rule(F.hardshrink, lambda x, v: v * (x.abs() > 0.5 + 1e-5).to(x.dtype))
elu_slope_lost = rule(F.elu, lambda x, v: v * torch.where(x > 0, torch.ones_like(x), 1 - x.clamp(max=0).exp()))


def softplus_by_relu(x: Tensor) -> Tensor:
    # right off 0; at 0 both summands have a kink, autodiff picks 0 for each, and 0.5 is lost
    return F.relu(x) + torch.log1p(torch.exp(-x.abs()))


def zero_band(x: Tensor) -> Tensor:
    # the value hardly changes, and the gradient at 0 is lost
    return torch.where(x.abs() < 1e-6, 0 * x, x)


def smallest_zero_band(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-12, 0 * x, F.silu(x))


def widest_zero_band(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-3, 0 * x, torch.tanh(x))


def negative_by_minimum(x: Tensor) -> Tensor:
    # transformers' XIELU: min(x, eps) is constant for -1e-6 < x <= 0, and the gradient there is -0.3 in place of 0.5
    eps = torch.full_like(x, -1e-6)
    return torch.where(x > 0, 0.8 * x * x + 0.5 * x, (torch.expm1(torch.minimum(x, eps)) - x) * 0.8 + 0.5 * x)


def scaled_by_clamped_size(x: Tensor) -> Tensor:
    # x / |x| * |x| with a size that is kept from 0: no jump of the value, and the gradient goes from 1 down to 0 and back
    return x / x.abs().clamp(min=1e-8) * x.abs()


def band_beside_zero(x: Tensor) -> Tensor:
    return torch.where((x > 1e-7) & (x < 1e-5), 3 * x, torch.sin(x))


def band_at_a_kink(x: Tensor) -> Tensor:
    # ReLU6 whose slope at 6 is 3, between the slopes 1 and 0
    return torch.where((x - 6).abs() < 1e-4, 6 + 3 * (x - 6), F.relu6(x))


# right values, and a wrong gradient on a logarithmic scale
wrong_band_of_small_inputs = rule(
    torch.tanh, lambda x, v: v * torch.where((x > 2e-9) & (x < 2e-8), 0 * x, 1 - torch.tanh(x) ** 2)
)
# rounding moves the kink at 0.1, and within 6 machine epsilons the gradient fits neither side
triple_beside_a_moved_kink = rule(
    lambda x: torch.relu((x + 3) - 3.1),
    lambda x, v: v * torch.where((x - 0.1).abs() < 6 * torch.finfo(x.dtype).eps, 3 + 0 * x, (x > 0.1).to(x.dtype)),
)


def elu_by_minimum(x: Tensor) -> Tensor:
    # the branches of where meet at 0 with slope 1; minimum halves the gradient of a tie
    return torch.where(x > 0, x, torch.expm1(torch.minimum(x, torch.zeros_like(x))))


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


# -- special values ------------------------------------------------------------------------------------------------------
def softplus_where_trap(x: Tensor) -> Tensor:
    return torch.where(x > 20, x, torch.log1p(torch.exp(x)))


def square_root_trap(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.sqrt(x), 0.5 * x)


def mish_overflows(x: Tensor) -> Tensor:
    e = torch.exp(x)
    return x * ((1 + e) ** 2 - 1) / ((1 + e) ** 2 + 1)


def shrinks_by_quotient(x: Tensor) -> Tensor:
    return x / x.abs() * torch.relu(x.abs() - 0.5)


def entropy_by_logarithm(x: Tensor) -> Tensor:
    return -x * torch.log(x.abs())


def sinc_by_quotient(x: Tensor) -> Tensor:
    return torch.sin(x) / x


def sigmoid_by_quotient(x: Tensor) -> Tensor:
    e = torch.exp(x)
    return e / (1 + e)


def softplus_by_logarithm(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x)) - math.log(2.0)


def softplus_linear_too_late(x: Tensor) -> Tensor:
    # infinite between 709.8 and 720 in float64
    return torch.where(x > 720, x, torch.log1p(torch.exp(x)))


def _late(x: Tensor, v: Tensor) -> Tensor:
    # 0 where exp overflows before 95
    e = torch.exp(x)
    return v * torch.where(x > 95, torch.ones_like(x), (e / (1 + e)).nan_to_num(0.0))


softplus_slope_lost_in_a_gap = rule(F.softplus, _late)
nan_at_zero = rule(lambda x: x.clamp(min=0) ** 2, lambda x, v: v * 2 * x.clamp(min=0) * (x / x))
infinite_at_one = rule(
    torch.tanh, lambda x, v: v * (1 - torch.tanh(x) ** 2) * torch.where(x == 1, 1 / (x - 1), torch.ones_like(x))
)


def nan_swallowed(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


nan_cotangent_swallowed = relu_with(lambda x, v: torch.nan_to_num(v) * step(x))
sign_bit_decides = relu_with(lambda x, v: v * (~x.signbit()).to(x.dtype))


def subnormals_flushed(x: Tensor) -> Tensor:
    return torch.relu(torch.where(x.abs() < torch.finfo(x.dtype).tiny, x * 0, x))


subnormal_gradient_flushed = relu_with(lambda x, v: v * (x >= torch.finfo(x.dtype).tiny).to(x.dtype))
subnormal_cotangent_flushed = relu_with(lambda x, v: torch.where(v.abs() < torch.finfo(v.dtype).tiny, v * 0, v) * step(x))

# -- elements and positions ----------------------------------------------------------------------------------------------
mean_of_gradient = relu_with(lambda x, v: v * step(x) * (0.5 + 0.5 * step(x).mean()))
neighbour_leaks = rule(torch.tanh, lambda x, v: v * (1 - torch.tanh(x) ** 2) + 0.1 * v.flatten().roll(1).reshape(v.shape))


def _tail_dropped(x: Tensor, v: Tensor) -> Tensor:
    gradient = (v * step(x)).flatten()
    if gradient.numel() >= 64:
        gradient[gradient.numel() // 64 * 64 :] = 0
    return gradient.reshape(x.shape)


def _tail_closed(x: Tensor, v: Tensor) -> Tensor:
    # pytorch issue 136345: the scalar tail of the kernel decides a bound otherwise than its vector body
    gradient = (v * (x > 0).to(x.dtype)).flatten()
    body = gradient.numel() // 16 * 16
    gradient[body:] = (v * (x >= 0).to(x.dtype)).flatten()[body:]
    return gradient.reshape(x.shape)


def _jump_closed_in_tail(x: Tensor, v: Tensor) -> Tensor:
    # the value is 0 at 0.5 everywhere
    gradient = (v * (x.abs() > 0.5).to(x.dtype)).flatten()
    body = gradient.numel() // 16 * 16
    gradient[body:] = (v * (x.abs() >= 0.5).to(x.dtype)).flatten()[body:]
    return gradient.reshape(x.shape)


jump_closed_in_tail = rule(F.hardshrink, _jump_closed_in_tail)
three_dimensions_closed = relu_with(lambda x, v: v * (x >= 0 if x.ndim > 2 else x > 0).to(x.dtype))


def quotient_by_square(x: Tensor) -> Tensor:
    # isru of echoAI: the square overflows, and the quotient is 0 in place of 1
    return x / torch.sqrt(1 + x * x)


def squareplus_by_square(x: Tensor) -> Tensor:
    return (x + torch.sqrt(x * x + 4)) / 2


def size_by_quotient_of_squares(x: Tensor) -> Tensor:
    # NaN at 0, and infinite where the square overflows, which is a notice alone
    return x * x / x.abs() + torch.sqrt(x * x + 4)


# the value is right up to the largest number, and the gradient 0 in place of 1 where the square overflows
slope_by_square = rule(lambda x: torch.hypot(x, torch.ones_like(x)), lambda x, v: v * x / torch.sqrt(1 + x * x))


def wrong_table_entry(x: Tensor) -> Tensor:
    wrong = (x == 1.5) & (x.dtype == torch.float16)
    return torch.where(wrong, 0.5 * torch.tanh(x), torch.tanh(x))


def saturation_by_polynomials(x: Tensor) -> Tensor:
    # sqnl of echoAI, as a sum of products with masks: infinity times 0, here from 5.3e153 on in float64
    masks = [(x.abs() <= 2).to(x.dtype), (x.abs() > 2).to(x.dtype)]
    return masks[0] * (x - 2.5 * x * (2.5 * x).abs() / 25) + masks[1] * x.sign()


def _gated(x: Tensor) -> Tensor:
    return x * torch.clamp((x + 1) / 2, max=1.0)


def _gated_slope(x: Tensor) -> Tensor:
    return torch.where(x < 1, x + 0.5, torch.ones_like(x))


# at the first number above 1, (x + 1) / 2 may round to 1, but no slope lies outside 1 and 1.5
steep_above_the_kink = rule(
    _gated, lambda x, v: v * torch.where((x > 1) & (x - 1 < 2 * torch.finfo(x.dtype).eps), 1.6 * x, _gated_slope(x))
)
# 1.25 lies between them, and in float64 as well it is taken at inputs beside 1
mean_around_the_kink = rule(
    _gated, lambda x, v: v * torch.where((x - 1).abs() <= 2**-7, torch.full_like(x, 1.25), _gated_slope(x))
)
saturates_at_100 = relu_with(lambda x, v: v * ((x > 0) & (x < 100)).to(x.dtype))
tail_dropped = relu_with(_tail_dropped)
tail_closed = relu_with(_tail_closed)


def tanh_low_in_bfloat16(x: Tensor) -> Tensor:
    """Saturates at 0.6 in one dtype."""
    y = torch.tanh(x)
    return torch.where(x > 1000, 0.6 * y, y) if x.dtype == torch.bfloat16 else y
