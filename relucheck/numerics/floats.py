"""The four float formats by name: limits, rounding, order, comparison. Imports no torch.

Every value of float16, bfloat16, float32 and float64 is a float64. So float64 arrays of NumPy hold the values of each
format exactly, with the sign of zero, and the functions here take and return such arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class FloatFormat:
    """A binary float format, with subnormal numbers, infinities and NaN.

    Attributes:
        name: name of the dtype, such as ``"bfloat16"``.
        width: width in bits.
        digits: number of bits of the significand, the implicit one included.
        lowest: exponent of the smallest positive normal number, a power of two.
        highest: exponent of the largest finite number's leading bit.
    """

    name: str
    width: int
    digits: int
    lowest: int
    highest: int

    @property
    def eps(self) -> float:
        """The machine epsilon: the distance from 1 to the next larger value."""
        return 2.0 ** (1 - self.digits)

    @property
    def tiny(self) -> float:
        """The smallest positive normal number."""
        return 2.0**self.lowest

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return (2.0 - self.eps) * 2.0**self.highest

    def rounded(self, x: Floats | float) -> Floats:
        """Round float64 numbers once to the nearest value of this format, ties to the even one.

        Numbers beyond the range become infinite. The sign of zero is kept. The result has the shape of ``x``.
        """
        wide = np.asarray(x, dtype=np.float64)
        if self.width == 64:
            return wide.copy()
        _, exponent = np.frexp(wide)
        # of each number, the exponent of its last bit in this format
        last = np.maximum(exponent - 1, self.lowest) - (self.digits - 1)
        result = np.ldexp(np.rint(np.ldexp(wide, -last)), last)
        return np.where(np.abs(result) > self.largest, np.copysign(np.inf, result), result)

    def ordinals(self, x: Floats) -> NDArray[np.int64]:
        """Map values to integers in the same order: neighbours differ by 1, both zeros are 0.

        NaN has no place in the order, and its ordinal means nothing.
        """
        stored, unused = _STORED[self.name]
        with np.errstate(over="ignore"):
            bits = np.ascontiguousarray(x, dtype=stored).view(f"i{stored.itemsize}").astype(np.int64) >> unused
        magnitude = bits & ((1 << (self.width - 1)) - 1)
        return np.where(bits < 0, -magnitude, magnitude)

    def from_ordinals(self, order: NDArray[np.int64]) -> Floats:
        """Map ``ordinals`` to values; 0 gives +0, and ordinals beyond infinity give infinity."""
        stored, unused = _STORED[self.name]
        infinity = int(self.ordinals(np.array([np.inf]))[0])
        magnitude = np.minimum(np.abs(order), infinity) << unused
        value = magnitude.astype(f"i{stored.itemsize}").view(stored).astype(np.float64)
        return np.where(order < 0, -value, value)

    def neighbour(self, x: Floats, steps: int = 1) -> Floats:
        """Return the values ``steps`` places above ``x`` in the order, or below it if negative.

        The two zeros count as one value, and every subnormal counts. A step past the largest finite value gives infinity.
        """
        return self.from_ordinals(self.ordinals(x) + steps)

    def distance(self, a: float, b: float) -> int | None:
        """Return the number of values from ``a`` to ``b``, which are rounded to this format first.

        None if one of them is not finite in this format.
        """
        pair = self.rounded(np.array([a, b]))
        if not np.isfinite(pair).all():
            return None
        first, second = self.ordinals(pair).tolist()
        return abs(int(first) - int(second))

    def all_finite_values(self) -> Floats:
        """Return all finite values of a 16-bit format by bit pattern, both zeros included.

        Raises:
            ValueError: for a wider format.
        """
        if self.width != 16:
            raise ValueError(f"{self.name} has too many values to list; only float16 and bfloat16 fit in one array")
        stored, unused = _STORED[self.name]
        bits = np.arange(-(2**15), 2**15, dtype=np.int64) << unused
        values = bits.astype(f"i{stored.itemsize}").view(stored)
        return values[np.isfinite(values)].astype(np.float64)


#: The NumPy dtype that stores a format's values, and how many of its low bits the format does not use.
_STORED: Final[Mapping[str, tuple[np.dtype, int]]] = {
    "bfloat16": (np.dtype(np.float32), 16),
    "float16": (np.dtype(np.float16), 0),
    "float32": (np.dtype(np.float32), 0),
    "float64": (np.dtype(np.float64), 0),
}
#: The formats by name, by increasing number of significand bits.
FORMATS: Final[Mapping[str, FloatFormat]] = {
    kind.name: kind
    for kind in (
        FloatFormat("bfloat16", 16, 8, -126, 127),
        FloatFormat("float16", 16, 11, -14, 15),
        FloatFormat("float32", 32, 24, -126, 127),
        FloatFormat("float64", 64, 53, -1022, 1023),
    )
}


def differs(a: Floats, b: Floats, *, signed_zero: bool = False) -> Mask:
    """Return a mask of the entries at which two arrays differ; any NaN equals any NaN.

    Args:
        a, b: arrays of one shape.
        signed_zero: whether -0 differs from +0. Gradients are compared without it, because the sign of a zero gradient
            changes no parameter.
    """
    different: Mask = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if signed_zero:
        different |= (a == 0) & (b == 0) & (np.signbit(a) != np.signbit(b))
    return different
