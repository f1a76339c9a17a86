"""Activations with factors far from 1 inside, each kind beside a twin with a fault.

Rounding of a saved value, underflow of a product and the error of a difference are multiplied by such a factor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.faults.kinds import differentiated


# -- the backward computes 1 - y**2 from a rounded y, and multiplies the error -------------------------------------------
def tanh_of_fifty(x: Tensor) -> Tensor:
    return torch.tanh(50 * x)


def hundred_tanh(x: Tensor) -> Tensor:
    return 100 * torch.tanh(x)


def fifty_tanh_of_double(x: Tensor) -> Tensor:
    return 50 * torch.tanh(2 * x)


def sigmoid_of_hundred(x: Tensor) -> Tensor:
    return torch.sigmoid(100 * x)


def ten_thousand_tanh(x: Tensor) -> Tensor:
    return 1e4 * torch.tanh(x)


def hundred_tanh_leaks(x: Tensor) -> Tensor:
    """The slope never falls below 4."""
    return differentiated(hundred_tanh, lambda x, v: v * (100 * (1 - torch.tanh(x) ** 2)).clamp(min=4))(x)


def tanh_of_fifty_without_square(x: Tensor) -> Tensor:
    return differentiated(tanh_of_fifty, lambda x, v: v * 50 * (1 - torch.tanh(50 * x).abs()))(x)


def ten_thousand_tanh_flat_too_early(x: Tensor) -> Tensor:
    return differentiated(ten_thousand_tanh, lambda x, v: v * 1e4 * (1 - torch.tanh(x) ** 2) * (x.abs() < 3.5))(x)


# -- a product underflows inside, and is multiplied afterwards -----------------------------------------------------------
def sigmoid_of_thousand(x: Tensor) -> Tensor:
    return torch.sigmoid(1e3 * x)


def arctangent_of_hundred(x: Tensor) -> Tensor:
    return torch.atan(100 * x) / 100


def distance_from_a_thousandth(x: Tensor) -> Tensor:
    return torch.hypot(x, torch.full_like(x, 1e-3))


def arctangent_flushes_cotangents(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        return torch.where(v.abs() < torch.finfo(v.dtype).tiny, 0 * v, v) / (1 + (100 * x) ** 2)

    return differentiated(arctangent_of_hundred, backward)(x)


def sigmoid_of_thousand_drops_cotangents(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        y = torch.sigmoid(1e3 * x)
        return torch.where(v.abs() < 1e-15, 0 * v, v) * y * (1 - y) * 1e3

    return differentiated(sigmoid_of_thousand, backward)(x)


# -- a square that overflows beyond what networks reach -------------------------------------------------------------------
def squareplus(x: Tensor) -> Tensor:
    return 0.5 * (x + torch.sqrt(x * x + 1e-3))


def tanh_by_pade(x: Tensor) -> Tensor:
    return x * (27 + x * x) / (27 + 9 * x * x)


# -- far from 0, differences show few decimals of the slopes at a kink ---------------------------------------------------
def relu_of_sine(x: Tensor) -> Tensor:
    return torch.relu(torch.sin(3 * x) - 0.2)


def relu_of_sine_five_at_kinks(x: Tensor) -> Tensor:
    def backward(x: Tensor, v: Tensor) -> Tensor:
        height = torch.sin(3 * x) - 0.2
        return v * torch.where(height.abs() < 1e-12, torch.full_like(x, 5.0), 3 * torch.cos(3 * x) * (height > 0))

    return differentiated(relu_of_sine, backward)(x)


def twenty_selu(x: Tensor) -> Tensor:
    return 20 * F.selu(x)


#: Healthy activations, each with the dtypes in which the gate's tolerances were too narrow.
HEALTHY: dict[Any, tuple[str, ...]] = {
    tanh_of_fifty: ("bfloat16", "float16"),
    hundred_tanh: ("bfloat16", "float16"),
    fifty_tanh_of_double: ("bfloat16", "float16"),
    sigmoid_of_hundred: ("float16",),
    ten_thousand_tanh: ("float32",),
    sigmoid_of_thousand: ("bfloat16", "float16"),
    arctangent_of_hundred: ("bfloat16",),
    distance_from_a_thousandth: ("bfloat16",),
    twenty_selu: ("float64",),
    squareplus: ("float32", "bfloat16"),
    tanh_by_pade: ("float32", "float64"),
}
#: Twins with a fault, each with the law that must fail it and the dtype.
FAULTY: dict[Any, tuple[str, str]] = {
    hundred_tanh_leaks: ("derivative", "bfloat16"),
    tanh_of_fifty_without_square: ("derivative", "float16"),
    ten_thousand_tanh_flat_too_early: ("derivative", "float32"),
    arctangent_flushes_cotangents: ("subnormals", "bfloat16"),
    sigmoid_of_thousand_drops_cotangents: ("chain_rule", "bfloat16"),
}
