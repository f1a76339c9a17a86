"""What a law is: a named function that looks at one case and raises a violation."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Final

import torch

from relucheck.gate.laws.case import Case
from relucheck.gate.subject import Subject

Check = Callable[[Case], None]


def _always(subject: Subject) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Law:
    """A property that every correct activation gradient has.

    Attributes:
        name: second part of an item's id.
        check: raises :class:`~relucheck.gate.laws.violation.LawViolation` where the property does not hold,
            :class:`~relucheck.gate.laws.violation.NotApplicable` where it says nothing.
        summary: one sentence, from the function's docstring.
        relevant: whether an activation gets an item for it at all.
        dtypes: the dtypes that it is checked in; None for all.
    """

    name: str
    check: Check
    summary: str
    relevant: Callable[[Subject], bool] = _always
    dtypes: tuple[torch.dtype, ...] | None = None


#: Every law by name, in the order of definition.
REGISTRY: Final[dict[str, Law]] = {}


def law(
    *, relevant: Callable[[Subject], bool] = _always, dtypes: tuple[torch.dtype, ...] | None = None
) -> Callable[[Check], Check]:
    """Registers a function as the law of its name; the first sentence of its docstring is the law's summary."""

    def register(check: Check) -> Check:
        name = check.__name__
        if name in REGISTRY:
            raise ValueError(f"law {name!r}: defined twice; rename one of the two functions")
        summary = inspect.cleandoc(check.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        REGISTRY[name] = Law(name, check, summary, relevant, dtypes)
        return check

    return register
