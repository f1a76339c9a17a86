"""Ways to round a product that no emulation has, but that kernels are known to use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from relucheck.numerics.dtypes import compute_dtype
from relucheck.numerics.kernels.product import Operands, Product

_TF32_BITS: Final = 13  # bits of a float32 significand that TF32 does not have


def others(product: Product, dtype: torch.dtype) -> Mapping[str, Callable[[Operands], Tensor]]:
    """The ways to compute a product in a dtype, by their names in words.

    Each function takes operands and returns the result.
    """
    if dtype == torch.float32:
        return {
            "factors truncated to TF32": lambda operands: product.compute(_changed(operands, _truncated)),
            "factors rounded to TF32, ties away from 0": lambda operands: product.compute(_changed(operands, _away)),
        }
    if dtype.itemsize == 2 and product.convolution and product.direction == "input gradient" and product.groups == 1:
        return {
            "kernel positions are summed separately, rounded and added in 16 bits": functools.partial(_by_position, product)
        }
    return {}


def _changed(operands: Operands, change: Callable[[Tensor], Tensor]) -> Operands:
    """Change the factors of all products; a bias is none."""
    return dataclasses.replace(operands.map(change), bias=operands.bias)


def _truncated(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & ~((1 << _TF32_BITS) - 1)).view(torch.float32)


def _away(x: Tensor) -> Tensor:
    return _truncated((x.view(torch.int32) + (1 << (_TF32_BITS - 1))).view(torch.float32))


def _by_position(product: Product, operands: Operands) -> Tensor:
    """Compute the gradient of a convolution's input by a matrix product and an addition of overlapping columns.

    The matrix product sums over output channels and is rounded. Its columns are added in the dtype, one position of the
    kernel after the other (``slow_conv2d`` of ATen).
    """
    dtype, wide = operands.x.dtype, compute_dtype(operands.x.dtype)
    weight, cotangent = operands.weight.to(wide).flatten(1), operands.cotangent.to(wide).flatten(2)
    columns = (weight.T @ cotangent).to(dtype).to(wide).unflatten(1, (product.x[1], -1))  # [n, channels, kernel, pixels]
    total = torch.zeros_like(operands.x)
    for position in range(columns.shape[2]):
        one = torch.zeros_like(columns)
        one[:, :, position] = columns[:, :, position]
        sizes = product.x[2:], product.weight[2:], product.dilation, product.padding, product.stride
        total += F.fold(one.flatten(1, 2), *sizes).to(dtype)
    return total
