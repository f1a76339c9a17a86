"""Laws: functions that check one case each, and what a run must know to select them."""

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
    """A property that every correct activation gradient has, with the function that checks it.

    Attributes:
        name: name of the law, the second part of an item's id.
        check: checks a case. It raises ``LawViolation`` if the property does not hold, and ``NotApplicable`` if the law
            does not apply.
        summary: what holds, the first paragraph of the function's docstring.
        applies: whether a case gets an item for this law.
        frameworks: names of the frameworks to which the law is specific; None if it uses only the methods of ``Subject``
            and therefore works for every framework.
        needs_gradient: whether the law is skipped if forward or backward raises.
        explains_failure: whether this law reports why an activation does not run; only one law does.
        needs_peers: whether it compares with other activations that are numerically the same function.
        per_channel: whether the law ``channels`` checks it in every channel.
        kink_rows: computes the rows that an item of this law adds to the kink table; None if it adds none.
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
        """Whether a case gets an item for this law, in view of its framework and ``applies``."""
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
    """Return a decorator that registers a function as the law of its name.

    The first paragraph of the function's docstring is the law's summary. The arguments are the fields of ``Law``.

    Raises:
        ValueError: in the decorator, for a name that is registered already.
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
