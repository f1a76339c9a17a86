"""Forward passes of small networks in exact fractions, the slow way."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

from relucheck.activations.rules import LEAKY_RELU, RELU6
from relucheck.bifurcation.exact_forward import Layer
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import bits_dtype
from tests.helpers.uniform import mlp

Matrix = list[list[Fraction]]


def fractions(x: Tensor) -> Matrix:
    return [[Fraction(value) for value in row] for row in x.double().tolist()]


def linear(x: Matrix, weight: Matrix, bias: list[Fraction]) -> Matrix:
    return [[sum(map(lambda a, b: a * b, row, w), b) for w, b in zip(weight, bias, strict=True)] for row in x]


def region(layer: Layer, z: Fraction) -> int:
    assert layer.rule is not None
    return sum(1 + (z > kink) if z >= kink else 0 for kink in map(Fraction, layer.rule.kinks))


def activated(layer: Layer, z: Fraction) -> Fraction:
    if layer.rule is LEAKY_RELU and z < 0:
        return z * Fraction(layer.slope)
    return min(max(z, Fraction(0)), Fraction(6)) if layer.rule is RELU6 else max(z, Fraction(0))


def brute_force(layers: tuple[Layer, ...], x: Tensor) -> tuple[list[list[list[int]]], list[Matrix]]:
    """Regions of every activation, and every layer's values from the inputs on, by fractions."""
    values, regions = [fractions(x)], []
    for layer in layers:
        bias = [Fraction(0)] * len(layer.weight) if layer.bias is None else [Fraction(b) for b in layer.bias.tolist()]
        z = linear(values[-1], fractions(layer.weight), bias)
        if layer.rule is not None:
            regions.append([[region(layer, value) for value in row] for row in z])
            z = [[activated(layer, value) for value in row] for row in z]
        values.append(z)
    return regions, values


def finite(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values of any exponent (subnormals, near overflow), zeros and small integers, mixed."""
    random = generator(seed)
    info = torch.iinfo(bits_dtype(dtype))
    patterns = torch.randint(info.min, info.max, shape, generator=random).to(bits_dtype(dtype)).view(dtype)
    small = torch.randint(-2, 3, shape, generator=random).to(dtype)
    mixed = torch.where(torch.rand(shape, generator=random) < 0.5, patterns, small)
    return torch.where(mixed.isfinite(), mixed, torch.zeros((), dtype=dtype))


def wild(dtype: torch.dtype, make: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, Tensor]:
    model = mlp(3, 3, 2, 2).build(make).to(dtype)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(finite(tuple(parameter.shape), dtype, 16 * seed + index))
    return model, finite((2, 3), dtype, 16 * seed + 15)


def permuted_twins(dtype: torch.dtype, seed: int, terms: int = 12) -> tuple[nn.Module, Tensor]:
    """Two units that are exactly 32 over the reals, each by large terms that cancel in another order, and a difference."""
    random = generator(seed)
    orders = [torch.randperm(terms, generator=random) for _ in range(2)]
    a, w = (torch.randn(terms, generator=random, dtype=torch.float64).to(dtype) for _ in range(2))
    model = mlp(3 * terms, 2, 2, 2).build().to(dtype)
    one, _, two, *_ = list(model.layers)[1:]
    with torch.no_grad():
        one.weight.zero_()
        one.weight[:, :terms] = 1024 * w
        for unit, order in enumerate(orders):
            one.weight[unit, (unit + 1) * terms : (unit + 2) * terms] = -1024 * w[order]
        one.bias.fill_(32)
        two.weight.copy_(torch.tensor([[1, -1], [-1, 1]]))
        two.bias.zero_()
    return model, torch.cat([a, *(a[order] for order in orders)])[None]
