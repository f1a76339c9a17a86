"""Identify the emulation that a kernel equals bit for bit, from its results on fixed inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.emulation import Emulation, Override, Rounding
from relucheck.numerics.emulation.rounding import Bias, Reduction
from relucheck.numerics.kernels.inputs import SETS, exact
from relucheck.numerics.kernels.product import Operands, Product

#: A device's way to compute a product: it takes operands on the CPU and returns the result on the CPU.
Kernel = Callable[[Operands], Tensor]

PARTS: Final = range(2, 33)
CUTS: Final = (0, 8, 16, 32, 64, 128)
_REDUCTIONS: Final[tuple[Reduction, ...]] = ("narrow", "wide", "in place")
_TF32_BITS: Final = 13  # bits of a float32 significand that TF32 does not have


@dataclasses.dataclass(frozen=True)
class Identification:
    """Which emulations a kernel equals.

    Attributes:
        equal: the names of the roundings that give the kernel's results, bit for bit, on all inputs, simplest first. They
            are those that the inputs cannot tell apart; () if there is none.
        nearest: the rounding with the fewest different outputs; the first one of ``equal`` if there is any. Without
            one, it may be a rounding that no emulation has, in words.
        differs: the share of outputs that differ from ``nearest``, from 0 to 1.
    """

    equal: tuple[str, ...]
    nearest: str
    differs: float

    def __str__(self) -> str:
        if not self.equal:
            if not self.differs:
                return f"none; {self.nearest}"
            share = f"{self.differs:.0%}" if self.differs >= 0.01 else "under 1%"
            return f"none; nearest: {self.nearest}, {share} differ"
        others = len(self.equal) - 1
        return self.equal[0] + f" and {others} other{'s' * (others > 1)}" * bool(others)


@functools.lru_cache(maxsize=256)
def candidates(product: Product, dtype: torch.dtype) -> tuple[Rounding, ...]:
    """The roundings to try for a product, simplest first.

    Of roundings that split K into the same ranges, only the simplest is tried. In 32 and 64 bits, exact sums do not show
    whether they are split, so that only the factors' rounding is tried.
    """
    both = product.bias and product.direction == "forward"
    once = [Rounding(bias="joined"), *[Rounding()] * both]
    if dtype.itemsize > 2:
        rounded = [Rounding(tf32=True), *[Rounding(tf32=True, bias="joined")] * both] if dtype == torch.float32 else []
        return *once, *rounded
    found: dict[object, Rounding] = {}
    biases: tuple[Bias, ...] = ("after", "joined") if both else ("after",)
    # a convolution may add the gradients of the weight sample by sample
    samples = {product.x[0]} if product.convolution and product.direction == "weight gradient" else set[int]()
    for parts in sorted({*PARTS, *samples}):
        for reduction in _REDUCTIONS:
            for cut in CUTS:
                for bias in biases:
                    rounding = Rounding(parts, cut, reduction, bias)
                    ranges = tuple(rounding.ranges(product.terms))
                    if len(ranges) > 1:
                        found.setdefault((ranges, reduction, bias), rounding)
    return *once, *found.values()


def identify(product: Product, dtype: torch.dtype, kernel: Kernel) -> Identification:
    """Find the emulations that a kernel equals bit for bit.

    All candidates are compared on a part of the outputs, and those that are equal there on all outputs.

    Args:
        product: what the kernel computes.
        dtype: the dtype of its operands and results.
        kernel: computes the product.
    """
    inputs = [exact(product, dtype, number) for number in range(SETS)]
    return identified(product, inputs, [kernel(operands) for operands in inputs])


def identified(
    product: Product, inputs: Sequence[Operands], results: Sequence[Tensor], among: Sequence[Rounding] | None = None
) -> Identification:
    """Find the emulations that give these results.

    Args:
        product: what was computed.
        inputs: what ``exact`` returns for each number.
        results: the result for each of the inputs, on the CPU.
        among: the roundings to try, simplest first; None means all ``candidates``.
    """
    dtype = inputs[0].x.dtype
    left = list(candidates(product, dtype) if among is None else among)
    shares: dict[Rounding, float] = {}
    pairs = list(zip(inputs, results, strict=True))
    with Arithmetic(torch.float32).active():
        for operands, result in pairs:
            part, take = product.part(operands)
            wanted = take(result)
            shares |= {one: _share(_emulated(product, part, one), wanted) for one in left}
            equal = [one for one in left if shares[one] == 0]
            left = equal or left
            if not equal:
                break
        equal = [
            one for one in equal if all(torch.equal(_emulated(product, given, one), result) for given, result in pairs)
        ]
        if equal:
            return Identification(tuple(one.name for one in equal), equal[0].name, 0.0)
        nearest = min(shares, key=shares.__getitem__)
        whole = {nearest.name: [_share(_emulated(product, given, nearest), result) for given, result in pairs]}
        if dtype == torch.float32:
            for name, change in _FACTORS.items():
                whole[name] = [_share(product.compute(_changed(given, change)), result) for given, result in pairs]
        means = {name: sum(found) / len(found) for name, found in whole.items()}
        name = min(means, key=means.__getitem__)
        return Identification((), name, means[name])


def emulation(product: Product, dtype: torch.dtype, rounding: Rounding) -> Emulation:
    """The emulation that rounds the sums of the product's direction, and rounds all others once."""
    if product.direction == "forward":
        return Emulation(dtype, rounding)
    once = Rounding(bias="joined")
    plain = rounding.without_bias
    return Emulation(dtype, once, () if plain == once else (Override(plain, directions=(product.direction,)),))


def _emulated(product: Product, operands: Operands, rounding: Rounding) -> Tensor:
    return product.compute(operands, emulation(product, operands.x.dtype, rounding))


def _changed(operands: Operands, change: Callable[[Tensor], Tensor]) -> Operands:
    """Change the factors of all products; a bias is none."""
    return dataclasses.replace(operands.map(change), bias=operands.bias)


def _share(found: Tensor, wanted: Tensor) -> float:
    """The share of numbers that differ; NaN equals NaN."""
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    return 1 - same.double().mean().item()


def _truncated(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & ~((1 << _TF32_BITS) - 1)).view(torch.float32)


def _away(x: Tensor) -> Tensor:
    return _truncated((x.view(torch.int32) + (1 << (_TF32_BITS - 1))).view(torch.float32))


#: Ways to round factors to TF32 that no emulation has.
_FACTORS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "factors truncated to TF32": _truncated,
    "factors rounded to TF32, ties away from 0": _away,
}
