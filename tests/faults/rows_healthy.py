"""Functions of rows without a fault. No law may fail one."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.rows import _by_sparsemax, _sparsemax
from tests.faults.several_arguments import unit


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def softmax_of_columns(x: Tensor) -> Tensor:
    return torch.softmax(x, 0)


def softmin(x: Tensor) -> Tensor:
    return F.softmin(x, -1)


def log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, -1)


def softmax_by_hand(x: Tensor) -> Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def softmax_in_float32(x: Tensor) -> Tensor:
    return torch.softmax(x.float(), -1).to(x.dtype)


def softmax_of_temperature(x: Tensor) -> Tensor:
    return torch.softmax(x / math.sqrt(8), -1)


def softmax_with_one_more(x: Tensor) -> Tensor:
    """Softmax beside a further logit of 0, which lets a head attend to nothing."""
    top = x.amax(-1, keepdim=True).clamp(min=0)
    e = (x - top).exp()
    return e / (e.sum(-1, keepdim=True) + (-top).exp())


sparsemax = unit(_sparsemax, _by_sparsemax)
sparsemax.__name__ = "sparsemax"


def sparsemax_by_autograd(x: Tensor) -> Tensor:
    return _sparsemax(x)


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def rms_norm_in_float32(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def torch_rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def layer_norm_by_hand(x: Tensor) -> Tensor:
    away = x - x.mean(-1, keepdim=True)
    return away * torch.rsqrt(away.square().mean(-1, keepdim=True) + 1e-2)


def unit_length(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def unit_length_without_eps(x: Tensor) -> Tensor:
    """At a row of zeros, value and gradient are NaN, which is a notice."""
    return x / x.square().sum(-1, keepdim=True).sqrt()


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def share_of_relu(x: Tensor) -> Tensor:
    return F.relu(x) / (F.relu(x).sum(-1, keepdim=True) + 1)


class Sharpened(nn.Module):
    """A learnt temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.rate * x, -1)


def rms_norm_of_weight(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def layer_norm_of_weight_and_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def softmax_of_scalar(x: Tensor, rate: Tensor) -> Tensor:
    return torch.softmax(x * rate, -1)


class LayerNormOfChannels(nn.Module):
    """Takes images only, as ConvNeXt's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        away = x - x.mean(1, keepdim=True)
        y = away * torch.rsqrt(away.square().mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * y + self.bias[:, None, None]


class LayerNorm(nn.LayerNorm):
    def __init__(self) -> None:
        super().__init__(6)


class RMSNorm(nn.RMSNorm):
    def __init__(self) -> None:
        super().__init__(8, eps=1e-5)


class ChannelSoftmax(nn.Softmax):
    def __init__(self) -> None:
        super().__init__(1)


HEALTHY: list[Any] = [
    softmax, softmax_of_columns, softmin, log_softmax, softmax_by_hand, softmax_in_float32, softmax_of_temperature,
    softmax_with_one_more, sparsemax, sparsemax_by_autograd, rms_norm, rms_norm_in_float32, torch_rms_norm, layer_norm,
    layer_norm_by_hand, unit_length, centred, share_of_relu, Sharpened, LayerNorm, RMSNorm, ChannelSoftmax, nn.Softmax2d,
    LayerNormOfChannels, rms_norm_of_weight, layer_norm_of_weight_and_bias, softmax_of_scalar,
    unit_length_without_eps,
]  # fmt: skip
