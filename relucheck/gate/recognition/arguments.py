"""Elementwise functions of several arrays, such as swiglu(a, b) and gelu(x + bias)."""

from __future__ import annotations

import dataclasses

from relucheck.gate.frameworks.exchange import View
from relucheck.gate.recognition.attempts import Attempt, Skipped, differentiates, first_that_fits, ordinary
from relucheck.gate.subject import Subject


def views_of_arguments(attempt: Attempt, base: View) -> tuple[list[Subject], Skipped]:
    """Return a subject for each argument by which the function is elementwise.

    The other arguments come with the reason. All arguments have one shape, unless forward or backward refuses that. Then
    those after the first have its last axis alone, if that runs. There are no subjects for a callable that is no such
    function of its first argument.

    Args:
        attempt: the callable.
        base: says which result is checked.
    """
    found = _views(attempt, base, shared=False)
    if len(attempt.names) > 1 and not (found[0] and all(map(differentiates, found[0]))):
        narrower = _views(attempt, base, shared=True)
        if narrower[0] and (not found[0] or all(map(differentiates, narrower[0]))):
            return narrower
    return found


def _views(attempt: Attempt, base: View, *, shared: bool) -> tuple[list[Subject], Skipped]:
    names = attempt.names
    subjects: list[Subject] = []
    skipped: Skipped = {}
    for index, name in enumerate(names if len(names) > 1 else ()):
        refusals: list[str] = []
        views = [
            dataclasses.replace(base, names=names, index=index, values=values, shared=shared)
            for values in ordinary(len(names))
        ]
        subject = first_that_fits(attempt, views, refusals)
        if subject is not None:
            subjects.append(subject)
        elif index == 0:
            return [], {}
        else:
            skipped[f"{attempt.activation.name}[{name}]"] = refusals[0]
    return subjects, skipped
