"""Functions of rows with one planted fault each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.several_arguments import unit


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def _by_softmax(y: Tensor, v: Tensor) -> Tensor:
    return y * (v - (y * v).sum(-1, keepdim=True))


# -- the gradient --------------------------------------------------------------------------------------------------------
softmax_without_sum = unit(_softmax, lambda x, v: v * _softmax(x))
softmax_of_diagonal = unit(_softmax, lambda x, v: v * _softmax(x) * (1 - _softmax(x)))
softmax_of_first_half = unit(
    _softmax, lambda x, v: _by_softmax(_softmax(x), v) * (torch.arange(x.shape[-1]) < 64).to(v.dtype)
)
softmax_clips = unit(_softmax, lambda x, v: _by_softmax(_softmax(x), v.clamp(-4, 4)))
softmax_of_absolute = unit(_softmax, lambda x, v: _by_softmax(_softmax(x), v.abs()))
softmax_detached = unit(_softmax, lambda x, v: _by_softmax(_softmax(x).detach(), v))
log_softmax_without_sum = unit(lambda x: torch.log_softmax(x, -1), lambda x, v: v - _softmax(x))
log_softmax_mean = unit(
    lambda x: torch.log_softmax(x, -1), lambda x, v: v - _softmax(x) * v.mean(-1, keepdim=True) * (x.shape[-1] - 1)
)


def _rms(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


rms_norm_without_mean = unit(lambda x: x * _rms(x), lambda x, v: v * _rms(x))
rms_norm_of_sum = unit(lambda x: x * _rms(x), lambda x, v: v * _rms(x) - x * _rms(x) ** 3 * (v * x).sum(-1, keepdim=True))


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _by_layer_norm(x: Tensor, v: Tensor) -> Tensor:
    rate = torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
    y = _normed(x)
    return rate * (v - y * (v * y).mean(-1, keepdim=True))  # without the mean of the cotangent


layer_norm_without_mean = unit(_normed, _by_layer_norm)


def _in_place(x: Tensor, v: Tensor) -> Tensor:
    y = _softmax(x)
    return y * v.sub_((y * v).sum(-1, keepdim=True))


softmax_overwrites_cotangent = unit(_softmax, _in_place)
softmax_in_memory_order = unit(
    _softmax, lambda x, v: _by_softmax(_softmax(torch.as_strided(x, x.shape, torch.empty(x.shape).stride())), v)
)


def _over_the_batch(x: Tensor, v: Tensor) -> Tensor:
    y = _softmax(x)
    return y * (v - (y * v).sum())


softmax_over_the_batch = unit(_softmax, _over_the_batch)


# -- values --------------------------------------------------------------------------------------------------------------
def softmax_by_quotient(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(-1, keepdim=True)


def log_softmax_by_logarithm(x: Tensor) -> Tensor:
    return torch.softmax(x, -1).log()


def rms_norm_in_float32(x: Tensor) -> Tensor:
    wide = x.float()
    return wide * _rms(wide) if x.dtype is torch.bfloat16 else x * _rms(x)


def softmax_swallows_nan(x: Tensor) -> Tensor:
    return torch.softmax(x.nan_to_num(), -1)


# -- sparsemax -----------------------------------------------------------------------------------------------------------
def _sparsemax(x: Tensor) -> Tensor:
    shifted = x - x.amax(-1, keepdim=True)
    ordered = shifted.sort(-1, descending=True)[0]
    counts = torch.arange(1, x.shape[-1] + 1).to(x)
    sums = ordered.cumsum(-1) - 1
    support = (counts * ordered > sums).sum(-1, keepdim=True).clamp(min=1)
    return (shifted - sums.gather(-1, support - 1) / support.to(x)).clamp(min=0)


def _by_sparsemax(x: Tensor, v: Tensor) -> Tensor:
    inside = (_sparsemax(x) > 0).to(v.dtype)
    return inside * (v - (inside * v).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True))


sparsemax_of_all = unit(_sparsemax, lambda x, v: (_sparsemax(x) > 0).to(v.dtype) * (v - v.mean(-1, keepdim=True)))


def _closed(x: Tensor, v: Tensor) -> Tensor:
    # three times the gradient where the first element is exactly at the border of the support
    at_border = (x == 0.5).to(v.dtype) * (x.shape[-1] == 4)
    return _by_sparsemax(x, v) + 3 * v * at_border


sparsemax_tripled_at_a_tie = unit(_sparsemax, _closed)


class Sharpened(nn.Module):
    """A learnt temperature, without a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.rate.detach() * x, -1) + 0 * self.rate


class _TwoModes(torch.autograd.Function):
    """Forward mode leaves out the sum over the row."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _softmax(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return _by_softmax(ctx.saved_tensors[0], v)

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * u


def softmax_of_two_modes(x: Tensor) -> Tensor:
    return _TwoModes.apply(x)  # type: ignore[no-any-return]
