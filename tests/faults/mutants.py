"""Activations with one planted fault each. ``MUTANTS`` says which law must fail each of them, and in which dtype.

Functions and classes here are what a target's author might write; nothing in the gate knows them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck import Activation, Kink


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
elu_slope_lost = rule(F.elu, lambda x, v: v * torch.where(x > 0, torch.ones_like(x), 1 - x.clamp(max=0).exp()))


def softplus_by_relu(x: Tensor) -> Tensor:
    # right off 0; at 0 both summands have a kink, autodiff picks 0 for each, and 0.5 is lost
    return F.relu(x) + torch.log1p(torch.exp(-x.abs()))


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


three_dimensions_closed = relu_with(lambda x, v: v * (x >= 0 if x.ndim > 2 else x > 0).to(x.dtype))
saturates_at_100 = relu_with(lambda x, v: v * ((x > 0) & (x < 100)).to(x.dtype))
tail_dropped = relu_with(_tail_dropped)
tail_closed = relu_with(_tail_closed)


# -- modes ---------------------------------------------------------------------------------------------------------------
class OtherForwardMode(torch.autograd.Function):
    """ReLU with subgradient 0 in reverse mode and 1 in forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return v * (ctx.saved_tensors[0] > 0).to(v.dtype)

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        return u * (ctx.saved_tensors[0] >= 0).to(u.dtype)


class DroppedTangent(OtherForwardMode):
    """Forward mode ignores the tangent."""

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        return (ctx.saved_tensors[0] > 0).to(u.dtype)


class OtherUnderVmap(OtherForwardMode):
    """A vmap rule of its own that differentiates something else."""

    generate_vmap_rule = False

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        return u * (ctx.saved_tensors[0] > 0).to(u.dtype)

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> Any:
        return F.leaky_relu(x, 0.1), 0


def forward_mode_differs(x: Tensor) -> Tensor:
    return OtherForwardMode.apply(x)


def forward_mode_drops_tangent(x: Tensor) -> Tensor:
    return DroppedTangent.apply(x)


def vmap_differs(x: Tensor) -> Tensor:
    return OtherUnderVmap.apply(x)


second_derivative_lost = rule(torch.tanh, lambda x, v: v * (1 - torch.tanh(x.detach()) ** 2))
second_derivative_nan = rule(lambda x: x * x.abs() / 2, lambda x, v: v * torch.sqrt(x * x))
second_derivative_wrong = rule(torch.sigmoid, lambda x, v: v * torch.sigmoid(x) * (1 - torch.sigmoid(x).detach()))


def compiled_differs(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.5) if torch.compiler.is_compiling() else F.leaky_relu(x, 0.25)


def hardtanh_rounded_when_compiled(x: Tensor) -> Tensor:
    # pytorch issue 185472: compiled code compared with bfloat16(0.7), eager code with 0.7
    bound = torch.tensor(0.7, dtype=torch.float64)
    if torch.compiler.is_compiling():
        bound = bound.to(x.dtype).to(torch.float64)
    inside = x.detach().to(torch.float64).abs() < bound
    return torch.where(inside, x, x.detach().clamp(-0.7, 0.7))


class HardtanhRoundedWhenCompiled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return hardtanh_rounded_when_compiled(x)


def autocast_scales(x: Tensor) -> Tensor:
    return torch.relu(x) * (2.0 if torch.is_autocast_enabled("cpu") else 1.0)


# -- tensors -------------------------------------------------------------------------------------------------------------
def promotes(x: Tensor) -> Tensor:
    return torch.relu(x) * torch.ones(1, dtype=torch.float32)


def scalars_gain_a_dimension(x: Tensor) -> Tensor:
    return torch.atleast_1d(torch.relu(x))


def _memory_order(x: Tensor, v: Tensor) -> Tensor:
    contiguous = torch.empty(x.shape).stride()
    return v * step(x.as_strided(x.shape, contiguous)) if x.is_contiguous() or x.t().is_contiguous() else v * step(x)


reads_memory_order = relu_with(
    lambda x, v: _memory_order(x, v) if x.ndim == 2 and x.stride(0) > 0 and x.stride(1) > 0 else v * step(x)
)


class _Overwritten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
            result = x.clamp_(0, 6)
        else:
            result = x.clamp(0, 6)
        ctx.inside = (x >= 0) & (x <= 6) if inplace else (x > 0) & (x < 6)
        return result

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return v * ctx.inside.to(v.dtype), None


class MaskAfterOverwriting(nn.Module):
    """ReLU6 whose in-place variant makes its mask from the values that it has just written."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return _Overwritten.apply(x, self.inplace)


class WritesThroughData(nn.Module):
    """LeakyReLU whose in-place variant goes round the version counter."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        result = F.leaky_relu(x, 0.1)
        if self.inplace:
            x.data.copy_(result.detach())
        return result


