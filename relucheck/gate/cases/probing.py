"""Helpers of the laws: cotangents without rounding, and the first true entry of a mask."""

from __future__ import annotations

from typing import Final

import numpy as np

from relucheck.numerics.floats import Floats, Mask

#: Cotangents with few significant bits, so that sums and products of them are exact in every dtype.
_DYADIC: Final = np.array((1.0, -1.5, 0.75, 2.0, -0.5, 1.25))


def dyadic(length: int) -> Floats:
    """Return cotangents that differ between neighbours and have few significant bits."""
    return np.resize(_DYADIC, length)


def first(mask: Mask) -> int:
    """Return the index of the first true entry of a mask, which has one.

    Among probe points this is a kink if one is true, because kinks come first.
    """
    return int(mask.argmax())


def wider(x: Floats, most: float) -> Floats:
    """Return ``|x|``, at most ``most``, by which tolerances grow, because rounding errors do."""
    return np.minimum(np.abs(x), most)
