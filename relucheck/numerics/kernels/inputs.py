"""Fixed inputs whose sums are exact in the accumulation dtype, in any order.

What a kernel returns for them depends on nothing but the roundings to the narrow dtype and, for float32, on the rounding of
the factors. So the emulation that it equals can be identified, although the order of its additions is unknown.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import compute_dtype
from relucheck.numerics.kernels.product import Operands, Product

#: Inputs of each product; the second ones are for what the first ones cannot tell apart.
SETS: Final = 2
#: The exponent of the unit of float16 sums: a sum below 2^24 units is below its largest number, 65504.
_FLOAT16_UNIT: Final = -9
#: How many terms of a sum of 32-bit or 64-bit numbers are not 0 at most, so that there is room for long factors.
_KEPT: Final = 512


def significand(dtype: torch.dtype) -> int:
    """The number of bits in a dtype's significand, the hidden one included."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def exact(product: Product, dtype: torch.dtype, number: int) -> Operands:
    """Draw operands, on the CPU, whose sums are exact in the accumulation dtype in any order.

    All factors are integers, in float16 times a power of two. The sum of the absolute values of the terms and the bias is
    less than 2^p units, where p is the number of significand bits of the accumulation dtype. In 16 bits, the sums have
    more bits than the dtype. In 32 and 64 bits, one factor has more bits than TF32, and the other one is 1 or -1. Operands
    that the direction does not use are 0.

    Args:
        product: the product.
        dtype: the dtype of the operands.
        number: which inputs, from 0 to ``SETS - 1``. In 32 and 64 bits, the long factors are the first ones (the input or,
            in gradients, the cotangent) of number 0 and the second ones of number 1.
    """
    random = generator(number)
    first, second = _shapes(product)
    budget = significand(compute_dtype(dtype))
    bias: Tensor | None = None
    if dtype.itemsize == 2:
        bits = significand(dtype)
        most = min(2**bits - 1, math.isqrt(3 * 2 ** (budget - 2) // product.terms))  # 3/4 for products, 1/4 for the bias
        factors = [_integers(shape, most, random) for shape in (first, second)]
        typical = most * most / 3 * math.sqrt(product.terms)
        if product.bias:
            unit = max(0, min(math.floor(math.log2(typical)), budget - 2) - bits)
            bias = _integers(product.weight[:1], 2**bits - 1, random) * 2**unit
        scale = 2.0**_FLOAT16_UNIT if dtype == torch.float16 else 1.0
        factors[0] *= scale
        bias = None if bias is None else bias * scale
    else:
        terms = min(product.terms, 2 * _KEPT)
        bits = budget - 1 - math.ceil(math.log2(terms))
        long, short = (first, second) if number == 0 else (second, first)
        wide, signs = _integers(long, 2**bits, random), _integers(short, 1, random, zero=False)
        if product.terms > terms:  # of twice as many terms as are kept on average, no sum of so many is near the limit
            wide *= torch.rand(long, generator=random, dtype=torch.float64) < _KEPT / product.terms
        factors = [wide, signs] if number == 0 else [signs, wide]
        if product.bias:
            bias = _integers(product.weight[:1], 2 ** (budget - 2), random)
    x, weight, cotangent = (
        torch.zeros(shape, dtype=torch.float64) for shape in (product.x, product.weight, product.output)
    )
    if product.direction == "forward":
        x, weight = factors
    elif product.direction == "input gradient":
        cotangent, weight = factors
    else:
        cotangent, x = factors
    if product.bias and product.direction != "forward":
        bias = torch.zeros(product.weight[:1], dtype=torch.float64)
    return Operands(x, weight, bias, cotangent).to(dtype)


def _shapes(product: Product) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the two factors."""
    if product.direction == "forward":
        return product.x, product.weight
    return product.output, product.weight if product.direction == "input gradient" else product.x


def _integers(shape: tuple[int, ...], most: int, random: torch.Generator, *, zero: bool = True) -> Tensor:
    """Draw integers between -most and most, float64."""
    drawn = torch.randint(-most, most + 1, shape, generator=random).double()
    return drawn if zero else torch.where(drawn < 0, -1.0, 1.0)
