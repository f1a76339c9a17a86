"""Activations with one planted fault each in another mode, with a kind of tensor, or in what a call leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.wrong_gradients import relu_with, rule, step


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


def threshold_at_a_tenth(x: Tensor) -> Tensor:
    # torch's own fault: its kernel compares bfloat16 inputs with 0.1, its decomposition with bfloat16(0.1)
    return F.threshold(x, 0.1, 0.0)


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


class _GradientInInput(torch.autograd.Function):
    """SiLU whose backward stores the gradient in the saved input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        x.data.copy_(v * (s + x * s * (1 - s)))
        return x


class _GradientInOutput(torch.autograd.Function):
    """A Gaussian whose backward stores the gradient in its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x, ctx.y = x.detach().clone(), torch.exp(-x * x)
        return ctx.y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        ctx.y.data.mul_(-2 * ctx.x).mul_(v)
        return ctx.y.detach().clone()


def gradient_in_input(x: Tensor) -> Tensor:
    return _GradientInInput.apply(x)


def gradient_in_output(x: Tensor) -> Tensor:
    return _GradientInOutput.apply(x)


# -- calls ---------------------------------------------------------------------------------------------------------------
_calls = [0]


def _alternating(x: Tensor, v: Tensor) -> Tensor:
    _calls[0] += 1
    return v * torch.where(x == 0, torch.full_like(x, float(_calls[0] % 2)), step(x))


alternating_subgradient = relu_with(_alternating)


def _noisy(x: Tensor, v: Tensor) -> Tensor:
    return v * step(x) * (1 + 2.0**-6 * torch.bernoulli(torch.full_like(x, 0.01)))


gradient_noisy_at_times = relu_with(_noisy)


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
