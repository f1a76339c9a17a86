"""Gated units, which split their input into two parts: GLU, SwiGLU, GEGLU and their like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from relucheck.gate.frameworks.exchange import View
from relucheck.gate.recognition.attempts import Attempt, Skipped, first_that_fits, ordinary, spread_numbers
from relucheck.gate.subject import Subject
from relucheck.numerics.floats import Floats

#: Shapes of inputs of one to four axes; no two axes have one length, so that the one that is halved shows.
_SHAPES = ((16,), (12, 16), (10, 12, 16), (10, 12, 14, 16))


@dataclasses.dataclass(frozen=True)
class _Halving:
    """A call whose result is half as long as its input, along one axis."""

    x: Floats
    y: Floats
    axis: int


def views_of_parts(attempt: Attempt, base: View) -> tuple[list[Subject], Skipped]:
    """Return a subject for each half of a gated unit's input.

    A half that is not checked comes with the reason.

    There are none for a callable that does not halve an axis of its input, or mixes more than two elements.

    Args:
        attempt: the callable.
        base: says which result is checked.
    """
    halvings = list(_halvings(attempt, base))
    if not halvings or (interleaved := _interleaved(attempt, base, halvings[0])) is None:
        return [], {}
    from_end = {halving.axis - halving.x.ndim for halving in halvings}
    axis = from_end.pop() if len(from_end) == 1 else halvings[0].axis
    if interleaved and axis != -1:
        return [], {}
    names = _names(attempt, base, halvings[0], interleaved)
    subjects: list[Subject] = []
    skipped: Skipped = {}
    for index, name in enumerate(names):
        refusals: list[str] = []
        views = [
            dataclasses.replace(base, names=names, index=index, values=values, axis=axis, interleaved=interleaved)
            for values in ordinary(2)
        ]
        subject = first_that_fits(attempt, views, refusals)
        if subject is not None:
            subjects.append(subject)
        else:
            skipped[f"{attempt.activation.name}[{name}]"] = refusals[0]
    return subjects, skipped


def _value(attempt: Attempt, base: View, x: Floats) -> Floats | None:
    """Compute the checked result; None if there is none."""
    return next((output.numbers for output in attempt.outputs(x) if output.key == base.output), None)


def _halvings(attempt: Attempt, base: View) -> Iterator[_Halving]:
    for shape in _SHAPES:
        x = spread_numbers(shape)
        y = _value(attempt, base, x)
        if y is None or y.ndim != x.ndim:
            continue
        different = [axis for axis in range(x.ndim) if y.shape[axis] != x.shape[axis]]
        if len(different) == 1 and 2 * y.shape[different[0]] == x.shape[different[0]]:
            yield _Halving(x, y, different[0])


def _interleaved(attempt: Attempt, base: View, halving: _Halving) -> bool | None:
    """Whether the two parts alternate; None if an output depends on others than its two elements."""
    axis, half = halving.axis, halving.y.shape[halving.axis]
    reached = []
    for index in range(2 * half):
        moved = halving.x.copy()
        place: list[int] = [0] * moved.ndim
        place[axis] = index
        moved[tuple(place)] += 0.375
        y = _value(attempt, base, moved)
        if y is None:
            return None
        changed = np.argwhere(y != halving.y)
        if any(c != p for row in changed.tolist() for at, (c, p) in enumerate(zip(row, place, strict=True)) if at != axis):
            return None
        reached.append({row[axis] for row in changed.tolist()})
    both = any(reached[:half]) and any(reached[half:]), any(reached[::2]) and any(reached[1::2])
    for interleaved in (False, True):
        expected = [index // 2 if interleaved else index % half for index in range(2 * half)]
        if both[interleaved] and all(found <= {own} for found, own in zip(reached, expected, strict=True)):
            return interleaved
    return None


def _names(attempt: Attempt, base: View, halving: _Halving, interleaved: bool) -> tuple[str, str]:
    """Name the parts: the value is the one in which the unit is linear, up to a constant, if it is so in one alone."""
    linear = []
    for part in (0, 1):
        own = np.arange(halving.x.shape[halving.axis])
        mask = (own % 2 == part) if interleaved else (own // halving.y.shape[halving.axis] == part)
        shape = [1] * halving.x.ndim
        shape[halving.axis] = own.size
        chosen = mask.reshape(shape)
        # the negative factor tells ReLU from a linear function
        at = {factor: _value(attempt, base, np.where(chosen, factor * halving.x, halving.x)) for factor in (0.0, 2.0, -1.0)}
        zero = at[0.0]
        linear.append(
            zero is not None
            and all(
                y is not None and np.allclose(y - zero, factor * (halving.y - zero), rtol=1e-4, atol=1e-5)
                for factor, y in at.items()
            )
        )
    if linear == [True, False]:
        return "value", "gate"
    if linear == [False, True]:
        return "gate", "value"
    return "first", "second"
