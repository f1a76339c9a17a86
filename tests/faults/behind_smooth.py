"""Kinks behind smooth functions. Kernels round the smooth part differently, so that inputs beside the kink change sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def relu_of_gelu(x: Tensor) -> Tensor:
    return F.relu(F.gelu(x) + 0.1)


def leaky_of_mish(x: Tensor) -> Tensor:
    return F.leaky_relu(F.mish(x) + 0.2, 0.1)


def hardtanh_of_selu(x: Tensor) -> Tensor:
    return F.hardtanh(F.selu(x) + 0.5)


def capped_softplus(x: Tensor) -> Tensor:
    return torch.minimum(F.softplus(x), torch.ones_like(x))


def distance_of_sigmoid(x: Tensor) -> Tensor:
    return (torch.sigmoid(x) - 0.3).abs()


def relu_of_silu(x: Tensor) -> Tensor:
    return F.relu(F.silu(x) + 0.05)


HEALTHY = (relu_of_gelu, leaky_of_mish, hardtanh_of_selu, capped_softplus, distance_of_sigmoid, relu_of_silu)


class ShrinksByBuffer(nn.Module):
    """A chosen threshold that no training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() <= self.threshold, 0 * x, x)
