"""Recognises in a callable the functions of one array that the laws check.

Most activations are one. A function of several arrays is one for each of its arguments, and a gated unit one for each of
the parts into which it splits its input. A function of rows, such as softmax, is one of an element of each row. A callable
with several results is checked by the first that has a gradient.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from relucheck.activations.kink_search import SCAN_RANGE
from relucheck.activations.kinks import Activation
from relucheck.gate.frameworks import framework_named
from relucheck.gate.frameworks.exchange import View
from relucheck.gate.recognition.arguments import views_of_arguments
from relucheck.gate.recognition.attempts import Attempt, Skipped, first_that_fits
from relucheck.gate.recognition.holding import holding
from relucheck.gate.recognition.layers import refuse_layers
from relucheck.gate.recognition.outputs import differentiable
from relucheck.gate.recognition.parts import views_of_parts
from relucheck.gate.recognition.rows import view_of_rows
from relucheck.gate.refusals import Mixes, NeedsArguments, NotAnActivation, OtherLayout, TargetError, Unconstructed
from relucheck.gate.subject import Subject

__all__ = ["Recognised", "recognised"]

#: What a callable is not, that may be a function of several arrays or parts.
_MAY_BE_ANOTHER: Final = (NeedsArguments, Mixes, OtherLayout, TargetError)


@dataclasses.dataclass(frozen=True)
class Recognised:
    """What the laws check in one callable.

    Attributes:
        subjects: a subject for each argument or part; one subject for a function of one array.
        skipped: arguments, parts and results that are not checked, with the reason, by name.
    """

    subjects: tuple[Subject, ...]
    skipped: Skipped


def recognised(activation: Activation, scan: tuple[float, float] = SCAN_RANGE) -> Recognised:
    """Recognise the functions of one array in an activation.

    Args:
        activation: the activation and its declarations.
        scan: range of inputs in which to search for kinks.

    Raises:
        NotAnActivation: for a callable to which the laws do not apply.
        TargetError: for an activation that cannot be run.
        FrameworkError: for an activation whose framework does not exist or is not installed.
    """
    try:
        return Recognised((Subject(activation, scan),), {})
    except Unconstructed:
        raise
    except _MAY_BE_ANOTHER as error:
        if "views" not in framework_named(activation.framework).capabilities:
            raise
        refused: NotAnActivation | TargetError = error
    attempt = Attempt(activation, scan, isinstance(refused, NeedsArguments))
    found = _in_several(attempt)
    if found is None:
        raise refused
    return found


def _in_several(attempt: Attempt) -> Recognised | None:
    """Recognise a function of several arrays, parts or rows, or with several results; else None."""
    if attempt.needs_arguments:
        output, unchecked = differentiable(attempt)
        base = View(output=output)
        subjects, skipped = views_of_arguments(attempt, base)
        if not subjects:
            return next(filter(None, map(_of_one, holding(attempt))), None)
        return Recognised(_declared(subjects), skipped | unchecked)
    return _of_one(attempt)


def _of_one(attempt: Attempt) -> Recognised | None:
    """Recognise a function of one array: of its channels, parts or rows.

    None for any other callable.

    Raises:
        Mixes: for linear layers around an activation.
    """
    output, unchecked = differentiable(attempt)
    base = View(output=output, held=attempt.held)
    if attempt.held or output is not None:
        subject = first_that_fits(attempt, [base])
        if subject is not None:
            return Recognised((subject,), unchecked)
    subjects, skipped = views_of_parts(attempt, base)
    if subjects:
        return Recognised(_declared(subjects), skipped | unchecked)
    refuse_layers(attempt)
    row = view_of_rows(attempt, base)
    return None if row is None else Recognised((row,), unchecked)


def _declared(subjects: list[Subject]) -> tuple[Subject, ...]:
    """Give each of several subjects the declarations that concern it."""
    names = [subject.view.name for subject in subjects if subject.view is not None]
    gate = "gate" if "gate" in names else names[0]
    declared = {kink.argument for subject in subjects for kink in subject.activation.kinks if kink.argument}
    if unknown := sorted(declared - {*names}):
        raise TargetError(f"declares a kink of the argument {unknown[0]!r}; those that are checked are {', '.join(names)}")
    for subject, name in zip(subjects, names, strict=True):
        # an in-place variant is no function of one array
        inplace = None if callable(subject.activation.inplace) else subject.activation.inplace
        kinks = tuple(kink for kink in subject.activation.kinks if (kink.argument or gate) == name)
        subject.activation = dataclasses.replace(subject.activation, kinks=kinks, inplace=inplace)
    return tuple(subjects)
