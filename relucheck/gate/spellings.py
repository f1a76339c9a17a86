"""Find equal spellings: activations that compute numerically the same function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from relucheck.gate.subject import Subject
from relucheck.numerics.floats import Floats


def equal_spellings_of(
    subjects: Mapping[str, Subject], scan: tuple[float, float], guard: Callable[[str], AbstractContextManager[Any]]
) -> dict[str, dict[str, Subject]]:
    """Find, for each activation, others that are numerically the same function.

    The candidates are the activations of the run and those of their frameworks.

    Two activations count as the same function if their float64 values agree to 1e-9 relative on a fixed grid. An activation
    whose gradient is declared a surrogate has only the one that it declares (``same_as``).

    Args:
        subjects: the activations of the run, by name.
        scan: range of inputs in which to search for kinks of the frameworks' activations.
        guard: returns a context manager in which the activation of a name is called.

    Returns:
        By name, the equal spellings by name; activations without any are missing.
    """
    x = np.concatenate([np.linspace(-8, 8, 513), [-100.0, -20.0, 20.0, 100.0]])
    known = dict(subjects)
    for framework in {subject.framework.name: subject.framework for subject in subjects.values()}.values():
        for name, activation in framework.known_activations().items():
            known[name] = Subject(activation, scan)
    values: dict[str, Floats] = {}
    for name, subject in known.items():
        try:
            with guard(name):
                values[name] = subject.exact("float64")(x)
        except Exception:
            continue
    groups: dict[str, dict[str, Subject]] = {}
    for name, subject in subjects.items():
        declared = subject.declared_spelling
        if declared is not None and declared in known:
            groups.setdefault(name, {})[declared] = known[declared]
        if name not in values or subject.activation.surrogate:
            continue
        for other, theirs in values.items():
            if other == name or (other in subjects and subjects[other].activation.surrogate):
                continue
            if other in subjects and subjects[other].activation.name == subject.activation.name:
                continue  # of two arguments of a maximum, one alone may get the gradient at a tie
            mine = values[name]
            if mine.shape == theirs.shape and _same(mine, theirs):
                groups.setdefault(name, {})[other] = known[other]
    return groups


def _same(a: Floats, b: Floats) -> bool:
    with np.errstate(invalid="ignore"):  # two infinities have no difference
        return bool((np.abs(a - b) <= 1e-9 * (1 + np.abs(a))).all())
