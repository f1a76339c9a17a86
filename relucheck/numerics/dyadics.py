"""Exact arithmetic on tensors of dyadic rationals (an integer times a power of two).

Every finite float is a dyadic rational, and so is every sum and product of floats. A ``Dyadic`` stores integers of any size
as digits of a few bits, with one power of two for the whole tensor. Matrix products are float64 products of the digits. The
digits are so small that no partial sum is rounded, whatever the order of summation. An exact linear layer for a mini-batch
thus costs tens of float64 matrix products, where Python's integers would take seconds.

Source: the error-free splitting of Ozaki, Ogita, Oishi, Rump 2012, "Error-free transformations of matrix multiplication by
using fast routines of matrix multiplication and its applications", Numerical Algorithms 59.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fractions import Fraction
from typing import Final

import torch
from torch import Tensor

_SIGNIFICAND: Final = 53  # of a float64: a sum of integers stays exact below 2**53


@dataclasses.dataclass(frozen=True)
class Dyadic:
    """A tensor of exact numbers ``sum(digits[k] * 2**(bits * k)) * 2**exponent``.

    Attributes:
        digits: int64 [digits, ...], least significant first. Every function here returns the normal form: all digits but
            the last are in [0, 2**bits); the last one carries the sign and is in [-2**bits, 2**bits).
        bits: the bits of a digit.
        exponent: the exponent of the power of two that all numbers share.
    """

    digits: Tensor
    bits: int
    exponent: int

    @property
    def sign(self) -> Tensor:
        """The sign of each number: -1, 0 or 1, int64."""
        last = self.digits[-1]
        some = (self.digits != 0).any(0).long()
        return torch.where(last < 0, -torch.ones_like(last), some)

    def rows(self, rows: Tensor) -> Dyadic:
        """Select indices (int64) of the first dimension."""
        return dataclasses.replace(self, digits=self.digits[:, rows])

    def fractions(self, positions: tuple[Tensor, ...]) -> list[Fraction]:
        """Convert the numbers at some positions (one index tensor per dimension) to fractions."""
        chosen = torch.stack([digit[positions] for digit in self.digits], -1).tolist()
        scale = Fraction(2) ** self.exponent
        return [sum(digit << (self.bits * k) for k, digit in enumerate(digits)) * scale for digits in chosen]


def digit_bits(terms: int) -> int:
    """The most bits of a digit with which a float64 sum of ``terms`` products is exact."""
    return (_SIGNIFICAND - max(1, terms).bit_length()) // 2


def lowest_exponent(values: Tensor) -> int:
    """The largest e such that all finite float64 ``values`` are integers times 2**e.

    It is 0 if all values are 0.
    """
    mantissa, exponent = _integers(values)
    lowest_bit = mantissa & -mantissa
    trailing = torch.frexp(lowest_bit.double())[1] - 1
    places = (exponent + trailing)[mantissa != 0]
    return int(places.min()) if len(places) else 0


def _integers(values: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``|values|`` into integers below 2**53 and exponents of two, both int64."""
    fraction, exponent = torch.frexp(values.abs())
    return torch.ldexp(fraction, torch.tensor(float(_SIGNIFICAND))).long(), exponent.long() - _SIGNIFICAND


