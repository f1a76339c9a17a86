"""Whether an author means a narrow band, from declarations and numbers in the code.

A hard shrinkage at 1e-3 and a guard against division by 0 may be the same function. What tells them apart is who chose the
width, and for what.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import numpy as np

from relucheck.activations.bands import Band
from relucheck.gate.cases.case import Case

#: *meant*: declared, or chosen by whoever constructed the activation. *default*: by whoever wrote its signature.
Intent = Literal["meant", "default", "unknown"]
#: How the names of defaults, parameters and buffers begin that guard a quotient or a square root.
_GUARDS: Final = ("eps", "tol", "tiny")


def intent_of(case: Case, band: Band) -> Intent:
    """Return what speaks for it that an author means a band.

    It is meant if one of its kinks is declared, or if both ends are numbers that were chosen: arguments of a
    ``functools.partial`` or a constructor, parameters, buffers, thresholds of the framework's hard shrinkage. Defaults of a
    constructor or a function are weaker evidence. What is named as a guard, such as a default or a buffer ``eps``, is none.
    """
    near = 0.01 * (band.high - band.low)
    if any(abs(kink.at - end) <= near for kink in case.activation.kinks if kink.at != 0 for end in (band.low, band.high)):
        return "meant"

    def bounded_by(numbers: list[float]) -> bool:
        sides = [sign * number for number in numbers if number != 0 for sign in (1, -1)]
        return all(any(abs(side - end) <= near for side in sides) for end in (band.low, band.high))

    chosen, default = _settings(case)
    if bounded_by([*chosen, *_thresholds(case)]):
        return "meant"
    return "default" if bounded_by([*chosen, *default]) else "unknown"


def _settings(case: Case) -> tuple[list[float], list[float]]:
    """Return the numbers with which an activation was constructed: those that were chosen, and defaults."""
    target, chosen, default = case.subject.original, [], []
    while isinstance(target, functools.partial):
        chosen += _numbers_in([*target.args, target.keywords])
        target = target.func
    for name, numbers in case.framework.stored_numbers(target).items():
        if not name.rpartition(".")[2].startswith(_GUARDS):
            chosen += numbers
    for part in case.framework.parts(target):
        for name, number, usual in _held(part):
            if number not in usual:
                chosen.append(number)
            elif not name.startswith(_GUARDS):
                default.append(number)
    return chosen, default


def _held(part: Any) -> Iterator[tuple[str, float, list[float]]]:
    """Yield name, number and defaults of each number that belongs to an argument of a constructor or a function."""
    is_function = inspect.isfunction(part)
    try:
        arguments = inspect.signature(part if is_function else type(part)).parameters
    except (TypeError, ValueError):
        return
    attributes = {} if is_function else getattr(part, "__dict__", {})
    for name, argument in arguments.items():
        usual = _numbers_in([argument.default])
        named = _numbers_in([attributes.get(name)])
        # an attribute of another name that holds the default is taken for the argument
        others = [number for number in usual if number in _numbers_in(attributes.values())] if not named else []
        for number in usual if is_function else [*named, *others]:
            yield name, number, usual


def _numbers_in(values: Any) -> list[float]:
    """Return the numbers among values, and in lists and mappings among them."""
    found: list[float] = []
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append(float(value))
        elif isinstance(value, Mapping):
            found += _numbers_in(value.values())
        elif isinstance(value, list | tuple):
            found += _numbers_in(value)
    return found


def _thresholds(case: Case) -> list[float]:
    """Return the thresholds of the framework's operations in a call in float64; none where it does not run."""
    try:
        return case.framework.thresholds(case.wide, np.array([-1.0, 1.0]))
    except Exception:
        return []
