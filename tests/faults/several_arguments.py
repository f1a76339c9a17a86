"""Functions of several tensors, gated units and functions with several results, with one planted fault each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gradients = tuple[Tensor | None, ...]


class Several(torch.autograd.Function):
    """A forward of several tensors, and a backward that gets them and the cotangent, as plain functions."""

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.rule = backward
        return forward(*tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        tensors = ctx.saved_tensors
        found = ctx.rule(*tensors, v)
        summed = (None if g is None else g.sum_to_size(t.shape) for g, t in zip(found, tensors, strict=True))
        return None, None, *summed


def of_two(
    forward: Callable[[Tensor, Tensor], Tensor], backward: Callable[[Tensor, Tensor, Tensor], Gradients]
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: Several.apply(forward, backward, a, b)


def unit(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: Several.apply(forward, lambda x, v: (backward(x, v),), x)


def _swiglu(a: Tensor, b: Tensor) -> Tensor:
    return F.silu(a) * b


def _silu_slope(a: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 + a * (1 - s))


def _reglu(a: Tensor, b: Tensor) -> Tensor:
    return torch.relu(a) * b


def _step(a: Tensor) -> Tensor:
    return (a > 0).to(a.dtype)


# -- one gradient is wrong -----------------------------------------------------------------------------------------------
swiglu_doubled = of_two(_swiglu, lambda a, b, v: (v * b * _silu_slope(a), 2 * v * F.silu(a)))
swiglu_swapped = of_two(_swiglu, lambda a, b, v: (v * F.silu(a), v * b * _silu_slope(a)))
swiglu_without_gate_term = of_two(_swiglu, lambda a, b, v: (v * b * torch.sigmoid(a), v * F.silu(a)))
swiglu_clips = of_two(_swiglu, lambda a, b, v: (v * b * _silu_slope(a), v.clamp(-8, 8) * F.silu(a)))
reglu_two_at_kink = of_two(
    _reglu, lambda a, b, v: (v * b * torch.where(a == 0, torch.full_like(a, 2.0), _step(a)), v * torch.relu(a))
)
reglu_injected = of_two(_reglu, lambda a, b, v: (torch.where(a == 0, b.expand_as(v), v * b * _step(a)), v * torch.relu(a)))
reglu_detached_value = of_two(_reglu, lambda a, b, v: (v * b * _step(a), None))
reglu6_hit_on_output = of_two(
    lambda a, b: F.relu6(a) * b,
    lambda a, b, v: (
        v * b * torch.where(F.relu6(a) == 6, torch.full_like(a, 0.5), ((a > 0) & (a < 6)).to(a.dtype)),
        v * F.relu6(a),
    ),
)
product_by_quotient = of_two(lambda a, b: a * b, lambda a, b, v: (v * b, v * (a * b) / b))
swiglu_swallows_nan = of_two(
    lambda a, b: F.silu(a) * b.nan_to_num(), lambda a, b, v: (v * b * _silu_slope(a), v * F.silu(a))
)


def softplus_of_slope(x: Tensor, beta: Tensor) -> Tensor:
    def backward(x: Tensor, beta: Tensor, v: Tensor) -> Gradients:
        # without the derivative of 1 / beta
        return v * torch.sigmoid(beta * x), v * x * torch.sigmoid(beta * x) / beta

    return Several.apply(lambda x, beta: F.softplus(beta * x) / beta, backward, x, beta)  # type: ignore[no-any-return]


# -- right for some numbers of the other argument -----------------------------------------------------------------------
def _leaky(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def _leaky_by_output(x: Tensor, slope: Tensor, v: Tensor) -> Gradients:
    return torch.where(_leaky(x, slope) > 0, v, slope * v), torch.where(x > 0, 0 * v, x * v)


leaky_by_output = of_two(_leaky, _leaky_by_output)
swiglu_saturates = of_two(_swiglu, lambda a, b, v: (v * b.clamp(-100, 100) * _silu_slope(a), v * F.silu(a)))
swiglu_wrong_at_zero = of_two(
    _swiglu, lambda a, b, v: (v * torch.where(b == 0, torch.ones_like(b), b) * _silu_slope(a), v * F.silu(a))
)
reglu_wrong_at_kink_of_gate = of_two(
    _reglu, lambda a, b, v: (v * b * _step(a), v * torch.where(a == 0, torch.ones_like(a), torch.relu(a)))
)


# -- all arguments in one backward ---------------------------------------------------------------------------------------
def _in_place(a: Tensor, b: Tensor, v: Tensor) -> Gradients:
    by_a = v * b * _silu_slope(a)
    return by_a, v.mul_(F.silu(a))


def _in_place_first(a: Tensor, b: Tensor, v: Tensor) -> Gradients:
    w = v.clone()
    by_a = w.mul_(b * _silu_slope(a))
    return by_a, w * F.silu(a)


swiglu_overwrites_cotangent = of_two(_swiglu, _in_place)
swiglu_reuses_cotangent = of_two(_swiglu, _in_place_first)
swiglu_reads_next = of_two(_swiglu, lambda a, b, v: (v * b.roll(1) * _silu_slope(a), v * F.silu(a)))
swiglu_in_memory_order = of_two(
    _swiglu,
    lambda a, b, v: (v * torch.as_strided(b, b.shape, torch.empty(b.shape).stride()) * _silu_slope(a), v * F.silu(a)),
)


# -- at ties --------------------------------------------------------------------------------------------------------------
maximum_gives_both = of_two(torch.maximum, lambda a, b, v: (v * (a >= b), v * (b >= a)))
# the two masks differ where x = -bias
add_relu_by_two_masks = of_two(
    lambda x, bias: torch.relu(x + bias), lambda x, bias, v: (v * _step(x + bias), v * (x + bias >= 0).to(v.dtype))
)


# -- what is overwritten -------------------------------------------------------------------------------------------------
def swiglu_overwrites_gate_in_inference(gate: Tensor, up: Tensor) -> Tensor:
    """As kernels that save memory where no gradient is needed."""
    if gate.requires_grad or up.requires_grad:
        return F.silu(gate) * up
    return F.silu(gate, inplace=True).mul_(up)


def glu_overwrites_its_input(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value.mul_(torch.sigmoid(gate)) if not x.requires_grad else value * torch.sigmoid(gate)


class _OverwritesSaved(torch.autograd.Function):
    """Backward writes the gradients into the arrays that forward saved, as Liger's kernels do."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.saved = a.clone(), b.clone()
        return F.silu(a) * b

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        a, b = ctx.saved
        by_a, by_b = v * b * _silu_slope(a), v * F.silu(a)
        return a.copy_(by_a), b.copy_(by_b)


