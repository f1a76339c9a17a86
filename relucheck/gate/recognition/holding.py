"""Functions of rows or units with further arguments, such as rms_norm(x, weight).

The arguments belong to a whole row, so that there is no elementwise function of them. A module holds them as learnable
parameters, and is checked like any other: the law ``parameters`` judges their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from relucheck.gate.recognition.attempts import Attempt

#: Numbers of the arguments, all different, above 0, and numbers of every dtype.
_NUMBERS: Final = (1.25, 0.75, 0.5, 1.5, 1.0, 0.875, 0.625, 1.125)
#: How many numbers an argument has: one for each element of a row, one for each element of both halves of a gated unit, or
#: one without an axis, marked by 0.
_SIZES: Final = (4, 16, 0)


def holding(attempt: Attempt) -> Iterator[Attempt]:
    """Yield attempts to check a callable whose arguments after the first are held as parameters.

    Args:
        attempt: the callable of several arguments.
    """
    for size in _SIZES if len(attempt.names) > 1 else ():
        held = []
        for index, name in enumerate(attempt.names[1:]):
            numbers = [_NUMBERS[(index + place) % len(_NUMBERS)] for place in range(max(1, size))]
            held.append((name, tuple(numbers) if size else numbers[0]))
        yield Attempt(attempt.activation, attempt.scan, needs_arguments=False, held=tuple(held))