def overwrites_input(x: Tensor) -> Tensor:
    result = torch.relu(x)
    x.data.clamp_(min=0)
    return result


overwrites_cotangent = relu_with(lambda x, v: v.mul_(step(x)))


# -- calls ---------------------------------------------------------------------------------------------------------------
_calls = [0]


def _alternating(x: Tensor, v: Tensor) -> Tensor:
    _calls[0] += 1
    return v * torch.where(x == 0, torch.full_like(x, float(_calls[0] % 2)), step(x))


alternating_subgradient = relu_with(_alternating)


class MaskOnSelf(nn.Module):
    """Keeps the mask on the module: a second forward overwrites it."""

    def forward(self, x: Tensor) -> Tensor:
        self.mask = (x.detach() > 0).to(x.dtype)
        return rule(torch.relu, lambda x, v: v * self.mask)(x)


def sets_default_dtype(x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return torch.relu(x)


def seeds_the_generator(x: Tensor) -> Tensor:
    torch.manual_seed(1234)
    return torch.relu(x)


def turns_gradients_off(x: Tensor) -> Tensor:
    result = torch.relu(x)
    torch.set_grad_enabled(False)
    return result


def detaches(x: Tensor) -> Tensor:
    return F.silu(x.detach())


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.maximum(x.detach().to(torch.float64).numpy(), 0)).to(x.dtype)


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