def swiglu_backward_once(a: Tensor, b: Tensor) -> Tensor:
    return _OverwritesSaved.apply(a, b)  # type: ignore[no-any-return]


# -- broadcast arguments -------------------------------------------------------------------------------------------------
class _BiasGelu(torch.autograd.Function):
    """``how`` reduces the gradient of the bias from the shape of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, how: Any) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.how = how
        return F.gelu(x + bias)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, bias = ctx.saved_tensors
        z = x + bias
        density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        g = v * (0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density)
        return g.sum_to_size(x.shape), g if bias.shape == g.shape else ctx.how(g, bias), None


def bias_gelu_mean(x: Tensor, bias: Tensor) -> Tensor:
    return _BiasGelu.apply(x, bias, lambda g, bias: g.reshape(-1, *bias.shape).mean(0))  # type: ignore[no-any-return]


def bias_gelu_first_row(x: Tensor, bias: Tensor) -> Tensor:
    return _BiasGelu.apply(x, bias, lambda g, bias: g.reshape(-1, *bias.shape)[0])  # type: ignore[no-any-return]


class BiasGelu(nn.Module):
    """The bias has the last axis of the input alone, and the input has more."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        if bias.shape != x.shape[1:]:
            raise RuntimeError("a bias per feature is needed")
        return _BiasGelu.apply(x, bias, lambda g, bias: g[:1].sum(0))  # type: ignore[no-any-return]


# -- dtypes and modes ----------------------------------------------------------------------------------------------------
def swiglu_in_dtype_of_second(a: Tensor, b: Tensor) -> Tensor:
    return (F.silu(a) * b).to(b.dtype)


def swiglu_promotes(a: Tensor, b: Tensor) -> Tensor:
    return F.silu(a.float()) * b.float() if a.dtype is torch.bfloat16 else F.silu(a) * b


swiglu_without_second = of_two(_swiglu, lambda a, b, v: (v * b * _silu_slope(a.detach()), v * F.silu(a.detach())))


class _TwoModes(torch.autograd.Function):
    """In forward mode, the tangent of the second argument is left out."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _swiglu(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return v * b * _silu_slope(a), v * F.silu(a)

    @staticmethod
    def jvp(ctx: Any, ua: Tensor, ub: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return b * _silu_slope(a) * (torch.zeros_like(a) if ua is None else ua) + 0 * b


def swiglu_of_two_modes(a: Tensor, b: Tensor) -> Tensor:
    return _TwoModes.apply(a, b)  # type: ignore[no-any-return]


# -- gated units ---------------------------------------------------------------------------------------------------------
def _geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


def _glu_backward(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    value, gate = x.chunk(2, -1)
    s = torch.sigmoid(gate)
    return v * s, v * value * s * (1 - s)


glu_halves_swapped = unit(lambda x: F.glu(x, -1), lambda x, v: torch.cat(_glu_backward(x, v)[::-1], -1))
glu_gate_doubled = unit(
    lambda x: F.glu(x, -1), lambda x, v: torch.cat([_glu_backward(x, v)[0], 2 * _glu_backward(x, v)[1]], -1)
)


def _interleaved(x: Tensor) -> Tensor:
    return torch.relu(x[..., ::2]) * x[..., 1::2]


def _interleaved_backward(x: Tensor, v: Tensor) -> Tensor:
    gate, value = x[..., ::2], x[..., 1::2]
    return torch.cat([v * value * _step(gate), v * torch.relu(gate)], -1)


reglu_in_halves = unit(_interleaved, _interleaved_backward)


def glu_by_quotient(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * (gate.exp() / (1 + gate.exp()))


class ReGLU(nn.Module):
    """The subgradient at the kink of the gate is 2."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, 1)
        return reglu_two_at_kink(gate, value)


class SwiGLUReadsNext(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return swiglu_reads_next(gate, value)


class LeakyGate(nn.Module):
    """The slope of the gate is the value, of any sign."""

    def forward(self, x: Tensor) -> Tensor:
        gate, slope = x.chunk(2, -1)
        return leaky_by_output(gate, slope)


# -- several results -----------------------------------------------------------------------------------------------------
def relu_and_mask(x: Tensor) -> tuple[Tensor, Tensor]:
    return x > 0, unit(torch.relu, lambda x, v: torch.where(x == 0, torch.ones_like(v), v * _step(x)))(x)


def silu_and_mean(x: Tensor) -> dict[str, Tensor]:
    y = unit(F.silu, lambda x, v: v * torch.sigmoid(x))(x)
    return {"mean": x.detach().mean(), "value": y}


def swiglu_and_gate(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return swiglu_doubled(a, b), F.silu(a).detach()
