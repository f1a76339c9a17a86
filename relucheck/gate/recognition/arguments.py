"""Elementwise functions of several arrays, such as swiglu(a, b) and gelu(x + bias)."""

from __future__ import annotations

import dataclasses

from relucheck.gate.frameworks.exchange import View
from relucheck.gate.recognition.attempts import Attempt, Skipped, first_that_fits, ordinary
from relucheck.gate.subject import Subject


def views_of_arguments(attempt: Attempt, base: View) -> tuple[list[Subject], Skipped]:
    """Return a subject for each argument by which the function is elementwise.

    The other arguments come with the reason.

    All arguments have one shape, unless the function refuses that. Then those after the first have its last axis alone.
    There are no subjects for a callable that is no such function of its first argument.

    Args:
        attempt: the callable.
        base: says which result is checked.
    """
    names = attempt.names
    for shared in (False, True) if len(names) > 1 else ():
        subjects: list[Subject] = []
        skipped: Skipped = {}
        for index, name in enumerate(names):
            refusals: list[str] = []
            views = [
                dataclasses.replace(base, names=names, index=index, values=values, shared=shared)
                for values in ordinary(len(names))
            ]
            subject = first_that_fits(attempt, views, refusals)
            if subject is not None:
                subjects.append(subject)
            elif index == 0:
                break
            else:
                skipped[f"{attempt.activation.name}[{name}]"] = refusals[0]
        if subjects:
            return subjects, skipped
    return [], {}
