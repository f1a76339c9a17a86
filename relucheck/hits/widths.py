"""The width of the set of real sums that an arithmetic turns into exactly 0.

One rule is applied from the first product to the last addition. Values lie on grids, which are the multiples of a power
of two. A sum lies on the finer of the grids of its two terms. Rounding a sum to a format makes the grid at least as
coarse as the format's spacing at that sum. What the last addition can cancel therefore lies on the finer of its two
terms' grids, taken at the values where they cancel. Values that underflow to 0 in the output format come on top.

Grids are those of weights drawn at random from the values of their format, and of biases drawn at random from the values
of their format that lie on one grid with all given biases. So the widths are right on average over draws; for one given
bias, the sum either can reach 0 exactly or cannot.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final, Literal

import torch
from torch import Tensor

_FREE: Final = 1 << 20  # the grid exponent of an exact zero, coarser than any real one (those are at most about 1,000)


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes:
        name: label in tables.
        bits: number of significand bits, including the leading one.
        least: exponent of the smallest normal value.
        largest: largest finite value; larger values saturate.
    """

    name: str
    bits: int
    least: int
    largest: float = math.inf

    def spacing(self, x: Tensor) -> Tensor:
        """Exponents of the spacing of the format's values around ``x``, int64; very small for 0."""
        exponent = torch.frexp(x)[1].to(torch.int64) - 1
        return torch.where(x == 0, -_FREE, exponent.clamp(min=self.least) - (self.bits - 1))

    @property
    def flushed(self) -> float:
        """Half of the smallest subnormal.

        Values up to this magnitude round to 0; the tie at exactly this magnitude goes to 0, which is even.
        """
        return math.ldexp(1.0, self.least - self.bits)

    def round(self, x: Tensor) -> Tensor:
        """Round float64 values to the format, ties to even; values beyond the largest saturate."""
        step = torch.ldexp(torch.ones_like(x), torch.where(x == 0, 0, self.spacing(x)))
        return (torch.round(x / step) * step).clamp(-self.largest, self.largest)


#: The formats by name. The float8 formats are those of Micikevicius et al. 2022, "FP8 Formats for Deep Learning"; e4m3 has
#: no infinity.
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
        name: label in tables.
        factors: format of inputs and weights, and of the bias unless ``bias_format`` is given.
        accumulator: format in which the products of one block are added, one after another, starting from 0.
        partial: format to which the sum of a block is rounded before it is joined to the others.
        join: format in which the sums of the blocks and the bias are added, in order.
        output: format to which the final result is rounded.
        blocks: numbers of consecutive products that each block sums; together they are K.
        bias: whether the bias is the first or the last term that is joined.
        bias_format: format of the bias; None means ``factors``.
        before_bias: format to which the joined blocks are rounded before the bias is added as the last term; None means
            ``join``, which rounds nothing more.
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
    before_bias: Format | None = None


def widths(x: Tensor, weight: Tensor, bias: Tensor, how: Accumulation) -> tuple[Tensor, Tensor]:
    """The width of the set of real sums that become 0, near given sums that are close to 0.

    Args:
        x: float64 [m, K], the inputs of each sum, values of the format ``how.factors``.
        weight: float64 [m, K], the weights of each sum, likewise.
        bias: float64 [m]; zeros where there is no bias.
        how: where the layer rounds.

    Returns:
        The widths, float64 [m]; and bool [m], True where every term is 0, so that the sum is 0 for any rounding.
    """
    products = x * weight
    grids = torch.where(products == 0, _FREE, lowest_bit(x) + how.factors.spacing(weight))
    terms = [_Block.of(p, g, how) for p, g in zip(products.split(how.blocks, 1), grids.split(how.blocks, 1), strict=True)]
    last = _Block(bias, torch.full_like(grids[:, 0], _lattice(bias)), how.bias_format or how.factors, bias == 0)
    terms = [last, *terms] if how.bias == "first" else [*terms, last]
    flush_alone = how.output.flushed if how.output.bits < how.accumulator.bits else 0.0
    flush_join = how.output.flushed if how.output.bits < how.join.bits else 0.0
    left = terms[0]
    width = torch.zeros_like(bias) if left is last else _landing(left.inner, flush_alone)
    for right in terms[1:]:
        if right is last and how.before_bias is not None:
            left, flush_join = dataclasses.replace(left, form=how.before_bias), 0.0
        # the value at which the two terms cancel: that of the bias if it is one of them, else that of the sum so far
        at = -right.value if right is last else left.value
        joined = _landing(torch.minimum(left.grid(at), right.grid(-at)), flush_join)
        alone = torch.zeros_like(bias) if right is last else _landing(right.inner, flush_alone)
        width = torch.where(right.empty, width, torch.where(left.empty, alone, joined))
        inner = torch.minimum(left.grid(left.value), right.grid(right.value))
        left = _Block(left.value + right.value, inner, how.join, left.empty & right.empty)
    return torch.where(left.empty, 0.0, width), left.empty


@dataclasses.dataclass(frozen=True)
class _Block:
    """The sum of some terms, with what is known about its rounding.

    Attributes:
        value: float64 [m], the sums.
        inner: int64 [m], exponents of their grids before the last rounding.
        form: the format to which they were rounded last.
        empty: bool [m], where all terms are 0.
    """

    value: Tensor
    inner: Tensor
    form: Format
    empty: Tensor

    @classmethod
    def of(cls, products: Tensor, grids: Tensor, how: Accumulation) -> _Block:
        """Sum the products of a block, one after another, in the accumulator's format.

        Args:
            products: float64 [m, k].
            grids: int64 [m, k], the exponents of the products' grids.
            how: where the layer rounds.
        """
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
        """Exponents of the grids on which the sums lie where their value is ``at``."""
        return torch.where(self.empty, _FREE, torch.maximum(self.form.spacing(at), self.inner))


def _lattice(bias: Tensor) -> int:
    """The exponent of the coarsest grid on which all biases lie.

    PyTorch draws the uniform numbers of float32 with 24 bits. So biases between -1/16 and 1/16 are multiples of 2^-27, and
    the small ones among them have fewer bits than their format.
    """
    some = bias[bias != 0]
    return int(lowest_bit(some).min()) if len(some) else -_FREE


def _landing(grid: Tensor, flushed: float) -> Tensor:
    """Width of the values on a grid, given by its exponent, that end at 0.

    These are 0 itself and the values that underflow.
    """
    step = torch.ldexp(torch.ones(grid.shape, dtype=torch.float64), grid.clamp(-1074, 1000))
    return torch.where(grid <= -_FREE // 2, 2 * flushed, step * (2 * torch.floor(flushed / step) + 1))


def lowest_bit(x: Tensor) -> Tensor:
    """Exponents of the lowest set bits of float64 values, int64; meaningless for 0."""
    fraction, exponent = torch.frexp(x)
    integer = torch.ldexp(fraction, torch.tensor(53)).to(torch.int64)
    return torch.frexp((integer & -integer).double())[1].to(torch.int64) - 1 + exponent - 53
