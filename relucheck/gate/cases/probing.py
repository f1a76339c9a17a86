"""The numbers at which laws look, exact cotangents, and inputs that fall across a jump."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from relucheck.activations.kink_search import FoundKink
from relucheck.numerics.floats import FORMATS, Floats, Mask

#: Length of a tensor that a vectorised kernel splits into a vector body and a scalar tail, for widths up to 64 elements.
TAIL_LENGTH: Final = 83
#: Inputs and values are judged up to this share of the dtype's range, because a product with an ordinary constant overflows
#: beyond it: x * relu6(x + 3) / 6 does before its result, in float16 at 10920.
ROOM: Final = 64.0
#: Inputs up to which a value that is not finite is an error. Squares and cubes overflow beyond, except in float16.
REACHED: Final = 1e6
#: Points that activations often treat specially: knots of splines, and numbers with which implementations compare.
ISOLATED: Final = (0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0)
#: Distances from 0 on a logarithmic scale: the constants with which people keep quotients finite lie between them.
NEAR_ZERO: Final = 10.0 ** -np.arange(2.5, 14, 2)
#: Distances from a kink, relative to its size, beyond those that rounding may carry over the kink.
BESIDE: Final = (1e-4,)


def _thresholds() -> Floats:
    """Return inputs at and around which exponentials and squares leave the range of a dtype, of both signs.

    exp(x) overflows from log(largest) on and underflows below log(tiny), exp(2 x) overflows at half of that, and x * x does
    both at the square roots. A function that is computed in another dtype inside has the thresholds of that dtype, so there
    are those of each.
    """
    kinds = [kind for name, kind in FORMATS.items() if name != "bfloat16"]  # its range is that of float32
    largest, tiny = (np.array(sizes) for sizes in zip(*((kind.largest, kind.tiny) for kind in kinds), strict=True))
    sizes = np.concatenate([largest, tiny])
    around = [np.abs(np.log(sizes)) + shift for shift in (-0.5, 0.0, 0.5)]
    around += [np.sqrt(sizes) * factor for factor in (1 - 1 / 16, 1.0, 1 + 1 / 16)]
    points = np.concatenate([*around, np.log(largest) / 2 + 0.5])
    return np.concatenate([points, -points])


#: Inputs between which an overflow inside a function would pass unseen.
THRESHOLDS: Final = _thresholds()

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


def across_jumps(kinks: Sequence[FoundKink], x: Floats, a: Floats, b: Floats, eps: float) -> Mask:
    """Return a mask of the inputs beside a jump whose two values differ by the jump.

    Vectorised and scalar code may round an intermediate result differently, and a comparison with it decides on which side
    of the jump the input lies. Both values are right then, and so are two gradients that fit them.

    Args:
        kinks: the kinks of the function.
        x: the inputs, any shape.
        a: values there, of the shape of ``x``.
        b: other values there, of the shape of ``x``.
        eps: machine epsilon of the values.
    """
    mask = np.zeros(x.shape, dtype=bool)
    for kink in kinks:
        beside = np.abs(x - kink.at) <= 8 * eps * max(1.0, abs(kink.at))
        mask |= beside & (abs(kink.jump) > 0) & (np.abs(np.abs(a - b) - abs(kink.jump)) <= 0.25 * abs(kink.jump))
    return mask
