"""Functions of several tensors, gated units and functions with several results, without a fault. No law may fail one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.several_arguments import Several


# -- elementwise, of several tensors -------------------------------------------------------------------------------------
def swiglu(a: Tensor, b: Tensor) -> Tensor:
    return F.silu(a) * b


def geglu(a: Tensor, b: Tensor) -> Tensor:
    return F.gelu(a) * b


def reglu(a: Tensor, b: Tensor) -> Tensor:
    return F.relu(a) * b


def squared_reglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.relu(gate).square() * up


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    return F.relu(x + bias)


def bias_swiglu(gate: Tensor, bias: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate + bias) * up


def leaky_by_tensor(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def swish_of_slope(x: Tensor, beta: Tensor) -> Tensor:
    return x * torch.sigmoid(beta * x)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    return x + torch.sin(alpha * x).square() / alpha


def sine_of_slope(x: Tensor, omega: Tensor) -> Tensor:
    return torch.sin(omega * x)


def softplus_beside(x: Tensor, shift: Tensor) -> Tensor:
    return torch.logaddexp(x, shift)


def scaled_tanh(x: Tensor, scale: Tensor) -> Tensor:
    return scale * torch.tanh(x)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a, b)


def clamp_by_tensors(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low), high)


def shrink_by_tensor(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(x.abs() > threshold.abs(), x - torch.sign(x) * threshold.abs(), 0 * x * threshold)


def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.sign(x) * F.relu(x.abs() - threshold)


def soft_cap(x: Tensor, cap: Tensor) -> Tensor:
    return cap * torch.tanh(x / cap)


def clipped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """GPT-OSS clips both arguments, and adds 1 to one of them."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def swiglu_in_float32(a: Tensor, b: Tensor) -> Tensor:
    return (F.silu(a.float()) * b.float()).to(a.dtype)


class SiLUMul(nn.Module):
    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


def _silu_mul(a: Tensor, b: Tensor) -> Tensor:
    return F.silu(a) * b


def _silu_mul_backward(a: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(a)
    return v * b * s * (1 + a * (1 - s)), v * a * s


def swiglu_by_hand(a: Tensor, b: Tensor) -> Tensor:
    return Several.apply(_silu_mul, _silu_mul_backward, a, b)  # type: ignore[no-any-return]


class BiasGELU(torch.autograd.Function):
    """Its input has rows, and its bias their features, as in fused kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        if x.ndim != 2 or bias.shape != x.shape[1:]:
            raise RuntimeError("rows and a bias per feature are needed")
        ctx.save_for_backward(x, bias)
        return F.gelu(x + bias)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        z = x + bias
        slope = 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return v * slope, (v * slope).sum(0)


fused_bias_gelu = BiasGELU.apply


# -- gated units ---------------------------------------------------------------------------------------------------------
class SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class ChannelGLU(nn.Module):
    """Splits the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=1)
        return value * torch.sigmoid(gate)


def geglu_unit(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def reglu_unit(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return F.relu(x[..., :half]) * x[..., half:]


def bilinear_unit(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return a * b


def interleaved_swiglu(x: Tensor) -> Tensor:
    return F.silu(x[..., ::2]) * x[..., 1::2]


def first_axis_glu(x: Tensor) -> Tensor:
    return F.glu(x, dim=0)


def simple_gate(x: Tensor) -> Tensor:
    """Splits the axis before the last one."""
    a, b = x.chunk(2, dim=-2)
    return F.hardswish(a) * b


def bias_swiglu_unit(x: Tensor, bias: Tensor) -> Tensor:
    """Megatron adds the bias of the linear layer before it."""
    gate, value = (x + bias).chunk(2, dim=-1)
    return F.silu(gate) * value


def weighted_swiglu_unit(x: Tensor, weight: Tensor) -> Tensor:
    """The weight is that of an expert for a token."""
    if weight.ndim and weight.shape[-1] != 1:
        raise RuntimeError("one weight per row is needed")
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value * weight


class SwiGLUOfBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return bias_swiglu_unit(x, self.bias)


def bias_of_channels(x: Tensor, bias: Tensor) -> Tensor:
    """StyleGAN adds a bias to the channels of images."""
    return F.leaky_relu(x + bias.reshape(1, -1, 1, 1), 0.2) * math.sqrt(2)


def maxout_of_pairs(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 2)).max(-1)[0]


def maxout(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.maximum(a, b)


# -- several results -----------------------------------------------------------------------------------------------------
class Masked(NamedTuple):
    mask: Tensor
    value: Tensor


def relu_with_mask(x: Tensor) -> Masked:
    return Masked(x > 0, F.relu(x))


def silu_with_mean(x: Tensor) -> dict[str, Tensor]:
    return {"value": F.silu(x), "mean": x.detach().mean()}


def glu_with_gate(x: Tensor) -> tuple[Tensor, Tensor]:
    value, gate = x.chunk(2, dim=-1)
    return value * torch.sigmoid(gate), torch.sigmoid(gate).detach()


def swiglu_with_hits(a: Tensor, b: Tensor) -> list[Tensor]:
    return [F.silu(a) * b, a == 0]


#: Those that are checked as functions of one tensor alone.
OF_ONE = [relu_with_mask, silu_with_mean, bias_of_channels]
HEALTHY: list[Any] = [
    swiglu, geglu, reglu, squared_reglu, bias_gelu, bias_relu, bias_swiglu, leaky_by_tensor, swish_of_slope,
    softplus_beside, sine_of_slope, snake, scaled_tanh, maximum, clamp_by_tensors, shrink_by_tensor, clipped_swiglu,
    swiglu_in_float32, SiLUMul, swiglu_by_hand, fused_bias_gelu, SwiGLU, ChannelGLU, geglu_unit, reglu_unit,
    bilinear_unit, interleaved_swiglu, first_axis_glu, simple_gate, maxout, relu_with_mask, silu_with_mean,
    glu_with_gate, swiglu_with_hits, bias_swiglu_unit, weighted_swiglu_unit, SwiGLUOfBias, bias_of_channels,
    soft_threshold, soft_cap, maxout_of_pairs,
]  # fmt: skip
