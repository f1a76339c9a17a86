"""What a law is: a named function that looks at one case and raises a violation, and what a run must know about it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Final

from relucheck.gate.cases.case import Case

Check = Callable[[Case], None]
KinkRows = Callable[[Case], list[dict[str, Any]]]


def _everywhere(case: Case) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Law:
    """A property that every correct activation gradient has.

    Attributes:
        name: second part of an item's id.
        check: raises :class:`~relucheck.gate.cases.violation.LawViolation` where the property does not hold,
            :class:`~relucheck.gate.cases.violation.NotApplicable` where it says nothing.
        summary: one sentence, from the function's docstring.
        applies: whether an activation, in a dtype on a device, gets an item for it at all.
        frameworks: the frameworks whose own modes it speaks of; None where it asks nothing but a
            :class:`~relucheck.gate.subject.Subject`, so that it serves every framework that one is a port to.
        needs_gradient: whether forward and backward must run before it can say anything.
        explains_failure: whether it is the law that says why an activation does not run; the others refer to it.
        needs_peers: whether it compares with the activations of the run that are numerically the same function.
        per_channel: whether it holds in one channel and so must hold in each of them.
        kink_rows: the rows of the kink table that its items contribute, None where they contribute none.
    """

    name: str
    check: Check
    summary: str
    applies: Callable[[Case], bool] = _everywhere
    frameworks: tuple[str, ...] | None = None
    needs_gradient: bool = True
    explains_failure: bool = False
    needs_peers: bool = False
    per_channel: bool = False
    kink_rows: KinkRows | None = None

    def concerns(self, case: Case) -> bool:
        """Whether a case gets an item for this law."""
        return (self.frameworks is None or case.subject.framework in self.frameworks) and self.applies(case)


#: Every law by name, in the order of definition.
REGISTRY: Final[dict[str, Law]] = {}


def law(
    *,
    applies: Callable[[Case], bool] = _everywhere,
    frameworks: tuple[str, ...] | None = None,
    needs_gradient: bool = True,
    explains_failure: bool = False,
    needs_peers: bool = False,
    per_channel: bool = False,
    kink_rows: KinkRows | None = None,
) -> Callable[[Check], Check]:
    """Registers a function as the law of its name; the first sentence of its docstring is the law's summary.

    The arguments are the fields of :class:`Law`.
    """

    def register(check: Check) -> Check:
        name = check.__name__
        if name in REGISTRY:
            raise ValueError(f"law {name!r}: defined twice; rename one of the two functions")
        REGISTRY[name] = Law(
            name,
            check,
            inspect.cleandoc(check.__doc__ or "").split("\n\n")[0].replace("\n", " "),
            applies,
            frameworks,
            needs_gradient,
            explains_failure,
            needs_peers,
            per_channel,
            kink_rows,
        )
        return check

    return register
