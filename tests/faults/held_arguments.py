"""Functions of rows and gated units that take a weight or a bias, with one planted fault each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.faults.several_arguments import Several, _silu_slope


def _rate(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * _rate(x) * weight


def _by_rms_norm(x: Tensor, m: Tensor) -> Tensor:
    r = _rate(x)
    return r * m - r**3 * x * (m * x).mean(-1, keepdim=True)


def rms_norm_weight_of_input(x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight is that for an input that is normalised already."""
    return Several.apply(_rms_norm, lambda x, w, v: (_by_rms_norm(x, v * w), v * x), x, weight)  # type: ignore[no-any-return]


def rms_norm_without_weight(x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the input leaves out the weight."""
    backward = lambda x, w, v: (_by_rms_norm(x, v), v * x * _rate(x))  # noqa: E731
    return Several.apply(_rms_norm, backward, x, weight)  # type: ignore[no-any-return]


class _LayerNorm(torch.autograd.Function):
    """``how`` computes the gradient of the bias from the rows of the cotangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: Any) -> Tensor:
        away = x - x.mean(-1, keepdim=True)
        rate = torch.rsqrt(away.square().mean(-1, keepdim=True) + 1e-5)
        ctx.save_for_backward(away * rate, rate, weight)
        ctx.how = how
        return away * rate * weight + bias

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        y, rate, weight = ctx.saved_tensors
        m = v * weight
        by_x = rate * (m - m.mean(-1, keepdim=True) - y * (m * y).mean(-1, keepdim=True))
        rows = v.reshape(-1, v.shape[-1])
        return by_x, (v * y).reshape(rows.shape).sum(0), ctx.how(rows), None


def layer_norm_bias_mean(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _LayerNorm.apply(x, weight, bias, lambda rows: rows.mean(0))  # type: ignore[no-any-return]


def layer_norm_bias_forgotten(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _LayerNorm.apply(x, weight, bias, lambda rows: None)  # type: ignore[no-any-return]


class _SwiGLU(torch.autograd.Function):
    """SwiGLU of halves, with a bias for both; its gradient is that of the last row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        gate, value = (x + bias).chunk(2, -1)
        return F.silu(gate) * value

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, bias = ctx.saved_tensors
        gate, value = (x + bias).chunk(2, -1)
        by_x = torch.cat([v * _silu_slope(gate) * value, v * F.silu(gate)], -1)
        return by_x, by_x.reshape(-1, *bias.shape)[-1]


def bias_swiglu_last_row(x: Tensor, bias: Tensor) -> Tensor:
    return _SwiGLU.apply(x, bias)  # type: ignore[no-any-return]


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value * weight


def _by_weighted(x: Tensor, weight: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    gate, value = x.chunk(2, -1)
    w = v * weight
    return torch.cat([w * _silu_slope(gate) * value, w * F.silu(gate)], -1), w * F.silu(gate) * value


def swiglu_weight_twice(x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight has it as a factor, which it lost in forward."""
    return Several.apply(_weighted, _by_weighted, x, weight)  # type: ignore[no-any-return]
