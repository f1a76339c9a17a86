"""Laws: functions that check one case each, and what a run must know to select them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.violation import LawViolation, NotApplicable
from relucheck.gate.frameworks.port import CAPABILITIES, missing
from relucheck.gate.subject import Subject
from relucheck.gate.verdicts import GRADIENT

Check = Callable[[Case], None]
KinkRows = Callable[[Case], list[dict[str, Any]]]


def _everywhere(case: Case) -> bool:
    return True


def has_others(case: Case) -> bool:
    """Whether a case checks one of several arguments, parts or elements of a row."""
    view = case.subject.view
    return view is not None and len(view.names) > 1


@dataclasses.dataclass(frozen=True)
class Law:
    """A property that every correct activation gradient has, with the function that checks it.

    Attributes:
        name: name of the law, the second part of an item's id.
        check: checks a case. It raises ``LawViolation`` if the property does not hold, and ``NotApplicable`` if the law
            does not apply.
        summary: what holds, the first paragraph of the function's docstring.
        applies: whether a case gets an item for this law.
        needs: the capabilities that the law needs of a framework, names from ``CAPABILITIES``. It is skipped for a
            framework that lacks one.
        needs_gradient: whether the law is skipped if forward or backward raises.
        needs_stable: whether the law is skipped if two calls on the same input differ.
        explains_failure: whether this law reports why an activation does not run; only one law does.
        needs_peers: whether it compares with other activations that are numerically the same function.
        per_channel: whether other laws check it again in every channel, and for other numbers of the other arguments.
        kink_rows: computes the rows that an item of this law adds to the kink table; None if it adds none.
        cause: what a failure usually means, where the law's message does not say it; a violation can name another cause.
        group: laws of one group usually fail together where one fault breaks them. Empty for a law that nothing else
            breaks with it.
    """

    name: str
    check: Check
    summary: str
    applies: Callable[[Case], bool] = _everywhere
    needs: tuple[str, ...] = ()
    needs_gradient: bool = True
    needs_stable: bool = True
    explains_failure: bool = False
    needs_peers: bool = False
    per_channel: bool = False
    kink_rows: KinkRows | None = None
    cause: str = ""
    group: str = GRADIENT

    def lacks(self, case: Case) -> str:
        """Return why the framework of a case cannot serve the law; empty if it can."""
        return missing(case.framework, self.needs, case.dtype)


#: Every law by name, in the order of definition.
REGISTRY: Final[dict[str, Law]] = {}


def law(
    *,
    applies: Callable[[Case], bool] = _everywhere,
    needs: tuple[str, ...] = (),
    needs_gradient: bool = True,
    needs_stable: bool = True,
    explains_failure: bool = False,
    needs_peers: bool = False,
    per_channel: bool = False,
    kink_rows: KinkRows | None = None,
    cause: str = "",
    group: str = GRADIENT,
) -> Callable[[Check], Check]:
    """Return a decorator that registers a function as the law of its name.

    The first paragraph of the function's docstring is the law's summary. The arguments are the fields of ``Law``.

    Raises:
        ValueError: for a need that is no capability, and in the decorator for a name that is registered already.
    """
    for need in needs:
        if need not in CAPABILITIES:
            raise ValueError(
                f"a law needs {need!r}, which is no capability; the capabilities are {', '.join(CAPABILITIES)}"
            )

    def register(check: Check) -> Check:
        name = check.__name__
        if name in REGISTRY:
            raise ValueError(f"law {name!r}: defined twice; rename one of the two functions")
        REGISTRY[name] = Law(
            name,
            # numbers out of range are what laws look for, so they are no reason for NumPy to warn
            np.errstate(all="ignore")(check),
            inspect.cleandoc(check.__doc__ or "").split("\n\n")[0].replace("\n", " "),
            applies,
            needs,
            needs_gradient,
            needs_stable,
            explains_failure,
            needs_peers,
            per_channel,
            kink_rows,
            cause,
            group,
        )
        return check

    return register


def violations_of(case: Case, subject: Subject, where: str) -> Iterator[LawViolation]:
    """Check the laws that are ``per_channel`` on another subject than that of a case.

    Yields:
        A violation of the law that is being checked for each law that is broken; it begins with ``where``.
    """
    other = Case(subject, case.dtype, case.device, case.config)
    other.law = case.law
    for checked in [entry for entry in REGISTRY.values() if entry.per_channel and not entry.lacks(other)]:
        try:
            checked.check(other)
        except NotApplicable:
            continue
        except LawViolation as error:
            yield LawViolation(
                error.activation,
                case.law,
                error.dtype,
                f"{where}: {error.what}",
                device=error.device,
                level=error.level,
                counterexample=error.counterexample,
                cause=error.cause,
            )