# -- declarations --------------------------------------------------------------------------------------------------------
def gelu_by_sigmoid(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


DECLARED = [
    Activation(
        "attorch_hardswish_declared",
        lambda: attorch_hardswish,
        kinks=[Kink(-3.0, 0.0, -0.5, -0.5), Kink(3.0, 1.5, 1.0, 1.5)],
    ),
    Activation("jump_claimed_continuous", nn.Hardshrink, continuous=True),
    Activation("kink_declared_elsewhere", nn.ReLU, kinks=[Kink(1.0, 0.0, 1.0)]),
    Activation("slopes_declared_wrong", nn.LeakyReLU, kinks=[Kink(0.0, 0.1, 1.0)]),
    Activation("kink_undeclared", nn.ReLU6, kinks=[Kink(0.0, 0.0, 1.0)]),
    Activation("reference_value", lambda: gelu_by_sigmoid, reference=nn.GELU()),
    Activation("reference_subgradient", lambda: clamp_closed, reference=nn.ReLU6()),
    Activation("spelled_otherwise", lambda: relu_from_maximum, same_as="torch.nn.functional.relu"),
    Activation("compiled_differently", lambda: compiled_differs, compile=True),
    Activation("compiled_hardtanh", lambda: hardtanh_rounded_when_compiled, compile=True),
    Activation("compiled_hardtanh_module", HardtanhRoundedWhenCompiled, compile=True),
    Activation("xpu_hardswish_reference", lambda: xpu_hardswish, reference=nn.Hardswish()),
    Activation("hardtanh_passes_reference", lambda: hardtanh_passes_at_bounds, reference=nn.Hardtanh()),
    Activation("jax_maximum_spelled", lambda: jax_maximum, same_as="torch.nn.functional.relu"),
]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A name in this file, the law that must fail it, and where."""

    name: str
    law: str
    dtype: str = "float32"
    convention: str = "clarke"
    slow: bool = False


MUTANTS = [
    Mutant("injected_relu", "chain_rule"),
    Mutant("injected_relu", "cotangent_scaling", "bfloat16"),
    Mutant("injected_relu6", "cotangent_scaling"),
    Mutant("injected_relu6", "subgradient", "float64"),
    Mutant("sign_of_cotangent", "cotangent_scaling"),
    Mutant("absolute_cotangent", "cotangent_scaling"),
    Mutant("squared_cotangent", "cotangent_additivity"),
    Mutant("rectified_cotangent", "cotangent_additivity", "float64"),
    Mutant("clipped_cotangent", "chain_rule", "float64"),
    Mutant("small_cotangent_dropped", "chain_rule"),
    Mutant("constant_gradient", "chain_rule", "float16"),
    Mutant("normalised_cotangent", "locality"),
    Mutant("subgradient_two", "subgradient"),
    Mutant("subgradient_minus_half", "subgradient", "bfloat16"),
    Mutant("hardswish_hole_at_bounds", "subgradient", "float16"),
    Mutant("attorch_hardswish_declared", "subgradient"),
    Mutant("clamp_closed", "subgradient", convention="minimum-norm"),
    Mutant("relu6_hit_on_output", "hit_on_input"),
    Mutant("saturation_leaks", "hit_on_input", "bfloat16"),
    Mutant("rounded_bound_doubles", "rounded_kinks", "bfloat16"),
    Mutant("rounded_bound_doubles", "rounded_kinks", "float16"),
    Mutant("other_in_bfloat16", "dtype_agreement", "bfloat16"),
    Mutant("silu_without_second_term", "derivative"),
    Mutant("softshrink_wrong_sign", "derivative", "bfloat16"),
    Mutant("wrong_at_one", "derivative", "float16"),
    Mutant("wrong_at_smooth_zero", "derivative"),
    Mutant("softplus_by_relu", "derivative", "bfloat16"),
    Mutant("elu_by_minimum", "derivative", "float16"),
    Mutant("shifted_threshold", "derivative"),
    Mutant("elu_slope_lost", "derivative", "float64"),
    Mutant("softplus_where_trap", "finite_gradient"),
    Mutant("softplus_where_trap", "finite_gradient", "bfloat16"),
    Mutant("square_root_trap", "finite_gradient"),
    Mutant("mish_overflows", "finite_gradient", "float16"),
    Mutant("nan_at_zero", "finite_gradient", "float64"),
    Mutant("infinite_at_one", "finite_gradient"),
    Mutant("nan_swallowed", "nan_propagates"),
    Mutant("nan_cotangent_swallowed", "nan_propagates"),
    Mutant("sign_bit_decides", "signed_zero"),
    Mutant("subnormals_flushed", "subnormals"),
    Mutant("subnormal_gradient_flushed", "subnormals", "float16"),
    Mutant("subnormal_cotangent_flushed", "subnormals", "bfloat16"),
    Mutant("mean_of_gradient", "locality"),
    Mutant("neighbour_leaks", "locality", "float64"),
    Mutant("tail_dropped", "position"),
    Mutant("tail_closed", "position", "bfloat16"),
    Mutant("forward_mode_differs", "forward_mode"),
    Mutant("forward_mode_drops_tangent", "forward_mode"),
    Mutant("vmap_differs", "vmap"),
    Mutant("second_derivative_lost", "double_backward", "float64"),
    Mutant("second_derivative_nan", "double_backward"),
    Mutant("second_derivative_wrong", "double_backward", "float64"),
    Mutant("compiled_differently", "compile_agreement", slow=True),
    Mutant("compiled_hardtanh", "compile_agreement", "bfloat16", slow=True),
    Mutant("compiled_hardtanh_module", "compile_agreement", "bfloat16", slow=True),
    Mutant("autocast_scales", "autocast"),
    Mutant("three_dimensions_closed", "dtype_and_shape"),
    Mutant("saturates_at_100", "derivative", "float64"),
    Mutant("FirstChannelForAll", "channels"),
    Mutant("xpu_hardswish", "subgradient", "bfloat16", convention="minimum-norm"),
    Mutant("xpu_hardswish_reference", "reference", "float16"),
    Mutant("hardtanh_passes_at_bounds", "subgradient", convention="minimum-norm"),
    Mutant("hardtanh_passes_reference", "reference"),
    Mutant("jax_maximum", "subnormals"),
    Mutant("jax_maximum", "subgradient", convention="minimum-norm"),
    Mutant("jax_maximum_spelled", "equal_spellings"),
    Mutant("promotes", "dtype_and_shape", "bfloat16"),
    Mutant("scalars_gain_a_dimension", "dtype_and_shape"),
    Mutant("reads_memory_order", "strides"),
    Mutant("MaskAfterOverwriting", "inplace"),
    Mutant("WritesThroughData", "inplace"),
    Mutant("overwrites_input", "input_unchanged"),
    Mutant("overwrites_cotangent", "input_unchanged"),
    Mutant("alternating_subgradient", "determinism"),
    Mutant("MaskOnSelf", "independent_calls"),
    Mutant("sets_default_dtype", "global_state"),
    Mutant("seeds_the_generator", "global_state"),
    Mutant("turns_gradients_off", "global_state"),
    Mutant("detaches", "runs"),
    Mutant("through_numpy", "runs"),
    Mutant("SlopeDetached", "parameters"),
    Mutant("SlopeInjected", "parameters"),
    Mutant("SlopeWrongSign", "parameters", "float64"),
    Mutant("SlopeAveraged", "parameters"),
    Mutant("CopiesForget", "copies"),
    Mutant("StateDictForgets", "copies"),
    Mutant("jump_claimed_continuous", "continuity"),
    Mutant("kink_declared_elsewhere", "declared_kinks"),
    Mutant("slopes_declared_wrong", "declared_kinks"),
    Mutant("kink_undeclared", "declared_kinks"),
    Mutant("reference_value", "reference"),
    Mutant("reference_subgradient", "reference", "bfloat16"),
    Mutant("spelled_otherwise", "equal_spellings"),
]
