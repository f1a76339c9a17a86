"""The width of the set of real sums that an arithmetic turns into exactly 0.

One rule, applied from the first product to the last addition: values lie on grids of powers of two; a sum lies on the
finer grid of its two terms, and rounding makes it no finer than the spacing of its own binade. What the last addition
can cancel is then the finer of its two terms' grids, taken where they cancel, plus whatever underflows in the output's
format. Grids are those of weights and biases drawn from their format's values, so the widths are right on average over
draws: a sum with a known bias lies on its grid or does not.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final, Literal

import torch
from torch import Tensor

_FREE: Final = 1 << 20  # the grid of an exact zero: it binds nothing (exponents are at most about a thousand)


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes:
        name: how tables label it.
        bits: bits of significand, the leading one included.
        least: exponent of the smallest normal value.
        largest: largest finite value; what is larger saturates.
    """

    name: str
    bits: int
    least: int
    largest: float = math.inf

    def spacing(self, x: Tensor) -> Tensor:
        """The exponent of the spacing of the format's values around ``x`` (int64); far below everything for 0."""
        exponent = torch.frexp(x)[1].to(torch.int64) - 1
        return torch.where(x == 0, -_FREE, exponent.clamp(min=self.least) - (self.bits - 1))

    @property
    def flushed(self) -> float:
        """Half the smallest subnormal: what is no larger in magnitude rounds to 0 (ties go to the even 0)."""
        return math.ldexp(1.0, self.least - self.bits)

    def round(self, x: Tensor) -> Tensor:
        """float64 values rounded to the format, ties to even; values past the largest saturate."""
        step = torch.ldexp(torch.ones_like(x), torch.where(x == 0, 0, self.spacing(x)))
        return (torch.round(x / step) * step).clamp(-self.largest, self.largest)


#: The formats by name. Float8 after Micikevicius et al. 2022, "FP8 formats for deep learning" (e4m3 has no infinity).
FORMATS: Final[dict[str, Format]] = {
    form.name: form
    for form in (
        Format("float64", 53, -1022),
        Format("float32", 24, -126),
        Format("tf32", 11, -126),
        Format("bfloat16", 8, -126),
        Format("float16", 11, -14),
        Format("float8_e4m3", 4, -6, 448.0),
        Format("float8_e5m2", 3, -14, 57344.0),
    )
}


@dataclasses.dataclass(frozen=True)
class Accumulation:
    """Where a linear layer rounds its sum of K products and a bias.

    Attributes:
        name: how tables label it.
        factors: format of inputs, weights and bias.
        accumulator: format in which the products of one block are summed, one after another, from 0.
        partial: format to which a block's sum is rounded before it is joined.
        join: format in which the blocks' sums and the bias are added, in order.
        output: format to which the last result is rounded.
        blocks: how many consecutive products each block sums; they add up to K.
        bias: whether the bias is the first or the last term that is joined.
        bias_format: format of the bias; None means ``factors``.
    """

    name: str
    factors: Format
    accumulator: Format
    partial: Format
    join: Format
    output: Format
    blocks: tuple[int, ...]
    bias: Literal["first", "last"] = "last"
    bias_format: Format | None = None


def widths(x: Tensor, weight: Tensor, bias: Tensor, how: Accumulation) -> tuple[Tensor, Tensor]:
    """The width of the set of real sums that land on 0, near given pre-activations that are close to 0.

    Args:
        x, weight: float64 [m, K], the factors of each pre-activation, values of ``how.factors``.
        bias: float64 [m], zeros for none.

    Returns:
        float64 [m], the widths; and bool [m], where every term is 0, so that the sum is 0 whatever the rounding.
    """
    products = x * weight
    grids = torch.where(products == 0, _FREE, _lowest_bit(x) + how.factors.spacing(weight))
    terms = [_Block.of(p, g, how) for p, g in zip(products.split(how.blocks, 1), grids.split(how.blocks, 1), strict=True)]
    last = _Block(bias, torch.full_like(grids[:, 0], -_FREE), how.bias_format or how.factors, bias == 0)
    terms = [last, *terms] if how.bias == "first" else [*terms, last]
    flush_alone = how.output.flushed if how.output.bits < how.accumulator.bits else 0.0
    flush_join = how.output.flushed if how.output.bits < how.join.bits else 0.0
    left = terms[0]
    width = torch.zeros_like(bias) if left is last else _landing(left.inner, flush_alone)
    for right in terms[1:]:
        # the two terms where they cancel: the bias stays what it is, else the sum so far does
        at = -right.value if right is last else left.value
        joined = _landing(torch.minimum(left.grid(at), right.grid(-at)), flush_join)
        alone = torch.zeros_like(bias) if right is last else _landing(right.inner, flush_alone)
        width = torch.where(right.empty, width, torch.where(left.empty, alone, joined))
        inner = torch.minimum(left.grid(left.value), right.grid(right.value))
        left = _Block(left.value + right.value, inner, how.join, left.empty & right.empty)
    return torch.where(left.empty, 0.0, width), left.empty


@dataclasses.dataclass(frozen=True)
class _Block:
    """Terms of a sum: values, grid before the last rounding, the format they were rounded to, where no term is there."""

    value: Tensor
    inner: Tensor
    form: Format
    empty: Tensor

    @classmethod
    def of(cls, products: Tensor, grids: Tensor, how: Accumulation) -> _Block:
        """The sum of a block's products, one after another in the accumulator; ``grids`` are the products' own."""
        partial = products.cumsum(1)
        spacings = how.accumulator.spacing(partial)
        inner = torch.full_like(grids[:, 0], _FREE)
        rounded = inner
        for k in range(grids.shape[1]):
            here = grids[:, k]
            inner = torch.where(here == _FREE, inner, torch.minimum(rounded, here))
            rounded = torch.where(here == _FREE, rounded, torch.maximum(spacings[:, k], inner))
        return cls(partial[:, -1], inner, how.partial, (grids == _FREE).all(1))

    def grid(self, at: Tensor) -> Tensor:
        """Exponent of the grid on which the terms lie where their value is ``at``."""
        return torch.where(self.empty, _FREE, torch.maximum(self.form.spacing(at), self.inner))


def _landing(grid: Tensor, flushed: float) -> Tensor:
    """Width of the values on a grid (given by exponent) that end at 0: 0 itself, and what underflows."""
    step = torch.ldexp(torch.ones(grid.shape, dtype=torch.float64), grid.clamp(-1074, 1000))
    return torch.where(grid <= -_FREE // 2, 2 * flushed, step * (2 * torch.floor(flushed / step) + 1))


def _lowest_bit(x: Tensor) -> Tensor:
    """The exponent of the lowest set bit of float64 values (int64); meaningless for 0."""
    fraction, exponent = torch.frexp(x)
    integer = torch.ldexp(fraction, torch.tensor(53)).to(torch.int64)
    return torch.frexp((integer & -integer).double())[1].to(torch.int64) - 1 + exponent - 53
