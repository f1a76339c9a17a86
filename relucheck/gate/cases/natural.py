"""How natural an input is to a person who reads about a failure there."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from relucheck.numerics.floats import Floats, Mask

#: Inputs up to this size are ordinary.
ORDINARY: Final = 64.0


def unnatural(x: Floats, on_kink: Mask) -> NDArray[np.int64]:
    """Return how hard inputs are to understand: 0 for a kink, 1 for a round number, up to 3.

    Args:
        x: the inputs, any shape.
        on_kink: which of them are kinks, of the shape of ``x``.
    """
    size = np.abs(x)
    with np.errstate(over="ignore", invalid="ignore"):
        round_number = (size <= ORDINARY) & (8 * x == np.rint(8 * x))
    return np.select([on_kink, round_number, (size >= 1e-3) & (size <= 1e3)], [0, 1, 2], 3)