def from_floats(values: Tensor, bits: int, exponent: int | None = None) -> Dyadic:
    """Convert finite float64 values exactly.

    Args:
        values: float64, of any shape.
        bits: the bits of a digit.
        exponent: of the result, at most ``lowest_exponent(values)``. None means exactly that.

    Raises:
        ValueError: for a larger exponent, with which low bits would be lost.
    """
    lowest = lowest_exponent(values)
    exponent = lowest if exponent is None else exponent
    if exponent > lowest:
        raise ValueError(f"from_floats: exponent={exponent} would cut values; pass at most {lowest}")
    mantissa, places = _integers(values)
    places = places - exponent  # negative only where the mantissa is 0 or ends in that many zero bits
    mantissa = mantissa >> (-places).clamp(0, 63)
    places = places.clamp(min=0)
    length = max(0, int((places + torch.frexp(mantissa.double())[1]).max())) if values.numel() else 0
    count = max(1, -(-length // bits))
    mask = (1 << bits) - 1
    digits = torch.empty((count, *values.shape), dtype=torch.int64)
    for k in range(count):
        offset = bits * k - places
        up = (-offset).clamp(0, bits)
        digits[k] = torch.where(offset >= 0, mantissa >> offset.clamp(0, 63), (mantissa & mask) << up) & mask
    return _normal(torch.where(values < 0, -digits, digits), bits, exponent)


def _normal(digits: Tensor, bits: int, exponent: int) -> Dyadic:
    """Carry until the digits have the normal form; drop leading digits that are not needed."""
    count = len(digits) + -(-64 // bits)
    out = torch.zeros((count, *digits.shape[1:]), dtype=torch.int64)
    out[: len(digits)] = digits
    for k in range(count - 1):
        carry = out[k] >> bits  # rounds down, so that the rest is not negative
        out[k] -= carry << bits
        out[k + 1] += carry
    while count > 1 and bool(((out[count - 1] == 0) | (out[count - 1] == -1)).all()):
        out[count - 2] += out[count - 1] << bits
        count -= 1
    return Dyadic(out[:count].clone(), bits, exponent)


def _integer_digits(number: int, bits: int) -> list[int]:
    sign, number = (-1, -number) if number < 0 else (1, number)
    digits = []
    while number:
        digits.append(sign * (number & ((1 << bits) - 1)))
        number >>= bits
    return digits or [0]


def _times(x: Tensor, number: int, bits: int) -> Tensor:
    """Multiply digits by an integer; the result is not in the normal form."""
    factors = _integer_digits(number, bits)
    out = torch.zeros((len(x) + len(factors) - 1, *x.shape[1:]), dtype=torch.int64)
    for k, factor in enumerate(factors):
        if factor:
            out[k : k + len(x)] += x * factor
    return out


def _sum(parts: Iterable[Tensor]) -> Tensor:
    parts = list(parts)
    out = torch.zeros((max(map(len, parts)), *parts[0].shape[1:]), dtype=torch.int64)
    for part in parts:
        out[: len(part)] += part
    return out


def linear(x: Dyadic, weight: Tensor, bias: Tensor | None) -> Dyadic:
    """Compute ``x @ weight.T + bias`` exactly.

    Args:
        x: [rows, inputs], with digits of at most ``digit_bits(inputs)`` bits.
        weight: finite float64 [outputs, inputs].
        bias: finite float64 [outputs], or None.

    Raises:
        ValueError: for digits of more bits, whose sums would be rounded.
    """
    outputs, inputs = weight.shape
    if x.bits > digit_bits(inputs):
        raise ValueError(f"linear: digits of {x.bits} bits are not exact for {inputs} terms; use {digit_bits(inputs)}")
    lowest = lowest_exponent(weight)
    if bias is not None and bool(bias.any()):
        lowest = min(lowest, lowest_exponent(bias) - x.exponent)  # so that the product's exponent can represent the bias
    factor = from_floats(weight, x.bits, lowest)
    live = [k for k in range(len(factor.digits)) if bool(factor.digits[k].any())]
    rows = x.digits.shape[1]
    total = torch.zeros((len(x.digits) + len(factor.digits), rows, outputs), dtype=torch.int64)
    if live:
        columns = factor.digits[live].reshape(-1, inputs).double().T.contiguous()
        for k, digit in enumerate(x.digits):
            if bool(digit.any()):
                product = (digit.double() @ columns).long().view(rows, len(live), outputs)
                for place, j in enumerate(live):
                    total[k + j] += product[:, place]
    exponent = x.exponent + lowest
    if bias is not None and bool(bias.any()):
        added = from_floats(bias, x.bits, exponent).digits
        total = _sum((total, added.unsqueeze(1).expand(-1, rows, -1)))
    return _normal(total, x.bits, exponent)


def compare(x: Dyadic, number: int) -> Tensor:
    """The sign of ``x - number`` for an integer: -1, 0 or 1, int64."""
    if number == 0:
        return x.sign
    x = _at_most_zero(x)
    digits = torch.tensor(_integer_digits(number << -x.exponent, x.bits))
    digits = digits.view(-1, *[1] * (x.digits.ndim - 1)).expand(-1, *x.digits.shape[1:])
    return _normal(_sum((x.digits, -digits)), x.bits, 0).sign


def _at_most_zero(x: Dyadic) -> Dyadic:
    """Rewrite ``x`` with an exponent of at most 0, with which integers can be represented."""
    return x if x.exponent <= 0 else _normal(_times(x.digits, 1 << x.exponent, x.bits), x.bits, 0)


def piecewise(x: Dyadic, slope: float, upper: int | None) -> Dyadic:
    """Compute ``slope * x`` for x < 0 and ``min(x, upper)`` for x >= 0, exactly.

    Args:
        x: the pre-activations.
        slope: the negative slope, taken as the exact value of the float.
        upper: an integer, or None for no upper limit.
    """
    numerator, denominator = slope.as_integer_ratio()
    sign = x.sign
    right = torch.where(sign > 0, x.digits, 0)
    if upper is not None:
        x = _at_most_zero(x)
        digits = torch.tensor(_integer_digits(upper << -x.exponent, x.bits))
        ceiling = digits.view(-1, *[1] * (x.digits.ndim - 1)).expand(-1, *x.digits.shape[1:])
        above = compare(x, upper) > 0
        right = _sum((torch.where((sign > 0) & ~above, x.digits, 0), torch.where(above, ceiling, 0)))
    if numerator == 0:
        return _normal(right, x.bits, x.exponent)
    # the right side, too, is multiplied by the denominator and divided by it, so that both sides have one exponent
    left = _times(torch.where(sign < 0, x.digits, 0), numerator, x.bits)
    exponent = x.exponent - (denominator.bit_length() - 1)
    return _normal(_sum((_times(right, denominator, x.bits), left)), x.bits, exponent)
