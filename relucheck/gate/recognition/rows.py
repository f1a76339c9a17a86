"""Functions of rows: softmax, sparsemax, and normalisation of each row by itself."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Final

import numpy as np

from relucheck.gate.frameworks.exchange import View
from relucheck.gate.recognition.attempts import Attempt, first_that_fits, spread_numbers
from relucheck.gate.subject import Subject
from relucheck.numerics.floats import Floats

#: Numbers of the other elements of a row, all different.
_NUMBERS: Final = (0.75, -1.25, 0.375, 1.5, -0.5, 1.125, -1.75, 0.25)
#: Length of a row where no parameter says another one, and the longest that is checked.
_LENGTH, _LONGEST = 4, 16
#: Length of the axes beside the row.
_BESIDE: Final = (3, 5, 2, 3)


def view_of_rows(attempt: Attempt, base: View) -> Subject | None:
    """Return the subject of a function of rows; None for any other callable.

    Each output of such a function depends on the inputs of its own row, along one axis, and its result has the shape of its
    input.

    Args:
        attempt: the callable.
        base: says which result is checked.
    """
    sizes = [size for size in attempt.framework.parameter_sizes(attempt.target) if 2 < size <= _LONGEST]
    for length, dimensions in itertools.product(dict.fromkeys([_LENGTH, *sizes]), (2, 4)):
        for axis in range(dimensions):
            if not _mixes_rows(attempt, base, length, dimensions, axis):
                continue
            place = _place(attempt, base, length, dimensions, axis)
            if place is None:
                return None
            names = tuple(f"element {index}" for index in range(length))
            values = tuple(itertools.islice(itertools.cycle(_NUMBERS), length))
            view = dataclasses.replace(base, names=names, values=values, axis=place, row=True)
            subject = first_that_fits(attempt, [view])
            if subject is not None:
                return subject
    return None


def _place(attempt: Attempt, base: View, length: int, dimensions: int, axis: int) -> int | None:
    """Return the axis of the rows, counted from the end if that holds for one axis more.

    Otherwise it is counted from the start. None if neither holds: torch's softmax without ``dim`` takes another axis for
    another number of axes.
    """
    if _value(attempt, base, _inputs(length, dimensions + 1, axis)) is None:
        return axis - dimensions if axis == dimensions - 1 else axis
    if _mixes_rows(attempt, base, length, dimensions + 1, axis + 1):
        return axis - dimensions
    return axis if _mixes_rows(attempt, base, length, dimensions + 1, axis) else None


def _inputs(length: int, dimensions: int, axis: int) -> Floats:
    shape = list(_BESIDE[: dimensions - 1])
    shape.insert(axis, length)
    # so small that sparsemax cuts nothing off, and above 0, where many functions are not constant
    return 0.3 + 0.1 * spread_numbers(shape)


def _value(attempt: Attempt, base: View, x: Floats) -> Floats | None:
    return next((output.numbers for output in attempt.outputs(x) if output.key == base.output), None)


def _mixes_rows(attempt: Attempt, base: View, length: int, dimensions: int, axis: int) -> bool:
    """Whether a change of one element changes all others along an axis, and none beside it."""
    x = _inputs(length, dimensions, axis)
    y = _value(attempt, base, x)
    if y is None or y.shape != x.shape:
        return False
    for place in (tuple([0] * dimensions), tuple(size - 1 for size in x.shape)):
        moved = x.copy()
        moved[place] += 0.0625
        other = _value(attempt, base, moved)
        if other is None or other.shape != y.shape:
            return False
        changed = np.argwhere(other != y)
        beside = np.delete(changed, axis, 1) != np.delete(np.array(place), axis)
        if beside.any() or {*changed[:, axis].tolist()} != {*range(length)}:
            return False
    return True
