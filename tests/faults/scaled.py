"""Activations with factors far from 1 inside, each kind beside a twin with a fault.

Rounding of a saved value, and underflow of a product, is multiplied by such a factor.
"""

from __future__ import annotations

from typing import Any

import torch
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


#: Healthy activations, each with the dtypes in which the gate's tolerances were too narrow.
HEALTHY: dict[Any, tuple[str, ...]] = {
    tanh_of_fifty: ("bfloat16", "float16"),
    hundred_tanh: ("bfloat16", "float16"),
    fifty_tanh_of_double: ("bfloat16", "float16"),
    sigmoid_of_hundred: ("float16",),
    ten_thousand_tanh: ("float32",),
}
#: Twins with a fault, each with the law that must fail it and the dtype.
FAULTY: dict[Any, tuple[str, str]] = {
    hundred_tanh_leaks: ("derivative", "bfloat16"),
    tanh_of_fifty_without_square: ("derivative", "float16"),
    ten_thousand_tanh_flat_too_early: ("derivative", "float32"),
}
