"""How natural an input is to a person who reads about a failure there."""

from __future__ import annotations

import math
from typing import Final

#: Inputs up to this size are ordinary.
ORDINARY: Final = 64.0


def unnatural(x: float, *, on_kink: bool = False) -> int:
    """Return how hard an input is to understand: 0 for a kink, 1 for a round number, up to 3.

    Args:
        x: the input.
        on_kink: whether it is a kink.
    """
    if on_kink:
        return 0
    if math.isfinite(x) and abs(x) <= ORDINARY and (8 * x).is_integer():
        return 1
    if 1e-3 <= abs(x) <= 1e3:
        return 2
    return 3
