"""A law about the numbers of the other arguments, parts or elements of a row.

Every other law checks one of them, while each of the others holds one ordinary number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

import numpy as np

from relucheck.activations.kink_search import derivatives
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import first
from relucheck.gate.cases.violation import LawViolation
from relucheck.gate.frameworks.script import within
from relucheck.gate.laws.law import has_others, law, violations_of
from relucheck.gate.refusals import NotAnActivation, TargetError
from relucheck.gate.subject import Subject
from relucheck.numerics.floats import FORMATS

#: Large numbers, at which many functions saturate, and whose products with ordinary ones are finite in every dtype.
_LARGE: Final = (1024.0, -1024.0)
#: Ordinary inputs, at which the activation beside other numbers is called.
_MODERATE: Final = np.linspace(-3, 3, 25) + 0.01
#: Number of kinks of another argument at which it is set.
_MOST_KINKS: Final = 3
#: How far from a number of another argument the derivative is that beside it.
_BESIDE: Final = 2.0**-6
#: Dtypes in which other arguments take all their numbers; in others they take 0 and one kink.
_THOROUGH: Final = ("float32", "bfloat16")


@law(needs=("views",), applies=has_others)
def other_arguments(case: Case) -> None:
    """What holds where the other arguments are ordinary numbers holds where they are not, too.

    The law sets one of the others after another to 0, to a number of the other sign and to its own kinks, and checks the
    laws on scaling, derivatives, subgradients and the agreement of dtypes. Then it sets it to large numbers of both signs,
    and compares the gradient with the derivative, up to rounding of the largest value or slope. In float64 and float16, it
    takes 0 and one kink only. A number at which the function is not finite is left out.
    """
    notices: list[LawViolation] = []
    for large, subject in _drawn(case):
        where = f"with {', '.join(f'{name} = {value:g}' for name, value in _others(subject).items())}"
        if large:
            _judge_large(case, subject, where)
            continue
        for found in violations_of(case, subject, where):
            if _of_a_joint_kink(case, subject, found):
                continue
            if found.level == "error" and not _at_a_new_jump(case, subject, found):
                raise found
            why = "" if found.level == "notice" else "with these numbers of the others alone, the value jumps there"
            notices.append(found.as_notice(why))
    if notices:
        raise notices[0]


def _others(subject: Subject) -> dict[str, float]:
    return {} if subject.view is None else subject.view.others


def _drawn(case: Case) -> Iterator[tuple[bool, Subject]]:
    """Yield the subject with other numbers for the other arguments, and whether one of them is large."""
    view = case.view
    thorough = case.dtype in _THOROUGH
    # the other elements of a row are alike
    for index in [index for index in range(len(view.names)) if index != view.index][: 1 if view.row else None]:
        ordinary = view.values[index]
        try:
            found = case.subject.seen(dataclasses.replace(view, index=index)).exact_and_kinks(case.dtype)[1]
        except (NotAnActivation, TargetError):
            found = []
        kinks = [kink.at for kink in found if FORMATS["bfloat16"].rounded(np.array(kink.at)) == kink.at]
        numbers = [0.0, *kinks[:1]] if not thorough else [0.0, -ordinary, *kinks[:_MOST_KINKS], *_LARGE]
        for number in dict.fromkeys(number for number in numbers if number != ordinary):
            values = tuple(number if place == index else value for place, value in enumerate(view.values))
            subject = case.subject.seen(dataclasses.replace(view, values=values))
            if np.isfinite(subject.exact(case.dtype)(_MODERATE)).all():
                yield number in _LARGE, subject
    if view.row:
        for number in (0.0, *(_LARGE if thorough else ())):
            subject = case.subject.seen(dataclasses.replace(view, values=(number,) * len(view.names)))
            if np.isfinite(subject.exact(case.dtype)(_MODERATE)).all():
                yield number in _LARGE, subject


def _at_a_new_jump(case: Case, subject: Subject, found: LawViolation) -> bool:
    """Whether a violation is at a jump, of a function that has none for ordinary numbers of the others.

    The number is no sensible one then, as a negative threshold in ``sign(x) * relu(abs(x) - threshold)``.
    """
    jumps = [kink.at for kink in subject.exact_and_kinks(case.dtype)[1] if kink.jump]
    return found.counterexample.kink in jumps and not any(kink.jump for kink in case.kinks)


def _of_a_joint_kink(case: Case, subject: Subject, found: LawViolation) -> bool:
    """Whether a gradient that is not the derivative beside one number is that beside the numbers next to it.

    The function of all arguments may have a kink where that of one has none: ``relu(x - t) - relu(-x - t)`` is x for t = 0,
    and constant around 0 for a larger t. Any gradient between those beside smaller and larger t is right for t = 0.
    """
    if not found.counterexample.x:
        return False
    x = case.rounded([float(found.counterexample.x)])
    other = Case(subject, case.dtype, case.device, case.config)
    got = other.reverse(x)
    twice = other.reverse(x, np.full(1, 2.0))
    if not (np.abs(twice - 2 * got) <= 4 * case.eps * np.abs(got)).all():
        return False
    view, near = other.view, []
    for index, value in enumerate(view.values):
        if index != view.index:
            for step in (-_BESIDE, _BESIDE):
                values = (*view.values[:index], value + step, *view.values[index + 1 :])
                exact = case.subject.seen(dataclasses.replace(view, values=values)).exact(case.dtype)
                near += [each[0] for each in derivatives(exact, x, ())[:2]]
    slack = 8 * case.eps * (1 + abs(got[0])) + 2 * _BESIDE
    return bool(np.nanmin(near) - slack <= got[0] <= np.nanmax(near) + slack)


def _judge_large(case: Case, subject: Subject, where: str) -> None:
    """Raise a violation where the gradient beside a large number is not the derivative."""
    other = Case(subject, case.dtype, case.device, case.config)
    other.law = case.law
    x = other.rounded(_MODERATE)
    # kinks are not searched for, because a function may oscillate here; the two derivatives differ at one
    left, right, error = derivatives(subject.exact(case.dtype), x, ())
    y, g = other.value(x), other.reverse(x)
    finite = np.isfinite(y)
    if case.activation.surrogate or not finite.any():
        return
    size = 1 + max(float(np.abs(each[finite]).max(initial=0, where=np.isfinite(each[finite]))) for each in (y, left, right))
    slack = 32 * other.eps * size + 10 * error
    low, high = np.minimum(left, right) - slack, np.maximum(left, right) + slack
    bad = finite & np.isfinite(slack) & ~((g >= low) & (g <= high)) & ~np.isnan(low)
    if bad.any():
        index = first(bad)
        at, bounds = float(x[index]), (float(low[index]), float(high[index]))
        raise other.fail(
            f"{where}: the gradient is not the derivative",
            x=at,
            cotangent=1.0,
            got=float(g[index]),
            allowed=f"{float(left[index])!r} within {float(slack[index]):.3g}",
            script=other.script.one_gradient(at, 1.0, within("got", *bounds, 0.0), f"derivative: {float(left[index])!r}"),
        )
